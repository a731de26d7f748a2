from __future__ import annotations

from pathlib import Path

import pytest
from small_study import small_space

from reco_tune.cost import Rates, estimated_speedup, forecast, plan
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
    assert planned.estimated and steps["reco-equal_compute-s0"] == round(
        60 * estimated_speedup(planned.arms["reco"], planned.baseline)
    )
    assert estimated_speedup(planned.arms["full"], planned.baseline) == 1.0


def test_a_budget_is_counted_in_the_studys_baseline(tmp_path: Path) -> None:
    """An arm with half the model and half the batch got the baseline's number of equal-compute steps."""
    arms = "arms={full: null, small: {model.depth: 1, training.batch_size: 4}}"
    planned = plan(small_space(tmp_path, arms))
    limit = estimated_speedup(planned.arms["small"], planned.baseline)
    assert limit > 2 and {run.trial: run.steps for run in planned.runs} == {
        "full-s0": 60,
        "small-equal_steps-s0": 60,
        "small-equal_compute-s0": round(60 * limit),
    }
    assert [run.steps for run in forecast(planned, Rates(1e9)).runs[:3]] == [60, 60, round(60 * limit)]


def test_the_baseline_is_full_as_it_is_defined_also_where_it_does_not_run(tmp_path: Path) -> None:
    own = plan(small_space(tmp_path, "arms={full: {model.depth: 1, objective.norm_weight: 0.1}, reco: null}"))
    assert own.baseline == own.arms["full"] and own.baseline.model.depth == 1
    none = plan(small_space(tmp_path, "arms={}", "budgets=[equal_steps]"))
    assert none.baseline.window.scheme == "full" and none.baseline.model == none.sampled.model  # type: ignore[union-attr]


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
        pytest.param(
            {"arms": {"full": {}, "reco": {"training.steps": 5}}},
            "training.steps is what budgets count in",
            id="an arm with steps of its own",
        ),
        pytest.param(
            {"search": {"training.steps": {"int": [5, 9]}}},
            "training.steps is what budgets count in",
            id="searching the steps",
        ),
        pytest.param(
            {"arms": {"full": {}, "reco": {"training.seed": 5}}},
            "training.seed is what `seeds`",
            id="an arm's own seed",
        ),
        pytest.param(
            {"arms": {"full": {"window.scheme": "window"}, "reco": {}}},
            "`full` is the baseline, .* window.scheme is window",
            id="a baseline of windows",
        ),
        pytest.param({"objectives": {"fdv": "minimize"}}, "did you mean fvd", id="no metric"),
        pytest.param({"objectives": {"fvd": "maximize"}}, "write minimize", id="the wrong direction"),
        pytest.param(
            {"objectives": {"flow_unexplained": "minimize"}}, "evaluation.flow is false", id="flow that is not measured"
        ),
        pytest.param(
            {
                "experiment": {"data": {"layout": "flat", "root": "x"}},
                "objectives": {"class_accuracy": "maximize"},
                "search": {"objective.continuity_weight": {"float": (0, 1)}},
            },
            "needs classes, but this data set of data.layout flat has none",
            id="classes of videos that have none",
        ),
        pytest.param(
            {"constraints": {"flow_unexplained": {"max": 1}}}, "evaluation.flow is false", id="a constraint on it"
        ),
        pytest.param(
            {"objectives": {"error_growth_rate": "minimize"}}, "needs clips of 4 blocks", id="too few blocks for a law"
        ),
    ],
)
def test_what_would_make_runs_incomparable_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], named: str
) -> None:
    space = Space.model_validate({**small_space(tmp_path).model_dump(), **change})
    with pytest.raises(SettingsError, match=named):
        plan(space)
