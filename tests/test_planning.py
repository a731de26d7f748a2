from __future__ import annotations

from pathlib import Path

import pytest
from small_study import small_space

from reco_tune.cost import estimated_speedup, plan
from reco_tune.errors import SettingsError
from reco_tune.settings import Space, load_space

DEMO = Path(__file__).parents[1] / "search_spaces" / "demo.yaml"


def test_the_baseline_runs_once_and_stands_under_both_budgets(tmp_path: Path) -> None:
    names = [run.trial for run in plan(small_space(tmp_path, "seeds=[0, 3]")).runs]
    assert names == [
        "full-s0",
        "reco-equal_steps-s0",
        "full-s3",
        "reco-equal_steps-s3",
        "reco-equal_compute-s0",
        "reco-equal_compute-s3",
    ]


def test_equal_compute_gives_the_steps_that_the_baselines_cost_buys(tmp_path: Path) -> None:
    planned = plan(small_space(tmp_path)).at_speeds({"full": 1.0, "reco": 1.73})
    assert {run.trial: run.steps for run in planned.runs} == {
        "full-s0": 60,
        "reco-equal_steps-s0": 60,
        "reco-equal_compute-s0": round(60 * 1.73),
    }
    assert not planned.estimated


def test_a_plan_before_calibration_counts_on_the_flop_limit(tmp_path: Path) -> None:
    planned = plan(small_space(tmp_path))
    steps = {run.trial: run.steps for run in planned.runs}
    assert planned.estimated and steps["reco-equal_compute-s0"] == round(60 * estimated_speedup(planned.arms["reco"]))
    assert estimated_speedup(planned.arms["full"]) == 1.0


def test_seeds_and_steps_reach_the_settings(tmp_path: Path) -> None:
    run = plan(small_space(tmp_path, "seeds=[7]")).at_speeds({"full": 1.0, "reco": 2.0}).runs[-1]
    assert (run.experiment.training.seed, run.experiment.training.steps, run.seed) == (7, 120, 7)


def test_pieces_are_prepared_for_the_arm_that_trains_on_sub_clips_alone() -> None:
    assert plan(load_space(DEMO)).piece_blocks == (2,)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(
            {"search": {"data.size_px": {"int": [12, 16]}}}, "data.size_px", id="searching what runs are compared on"
        ),
        pytest.param(
            {"search": {"window.scheme": {"choice": ["full", "window"]}}}, "window.scheme", id="searching the scheme"
        ),
        pytest.param(
            {"arms": {"full": {"evaluation.samples": 3}, "reco": {}}},
            "evaluation.samples",
            id="an arm judged otherwise",
        ),
        pytest.param({"arms": {"full": {}, "search": {}}}, "search", id="an arm with the name of sampled runs"),
        pytest.param({"objectives": {"fdv": "minimize"}}, "fdv", id="an objective that nobody measures"),
    ],
)
def test_what_would_make_runs_incomparable_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    space = Space.model_validate({**small_space(tmp_path).model_dump(), **change})
    with pytest.raises(SettingsError, match=named):
        plan(space)
