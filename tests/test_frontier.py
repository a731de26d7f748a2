"""The frontier holds what nothing beats, at both budgets, and never a run that did not finish."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from toy_study import PROTOCOL, record_study

from reco_tune.errors import ComparisonError
from reco_tune.reporting import Evidence, frontier, load_runs, load_study
from reco_tune.reporting.render.markdown import markdown
from reco_tune.reporting.runs import configurations
from reco_tune.reporting.sections import build
from reco_tune.reporting.sections.frontier import draw_frontier
from reco_tune.reporting.sections.hypervolume import hypervolume_history


def frontier_csv(evidence):
    """What frontier.csv holds."""
    return build("frontier", evidence).tables[0].data


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return load_runs(
        record_study(
            tmp_path_factory.mktemp("frontier") / "toy", seeds=(0, 1), failing=["local-equal_steps-s0"], files=False
        )
    )


def test_columns(runs):
    assert " ".join(frontier_csv(Evidence(runs)).columns) == (
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
    assert sorted(points[points["arm"] == "full"]["budget"]) == ["equal_compute", "equal_steps"]
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
    points = found.at("equal_steps")
    kept = points[points["on_frontier"].astype(bool) | (points["fvd"] == points["fvd"].max())]
    named = [name in set(kept["trial"]) | set(kept["arm"]) - {"search"} for name in configurations(runs)]
    front = frontier(runs[np.array(named)])
    assert len(front.at("equal_steps")) < len(points)
    assert front.hypervolume["equal_steps"] == pytest.approx(
        found.hypervolume["equal_steps"], rel=1e-12
    )  # float64 sums


def test_a_point_is_a_mean_over_seeds_in_every_place(tmp_path):
    """A lucky seed of an arm stood on the frontier of one file and not on that of another."""
    study = record_study(tmp_path / "toy", arms=("full", "local", "reco"), seeds=(0, 1), searched=4, files=False)
    record = load_study(study)
    record.runs["local-equal_steps-s0"].metrics |= {"fvd": 0.01, "fvd_low": 0.005, "fvd_high": 0.02}
    evidence = Evidence.read(record)
    points = evidence.frontier.at("equal_steps").set_index("arm")
    rows = evidence.ablation.set_index(["budget", "arm"]).loc["equal_steps"]
    ends = ["fvd", "fvd_low", "fvd_high"]
    for arm in ("full", "local", "reco"):
        assert (points.loc[arm, "seed"], points.loc[arm, "runs"]) == ("0 1", 2)
        assert list(points.loc[arm, ends]) == list(rows.loc[arm, ends])
    assert not points.loc["local", "on_frontier"]
    section = build("configurations", evidence)
    listed = {row["arm"] for row in section.tables[-1].groups[0].rows if row["on_frontier"]}
    assert listed == set(points.index[points["on_frontier"].astype(bool)])
    drawn = section.markup.split("</svg>")[0]
    assert drawn.count('class="single"') == 6 and "local-equal_steps-s0, one seed: 1.72x, FVD 0.01" in drawn
    assert "local, mean of 2 seeds" in drawn and "local-equal_steps-s0: " not in drawn


@pytest.fixture
def constrained(tmp_path):
    """A study in which search-0002 and the baseline break what the search is allowed."""
    record = load_study(record_study(tmp_path / "toy", arms=("full", "reco"), searched=6, files=False))
    record.constraints = {"peak_memory_ratio": {"max": 0.55}}
    return record


def test_what_breaks_a_constraint_is_on_no_frontier_and_displaces_nothing(constrained):
    free, bound = Evidence.read(replace(constrained, constraints={})), Evidence.read(constrained)
    for evidence, refused in ((free, set()), (bound, {"full-s0", "search-0002"})):
        points = evidence.frontier.at("equal_steps").set_index("trial")
        assert set(points.index[points["infeasible"] != ""]) == refused
        assert not points.loc[sorted(refused), ["on_frontier", "knee", "probability"]].to_numpy().any()
    points = free.frontier.at("equal_steps").set_index("trial")
    assert points.loc["search-0002", "on_frontier"] and points.loc["full-s0", "on_frontier"]
    assert bound.frontier.hypervolume["equal_steps"] < free.frontier.hypervolume["equal_steps"]
    assert bound.frontier.at("equal_steps")["on_frontier"].astype(bool).any()
    history = hypervolume_history(bound)
    last = history[history["budget"] == "equal_steps"].iloc[-1]
    assert last["hypervolume"] == pytest.approx(bound.frontier.hypervolume["equal_steps"], rel=1e-12)  # float64 sums


def test_what_breaks_a_constraint_is_marked_wherever_it_is_listed(constrained):
    evidence = Evidence.read(constrained)
    reasons = evidence.runs.set_index("trial")["reason"]
    broken = "peak_memory_ratio is 0.6, not at most 0.55"
    assert reasons["search-0002"] == f"infeasible: {broken}" and reasons["reco-equal_steps-s0"] == ""
    assert not {"full-s0", "search-0002"} & set(frontier_csv(evidence)["trial"])
    section = build("configurations", evidence)
    assert f"`search-0002` at equal steps ({broken})" in " ".join(section.tables[-1].remarks)
    assert f"infeasible: {broken}" in section.markup
    assert section.markup.count('class="cross"') == 3, "the baseline under both budgets, and the run"
    (steps, _), red = draw_frontier(*build("frontier", evidence).figures[0].given).axes, to_rgba("#b22222")
    crosses = [one for one in steps.collections if len(one.get_edgecolor()) and tuple(one.get_edgecolor()[0]) == red]
    assert [len(one.get_offsets()) for one in crosses] == [2]
    told = markdown(build("ablation", evidence).tables)
    assert "`full` at equal steps (peak_memory_ratio is 1, not at most 0.55)" in told


def test_a_mean_is_judged_and_not_its_seeds(tmp_path):
    record = load_study(record_study(tmp_path / "toy", arms=("full", "reco"), seeds=(0, 1), searched=0, files=False))
    runs = load_runs(record)
    limit = frontier(runs).at("equal_steps").set_index("arm").loc["reco", "fvd"] + 0.01
    assert runs["fvd"].max() > limit, "one seed alone breaks it"
    record.constraints = {"fvd": {"max": float(limit)}}
    points = frontier(load_runs(record)).at("equal_steps").set_index("arm")
    assert points.loc["reco", "infeasible"] == "" and points.loc["reco", "on_frontier"]


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
