"""The driver's bookkeeping where an arm's speed cannot be measured: without Ray, on a real log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_study import small_space

from reco_tune.errors import RunFailedError
from reco_tune.study import Observer, Options
from reco_tune.study.journal import frozen
from reco_tune.study.runner import CALIBRATION, _Driver
from reco_tune.study_log import StudyFolder, read_events

REASON = "the speed of arm `reco` could not be measured: it ran out of memory"


def driver(folder: Path, *overrides: str) -> _Driver:
    """Of the small study with two seeds."""
    space = frozen(small_space(folder, "seeds=[0,1]", *overrides))
    return _Driver(space, StudyFolder(folder / "study"), Options(track=False), Observer())


def calibrated(one: _Driver, arm: str) -> None:
    hear(one, "calibrated", arm, metrics={"speedup": 1.0})


def hear(one: _Driver, event: str, arm: str, **fields: Any) -> None:
    """What the desk tells of a calibration."""
    one._take_in({"event": event, "key": CALIBRATION + arm, "kind": "calibration", **fields})


def asked_for(one: _Driver) -> list[str]:
    """Jobs that the driver gives out, calibrations that it has to wait for left out."""
    keys = []
    while (job := one._next_calibration() if one._todo is None else one._next_run()) is not None:
        keys.append(job.key)
    return keys


def test_an_arm_that_cannot_be_measured_fails_alone(tmp_path: Path) -> None:
    one = driver(tmp_path, "budgets=[equal_steps]")
    assert asked_for(one) == ["calibration.full", "calibration.reco"]
    calibrated(one, "full")
    assert asked_for(one) == []  # the other is still being measured
    hear(one, "failed", "reco", reason="it ran out of memory")
    assert asked_for(one) == ["full-s0", "full-s1", "search-0000", "search-0001"]
    failed = [(event["trial"], event["reason"]) for event in read_events(tmp_path / "study" / "events.jsonl") if event["event"] == "failed"]
    assert failed == [("reco-equal_steps-s0", REASON), ("reco-equal_steps-s1", REASON)]


def test_a_resumed_study_does_not_measure_it_again(tmp_path: Path) -> None:
    before = driver(tmp_path, "budgets=[equal_steps]", "trials=0")
    asked_for(before)
    calibrated(before, "full")
    hear(before, "failed", "reco", reason="it ran out of memory")
    asked_for(before)
    log = tmp_path / "study" / "events.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))  # killed before the last run was told
    again = driver(tmp_path, "budgets=[equal_steps]", "trials=0")
    assert asked_for(again) == ["full-s0", "full-s1"]
    assert {run.trial: run.reason for run in again.study.runs.values() if run.state == "failed"} == {
        "reco-equal_steps-s0": REASON,
        "reco-equal_steps-s1": REASON,
    }


@pytest.mark.parametrize(
    ("arm", "overrides"),
    [("full", ["budgets=[equal_steps]"]), ("reco", ["budgets=[equal_steps,equal_compute]"])],
    ids=["the baseline", "an arm whose steps follow from its speed"],
)
def test_what_nothing_can_go_on_without_ends_the_study(arm: str, overrides: list[str], tmp_path: Path) -> None:
    one = driver(tmp_path, *overrides)
    asked_for(one)
    hear(one, "failed", arm, reason="it ran out of memory")
    with pytest.raises(RunFailedError, match=f"the speed of arm `{arm}` could not be measured: it ran out of memory"):
        one._conclude()
    assert not one.study.runs  # a resumed study measures again
