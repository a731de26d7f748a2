"""What a study's log says of the code and the packages that it ran with, and what it must not say."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path

import pytest

import reco_tune
from reco_tune.study import provenance
from reco_tune.study.provenance import MOST_CHANGES_BYTES, environment, study_provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with one commit, in which this code seems to lie."""
    (tmp_path / "reco_tune").mkdir()
    for name in ("code.py", ".env", "server.key"):
        (tmp_path / name).write_text("a = 1\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(reco_tune, "__file__", str(tmp_path / "reco_tune" / "__init__.py"))
    return tmp_path


def test_what_is_not_committed_is_in_the_record(checkout: Path) -> None:
    assert environment()["uncommitted"] == "" and not study_provenance()["commit"].endswith("+")
    (checkout / "code.py").write_text("a = 2\n")
    assert "-a = 1\n+a = 2\n" in environment()["uncommitted"] and study_provenance()["commit"].endswith("+")


@pytest.mark.parametrize(
    "line",
    [
        "password = 'hunter2'",
        "API_KEY=abc",
        "headers = {'Authorization': 'Bearer abc'}",
        "uri = 'https://me:hunter2@mlflow'",
        "key = 'AKIAABCDEFGHIJKLMNOP'",
        "login('hf_abcdefghijklmnopqrstuvwxyz')",
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_a_line_that_may_hold_a_secret_is_left_out(line: str, checkout: Path) -> None:
    """A log is mailed and mirrored."""
    (checkout / "code.py").write_text(f"tokens_per_block = 9  # a word of this project\n{line}\n")
    said = environment()["uncommitted"]
    assert line not in said and "[a line that may hold a secret]" in said and "+tokens_per_block = 9" in said


def test_files_of_secrets_are_left_out_whole(checkout: Path) -> None:
    for name in (".env", "server.key"):
        (checkout / name).write_text("opensesame\n")
    said = environment()["uncommitted"]
    assert "opensesame" not in said and "server.key: left out" in said and ".env: left out" in said


def test_a_large_difference_is_cut(checkout: Path) -> None:
    (checkout / "code.py").write_text("x = 'ä'\n" * 20_000)
    said = environment()["uncommitted"]
    assert MOST_CHANGES_BYTES < len(said.encode()) < MOST_CHANGES_BYTES + 100 and "more bytes were left out" in said


def test_every_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = environment()["packages"]
    assert f"torch=={importlib.metadata.version('torch')}" in packages and len(packages) > 50
    monkeypatch.setattr(provenance, "_checkout", lambda: None)  # an installed wheel
    assert environment() == {"packages": packages, "uncommitted": ""} and study_provenance()["commit"] == ""
