"""Verdicts follow the intervals: resolved either way, not resolved, or not tested, and say what they rest on."""

import pytest
from toy_study import record_study

from reco_tune.reporting import Evidence, load_runs
from reco_tune.reporting.sections.claims import build, claims


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory):
    return load_runs(record_study(tmp_path_factory.mktemp("one") / "toy", files=False, noise=0.001))


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    return load_runs(
        record_study(tmp_path_factory.mktemp("three") / "toy", seeds=(0, 1, 2), searched=0, files=False, noise=0.001)
    )


def claims_of(runs):
    return claims(Evidence(runs))


def verdict(runs, claim, budget="equal_steps"):
    (found,) = [one for one in claims_of(runs) if claim in one.claim and one.budget == budget]
    return found


def with_fvd(runs, trial, fvd, half=0.1):
    changed = runs.copy()
    changed.loc[changed["trial"] == trial, ["fvd", "fvd_low", "fvd_high"]] = [fvd, fvd - half, fvd + half]
    return changed


def test_every_claim_at_every_budget_and_the_speed_once(one_seed):
    found = claims_of(one_seed)
    assert len(found) == 13
    assert [one.budget for one in found].count("equal_compute") == 6
    assert found[-1].budget == "per step"


@pytest.mark.parametrize(
    ("claim", "trial", "fvd", "half", "expected"),
    [
        ("fewer frames", "fewer_frames-equal_steps-s0", 20, 1, "supported"),
        ("fewer frames", "fewer_frames-equal_steps-s0", 1.0, 0.1, "contradicted"),
        ("fewer frames", "fewer_frames-equal_steps-s0", 2.1, 1, "not resolved"),
        ("continuity term improves", "reco-equal_steps-s0", 5, 0.1, "supported"),
        ("continuity term improves", "reco-equal_steps-s0", 15, 0.1, "contradicted"),
        ("recover the baseline", "reco-equal_steps-s0", 6, 0.1, "contradicted"),
        ("recover the baseline", "reco-equal_steps-s0", 2.05, 0.01, "supported"),
        ("recover the baseline", "reco-equal_steps-s0", 1.2, 0.01, "supported"),
        ("recover the baseline", "reco-equal_steps-s0", 2.2, 2.0, "not resolved"),
        ("recover the baseline", "reco-equal_steps-s0", 2.4, 0.3, "not resolved"),
        ("needs continuity", "norm_penalty-equal_steps-s0", 12, 0.1, "supported"),
        ("needs continuity", "norm_penalty-equal_steps-s0", 6.2, 3, "not resolved"),
        ("needs continuity", "norm_penalty-equal_steps-s0", 1, 0.1, "contradicted"),
        ("Balancing", "local_balanced-equal_steps-s0", 5, 0.1, "supported"),
        ("Balancing", "local_balanced-equal_steps-s0", 11, 0.01, "contradicted"),
        ("Balancing", "local_first-equal_steps-s0", 9.1, 2, "not resolved"),
    ],
)
def test_outcome_follows_the_interval(one_seed, claim, trial, fvd, half, expected):
    assert verdict(with_fvd(one_seed, trial, fvd, half), claim).verdict == expected


def test_a_resolved_loss_below_the_margin_is_a_recovery(three_seeds):
    """More precision must not turn a recovery into a contradiction."""
    exact = three_seeds.assign(fvd_low=three_seeds["fvd"], fvd_high=three_seeds["fvd"])
    baseline = exact.set_index("trial")["fvd"]
    for seed, loss in ((0, 0.019), (1, 0.02), (2, 0.021)):
        exact.loc[exact["trial"] == f"reco-equal_steps-s{seed}", ["fvd", "fvd_low", "fvd_high"]] = (
            baseline[f"full-s{seed}"] + loss
        )
    found = verdict(exact, "recover the baseline")
    assert found.verdict == "supported" and "`reco` is worse, but by less than" in found.words
    assert "p <0.001 by itself" in found.words


def test_one_seed_says_that_training_noise_is_not_in_it_and_three_do_not(one_seed, three_seeds):
    assert "One training seed" in verdict(one_seed, "fewer frames").words
    assert "One training seed" not in verdict(three_seeds, "fewer frames").words
    assert verdict(three_seeds, "fewer frames").verdict == "supported"


