"""The wheel installs one name, carries the shipped files and finds them from anywhere; the lock pins everything and
names no machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_installs_one_name_with_the_shipped_files_inside(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"reco_tune"}
    for folder, pattern in (("search_spaces", "*.yaml"), ("analysis", "*.py")):
        shipped = {f"reco_tune/_bundled/{folder}/{path.name}" for path in (ROOT / folder).glob(pattern)}
        assert shipped <= set(names)
    assert "reco_tune/_bundled/search_spaces/demo.yaml" in names


def test_an_installed_wheel_finds_its_spaces_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    program = """
from reco_tune.bundled import bundled
from reco_tune.settings import load_space
path = bundled("search_spaces") / "demo.yaml"
load_space(path)
print(path)
"""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert found.stdout.strip() == str(site / "reco_tune" / "_bundled" / "search_spaces" / "demo.yaml"), found.stderr


def test_importing_the_package_is_instant_and_silent() -> None:
    program = (
        "import sys; import reco_tune; heavy = {'torch', 'ray', 'mlflow', 'optuna', 'pydantic'} & set(sys.modules);"
        " print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_lock_pins_every_package_and_names_no_machine() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9._-]+==[0-9][a-z0-9.]*", line)] == []
    pinned = {line.split("==")[0] for line in lines}
    assert not {
        name for name in pinned if name.startswith(("nvidia", "triton", "cuda"))
    }  # torch brings its own where there is a GPU
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
        *project["build-system"]["requires"],
        "uv",
    ]
    assert {re.split(r"[\[<>=~]", item)[0].lower() for item in asked} <= pinned
