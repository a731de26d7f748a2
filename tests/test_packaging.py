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

import reco_tune

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


def test_there_is_one_version(wheel: Path, tmp_path: Path) -> None:
    """It stands in pyproject.toml; the package has it from the metadata that it was installed with."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "import reco_tune; print(reco_tune.__version__)"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == version, done.stderr
    source = "\n".join(path.read_text() for path in (ROOT / "reco_tune").rglob("*.py"))
    assert f'"{version}"' not in source
    with pytest.raises(AttributeError, match="no_such_name"):
        reco_tune.no_such_name  # noqa: B018


def test_the_wheel_carries_the_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("dist-info/licenses/LICENSE")]
    assert archive.read(name).decode() == (ROOT / "LICENSE").read_text()
    (metadata,) = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
    assert "License-Expression: Apache-2.0\n" in archive.read(metadata).decode()


def test_the_changelog_has_the_sections_and_lines_that_people_and_programs_expect() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert [line for line in lines if len(line) > 100] == []
    releases = [line for line in lines if line.startswith("## ")]
    assert releases[0] == "## [Unreleased]"
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line) for line in releases[1:])
    sections = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    entries = re.split(r"\n(?=- )", "\n".join(lines))[1:]
    assert [entry for entry in entries if not re.search(r"\.(\n\n|\n?$)", entry)] == [], (
        "sentences end with a full stop"
    )


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
