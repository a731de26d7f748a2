"""The driver is killed with SIGKILL in the middle of a study: nothing is lost, nothing is done twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_study import WatchedStudy, begun, ray_processes_left
from struck import assert_nothing_lost

from reco_tune.study import Options, StudyResult, resume
from reco_tune.study_log import StudyFolder, StudyRecord, read_study

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

DRIVER = """
import os, signal, sys
from pathlib import Path
from reco_tune.study import Observer, Options, resume

class KillsItself(Observer):
    def on_event(self, event):
        if event["event"] == "reported" and event["step"] >= 20:
            os.kill(os.getpid(), signal.SIGKILL)

resume(Path(sys.argv[1]), Options(track=False), KillsItself())
"""


@dataclass
class Disturbed:
    folder: StudyFolder
    killed: StudyRecord
    """The study when its driver had been killed."""
    said: str
    """What the killed driver had printed."""
    temp_left: Path
    """Temp folder of the killed driver's cluster."""
    result: StudyResult


@pytest.fixture(scope="module")
def disturbed(finished_study: WatchedStudy, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """The undisturbed study's log up to its first result and a torn line, then a driver that is killed, then one that
    is not.
    """
    folder = begun(
        finished_study,
        tmp_path_factory.mktemp("disturbed") / "study",
        trials=2,
        done=1,
        resources={"concurrent_trials": 1},
    )  # no result hangs on how many run at once, and one worker group starts sooner
    with folder.events.open("a") as log:
        log.write('{"event":"started","tri')
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder.path)], capture_output=True, text=True, timeout=400
    )
    assert driver.returncode == -signal.SIGKILL, driver.stderr
    killed, temp_left = read_study(folder.path), Path((folder.ray / "temp").read_text())
    return Disturbed(
        folder, killed, driver.stdout + driver.stderr, temp_left, resume(folder.path, Options(track=False))
    )


def test_the_driver_died_in_the_middle(disturbed: Disturbed) -> None:
    states = Counter(run.state for run in disturbed.killed.runs.values())
    assert states["running"] == 1 and not disturbed.killed.finished


def test_nothing_is_lost_and_nothing_done_twice(disturbed: Disturbed, finished_study: WatchedStudy) -> None:
    assert_nothing_lost(disturbed.result.study, disturbed.folder, finished_study)
    assert len(disturbed.result.study.runs) == 5


def test_what_was_running_went_on_as_a_further_attempt(disturbed: Disturbed, finished_study: WatchedStudy) -> None:
    for trial, before in disturbed.killed.runs.items():
        if before.state == "running":
            assert disturbed.result.study.runs[trial].attempt > before.attempt
            steps = [report["step"] for report in disturbed.result.study.runs[trial].reports]
            undisturbed = [report["step"] for report in finished_study.study.runs[trial].reports]
            assert steps == undisturbed, "rungs from before the kill are kept"


def test_the_search_asks_the_same_first_questions(disturbed: Disturbed, finished_study: WatchedStudy) -> None:
    for trial in ("search-0000", "search-0001"):
        assert disturbed.result.study.runs[trial].params == finished_study.study.runs[trial].params


def test_a_person_sees_nothing_of_rays_words(disturbed: Disturbed) -> None:
    assert disturbed.said == ""


def test_what_the_killed_cluster_left_is_cleared(disturbed: Disturbed) -> None:
    assert not disturbed.temp_left.exists()
    assert ray_processes_left() == []
