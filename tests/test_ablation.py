"""The ablation table: order, means, intervals and tests against SciPy and by hand, and bytes that stay."""

import math

import numpy as np
import pytest
from scipy import stats
from toy_study import FVD, record_study

from reco_tune.reporting import Evidence, ablation_table, load_runs
from reco_tune.reporting.aggregate import Difference, Estimate, holm, mean_interval, paired_difference, paired_ratio
from reco_tune.reporting.comparisons import standing
from reco_tune.reporting.numbers import number, signed
from reco_tune.reporting.render.latex import latex
from reco_tune.reporting.render.markdown import markdown
from reco_tune.reporting.sections import ablation


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory):
    return load_runs(
        record_study(tmp_path_factory.mktemp("one") / "toy", failing=["local-equal_steps-s0"], files=False)
    )


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    return load_runs(record_study(tmp_path_factory.mktemp("three") / "toy", seeds=(0, 1, 2), searched=2, files=False))


def caption(runs):
    return ablation.caption(Evidence(runs))


def table_of(runs):
    return ablation.ablation_table(Evidence(runs))


def exact(*values):
    return [Estimate(value, math.nan, math.nan) for value in values]


def test_columns_and_order(three_seeds):
    table = ablation_table(three_seeds)
    assert " ".join(table.columns) == (
        "budget arm seeds fvd fvd_low fvd_high fvd_delta fvd_p_value speedup speedup_low speedup_high speedup_limit"
        " limit_fraction peak_memory_ratio gpu_hours val_cross_entropy protocol"
    ), "the contract of docs and of whoever reads ablation.csv"
    assert list(table["arm"]) == [*FVD, *FVD]
    assert list(table["budget"]) == ["equal_steps"] * len(FVD) + ["equal_compute"] * len(FVD)


def test_numbers_against_scipy(three_seeds):
    exactly = three_seeds.assign(
        fvd_low=math.nan, fvd_high=math.nan
    )  # no sampling noise for the tests to be floored by
    table = ablation_table(exactly).set_index(["budget", "arm"])
    values = {
        arm: three_seeds[(three_seeds["arm"] == arm) & (three_seeds["budget"] != "equal_compute")]["fvd"].to_numpy()
        for arm in FVD
    }
    row = table.loc["equal_steps", "local"]
    low, high = stats.t.interval(0.95, 2, values["local"].mean(), stats.sem(values["local"]))
    assert (row["fvd"], row["fvd_low"], row["fvd_high"]) == pytest.approx(
        (values["local"].mean(), low, high), rel=1e-12
    )
    raw = [stats.ttest_rel(values[arm], values["full"]).pvalue for arm in list(FVD)[1:]]
    assert list(table.loc["equal_steps", "fvd_p_value"])[1:] == pytest.approx(holm(raw), rel=1e-9)
    assert row["fvd_delta"] == pytest.approx((values["local"] - values["full"]).mean(), rel=1e-12)


def test_one_seed_has_its_own_interval_and_no_p_value(one_seed):
    table = ablation_table(one_seed)
    assert table["fvd_p_value"].isna().all() and (table["seeds"] == 1).all()
    assert (table["fvd_low"] <= table["fvd"]).all() and (table["fvd"] <= table["fvd_high"]).all()
    assert "not the noise between training seeds" in caption(one_seed)


def test_a_failed_run_is_listed_and_not_dropped_in_silence(one_seed):
    table = table_of(one_seed)
    assert "local" not in {row["arm"] for row in table.groups[0].rows}
    assert table.left_out == [("local-equal_steps-s0", "failed: the loss is not finite at step 412")]
    assert "local-equal_steps-s0`: failed: the loss" in markdown([table])


def test_a_missing_seed_is_paired_over_the_others(three_seeds):
    kept = three_seeds[three_seeds["trial"] != "reco-equal_steps-s1"]
    row = ablation_table(kept).set_index(["budget", "arm"]).loc["equal_steps", "reco"]
    by_trial = kept.set_index("trial")["fvd"]
    assert row["seeds"] == 2
    assert row["fvd_delta"] == pytest.approx(
        np.mean([by_trial[f"reco-equal_steps-s{seed}"] - by_trial[f"full-s{seed}"] for seed in (0, 2)])
    )


