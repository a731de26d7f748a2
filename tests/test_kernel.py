"""Kernel distance: the definition, its lack of bias, and its refusals."""

from __future__ import annotations

import numpy as np
import pytest

from reco_tune.evaluation import kernel
from reco_tune.evaluation.kernel import kernel_distance


def test_is_the_definition():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(7, 3)), generator.normal(size=(5, 3)) + 1

    def mean_kernel(first: np.ndarray, second: np.ndarray, skip_same: bool) -> float:
        values = [
            (a @ b / 3 + 1) ** 3
            for i, a in enumerate(first)
            for j, b in enumerate(second)
            if not (skip_same and i == j)
        ]
        return float(np.mean(values))

    expected = mean_kernel(x, x, True) + mean_kernel(y, y, True) - 2 * mean_kernel(x, y, False)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_blocks_do_not_change_it(monkeypatch):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(50, 4)), generator.normal(size=(33, 4))
    whole = kernel_distance(x, y)
    monkeypatch.setattr(kernel, "BLOCK_ROWS", 7)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-10)
    assert kernel_distance(y, x) == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("count", [4, 16, 64])
def test_has_mean_zero_for_one_distribution_at_every_number_of_samples(count):
    """Unbiased: negative about as often as positive. A biased estimate of 4 samples would sit many standard errors
    above zero.
    """
    generator = np.random.default_rng(1)
    values = np.array(
        [kernel_distance(generator.normal(size=(count, 6)), generator.normal(size=(count, 6))) for _ in range(400)]
    )
    assert abs(values.mean()) < 3.5 * values.std() / np.sqrt(len(values))
    assert 0.2 < (values < 0).mean() < 0.8


def test_does_not_depend_on_the_number_of_samples_where_distributions_differ():
    generator = np.random.default_rng(2)
    few = np.array(
        [kernel_distance(generator.normal(size=(8, 6)) + 1, generator.normal(size=(8, 6))) for _ in range(600)]
    )
    many = kernel_distance(generator.normal(size=(3000, 6)) + 1, generator.normal(size=(3000, 6)))
    assert abs(few.mean() - many) < 3.5 * few.std() / np.sqrt(len(few)) + 0.05 * many


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [(np.zeros((5, 3)), np.zeros((5, 4)), "one extractor"), (np.zeros((1, 3)), np.zeros((5, 3)), "2 samples")],
    ids=["other dimensions", "one sample"],
)
def test_refusals(first, second, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(first, second)


def test_leaving_a_group_out_is_the_distance_of_the_rest(monkeypatch):
    """The interval's shortcut over row sums against the definition, group by group."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(43, 5)), generator.normal(size=(31, 5)) + 0.5
    seen = []
    monkeypatch.setattr(kernel, "jackknife_interval", lambda value, left_out, floor: seen.append((value, left_out)))
    kernel.kernel_interval(x, y)
    value, left_out = seen[0]
    assert value == pytest.approx(kernel_distance(x, y), rel=1e-12)
    expected = [kernel_distance(np.delete(x, np.arange(group, 43, 20), axis=0), y) for group in range(20)]
    np.testing.assert_allclose(left_out, expected, rtol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.5], ids=["at the floor", "shifted"])
def test_the_interval_covers_the_true_distance(shift):
    """Unbiased, so its mean over draws is the distance itself; the reference stays the same."""
    generator = np.random.default_rng(4)
    reference = generator.normal(size=(300, 6))
    intervals = [kernel.kernel_interval(generator.normal(size=(120, 6)) + shift, reference) for _ in range(200)]
    expected = np.mean([interval.value for interval in intervals])
    coverage = np.mean([interval.low <= expected <= interval.high for interval in intervals])
    assert coverage > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)
    assert all(interval.low <= interval.value <= interval.high for interval in intervals)
    assert min(interval.low for interval in intervals) < 0 or shift > 0
    true_error = np.std([interval.value for interval in intervals])
    assert np.mean([interval.standard_error for interval in intervals]) < 1.5 * true_error


@pytest.mark.parametrize("count", [2, 3, 21])
def test_an_interval_of_few_samples_holds_its_value(count):
    generator = np.random.default_rng(0)
    interval = kernel.kernel_interval(generator.normal(size=(count, 4)), generator.normal(size=(30, 4)))
    assert -np.inf < interval.low <= interval.value <= interval.high < np.inf
