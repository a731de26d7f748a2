"""Where a study stands: the hypervolume that the status line and the live view tell."""

from __future__ import annotations

import pytest

from reco_tune.cli.estimate import headline, standing
from reco_tune.study_log import RunRecord, StudyRecord


def run(
    name: str, fvd: float, speedup: float | None, state: str = "evaluated", budget: str = "equal_steps"
) -> RunRecord:
    metrics = {"fvd": fvd} | ({"speedup": speedup} if speedup is not None else {})
    return RunRecord(name, 0, name.split("-")[0], budget, 0, state=state, metrics=metrics)  # type: ignore[arg-type]


FULL, FAST, SLOW = run("full-s0", 2.0, None, budget="both"), run("search-0000", 6.0, 3.0), run("search-0001", 8.0, 2.0)


@pytest.mark.parametrize(
    ("runs", "volume", "worst"),
    [
        ([], None, 0.0),
        ([FULL], None, 2.0),
        ([FULL, FAST], 1.0 * 4, 6.0),
        ([FULL, FAST, SLOW], 1.0 * 6 + 2.0 * 2, 8.0),
        ([FULL, FAST, SLOW, run("search-0002", 1.0, 9.0, state="pruned")], 10.0, 8.0),
        ([FULL, FAST, SLOW, run("reco-equal_compute-s0", 1.0, 2.0, budget="equal_compute")], 10.0, 8.0),
    ],
    ids=[
        "nothing",
        "one-run",
        "the-worst-is-the-reference",
        "dominated-runs-move-it",
        "pruned-is-no-point",
        "another-budget",
    ],
)
def test_hypervolume_so_far(runs: list[RunRecord], volume: float | None, worst: float) -> None:
    found = standing(StudyRecord(runs={run.trial: run for run in runs}), trials=0, now=0)
    assert (found.hypervolume, found.worst) == (volume, worst)
    assert ("hypervolume 10 (to speed-up 0 and FVD 8)" in headline(found)) is (volume == 10.0)


def test_a_sampled_run_that_is_not_calibrated_yet_counts_as_those_that_are() -> None:
    """Or the work that is done would be a smaller part of the whole whenever a run starts."""
    started = run("search-0002", 0.0, None, state="running")
    started.metrics = {}
    before, after = ({told.trial: told for told in runs} for runs in ([FULL, FAST], [FULL, FAST, started]))
    shares = [standing(StudyRecord(runs=runs), trials=4, now=0).done_share for runs in (before, after)]
    assert shares[0] == shares[1] == pytest.approx((1 + 1 / 3) / (1 + 4 / 3))


def test_what_was_spent_is_all_stages_and_a_shared_calibration_once() -> None:
    """Compilation, too; a sampled run's own calibration stands under its name and among its metrics."""
    stages = {"compile_seconds": 100.0, "training_seconds": 10.0, "generation_seconds": 2.0, "evaluation_seconds": 1.0}
    runs = {name: run(name, 1.0, None) for name in ("reco-s0", "search-0000")}
    for told in runs.values():
        told.metrics |= stages
    runs["search-0000"].metrics["calibration_seconds"] = 7.0
    calibrations = {"reco": {"calibration_seconds": 3.0}, "search-0000": {"calibration_seconds": 7.0}}
    assert StudyRecord(runs=runs, calibrations=calibrations).device_seconds == 2 * 113 + 3 + 7
