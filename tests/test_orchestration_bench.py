"""What orchestration costs: the parts of a recorded log by hand, and the bare ways' trials told in the events of a
study's log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reco_tune import quantities as q
from reco_tune.benchmarks.orchestration import (
    PARTS,
    Event,
    RecordedSearch,
    bench_space,
    beyond_work,
    row_of,
    search_in_process,
    trial_times,
)
from reco_tune.errors import RunFailedError
from reco_tune.evaluation import prepare_evaluation
from reco_tune.preparation import prepare_tokens
from reco_tune.settings import arm_experiment


def trial(name: str, asked: float, started: float, reported: float, ended: float) -> list[Event]:
    """Its work: 1 s of calibration, 2 s of training before the first report and 3 s after it, 4 s of sampling and
    evaluation.
    """

    def event(kind: str, at: float, **metrics: float) -> Event:
        return {"event": kind, "time": at, "trial": name, "metrics": metrics}

    return [
        event("asked", asked),
        event("started", started),
        event("calibrated", started + 1, **{q.CALIBRATION_SECONDS.name: 1.0}),
        event("reported", reported, **{q.TRAINING_SECONDS.name: 2.0}),
        event("reported", reported + 3, **{q.TRAINING_SECONDS.name: 5.0}),
        event("evaluated", ended, **{q.GPU_HOURS.name: 10 / 3600}),
    ]


TWO_AT_ONCE = [
    *trial("a", 0, 20, 24, 32),
    *trial("b", 0.5, 21, 25, 34),
    *trial("c", 32.5, 33, 36.25, 44),  # a's place: asked 0.5 s after its end
    *trial("d", 36, 36.25, 39.5, 48),  # b's place
    {"event": "asked", "time": 45, "trial": "e", "metrics": {}},  # never ended
]


def test_the_parts_of_a_recorded_log_by_hand() -> None:
    parts = beyond_work(trial_times(TWO_AT_ONCE), at_once=2)
    assert np.allclose(parts, [[0.5, 0.5, 0.25, 0.75], [2.0, 0.25, 0.25, 1.5]])


def test_one_at_a_time_a_trial_waits_for_the_one_before() -> None:
    log = [*trial("a", 0, 1, 5, 12), *trial("b", 12.5, 12.5, 16, 23.5)]
    assert np.allclose(beyond_work(trial_times(log), at_once=1), [[0.5, 0.0, 0.5, 0.5]])


def test_a_row_sums_up_and_its_parts_add_up() -> None:
    row: dict[str, Any] = row_of("ours", RecordedSearch(TWO_AT_ONCE, 2, began=-5.0, ended=50.0), expected=4)
    assert (row["low"], row["median"], row["high"], row["mean"]) == (2.0, 3.0, 4.0, 3.0)
    assert sum(row[part] for part in PARTS) == row["mean"]
    assert (row["work"], row["trials"], row["start_seconds"], row["whole_seconds"]) == (
        pytest.approx(10),
        4,
        25.0,
        55.0,
    )


def test_a_lost_trial_is_no_measurement() -> None:
    with pytest.raises(RunFailedError, match="ours ended 4 of 5 trials"):
        row_of("ours", RecordedSearch(TWO_AT_ONCE, 2, 0.0, 50.0), expected=5)


def test_bare_trials_are_told_in_the_events_of_a_log(tmp_path: Path) -> None:
    """Real trials outside Ray: every moment is there, in order, and the ledger's work fits between them."""
    space = bench_space(tmp_path / "cache", trials=2, steps=5)
    cache = prepare_tokens(arm_experiment(space, None))
    prepare_evaluation(arm_experiment(space, None), cache)
    search = search_in_process(space, cache.path, tmp_path)
    for one in trial_times(search.events):
        assert search.began <= one.asked <= one.started <= one.reported <= one.ended <= search.ended
        assert 0 < one.work_to_report < one.work < one.ended - one.started
    assert row_of("Optuna", search, expected=2)["at_once"] == 1
