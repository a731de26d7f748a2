"""The chance to stand on the frontier, against what is known by hand: no noise, two normals, and no short cut that
changes it.
"""

import math
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from toy_study import record_study

from reco_tune.reporting import Evidence, load_runs
from reco_tune.reporting.frontier import DRAWS, Frontier
from reco_tune.reporting.sections.frontier import draw_frontier


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return load_runs(record_study(tmp_path_factory.mktemp("uncertainty") / "toy", searched=30, files=False))


def found_in(runs) -> Frontier:
    return Evidence(runs).frontier


def two(runs, fvd, half_width, speedup=(2.0, 2.0)):
    """Two sampled runs of the study with FVDs and intervals of one's own."""
    pair = runs[(runs["arm"] == "search") & (runs["state"] == "evaluated")].head(2).copy()
    fvd = np.array(fvd)
    return pair.assign(
        fvd=fvd,
        fvd_low=fvd - half_width,
        fvd_high=fvd + half_width,
        speedup=speedup,
        speedup_low=speedup,
        speedup_high=speedup,
    )


def test_without_noise_the_probability_says_who_is_on_the_frontier(runs):
    still = runs.assign(
        fvd_low=runs["fvd"], fvd_high=runs["fvd"], speedup_low=runs["speedup"], speedup_high=runs["speedup"]
    )
    points = found_in(still).points
    assert list(points["probability"]) == [float(on) for on in points["on_frontier"]]


@pytest.mark.parametrize(("distance", "half_width"), [(0.0, 1.0), (0.7, 1.0), (2.0, 1.5)], ids=["equal", "near", "far"])
def test_two_normals_at_one_speed(runs, distance, half_width):
    points = found_in(two(runs, [10, 10 + distance], half_width)).points
    expected = stats.norm.cdf(distance / (math.sqrt(2) * half_width / stats.norm.ppf(0.975)))
    assert points["probability"].iloc[0] == pytest.approx(
        expected, abs=4 * math.sqrt(0.25 / DRAWS)
    )  # 4 sigma of the draws
    assert points["probability"].sum() == pytest.approx(1)


def test_an_interval_that_is_missing_is_no_noise(runs):
    points = found_in(two(runs, [10, 10.5], math.nan)).points
    assert list(points["probability"]) == [1, 0]


def test_far_points_are_left_out_of_the_draws_and_nothing_changes(runs, monkeypatch):
    short = found_in(runs).points["probability"]
    module = sys.modules["reco_tune.reporting.frontier"]  # the package has a function of that name
    monkeypatch.setattr(module, "_possible", lambda best_speed, *_: np.ones(len(best_speed), dtype=bool))
    whole = found_in(runs).points["probability"]
    assert (short - whole).abs().max() < 4 * math.sqrt(0.5 / DRAWS)  # two independent sets of draws


def test_seeds_of_an_arm_are_one_configuration_and_a_lucky_one_is_none(tmp_path):
    runs = load_runs(
        record_study(tmp_path / "toy", arms=("full", "reco", "norm_penalty"), seeds=(0, 1, 2), searched=0, files=False)
    )
    lucky = (runs["trial"] == "reco-equal_compute-s1").to_numpy()
    runs.loc[lucky, ["fvd", "fvd_low", "fvd_high"]] = [0.5, 0.4, 0.6]
    points = found_in(runs).at("equal_compute").set_index("arm")
    assert list(points["runs"]) == [3, 3, 3]
    assert points.loc["reco", "fvd"] == pytest.approx(
        runs[(runs["arm"] == "reco") & (runs["budget"] == "equal_compute")]["fvd"].mean()
    )
    assert 0.05 < points.loc["reco", "probability"] < 0.95


def test_a_finalist_with_its_further_seeds_is_one_configuration(tmp_path):
    path = tmp_path / "toy"
    runs = load_runs(
        record_study(path, arms=("full", "reco"), searched=6, again=("search-0001", "search-0004"), files=False)
    )
    fvd = runs.set_index("trial")["fvd"]
    points = found_in(runs).at("equal_steps").set_index("trial")
    sampled = points[points["arm"] == "search"]
    assert dict(sampled["runs"]) == {
        "search-0000": 1,
        "search-0001": 3,
        "search-0002": 1,
        "search-0003": 1,
        "search-0004": 3,
    }
    assert points.loc["search-0001", "fvd"] == pytest.approx(1.1 * fvd["search-0001"])  # of 1, 1.1 and 1.2 times
    half = stats.t.ppf(0.975, 2) * 0.1 * fvd["search-0001"] / math.sqrt(3)
    assert points.loc["search-0001", "fvd_high"] - points.loc["search-0001", "fvd"] == pytest.approx(half)
    assert points.loc["search-0001", "seed"] == "0 1 2" and points.loc["search-0000", "seed"] == 0


def test_the_band_holds_the_frontier_and_has_no_upper_end_where_nothing_may_be_as_fast(runs):
    found = found_in(runs)
    band, points = found.bands["equal_steps"], found.at("equal_steps")
    best = np.array([points[points["speedup"] >= speed]["fvd"].min() for speed in band["speedup"]])
    inner = band["speedup"] < 0.9 * points["speedup"].max()
    assert (band["low"][inner] <= best[inner]).all()
    assert np.isfinite(band["high"].iloc[0]) and np.isinf(band["high"].iloc[-1])


def test_the_same_runs_give_the_same_numbers(runs):
    pd.testing.assert_frame_equal(found_in(runs).points, found_in(runs).points)


def test_a_study_without_a_finished_run(runs):
    found = found_in(runs[runs["state"] == "pruned"])
    assert found.points.empty and not found.bands


def test_the_figure_shows_the_points_of_both_budgets(runs):
    """The panels share their scale, which the band of the first must not fix before the points of the second are in."""
    far = runs.assign(fvd=runs["fvd"].where(runs["budget"] != "equal_compute", runs["fvd"] / 5))
    far = far.assign(fvd_low=0.95 * far["fvd"], fvd_high=1.05 * far["fvd"])
    found = found_in(far)
    figure = draw_frontier(found, Evidence(far).ablation, Evidence(far).arms)
    for axes, budget in zip(figure.axes, ("equal_steps", "equal_compute"), strict=True):
        low, high = axes.get_ylim()
        assert found.at(budget)["fvd"].between(low, high).all(), budget
