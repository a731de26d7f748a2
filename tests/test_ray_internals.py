"""What of Ray may move with any release is used in one module, and Ray is held to the releases that were tried."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import ray
from packaging.requirements import Requirement

import reco_tune
from reco_tune.study import ray_internals

PACKAGE = Path(reco_tune.__file__).parent


def test_one_module_imports_what_ray_does_not_promise() -> None:
    private = re.compile(r"^\s*(?:from|import)\s+ray\.[\w.]*\b_\w|\bray\._\w|\bray\.\w[\w.]*\._\w", re.MULTILINE)
    users = {path for path in PACKAGE.rglob("*.py") if private.search(path.read_text(encoding="utf-8"))}
    assert users == {Path(ray_internals.__file__)}


def test_the_installed_ray_is_one_that_was_tried() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    (asked,) = [one for one in map(Requirement, project["dependencies"]) if one.name == "ray"]
    assert asked.specifier.contains(ray.__version__)
    assert not asked.specifier.contains("2.999"), "a release that nobody has tried is refused by the installer"


def test_a_persons_token_is_seen_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster gets one of its own only where there is none."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        assert not ray_internals.has_token()
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("a" * 64)
        assert ray_internals.has_token()
        monkeypatch.setenv("HOME", "/dev/null")
        assert not ray_internals.has_token()
        monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
        assert ray_internals.has_token()
    finally:
        monkeypatch.undo()
        ray_internals.forget_token()
