"""Runs that go wrong by themselves: each fails with one sentence, and the study goes on with the others."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from small_study import WatchedStudy, begun, deterministic, small_space
from struck import Struck, lines_about

from reco_tune.study import Options, resume, run
from reco_tune.study.searcher import Search
from reco_tune.study_log import StudyFolder, read_events

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

DIVERGING = 1e30
"""A learning rate."""
TOO_WIDE = 2**22
"""A width whose first matrix would take 211 TB, more than a process can address: the system refuses it at once, however
it overcommits.
"""


def test_a_loss_that_is_not_finite_and_a_model_that_is_too_large(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space = small_space(
        tmp_path,
        "arms={}",
        "budgets=[equal_steps]",
        f"search={{training.learning_rate: {{choice: [0.003, {DIVERGING:.1e}]}}, model.width: {{choice: [16,"
        f" {TOO_WIDE}]}}}}",
        "trials=4",
        "sampler.kind=grid",
        "resources.concurrent_trials=1",
    )
    folder = tmp_path / "study"
    result = run(space, folder, Options(track=False), Struck(StudyFolder(folder), lambda event, workers: False))
    assert result.study.finished
    reasons = {
        (run_.params["training.learning_rate"], run_.params["model.width"]): run_.reason
        for run_ in result.study.runs.values()
    }
    assert reasons[0.003, 16] == ""
    assert "lower training.learning_rate (1e+30)" in reasons[DIVERGING, 16]
    for rate in (0.003, DIVERGING):
        assert "it ran out of memory" in reasons[rate, TOO_WIDE] and "training.micro_batches" in reasons[rate, TOO_WIDE]
    search = Search(space)
    for event in read_events(result.folder.events):
        search.apply(event)
    assert sorted(trial.state.name for trial in search.trials) == ["COMPLETE", "FAIL", "FAIL", "FAIL"]
    told = lines_about(capfd.readouterr(), " failed: ")
    assert len(told) == 3


def test_a_run_that_hangs(finished_study: WatchedStudy, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A stopped process neither reports nor ends: after its deadline and the grace period it is killed, and its group
    goes on.
    """
    folder = begun(
        finished_study, tmp_path / "study", resources={"trial_deadline_seconds": 90.0, "concurrent_trials": 1}
    )

    def strike(event: dict[str, Any], workers: dict[str, int]) -> bool:
        if event["event"] != "reported":
            return False
        os.kill(workers[event["trial"]], signal.SIGSTOP)
        return True

    watcher = Struck(folder, strike)
    result = resume(folder.path, Options(track=False), watcher)
    assert result.study.finished
    hung = watcher.event["trial"]
    assert result.study.runs[hung].state == "failed"
    assert result.study.runs[hung].reason == "it did not end within resources.trial_deadline_seconds (90)"
    for trial, record in result.study.runs.items():
        if trial != hung:
            assert deterministic(record)["metrics"] == deterministic(finished_study.study.runs[trial])["metrics"]
    with pytest.raises(ProcessLookupError):
        os.kill(watcher.workers[hung], 0)
    assert len(lines_about(capfd.readouterr(), " failed: ")) == 1