def test_another_baseline(three_seeds):
    table = ablation_table(three_seeds, baseline="reco").set_index(["budget", "arm"])
    assert table.loc[("equal_compute", "reco"), "fvd_delta"] == 0
    assert table.loc[("equal_compute", "full"), "fvd_delta"] < 0


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], []),
        ([0.02], [0.02]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, math.nan, 0.01], [0.5, math.nan, 0.02]),
        ([0.9, 0.8], [1.0, 1.0]),
    ],
    ids=["none", "one", "textbook", "nan-does-not-count", "never-above-one"],
)
def test_holm(p_values, expected):
    assert holm(p_values) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("power", [1000, -900])
def test_no_size_of_a_value_changes_a_statistic(power):
    """FVDs of 1e300 over several seeds ended in an overflow: squares do not fit where values do."""
    a, b = [Estimate(3.0, 2.5, 3.6), Estimate(5.0, 4.0, 6.5)], [Estimate(2.0, 1.7, 2.2), Estimate(2.5, 2.0, 3.5)]
    scale = 2.0**power
    big_a, big_b = ([Estimate(*(scale * end for end in run)) for run in runs] for runs in (a, b))
    assert mean_interval(big_a) == tuple(scale * end for end in mean_interval(a))
    small, big = (paired_difference(dict(enumerate(x)), dict(enumerate(y))) for x, y in ((a, b), (big_a, big_b)))
    assert small is not None and big is not None
    assert big == small._replace(
        **{name: scale * getattr(small, name) for name in ("delta", "low", "high", "detectable")}
    )
    ratio = paired_ratio({0: 1e300, 1: 1e290}, {0: 1e-300, 1: 1e-290})
    assert ratio is not None and ratio.seeds == 2 and ratio.high == math.inf


def test_seeds_that_agree_by_accident_do_not_shrink_the_interval_below_sampling_noise():
    lucky = [Estimate(5.0, 4.0, 6.0), Estimate(5.0, 4.0, 6.0)]
    interval = mean_interval(lucky)
    assert interval.high - interval.low > 2 / math.sqrt(2)
    difference = paired_difference(dict(enumerate(lucky)), dict(enumerate([Estimate(4.9, 4, 6), Estimate(4.9, 4, 6)])))
    assert difference is not None and not difference.resolved and difference.p_value > 0.05


@pytest.mark.parametrize("sampling", [0.0, 0.3, 2.0])
def test_interval_and_p_value_are_of_one_test(sampling):
    generator = np.random.default_rng(0)
    told = set()
    for _ in range(200):
        a, b = (
            {
                seed: Estimate(value, value - sampling, value + sampling)
                for seed, value in enumerate(generator.normal(size=3))
            }
            for _ in "ab"
        )
        difference = paired_difference({seed: run._replace(value=run.value + 2) for seed, run in a.items()}, b)
        assert difference is not None and difference.resolved == (difference.p_value < 0.05)
        told.add(difference.resolved)
    assert told == {True, False} or sampling == 2.0


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_smallest_difference_that_is_found_is_found_with_that_power(seeds):
    """By the noncentral t distribution of SciPy; the other tail adds nothing here."""
    values = np.arange(seeds, dtype=float)
    difference = paired_difference(dict(enumerate(exact(*values))), dict(enumerate(exact(*[0.0] * seeds))))
    assert difference is not None
    shift, reach = difference.detectable / (values.std(ddof=1) / math.sqrt(seeds)), stats.t.ppf(0.975, seeds - 1)
    assert 1 - stats.nct.cdf(reach, seeds - 1, shift) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize(
    ("delta", "half", "p_value", "words"),
    [
        (2, 1, 0.01, "worse"),
        (-2, 1, 0.01, "better"),
        (2, 1, 0.2, "not resolved"),  # resolved by itself, not after Holm
        (2, 1, math.nan, "worse (1 seed)"),
        (2, 3, math.nan, "not resolved"),
        (2, math.inf, math.nan, "not resolved"),
    ],
    ids=["worse", "better", "corrected", "one seed", "one seed, open", "one seed, no interval"],
)
def test_the_word_is_that_of_the_corrected_test(delta, half, p_value, words):
    assert standing(Difference(delta, delta - half, delta + half, 0.01, 1.0, 3), p_value) == words
    assert standing(None, math.nan) == ""


