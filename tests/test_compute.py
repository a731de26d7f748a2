"""What quality costs: the history ends where the frontier is, every device second counts once, compute to a level by
hand.
"""

import math

import numpy as np
import pytest
from toy_study import record_study

from reco_tune.reporting import Evidence
from reco_tune.reporting.sections.compute import compute_curves, compute_table, compute_to_quality
from reco_tune.reporting.sections.cost import ledger
from reco_tune.reporting.sections.hypervolume import hypervolume_history


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    arms = ("full", "fewer_frames", "local_balanced", "reco")
    path = tmp_path_factory.mktemp("compute") / "toy"
    return Evidence.read(
        record_study(path, arms=arms, seeds=(0, 1), searched=12, again=("search-0003", "search-0005"), files=False)
    )


def test_the_history_ends_at_the_frontier(evidence):
    history, volumes = hypervolume_history(evidence), evidence.frontier.hypervolume
    for budget, rows in history.groupby("budget"):
        assert rows["device_hours"].is_monotonic_increasing
        assert rows["hypervolume"].iloc[-1] == pytest.approx(volumes[budget], rel=1e-12)  # float64 sums


def test_the_history_pays_for_everything_once(evidence):
    paid = hypervolume_history(evidence)["device_hours"].iloc[-1]
    costs = ledger(evidence.study, evidence.own).set_index("arm").loc["total"]
    shared = sum(
        metrics["calibration_seconds"]
        for key, metrics in evidence.study.calibrations.items()
        if key not in evidence.study.runs
    )
    pruned = evidence.study.calibrations["search-0011"]["calibration_seconds"]  # a pruned toy run has no hours
    assert paid == pytest.approx(evidence.runs["gpu_hours"].sum() + (shared + pruned) / 3600)
    assert paid == pytest.approx(costs["device_hours"])


def test_compute_is_one_under_equal_compute_and_one_over_the_speed_under_equal_steps(evidence):
    table = compute_table(evidence).set_index(["budget", "arm"])
    assert table.loc["equal_compute", "compute"].to_numpy() == pytest.approx(np.ones(4), rel=1e-2)  # steps are whole
    assert table.loc[("equal_steps", "reco"), "compute"] == pytest.approx(1 / 1.92)
    assert list(table.loc["equal_steps", "seeds"]) == [2] * 4


def test_the_baseline_reaches_its_own_levels_at_its_own_compute(evidence):
    quality = compute_to_quality(compute_curves(evidence))
    own = quality[quality["arm"] == "full"]
    assert list(own["compute"]) == pytest.approx([1 / 3, 2 / 3, 1] * 2)
    assert list(own["compute_ratio"]) == pytest.approx([1] * 6)


@pytest.mark.parametrize(
    ("level", "compute"),
    [(4.0, 1.0), (3.0, 1.0), (2.5, 1.5), (2.0, 2.0), (1.75, 3.0), (1.0, math.nan)],
    ids=["below-from-the-start", "at-the-start", "between", "at-a-rung", "after-a-rise", "never"],
)
def test_compute_to_a_level_by_hand(level, compute):
    curve = [(1.0, 3.0), (2.0, 2.0), (2.5, 2.0), (3.5, 1.5)]
    quality = compute_to_quality({"equal_steps": {"full": [(2.0, level)], "arm": curve}})
    row = quality[quality["arm"] == "arm"].iloc[0]
    assert row["compute"] == pytest.approx(compute, nan_ok=True)
    assert row["compute_ratio"] == pytest.approx(2 / compute, nan_ok=True)


def test_half_the_compute_stands_beside_the_whole(tmp_path):
    arms, budgets = ("full", "reco"), ("equal_compute", "half_compute")
    study = record_study(tmp_path / "toy", arms=arms, budgets=budgets, searched=0, files=False)
    table = compute_table(Evidence.read(study)).set_index(["budget", "arm"])["compute"]
    assert table[("half_compute", "full")] == pytest.approx(0.5)
    assert table[("half_compute", "full (whole budget)")] == pytest.approx(1)


def test_a_study_without_a_baseline_has_no_share_of_it(tmp_path):
    evidence = Evidence.read(
        record_study(tmp_path / "toy", arms=("reco",), budgets=("equal_steps",), searched=4, files=False)
    )
    assert compute_table(evidence)["compute"].isna().all()
    assert compute_to_quality(compute_curves(evidence)).empty
