"""The answer names what to take for which speed, what it costs and what is open, and nothing that is not so."""

from __future__ import annotations

import pytest
from toy_study import record_study

from reco_tune.reporting import Evidence, load_runs
from reco_tune.reporting.sections.answer import answer
from reco_tune.settings import Bound


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return load_runs(record_study(tmp_path_factory.mktemp("answer") / "toy", seeds=(0, 1, 2), files=False))


def test_the_fastest_arm_near_the_baseline_is_recommended_with_its_cost(runs):
    evidence = Evidence(runs)
    lead = answer(evidence)[0]
    rows = evidence.ablation[evidence.ablation["budget"] == "equal_compute"].set_index("arm")
    near = rows["fvd"] <= 1.25 * rows.loc["full", "fvd"]
    fit = rows[near & ~rows["verdict"].str.startswith("worse") & (rows["speedup"] > 1.05)]
    best = rows.loc[fit["speedup"].idxmax()]
    assert lead.startswith(f"At equal compute, take `{best.name}`. Its steps are {best['speedup']:.2f}x ")
    assert f"FVD is {best['fvd']:.2f}, a difference of +{best['fvd_delta']:.2f} [" in lead and "]: not resolved" in lead


def test_where_every_faster_arm_is_worse_none_is_recommended(runs):
    steps = answer(Evidence(runs))[1]
    assert steps.startswith(
        "At equal steps, every faster arm has a worse FVD than `full`. The best of them is `norm_penalty`"
    )
    assert "Among the sampled settings, `search-" in steps and "window 27" in steps


def test_an_arm_that_may_be_much_worse_is_not_recommended(runs):
    """Not resolved is not equal: an arm of twice the baseline's FVD was recommended, because its seeds scatter."""
    arm = answer(Evidence(runs))[0].split("`")[1]
    scattered = runs.copy()
    scattered.attrs = runs.attrs
    at = (runs["arm"] == arm) & (runs["budget"] == "equal_compute")
    scattered.loc[at, "fvd"] = runs.loc[at, "fvd"] * (0.5 + 3 * runs.loc[at, "seed"])
    evidence = Evidence(scattered)
    rows = evidence.ablation[evidence.ablation["budget"] == "equal_compute"].set_index("arm")
    assert rows.loc[arm, "verdict"] == "not resolved" and rows.loc[arm, "fvd"] > 1.5 * rows.loc["full", "fvd"]
    lead = answer(evidence)[0]
    assert f"take `{arm}`" not in lead
    assert lead.startswith("At equal compute, no faster arm has a mean FVD within 25% of that of `full`. The best of")


def test_what_is_open_is_told_with_the_seeds_that_would_settle_it(runs):
    evidence = Evidence(runs)
    told = answer(evidence)[-1]
    assert all(f"`{one.arm}`" in told for one in evidence.unresolved)
    needed = {one.arm: one.needed for one in evidence.unresolved if one.needed}
    assert needed and all(f"`{arm}` at equal compute about {count}" in told for arm, count in needed.items())


@pytest.mark.parametrize("kept", [[], ["full"], ["search"]], ids=["nothing", "the baseline alone", "a search alone"])
def test_less_is_said_where_less_was_run(runs, kept):
    words = answer(Evidence(runs[runs["arm"].isin(kept)]))
    assert words and "take" not in words[0] and not any("nan" in line for line in words)


def test_an_arm_that_breaks_a_constraint_is_not_recommended(runs):
    lead = answer(Evidence(runs))[0]
    arm = lead.split("`")[1]
    bound = runs.copy()
    bound.loc[bound["arm"] == arm, "peak_memory_ratio"] = 0.9
    bound.attrs = {**runs.attrs, "constraints": {"peak_memory_ratio": Bound(max=0.8)}}
    assert f"take `{arm}`" not in answer(Evidence(bound))[0]


def test_one_seed_says_that_it_is_one(runs):
    alone = answer(Evidence(runs[runs["seed"] == 0]))
    assert "the intervals do not include the noise between training seeds" in alone[-1]