def test_a_comparison_that_shares_one_seed_says_so_and_tells_the_means_of_that_seed(three_seeds):
    lost = three_seeds[~three_seeds["trial"].isin(["fewer_frames-equal_steps-s1", "full-s2"])]
    found = verdict(lost, "fewer frames")
    values = lost.set_index("trial")["fvd"]
    assert "One training seed" in found.words
    assert (
        f"FVD {values['fewer_frames-equal_steps-s0']:.2f} (`fewer_frames`) against {values['full-s0']:.2f} (`full`)"
        in found.words
    )
    assert "One training seed" not in verdict(lost, "continuity term improves").words


def test_no_claim_about_continuity_stands_without_its_control(one_seed):
    without = one_seed[one_seed["arm"] != "norm_penalty"]
    found = verdict(without, "needs continuity")
    assert (
        found.verdict == "not tested"
        and "`norm_penalty`" in found.words
        and "says nothing about continuity" in found.words
    )
    assert "no claim about continuity itself" in verdict(one_seed, "needs continuity").words


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.8, 1.99, "contradicted"),
        (1.9, 2.1, "not resolved"),
        (2.0, 2.2, "supported"),
        (float("nan"), float("nan"), "not resolved"),
    ],
)
def test_speed_is_judged_by_its_interval(one_seed, low, high, expected):
    changed = one_seed.copy()
    changed.loc[changed["arm"] == "reco", ["speedup_low", "speedup_high"]] = [low, high]
    assert verdict(changed, "as fast", "per step").verdict == expected


def test_an_unresolved_verdict_says_what_could_have_been_seen(one_seed):
    assert (
        "would most likely miss"
        in verdict(with_fvd(one_seed, "fewer_frames-equal_steps-s0", 2.1, 1), "fewer frames").words
    )


def test_a_study_of_a_search_alone_tests_no_claim(one_seed):
    assert {one.verdict for one in claims_of(one_seed[one_seed["arm"] == "search"])} == {"not tested"}


def with_steps(runs, raw, relative, noise=0.0):
    """`local_balanced` steps by 10 and 1; `reco` by `raw` and `relative` of that, seed by seed a little more."""
    changed = runs.copy()
    changed[["lipschitz_tokens", "lipschitz_tokens_relative"]] = [10.0, 1.0]
    changed[["lipschitz_frames", "lipschitz_frames_relative"]] = [12.0, 1.1]
    own = changed["arm"] == "reco"
    factor = 1 + noise * changed.loc[own, "seed"]
    for name, share in (("tokens", raw), ("tokens_relative", relative), ("frames", raw), ("frames_relative", relative)):
        changed.loc[own, f"lipschitz_{name}"] *= share * factor
    return changed


@pytest.mark.parametrize(
    ("raw", "relative", "expected", "moved"),
    [(0.3, 0.99, "not resolved", "scale"), (0.5, 0.52, "supported", "smoothness"), (0.4, 1.3, "contradicted", "scale")],
    ids=["scale alone", "smoother", "smaller but rougher"],
)
def test_shrinking_h_is_not_smoothness(three_seeds, raw, relative, expected, moved):
    found = verdict(with_steps(three_seeds, raw, relative, noise=0.02), "smoother, not only smaller")
    assert found.verdict == expected and f"The {moved} changed most" in found.words


def test_one_seed_settles_no_smoothness_and_an_unmeasured_study_tests_none(one_seed):
    found = verdict(with_steps(one_seed, 0.3, 0.5), "smoother, not only smaller")
    assert (
        found.verdict == "not resolved"
        and "0.30x, and 0.50x relative" in found.words
        and "One training seed" in found.words
    )
    unmeasured = one_seed.drop(columns=[name for name in one_seed if name.startswith("lipschitz")])
    unmeasured[["lipschitz_tokens", "lipschitz_tokens_relative", "lipschitz_frames", "lipschitz_frames_relative"]] = (
        float("nan")
    )
    assert verdict(unmeasured, "smoother, not only smaller").verdict == "not tested"


