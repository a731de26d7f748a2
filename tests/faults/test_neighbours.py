"""Two studies at once on one machine, each with a Ray cluster of its own: neither hears of the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_study import WatchedStudy, begun
from struck import assert_nothing_lost, lines_about

from reco_tune.study_log import read_study

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def test_two_studies_on_one_machine(finished_study: WatchedStudy, tmp_path: Path) -> None:
    folders = [begun(finished_study, tmp_path / name, resources={"concurrent_trials": 1}) for name in ("one", "other")]
    command = [sys.executable, "-m", "reco_tune", "resume"]
    both = [
        subprocess.Popen([*command, str(folder.path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for folder in folders
    ]
    for process, folder in zip(both, folders, strict=True):
        _, said = process.communicate(timeout=500)
        assert process.returncode == 0, said
        assert lines_about(said, "retried") == []
        assert_nothing_lost(read_study(folder.path), folder, finished_study)
