"""Processes of a running study are killed: no run is lost, none is done twice, and a person reads one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_study import WatchedStudy, begun, ray_processes_left
from struck import Struck, assert_nothing_lost, kill_process, kill_worker, lines_about

from reco_tune.errors import RunFailedError
from reco_tune.study import Options, resume

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def test_a_killed_worker(finished_study: WatchedStudy, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = begun(finished_study, tmp_path / "study")
    watcher = Struck(folder, kill_worker)
    result = resume(folder.path, Options(track=False), watcher)
    assert_nothing_lost(result.study, folder, finished_study)
    victim = watcher.event["trial"]
    assert {trial: run.attempt for trial, run in result.study.runs.items()} == {
        trial: 1 + (trial == victim) for trial in result.study.runs
    }
    told = lines_about(capfd.readouterr(), "retried")
    assert len(told) == 1 and victim in told[0] and "its worker died" in told[0]


def test_a_killed_light_trial(finished_study: WatchedStudy, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Tune's process that stands for a run: the work itself does not hang on it."""
    folder = begun(finished_study, tmp_path / "study")
    result = resume(folder.path, Options(track=False), Struck(folder, kill_process("ImplicitFunc", "::follow")))
    assert_nothing_lost(result.study, folder, finished_study)
    assert {run.attempt for run in result.study.runs.values()} == {1}
    assert lines_about(capfd.readouterr(), "retried") == []


def test_a_killed_dispatcher(finished_study: WatchedStudy, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing can be heard any more: the study stops with one sentence and goes on when it is resumed."""
    folder = begun(finished_study, tmp_path / "study", trials=2)
    with pytest.raises(
        RunFailedError,
        match=r"run\(s\) are unfinished \(the driver lost its dispatcher .*`reco-tune resume .*` continues them",
    ):
        resume(folder.path, Options(track=False), Struck(folder, kill_process("Dispatcher")))
    assert ray_processes_left() == []
    result = resume(folder.path, Options(track=False))
    assert_nothing_lost(result.study, folder, finished_study)
    assert [result.study.runs[trial].params for trial in ("search-0000", "search-0001")] == [
        finished_study.study.runs[trial].params for trial in ("search-0000", "search-0001")
    ]
    lines_about(capfd.readouterr(), "retried")
