"""The budget of half the baseline's compute: what is planned, how it is reported, and its one verdict."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from small_study import small_space
from toy_study import record_study

from reco_tune.cost import Rates, budget_steps, forecast, plan
from reco_tune.errors import SettingsError
from reco_tune.reporting import Evidence, ablation_table, frontier, load_runs, write_report
from reco_tune.reporting.budgets import WHOLE
from reco_tune.reporting.sections.ablation import caption
from reco_tune.reporting.sections.claims import Claim, claims
from reco_tune.settings import Space

ARMS = ("full", "local_balanced", "reco")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("half") / "toy"
    return load_runs(
        record_study(folder, ARMS, ("half_compute",), seeds=(0, 1, 2), searched=0, files=False, noise=0.01)
    )


def half(runs: pd.DataFrame) -> Claim:
    (found,) = [claim for claim in claims(Evidence(runs)) if claim.budget == "half_compute"]
    return found


def scaled(runs: pd.DataFrame, arm: str, factor: float) -> pd.DataFrame:
    changed = runs.copy()
    own = (changed["arm"] == arm) & (changed["budget"] == "half_compute")
    changed.loc[own, ["fvd", "fvd_low", "fvd_high"]] *= factor
    return changed


def test_the_baseline_runs_whole_and_at_half(tmp_path: Path) -> None:
    space = small_space(tmp_path, "budgets=[half_compute]", "trials=0")
    planned = plan(space).at_speeds({"full": 1.0, "reco": 1.73})
    steps = {run.trial: run.steps for run in planned.runs}
    assert steps == {"full-s0": 60, "full-half_compute-s0": 30, "reco-half_compute-s0": round(0.5 * 60 * 1.73)}
    assert [run.budget for run in planned.runs] == ["both", "half_compute", "half_compute"]
    assert [run.trial for run in forecast(plan(space), Rates(1e9)).runs] == list(steps)


def test_beside_other_budgets_the_whole_run_is_still_one(tmp_path: Path) -> None:
    names = [run.trial for run in plan(small_space(tmp_path, "budgets=[equal_compute, half_compute]", "trials=0")).runs]
    assert names == ["full-s0", "reco-equal_compute-s0", "full-half_compute-s0", "reco-half_compute-s0"]


def test_steps_of_a_budget() -> None:
    assert [budget_steps(budget, 101, 1.9) for budget in ("both", "equal_steps", "equal_compute", "half_compute")] == [
        101,
        101,
        192,
        96,
    ]
    assert budget_steps("half_compute", 1, 0.1) == 1


def test_half_of_nothing_is_refused(tmp_path: Path) -> None:
    values = {**small_space(tmp_path).model_dump(), "arms": {"reco": {}}, "budgets": ("half_compute",)}
    with pytest.raises(
        SettingsError,
        match="has half_compute, which is a share of the baseline's cost, but arms has no `full`; add it",
    ):
        Space.model_validate(values)


def test_differences_are_taken_to_the_whole_baseline(runs: pd.DataFrame) -> None:
    table = ablation_table(runs).set_index("arm")
    assert list(table.index) == [WHOLE, *ARMS] and set(table["budget"]) == {"half_compute"}
    assert table.loc[WHOLE, "fvd_delta"] == 0
    for arm in ARMS:
        assert table.loc[arm, "fvd_delta"] == pytest.approx(table.loc[arm, "fvd"] - table.loc[WHOLE, "fvd"])
    assert "At half the compute, differences are taken to `full` at its whole budget" in caption(Evidence(runs))


def test_the_whole_baseline_is_no_point_of_the_half_frontier(runs: pd.DataFrame) -> None:
    assert set(frontier(runs).at("half_compute")["trial"]) == {f"{arm}-half_compute-s0" for arm in ARMS}


@pytest.mark.parametrize(
    ("factor", "verdict", "words"),
    [
        pytest.param(0.75, "contradicted", "Every arm is worse", id="all-worse"),
        pytest.param(0.2, "supported", "Better than the baseline at its whole budget: `reco`", id="one-clearly-better"),
        pytest.param(
            0.56, "not resolved", "Not resolved against the baseline at its whole budget: `reco`", id="one-alike"
        ),
    ],
)
def test_the_verdict_follows_the_best_arm(runs: pd.DataFrame, factor: float, verdict: str, words: str) -> None:
    claim = half(scaled(runs, "reco", factor))
    assert claim.verdict == verdict and words in claim.words
    assert "Best of 3 arms" in claim.words and "(`reco`)" in claim.words and "Holm" in claim.words


def test_no_baseline_no_verdict(runs: pd.DataFrame) -> None:
    assert half(runs[runs["budget"] != "both"]).verdict == "not tested"


def test_a_whole_report(tmp_path: Path) -> None:
    report = write_report(
        record_study(tmp_path / "toy", ARMS, ("half_compute",), seeds=(0, 1), searched=2), tmp_path / "report"
    )
    page = report.index.read_text()
    assert "Half the compute" in page and WHOLE in page
    assert sorted(path.stem for path in (tmp_path / "report" / "samples").iterdir()) == sorted(ARMS)
