"""Fréchet distance: identities, closed forms, an outside reference, and what its interval covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import sqrtm

from reco_tune.benchmarks.frechet import scipy_distance
from reco_tune.evaluation.frechet import (
    FeatureStatistics,
    frechet_bias,
    frechet_distance,
    frechet_interval,
    interval_of_mean,
    mean_interval,
    statistics_distance,
)


def gaussian(seed: int, count: int, dimensions: int) -> np.ndarray:
    """Correlated features with a mean."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, dimensions)) @ generator.normal(
        size=(dimensions, dimensions)
    ) + generator.normal(size=dimensions)


def test_identity_and_symmetry():
    x, y = gaussian(0, 200, 12), gaussian(1, 300, 12)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-10)


def test_a_shift_costs_its_square():
    x, shift = gaussian(0, 200, 6), np.arange(6.0)
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift @ shift), rel=1e-9)


def test_scaling_by_two_costs_the_trace():
    x = gaussian(0, 200, 6)
    x -= x.mean(axis=0)
    assert frechet_distance(x, 2 * x) == pytest.approx(np.trace(np.cov(x, rowvar=False)), rel=1e-9)


def test_diagonal_gaussians_by_hand():
    x = np.sqrt(1.5) * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])  # covariance over n-1: the identity
    scales = np.array([3.0, 0.5])
    assert frechet_distance(x, x * scales) == pytest.approx(((scales - 1) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("dimensions", [2, 16, 64])
def test_agrees_with_the_matrix_square_root_where_that_is_stable(dimensions):
    x, y = gaussian(0, 5 * dimensions + 20, dimensions), gaussian(1, 5 * dimensions + 30, dimensions)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(axis=0) - y.mean(axis=0)
    expected = shift @ shift + np.trace(a + b) - 2 * np.trace(sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_fewer_samples_than_dimensions_stay_finite_and_are_said():
    x, y = gaussian(0, 20, 64), gaussian(1, 30, 64)
    assert 0 < frechet_distance(x, y) < np.inf
    assert FeatureStatistics.of(x).rank_deficient and not FeatureStatistics.of(gaussian(0, 65, 64)).rank_deficient


@pytest.mark.parametrize(
    "count", [5, 20, 200], ids=["fewer samples than rank", "fewer than dimensions", "more than dimensions"]
)
def test_a_turned_subspace_costs_what_it_costs_by_itself(count):
    """Covariances of rank 8 in 48 dimensions, whose other eigenvalues are rounding: their roots are a million times as
    large.
    """
    turn = np.linalg.qr(gaussian(2, 48, 48))[0][:8]
    x, y = gaussian(0, count, 8), gaussian(1, count, 8)
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(
        frechet_distance(x, y), rel=1e-7
    )  # square root of float64's digits


@pytest.mark.parametrize("divisor", ["n", "n-1"])
def test_batches_give_the_statistics_of_the_whole(divisor):
    x = gaussian(0, 100, 5) + 1e6  # raw float64 sums of squares would keep four digits of the covariance here
    statistics = FeatureStatistics(5, divisor)
    for part in (x[:1], x[1:40], x[40:40], x[40:]):
        statistics.update(part)
    np.testing.assert_allclose(statistics.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(x, rowvar=False, bias=divisor == "n"), rtol=1e-8)


def test_leaving_a_part_out_gives_the_statistics_of_the_rest():
    x = gaussian(0, 100, 5)
    rest = FeatureStatistics.of(x).without(FeatureStatistics.of(x[30:50]))
    expected = FeatureStatistics.of(np.delete(x, slice(30, 50), axis=0))
    assert rest.count == expected.count
    np.testing.assert_allclose(rest.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(rest.covariance, expected.covariance, rtol=1e-10)


CASES = {"at the floor": (0.0, 1.0), "shifted": (0.4, 1.0), "wider": (0.0, 1.4)}


@pytest.mark.parametrize(("shift", "scale"), CASES.values(), ids=CASES.keys())
def test_the_interval_covers_the_expected_distance_of_as_many_samples(shift, scale):
    """What is covered is E[FVD of N samples to this reference]; the mean over all draws stands for it."""
    generator = np.random.default_rng(3)
    spread = np.linspace(0.3, 2, 12)
    reference = FeatureStatistics.of(generator.normal(size=(512, 12)) * spread)
    intervals = [
        frechet_interval(generator.normal(size=(200, 12)) * spread * scale + shift, reference) for _ in range(200)
    ]
    expected = np.mean([interval.value for interval in intervals])
    coverage = np.mean([interval.low <= expected <= interval.high for interval in intervals])
    assert coverage > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)  # three standard errors of a share of 200
    assert all(0 <= interval.low <= interval.value <= interval.high for interval in intervals)
    true_error = np.std([interval.value for interval in intervals])
    assert np.mean([interval.standard_error for interval in intervals]) < 1.5 * true_error  # safe, but not by inflation


def test_the_percentile_bootstrap_excludes_its_own_estimate():
    """The trap that the jackknife avoids: every resampled set lies farther away than the sample itself."""
    generator = np.random.default_rng(0)
    reference = FeatureStatistics.of(generator.normal(size=(2048, 48)))
    x = generator.normal(size=(256, 48))
    resampled = [
        statistics_distance(FeatureStatistics.of(x[generator.integers(256, size=256)]), reference) for _ in range(50)
    ]
    interval = frechet_interval(x, reference)
    assert min(resampled) > interval.value
    assert interval.low < interval.value < interval.high


def test_strata_take_the_spread_between_given_classes_out():
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 4
    x = generator.normal(size=(400, 3)) + 8 * labels[:, None]
    reference = FeatureStatistics.of(generator.normal(size=(400, 3)))
    assert (
        frechet_interval(x, reference, labels).standard_error
        < 0.5 * frechet_interval(x[generator.permutation(400)], reference).standard_error
    )


def test_several_sampling_seeds_narrow_the_interval():
    reference = FeatureStatistics.of(gaussian(0, 500, 8))
    intervals = [frechet_interval(gaussian(0, 500, 8)[seed::4] + 1, reference) for seed in range(4)]
    joint = mean_interval(intervals)
    assert joint.value == pytest.approx(np.mean([interval.value for interval in intervals]))
    assert joint.standard_error == pytest.approx(np.sqrt(sum(interval.standard_error**2 for interval in intervals)) / 4)
    assert joint.low <= joint.value <= joint.high


@pytest.mark.parametrize("count", [2, 3, 21])
def test_an_interval_of_few_samples_holds_its_value(count):
    interval = frechet_interval(gaussian(1, count, 4), FeatureStatistics.of(gaussian(0, 50, 4)))
    assert 0 <= interval.low <= interval.value <= interval.high < np.inf


BAD = {
    "other dimensions": (np.zeros((5, 3)), np.zeros((5, 4)), "one extractor"),
    "one sample": (np.zeros((1, 3)), np.zeros((5, 3)), "2 samples"),
    "not finite": (np.full((5, 3), np.nan), np.zeros((5, 3)), "not finite"),
    "no matrix": (np.zeros(5), np.zeros((5, 3)), "shape"),
}


@pytest.mark.parametrize(("first", "second", "message"), BAD.values(), ids=BAD.keys())
def test_refusals(first, second, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(first, second)


@pytest.mark.parametrize("count", [256, 512])
def test_agrees_with_scipy_at_the_size_of_i3d(count):
    """256 samples: rank-deficient, where SciPy is still right here; 512: full rank, by the Cholesky factor."""
    first, second = (FeatureStatistics.of(gaussian(seed, count, 400)) for seed in (0, 1))
    assert statistics_distance(first, second) == pytest.approx(scipy_distance(first, second), rel=1e-6)


def test_features_that_others_determine_have_no_cholesky_factor_and_a_distance_all_the_same():
    x, y = gaussian(0, 200, 6), gaussian(1, 200, 6)
    doubled, constant = [np.hstack([z, z]) for z in (x, y)], [np.hstack([z, np.ones((200, 2))]) for z in (x, y)]
    assert frechet_distance(*doubled) == pytest.approx(2 * frechet_distance(x, y), rel=1e-6)
    assert frechet_distance(*constant) == pytest.approx(frechet_distance(x, y), rel=1e-9)


def test_an_interval_holds_its_value_whatever_it_is_given():
    """At random: too few samples, constant and copied features, far and near generators, one class or many."""
    generator = np.random.default_rng(0)
    for _ in range(150):
        count, dimensions, size = (
            generator.integers(2, 60),
            generator.integers(1, 30),
            10.0 ** generator.integers(-6, 7),
        )
        x = size * (gaussian(int(generator.integers(1000)), count, dimensions) + generator.choice([0.0, 1e-9, 5.0]))
        x[:, generator.random(dimensions) < 0.2] = size
        if generator.random() < 0.2:
            x[:] = x[0]
        real = size * gaussian(int(generator.integers(1000)), int(generator.integers(2, 90)), dimensions)
        reference = FeatureStatistics.of(x if generator.random() < 0.1 else real, generator.choice(["n", "n-1"]))
        strata = generator.integers(generator.integers(1, 5), size=count) if generator.random() < 0.5 else None
        interval = frechet_interval(x, reference, strata)
        assert 0 <= interval.low <= interval.value <= interval.high < np.inf
        both = mean_interval([interval, interval])
        assert both.low <= both.value <= both.high


def test_the_bias_falls_with_the_samples_and_its_limit_is_nearer_to_the_truth():
    generator = np.random.default_rng(0)
    reference = FeatureStatistics.of(generator.normal(size=(200_000, 8)))
    bias = frechet_bias(generator.normal(size=(2048, 8)) + 0.5, reference)  # the true distance is 8 x 0.25
    assert bias.samples == [16, 32, 64, 128, 256, 512, 1024, 2048]
    assert bias.distance == sorted(bias.distance, reverse=True)
    assert bias.distance[-1] == pytest.approx(
        frechet_interval(generator.normal(size=(2048, 8)) + 0.5, reference).value, rel=0.15
    )
    assert abs(bias.limit - 2) < abs(bias.distance[3] - 2)


def test_one_size_alone_has_no_limit():
    bias = frechet_bias(gaussian(0, 12, 8), FeatureStatistics.of(gaussian(0, 50, 8)))
    assert bias.samples == [12] and np.isnan(bias.limit)


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(0).normal(size=12)
    found = interval_of_mean(values)
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (found.low, found.value, found.high) == pytest.approx((low, values.mean(), high), rel=1e-12)
    assert math.isnan(interval_of_mean(values[:1]).low)
