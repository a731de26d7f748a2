"""The frontier holds what nothing beats, at both budgets, and never a run that did not finish."""

import numpy as np
import pandas as pd
import pytest
from toy_study import PROTOCOL, record_study

from reco_tune.errors import ComparisonError
from reco_tune.reporting import frontier, load_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return load_runs(
        record_study(
            tmp_path_factory.mktemp("frontier") / "toy", seeds=(0, 1), failing=["local-equal_steps-s0"], files=False
        )
    )


def test_columns(runs):
    assert " ".join(frontier(runs).points.columns) == (
        "trial arm budget seed window.length_tokens window.stride_tokens window.first_frame_probability"
        " objective.continuity_weight speedup fvd fvd_low fvd_high on_frontier protocol"
    ), "the contract of docs and of whoever reads frontier.csv"


@pytest.mark.parametrize("budget", ["equal_steps", "equal_compute"])
def test_on_frontier_is_the_definition(runs, budget):
    points = frontier(runs).at(budget)
    for row in points.itertuples():
        faster, better = points["speedup"] >= row.speedup, points["fvd"] <= row.fvd
        beaten = (faster & better & ((points["speedup"] > row.speedup) | (points["fvd"] < row.fvd))).any()
        assert row.on_frontier == (not beaten), row.trial


def test_the_baseline_stands_under_both_budgets_and_sampled_runs_under_equal_steps(runs):
    points = frontier(runs).points
    assert sorted(points[points["arm"] == "full"]["budget"]) == ["equal_compute"] * 2 + ["equal_steps"] * 2
    assert set(points[points["arm"] == "search"]["budget"]) == {"equal_steps"}


def test_pruned_and_failed_runs_are_no_points_however_good_they_looked(runs):
    tempting = runs.copy()
    tempting.loc[tempting["state"].isin(["pruned", "failed"]), ["fvd", "speedup"]] = [0.01, 9.0]
    assert not {"search-0007", "local-equal_steps-s0"} & set(frontier(tempting).points["trial"])


def test_the_frontier_runs_from_slow_and_good_to_fast_and_bad(runs):
    front = frontier(runs).non_dominated("equal_steps")
    assert np.all(np.diff(front["speedup"]) >= 0) and np.all(np.diff(front["fvd"]) >= 0)


def test_a_dominated_run_adds_no_volume(runs):
    found = frontier(runs)
    front = runs[
        runs["trial"].isin(found.points[found.points["on_frontier"]]["trial"]) | (runs["fvd"] == runs["fvd"].max())
    ]
    assert frontier(front).hypervolume["equal_steps"] == pytest.approx(
        found.hypervolume["equal_steps"], rel=1e-12
    )  # float64 sums


def test_a_study_without_a_finished_run_has_an_empty_frontier(runs):
    assert frontier(runs[runs["state"] == "pruned"]).points.empty


def test_two_protocols_are_refused(runs, tmp_path):
    other = load_runs(
        record_study(
            tmp_path / "o", arms=("reco",), searched=0, files=False, protocol=PROTOCOL.replace("train", "test")
        )
    )
    with pytest.raises(ComparisonError, match="reference split and clips"):
        frontier(pd.concat([runs, other], ignore_index=True))