def test_the_toy_ladder_shrinks_h_and_smooths_nothing(one_seed):
    assert "0.40x, and 1.00x relative to |h|" in verdict(one_seed, "smoother, not only smaller").words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"resources.calibration_seconds": 0.5}, "calibration was short (resources.calibration_seconds 0.5)"),
        ({"calibration_load": 2.34}, "machine was busy during calibration (load 2.3 per core)"),
    ],
    ids=["long, alone", "short", "busy"],
)
def test_a_speed_says_what_makes_it_less_sure(one_seed, changes, words):
    told = verdict(one_seed.assign(**changes), "as fast", "per step").words
    assert words in told and ("so the speed-up is uncertain" in told) == bool(words)


def test_what_is_not_tested_is_one_line(one_seed):
    few = Evidence(one_seed[one_seed["arm"].isin(["full", "reco"])])
    section = build(few)
    (table,) = section.tables
    assert "not tested" not in {row["verdict"] for row in table.groups[0].rows}
    line = "Balancing the first frame helps (at equal steps, at equal compute); "
    assert line in table.caption and section.markup.count("This study did not test") == 1
    assert "not-tested" not in section.markup


def with_clip_scores(runs, loss, fvd=2.0, speedup=1.95):
    """Scores of the arms in three seeds, `reco` lower by `loss`; FVD of `reco` near the baseline's, at its speed."""
    changed = runs.copy()
    changed.attrs = runs.attrs
    changed["clip_score"] = 30.0 + 0.01 * changed["seed"]
    changed["clip_score_low"], changed["clip_score_high"] = changed["clip_score"] - 0.05, changed["clip_score"] + 0.05
    own = (changed["arm"] == "reco") & (changed["budget"] == "equal_steps")
    for name in ("clip_score", "clip_score_low", "clip_score_high"):
        changed.loc[own, name] -= loss
    changed.loc[own, ["speedup", "speedup_low", "speedup_high"]] = [speedup, speedup - 0.02, speedup + 0.02]
    level = changed[(changed["arm"] == "full")].set_index("seed")["fvd"]
    for seed, value in level.items():
        here = own & (changed["seed"] == seed)
        changed.loc[here, ["fvd", "fvd_low", "fvd_high"]] = [
            value * fvd / 2,
            value * fvd / 2 - 0.01,
            value * fvd / 2 + 0.01,
        ]
    return changed


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({"loss": 0.0}, "supported", "Training costs 0.51 of the baseline's (95% interval [0.51, 0.52]"),
        ({"loss": 3.0}, "contradicted", "It is lower by more than 0.300 (1% of the baseline)"),
        ({"loss": 0.3}, "not resolved", "does not rule out a loss above 0.300"),
        ({"loss": 0.0, "fvd": 6.0}, "contradicted", "worse than `full` by more than"),
        ({"loss": 0.0, "speedup": 1.4}, "contradicted", "Training costs 0.71"),
    ],
    ids=["comparable", "a lower score", "too close to tell", "a worse FVD", "not half the cost"],
)
def test_comparable_at_half_the_cost_needs_both_measures_and_the_cost(three_seeds, changes, expected, words):
    found = verdict(with_clip_scores(three_seeds, **changes), "comparable at half the training cost")
    assert found.verdict == expected
    assert words in found.words


def test_without_clip_scores_nobody_asks_about_text_to_video(three_seeds):
    assert not [one for one in claims_of(three_seeds) if "Text to video" in one.claim]
    told = [one for one in claims_of(with_clip_scores(three_seeds, 0.0)) if "Text to video" in one.claim]
    assert [one.budget for one in told] == ["equal_steps"]


def test_half_the_cost_says_when_its_speed_is_uncertain(three_seeds):
    runs = with_clip_scores(three_seeds, 0.0)
    claim = "comparable at half the training cost"
    runs["resources.calibration_seconds"], runs["calibration_load"] = 30.0, 0.1
    assert "uncertain" not in verdict(runs, claim).words
    runs["resources.calibration_seconds"] = 0.3
    assert "The calibration was short (resources.calibration_seconds 0.3)" in verdict(runs, claim).words
