"""What quality costs: the history ends where the frontier is, every device second counts once, compute to a level by
hand.
"""

import copy
import math

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from toy_study import record_study

from reco_tune.quantities import STAGE_SECONDS
from reco_tune.reporting import Evidence
from reco_tune.reporting.render.markdown import markdown
from reco_tune.reporting.sections import build, cost
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


def test_compilation_is_a_stage_where_a_run_compiled(evidence):
    """Logs written before it was one have no such number: no column, and the others as they were."""
    stages = [stage.name for stage in STAGE_SECONDS]
    without, runs = ledger(evidence.study, evidence.own), evidence.own.copy()
    assert without["compile_seconds"].isna().all()
    assert "compile (s)" not in headings(evidence)
    runs.loc[runs["arm"] == "reco", "compile_seconds"] = 1800.0
    costs, before = (table.set_index("arm") for table in (ledger(evidence.study, runs), without))
    of_reco = (runs["arm"] == "reco").sum()
    assert costs.loc["total", "compile_seconds"] == costs.loc["reco", "compile_seconds"] == 1800 * of_reco
    more = costs["device_hours"] - before["device_hours"]
    assert list(more[more > 0].index) == ["reco", "total"] and more["total"] == pytest.approx(of_reco / 2)
    assert_frame_equal(*(table.drop(columns=["compile_seconds", "device_hours"]) for table in (costs, before)))
    assert costs.loc["total", "device_hours"] == pytest.approx(costs.loc["total", stages].sum() / 3600)
    assert "compile (s)" in headings(Evidence(runs, evidence.study))


def headings(evidence):
    (table,) = cost.build(evidence).tables
    return [column.heading for column in table.columns_of(table.groups[0])]


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


def overfit(evidence, arm, rises, seed=None):
    """The study with the validation losses of an arm's rungs replaced."""
    record = copy.deepcopy(evidence.study)
    for run in record.runs.values():
        if run.arm == arm and seed in (None, run.seed):
            for report, value in zip(run.reports, rises, strict=True):
                report["val_cross_entropy"] = value
            run.metrics["val_cross_entropy"] = rises[-1]
    return Evidence.read(record)


def test_a_baseline_that_overfits_is_no_cheaper_than_itself(evidence):
    """Its last rungs, worse than the first, were levels, which it had "reached" at a tenth of its compute."""
    risen = overfit(evidence, "full", (0.7, 0.6, 2.5))
    quality = compute_to_quality(compute_curves(risen))
    own = quality[(quality["arm"] == "full") & (quality["budget"] == "equal_steps")]
    assert list(own["val_cross_entropy"]) == [0.7, 0.6] and list(own["compute_ratio"]) == pytest.approx([1, 1])
    assert quality["compute_ratio"].max() < 10


def test_overfitting_is_one_sentence_and_tables_show_best_and_last(evidence):
    risen = overfit(evidence, "reco", (0.7, 0.6, 0.9))
    words = build("compute", risen).words
    assert len(words) == 2 and words[0] == (
        "`reco` at equal steps overfits after step 400 of 600 (pass 3.1 of 4.7): its validation cross-entropy rose from"
        " 0.600 to 0.900."
    )
    rows = compute_table(risen).set_index(["budget", "arm"]).loc["equal_steps"]
    assert list(rows.loc["reco", ["val_cross_entropy", "best_val_cross_entropy", "best_step"]]) == [0.9, 0.6, 400]
    assert rows.loc["full", "best_val_cross_entropy"] == rows.loc["full", "val_cross_entropy"]
    text = markdown(build("ablation", risen).tables)
    assert "| best val CE (nats/token) ↓ |" in text and " 0.900 | 0.600 |" in text and words[0] in text
    assert "best val CE" not in markdown(build("ablation", evidence).tables)
    assert build("compute", evidence).words == []


def test_a_seed_that_wobbles_is_no_turn(evidence):
    assert overfit(evidence, "reco", (0.7, 0.6, 0.61), seed=0).turns == []


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
