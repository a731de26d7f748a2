"""The cost curve: at what share of the baseline's cost each arm reaches the baseline's FVD, the baseline included."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from small_study import small_space
from toy_study import record_study

from reco_tune.cost.planning import plan
from reco_tune.errors import SettingsError
from reco_tune.reporting import Evidence, load_runs
from reco_tune.reporting.quality import FVD
from reco_tune.reporting.sections.cost_curve import build, cost_curves, cost_table, reached, verdicts
from reco_tune.reporting.style import save
from reco_tune.settings import COMPUTE_SHARES, Space

CURVE = tuple(reversed(COMPUTE_SHARES))
ARMS = ("full", "fewer_frames", "reco")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("curve") / "toy"
    return load_runs(record_study(folder, ARMS, CURVE, seeds=(0, 1, 2), searched=0, files=False, noise=0.01))


def test_every_arm_runs_at_every_share_with_a_schedule_of_its_own(tmp_path: Path) -> None:
    space = small_space(tmp_path, "budgets=[equal_cost_curve]", "trials=0")
    assert space.budgets == CURVE
    steps = {run.trial: run.steps for run in plan(space).at_speeds({"full": 1.0, "reco": 2.0}).runs}
    assert steps["full-s0"] == 60 and steps["reco-equal_compute-s0"] == 120
    for budget, share in COMPUTE_SHARES.items():
        if share < 1:
            assert steps[f"full-{budget}-s0"] == round(60 * share)
            assert steps[f"reco-{budget}-s0"] == round(120 * share)


def test_what_is_named_twice_is_one_budget(tmp_path: Path) -> None:
    values = small_space(tmp_path).model_dump() | {"budgets": ("equal_steps", "half_compute", "equal_cost_curve")}
    assert Space.model_validate(values).budgets == (
        "equal_steps",
        "half_compute",
        *(one for one in CURVE if one != "half_compute"),
    )
    with pytest.raises(SettingsError, match="but arms has no `full`"):
        Space.model_validate(values | {"arms": {"reco": {}}})


@pytest.mark.parametrize(
    ("points", "level", "share", "bound"),
    [
        pytest.param([(0.25, 4.0), (1.0, 1.0)], 2.0, 0.5, "", id="between: straight on log scales"),
        pytest.param([(0.25, 4.0), (0.5, 2.0), (1.0, 1.0)], 2.0, 0.5, "", id="at a point"),
        pytest.param([(0.25, 2.0), (1.0, 1.0)], 2.0, 0.25, "at most", id="there at the smallest share"),
        pytest.param([(0.25, 4.0), (1.0, 3.0)], 2.0, 1.0, "more than", id="not there at the whole"),
        pytest.param([(0.25, 4.0), (0.5, 1.0), (1.0, 3.0)], 4**0.5, 0.25 * 2**0.5, "", id="the first time counts"),
    ],
)
def test_where_a_curve_reaches_a_level(
    points: list[tuple[float, float]], level: float, share: float, bound: str
) -> None:
    found = reached(points, level)
    assert found.share == pytest.approx(share) and found.bound == bound


def test_the_gain_is_the_baselines_share_over_the_arms() -> None:
    """FVD = a / cost, so the level 1.25 times the last FVD is reached at 1 / 1.25 of the whole cost."""
    shares = (0.125, 0.25, 0.5, 1.0)
    curves = {
        arm: {seed: [(share, level * (1 + 0.01 * seed) / share) for share in shares] for seed in (0, 1)}
        for arm, level in (("full", 2.0), ("cheap", 1.0), ("dear", 2.1), ("worse", 4.0))
    }
    table = cost_table(curves, 0.25).set_index("arm")
    assert table.loc["full", "cost_share"] == pytest.approx(1 / (1 + 0.25))
    assert table.loc["cheap", "gain"] == pytest.approx(2) and table.loc["cheap", "verdict"] == "cheaper"
    assert table.loc["dear", "gain"] == pytest.approx(1 / 1.05) and table.loc["dear", "verdict"] == "dearer"
    assert table.loc["worse", "bound"] == "more than" and math.isnan(table.loc["worse", "gain"])
    assert "`worse` does not reach the baseline's FVD within the baseline's cost." in verdicts(table.reset_index(), FVD)


def test_a_bound_or_one_seed_resolves_nothing() -> None:
    flat, steep = [(0.25, 1.0), (0.5, 1.0), (1.0, 1.0)], [(0.25, 3.0), (0.5, 1.5), (1.0, 0.9)]
    bounded = cost_table({"full": {0: flat, 1: flat}, "reco": {0: steep, 1: steep}}, 0.25).set_index("arm")
    assert bounded.loc["full", "bound"] == "at most" and bounded.loc["reco", "verdict"] == "not resolved"
    assert math.isnan(bounded.loc["reco", "gain"]), "how early the baseline is there nobody measured"
    single = cost_table({"full": {0: steep}, "reco": {0: steep}}, 0.25).set_index("arm")
    assert single.loc["reco", "gain"] == pytest.approx(1) and single.loc["reco", "verdict"] == "not resolved (1 seed)"


def test_the_curves_of_a_study(runs: pd.DataFrame) -> None:
    curves = cost_curves(Evidence(runs))
    assert list(curves) == list(ARMS) and all(list(seeds) == [0, 1, 2] for seeds in curves.values())
    assert [share for share, _ in curves["reco"][0]] == [0.125, 0.25, 0.5, 1.0]
    assert not cost_curves(Evidence(runs[runs["budget"] != "both"])), "without the whole baseline there is no level"
    assert not cost_curves(Evidence(runs[runs["budget"].isin(["both", "half_compute"])])), "one share is no curve"


def test_the_section_of_a_study(runs: pd.DataFrame, tmp_path: Path) -> None:
    section = build(Evidence(runs))
    (table,), (figure,) = section.tables, section.figures
    assert table.data is not None and list(table.data["arm"]) == list(ARMS)
    assert "baseline's FVD" in section.title and section.words[0].startswith("`full` itself comes within 25%")
    save(figure.draw(*figure.given), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
