"""Limits of a study: what counts as spent, and what is refused before anything starts or goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_study import small_space
from test_growth import Steered
from test_unchanged import begun

from reco_tune.cost import plan
from reco_tune.errors import SettingsError, StudyError
from reco_tune.settings import load_space
from reco_tune.study import Growth, Options, resume
from reco_tune.study.growth import grown
from reco_tune.study.limits import check_affordable, limit_reached
from reco_tune.study_log import read_study, replay


def told(time: float, event: str, **fields: Any) -> dict[str, Any]:
    return {"time": time, "event": event, **fields}


def run_of(number: int, time: float, end: str) -> list[dict[str, Any]]:
    """An hour of a sampled run; it says what it has cost at a rung."""
    run = {"trial": f"search-{number:04d}"}
    asked = {"arm": "search", "budget": "equal_steps", "seed": 0, "settings": {}, "settings_hash": str(number)}
    spent = {"training_seconds": 1800.0, "generation_seconds": 0.0, "evaluation_seconds": 0.0}
    return [
        told(time, "asked", **run, **asked),
        told(time, "started", **run, attempt=1),
        told(time + 1800, "reported", **run, step=10, metrics=spent),
        told(time + 3600, end, **run, metrics={"training_seconds": 3600.0} if end == "evaluated" else {}),
    ]


LOG = [
    told(0, "study", name="s", question="?", arms=["full"], provenance={}),
    told(0, "calibrated", key="full", metrics={"calibration_seconds": 1800.0}),
    *run_of(0, 0, "evaluated"),
    told(900_000, "pruned", trial="search-0000", reason="by hand", aside=True),
    told(1_000_000, "resumed"),
    *run_of(1, 1_000_000, "pruned")[:3],
]
"""Two hours of device time were spent, an hour and a half at work; nobody drove it for 11 days."""


@pytest.mark.parametrize(
    ("limit", "idle_seconds", "said"),
    [
        ("device_hours=2.1", 0, ""),
        ("device_hours=2", 0, "stop_after.device_hours (2) is reached: 2"),
        ("wall_hours=1.6", 0, ""),
        ("wall_hours=1.6", 600, "stop_after.wall_hours (1.6) is reached: 1.67"),
        ("trials=2", 0, ""),
        ("trials=1", 0, "stop_after.trials (1) is reached: 1"),
    ],
)
def test_what_counts_as_spent(limit: str, idle_seconds: float, said: str, tmp_path: Path) -> None:
    assert limit_reached(small_space(tmp_path, f"stop_after.{limit}"), replay(LOG), idle_seconds) == said


def test_fixed_arms_that_do_not_fit_are_refused_with_the_forecast(tmp_path: Path) -> None:
    for limit in ("device_hours=1.0e-6", "wall_hours=1.0e-6"):
        planned = plan(small_space(tmp_path, f"stop_after.{limit}"))
        with pytest.raises(
            SettingsError, match=r"stop_after.* is less than the forecast for the fixed arms alone \(.*raise"
        ):
            check_affordable(planned, here=True, at_once=2)
        check_affordable(planned, here=False, at_once=2)  # whose pace nobody knows
    check_affordable(plan(small_space(tmp_path, "stop_after.device_hours=9")), here=True, at_once=1)


def test_a_live_study_stops_at_its_limit_once_there_is_something_left(tmp_path: Path) -> None:
    live = Steered(begun(tmp_path, "running", "stop_after.trials=1"))
    heard: list[str] = []
    live.steering._limit = heard.append
    live.steering.check_limits()
    assert heard == [] and live.given()
    live.driver.take_in({"event": "pruned", "key": "search-0000", "kind": "trial", "reason": "dominated"})
    live.steering.check_limits()
    assert heard == ["stop_after.trials (1) is reached: 1"]


def test_a_study_that_reached_its_limit_goes_on_under_a_higher_one(tmp_path: Path) -> None:
    study = begun(tmp_path, "running", "stop_after.trials=1")
    live = Steered(study)
    live.driver.take_in({"event": "pruned", "key": "search-0000", "kind": "trial", "reason": "dominated"})
    live.driver.writer.write("limited", reason="stop_after.trials (1) is reached: 1")
    assert read_study(study.path).limited
    with pytest.raises(
        StudyError, match=r"stop_after.trials \(1\) is reached.*`reco-tune resume .* stop_after.trials=MORE`"
    ):
        resume(study.path, Options(track=False))
    higher = grown(load_space(study.settings), Growth(changes=("stop_after.trials=null",)))
    assert higher.stop_after.trials is None and limit_reached(higher, read_study(study.path)) == ""
