"""What `.ci/run` does with the outcomes of its steps.

Small programs play `make` and the demo; some tests in place of the faults run under the Makefile's options of pytest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = "1816 passed, 8 skipped in 367.02s (0:06:07)"
CHECK = f"""echo 'All checks passed!'; echo 'Contracts: 5 kept, 0 broken.'; echo '{SUMMARY}'"""
DEMO = (
    """mkdir -p "$4/studies/demo-quick/report"; echo arm > "$4/studies/demo-quick/report/ablation.csv"; echo demo ran"""
)
FAULTS = """
from pathlib import Path

TRIES = Path(__file__).with_name("tries")

def test_steady():
    pass

def test_lost_machine():
    TRIES.open("a").write("x")
    assert len(TRIES.read_text()) > {failures}
"""


def _ci(folder: Path, failures: int = 0, check: str = CHECK) -> subprocess.CompletedProcess[str]:
    """Runs `.ci/run` in a project whose test_lost_machine fails so many times."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    (folder / "tests" / "faults").mkdir(parents=True)
    (folder / "tests" / "faults" / "test_machines.py").write_text(FAULTS.format(failures=failures))
    (faults,) = re.findall(r"^faults:.*\n\t\$\(BIN\)/python (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for path, does in {
        "bin/make": f"case $1 in check) {check};; faults) exec {sys.executable} {faults};; esac",
        ".venv/bin/reco-tune": DEMO,
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (folder / path).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run([folder / ".ci" / "run"], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("failures", [0, 1], ids=["steady", "flaky"])
def test_flaky_faults_are_named_and_the_last_line_is_the_summary_of_the_tests(tmp_path: Path, failures: int) -> None:
    done = _ci(tmp_path, failures)
    assert done.returncode == 0, done.stdout + done.stderr
    *before, last = done.stdout.splitlines()
    assert last == SUMMARY and "demo ran" in before
    flaky = [line for line in before if line.startswith("flaky")]
    assert len(flaky) == failures
    if failures:
        assert flaky == [before[-1]] and flaky[0].endswith("tests/faults/test_machines.py::test_lost_machine")


def test_a_fault_that_fails_twice_fails_ci(tmp_path: Path) -> None:
    done = _ci(tmp_path, failures=2)
    assert done.returncode != 0
    assert "FAILED tests/faults/test_machines.py::test_lost_machine" in done.stdout
    assert "flaky" not in done.stdout and SUMMARY not in done.stdout.splitlines()[-1]


def test_nothing_runs_after_checks_that_fail(tmp_path: Path) -> None:
    done = _ci(tmp_path, check=f"{CHECK}; exit 2")
    assert done.returncode != 0 and "demo ran" not in done.stdout and "test_machines" not in done.stdout


def test_hooks_and_ci_run_the_same_checks() -> None:
    """The hooks of pre-commit call the programs of `make check`, from the environment that is there."""
    check = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert check is not None
    programs = re.findall(r"\$\(BIN\)/(.*)", check[1])
    hooks = re.findall(r"entry: \.venv/bin/(.*)\}", (ROOT / ".pre-commit-config.yaml").read_text())
    assert [hook.split() for hook in hooks] == [
        [word for word in program.split() if word not in ("--check", ".")] for program in programs
    ]
    assert "$(MAKE) test" in check[1]