def test_the_words_of_a_table_follow_its_p_values(three_seeds):
    rows = Evidence(three_seeds).ablation
    others = rows[rows["arm"] != "full"]
    assert set(others["verdict"]) == {"worse", "not resolved"} and set(rows[rows["arm"] == "full"]["verdict"]) == {""}
    assert list(others["verdict"] == "not resolved") == list(others["fvd_p_value"] >= 0.05)
    assert "| worse |" in markdown([table_of(three_seeds)]) and "& not resolved" in latex(table_of(three_seeds))


def test_seeds_that_the_baseline_lacks_are_said(three_seeds):
    lost = three_seeds[three_seeds["trial"] != "full-s1"]
    assert "use fewer seeds than the mean in their row" in caption(lost) and "`reco` equal steps (2 of 3)" in caption(
        lost
    )
    assert "cannot give a p-value below 0.5 here" in caption(lost)
    alone = caption(three_seeds[~three_seeds["trial"].isin(["full-s1", "full-s2"])])
    assert "no arm shares two seeds with it, so there is no p-value" in alone and "before training-seed noise" in alone
    assert "sign-flip" not in alone and "rest on fewer" not in caption(three_seeds)


def test_paired_difference_by_hand():
    difference = paired_difference(dict(enumerate(exact(3, 5, 7))), dict(enumerate(exact(2, 3, 4))))
    assert difference is not None
    assert (difference.delta, difference.p_value) == pytest.approx((2, stats.ttest_1samp([1, 2, 3], 0).pvalue))
    assert difference.low == pytest.approx(2 - stats.t.ppf(0.975, 2) / math.sqrt(3))


def test_equal_differences_tell_no_spread_and_resolve_nothing():
    """Accuracies are shares of few clips: seeds may agree to the last digit."""
    apart = paired_difference(dict(enumerate(exact(0.75, 0.5))), dict(enumerate(exact(0.625, 0.375))))
    assert (
        apart is not None
        and not apart.resolved
        and math.isnan(apart.p_value)
        and standing(apart, apart.p_value) == "not resolved"
    )
    same = paired_difference(dict(enumerate(exact(1, 2))), dict(enumerate(exact(1, 2))))
    assert same is not None and (same.delta, same.p_value, same.resolved) == (0, 1, False)


def test_runs_that_share_no_seed_cannot_be_paired():
    assert paired_difference({0: exact(1)[0]}, {1: exact(1)[0]}) is None


def test_one_seed_without_an_interval_resolves_nothing():
    difference = paired_difference({0: exact(1)[0]}, {0: exact(9)[0]})
    assert difference is not None and not difference.resolved


def test_latex_is_balanced_and_escaped(one_seed):
    text = latex(table_of(one_seed))
    assert "fewer\\_frames" in text and "\\toprule" in text and "S[table-format=2.2]" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "&" in line]
    assert {line.count(" & ") for line in rows} == {9}
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [(1.005, "1.00", "+1.00"), (-0.001, "0.00", "0.00"), (-2.5, "−2.50", "−2.50"), (math.nan, "", "")],
    ids=["rounds", "no-negative-zero", "negative", "missing"],
)
def test_numbers_have_one_spelling(value, plain, with_sign):
    assert (number(value), signed(value)) == (plain, with_sign)


def test_an_interval_that_was_cut_off_at_zero_hides_no_noise():
    assert Estimate(1.0, 0.0, 3.0).variance == Estimate(9.0, 7.0, 11.0).variance


def test_too_few_samples_for_the_features_are_said(one_seed):
    assert "mean little" not in caption(one_seed)
    assert "these FVDs mean little" in caption(one_seed.assign(rank_deficient=True))


def test_clip_scores_are_columns_where_they_were_measured(three_seeds):
    plain = ablation_table(three_seeds)
    assert not [name for name in plain if name.startswith("clip_score")]
    assert "CLIP" not in markdown([table_of(three_seeds)])
    scored = three_seeds.copy()
    scored.attrs = three_seeds.attrs
    scored["clip_score"] = 25.0 + scored["seed"]
    table = ablation_table(scored)
    assert list(table)[:10] == [*list(plain)[:8], "clip_score", "clip_score_low"]
    row = table[(table["arm"] == "reco") & (table["budget"] == "equal_steps")].iloc[0]
    half = stats.t.ppf(0.975, 2) * 1.0 / math.sqrt(3)
    assert [row[f"clip_score{end}"] for end in ("", "_low", "_high")] == pytest.approx([26.0, 26 - half, 26 + half])
    assert "| CLIP score ↑ | 95% interval |" in markdown([table_of(scored)])
    assert "CLIP score" in latex(table_of(scored))
