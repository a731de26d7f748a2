"""Fréchet distance of two Gaussians fitted to features, and the interval of its sampling error.

Knows feature arrays only, not the videos, extractors or protocols behind them. Everything is float64: features [N, D]
are numpy arrays or CPU tensors of N samples in D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]
Divisor = Literal["n", "n-1"]
"""Divisor of a covariance. Published FVD protocols use both, so compared numbers must share it."""

JACKKNIFE_GROUPS = 20
"""Groups of generated samples, left out one at a time. Few enough to be cheap, enough for a t quantile near 2."""


class Interval(NamedTuple):
    """An estimate with its 95% interval: low <= value <= high."""

    value: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: int


class FeatureStatistics:
    """Count, mean and covariance of features that arrive in batches.

    Keeps the mean and the centred second moments (Chan's update). They stay accurate where the mean is far larger
    than the spread.
    """

    def __init__(self, dimensions: int, divisor: Divisor = "n-1") -> None:
        """
        Args:
            dimensions: D.
            divisor: of the covariance.
        """
        self.dimensions, self.divisor = dimensions, divisor
        self.count = 0
        self.mean: Float64 = np.zeros(dimensions)
        self._moments: Float64 = np.zeros((dimensions, dimensions))

    @classmethod
    def of(cls, features_ND: ArrayLike | Any, divisor: Divisor = "n-1") -> FeatureStatistics:
        """Statistics of one array."""
        features = as_features(features_ND)
        statistics = cls(features.shape[1], divisor)
        statistics.update(features)
        return statistics

    def update(self, features_ND: ArrayLike | Any) -> None:
        """Adds a batch [N, D].

        Raises:
            ValueError: for another number of dimensions or values that are not finite.
        """
        features = as_features(features_ND)
        if features.shape[1] != self.dimensions:
            raise ValueError(
                f"features have {features.shape[1]} dimensions, but these statistics have {self.dimensions}"
            )
        if len(features):
            mean = features.mean(axis=0)
            centred = features - mean
            self._join(len(features), mean, centred.T @ centred, sign=1)

    def without(self, part: FeatureStatistics) -> FeatureStatistics:
        """The statistics without `part`, which must have been added before."""
        rest = FeatureStatistics(self.dimensions, self.divisor)
        rest.count, rest.mean, rest._moments = self.count, self.mean, self._moments
        rest._join(part.count, part.mean, part._moments, sign=-1)
        return rest

    @property
    def covariance(self) -> Float64:
        """[D, D], symmetric; zero for a single sample."""
        return self._moments / max(1, self.count - (self.divisor == "n-1"))

    @property
    def rank_deficient(self) -> bool:
        """Whether there are too few samples for a covariance of full rank (N <= D). Reports must then say that the
        distance means little.
        """
        return self.count <= self.dimensions

    def _join(self, count: int, mean: Float64, moments: Float64, sign: Literal[1, -1]) -> None:
        total = self.count + sign * count
        shift = mean - self.mean
        if total == 0:
            self.count, self.mean, self._moments = 0, np.zeros(self.dimensions), np.zeros_like(self._moments)
            return
        self._moments = self._moments + sign * (moments + np.outer(shift, shift) * (self.count * count / total))
        self.mean = self.mean + shift * (sign * count / total)
        self.count = total


def frechet_distance(features_ND: ArrayLike | Any, features_MD: ArrayLike | Any) -> float:
    """|μ1 - μ2|² + tr Σ1 + tr Σ2 - 2 tr (Σ1^½ Σ2 Σ1^½)^½ with covariances over n-1 (Dowson and Landau, 1982).

    Raises:
        ValueError: for arrays that are not [N, D] with the same D, fewer than 2 samples, or values that are not finite.
    """
    first, second = as_features(features_ND), as_features(features_MD)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"features have {first.shape[1]} and {second.shape[1]} dimensions; they must come from one extractor"
        )
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a Fréchet distance needs 2 samples on each side, got {len(first)} and {len(second)}")
    return statistics_distance(FeatureStatistics.of(first), FeatureStatistics.of(second))


def statistics_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """The Fréchet distance of collected statistics, never below 0.

    For any factor F with F Fᵀ = Σ2, the symmetric matrix Fᵀ Σ1 F has the eigenvalues of Σ1 Σ2. Their square roots add
    up to the last trace.
    """
    from scipy.linalg import LinAlgError, eigh

    if not (first.rank_deficient or second.rank_deficient):
        with suppress(LinAlgError):  # linearly dependent features can make Cholesky fail
            eigenvalues = eigh(
                first.covariance, second.covariance, type=2, eigvals_only=True, driver="gv", check_finite=False
            )
            return _from_eigenvalues(first, second, eigenvalues)
    fewer, more = sorted((first, second), key=lambda statistics: statistics.count)
    return _distance_to(fewer, _factor(fewer.covariance), more)


def frechet_interval(
    features_ND: ArrayLike | Any, reference: FeatureStatistics, strata: Sequence[int] | NDArray[np.int64] | None = None
) -> Interval:
    """The Fréchet distance of generated features to a reference, with a 95% interval from a delete-group jackknife.

    The interval is for the expected distance of N samples of the same generator to this one reference. It covers the
    sampling noise of the generated clips. It does not cover the bias of a Fréchet distance at N samples, so never
    compare different N. Nor does it cover the noise of the reference, which all runs of a study share.

    A percentile bootstrap does not work here. Resampled sets hold fewer distinct samples, so all of their distances
    lie above the estimate. Near the floor (generator = reference) the distance is quadratic in the noise, and the
    interval is up to twice too wide, which is the safe side.

    Args:
        features_ND: generated clips.
        reference: statistics of the real clips.
        strata: class of each clip, so that every group has the same mixture of classes. (Classes are given, not
            drawn.)
    """
    features = as_features(features_ND)
    count = len(features)
    factor = _factor(reference.covariance)
    whole = FeatureStatistics.of(features, reference.divisor)
    value = _distance_to(reference, factor, whole)
    parts = (FeatureStatistics.of(features[members], reference.divisor) for members in jackknife_groups(count, strata))
    left_out = np.array([_distance_to(reference, factor, whole.without(part)) for part in parts])
    return jackknife_interval(value, left_out)


class Bias(NamedTuple):
    """The Fréchet distance of a generator at several sample sizes, and its limit."""

    samples: list[int]
    distance: list[float]
    """Mean over disjoint parts of each sample size."""
    limit: float
    """Distance at infinitely many samples: the intercept of a line over 1/N (Chong and Forsyth, 2020)."""


def frechet_bias(features_ND: ArrayLike | Any, reference: FeatureStatistics) -> Bias:
    """How the distance falls with the sample size, from one set of N samples: all of them, then disjoint halves,
    quarters, ... down to D + 1 samples.

    The bias is about proportional to 1/N, so distances at two sample sizes are not comparable. Each part takes every
    k-th sample, which keeps the mixture of classes where labels were drawn evenly.
    """
    features = as_features(features_ND)
    factor = _factor(reference.covariance)
    parts = [1]
    while len(features) // (2 * parts[-1]) > max(1, reference.dimensions):
        parts.append(2 * parts[-1])
    distances = []
    for count in parts:
        statistics = (FeatureStatistics.of(features[part::count], reference.divisor) for part in range(count))
        distances.append(float(np.mean([_distance_to(reference, factor, one) for one in statistics])))
    samples = [len(features) // count for count in parts]
    limit = float(np.polyfit(1 / np.array(samples), distances, 1)[1]) if len(parts) > 1 else float("nan")
    return Bias(samples[::-1], distances[::-1], limit)


def interval_of_mean(values_N: Float64) -> Interval:
    """The mean of independent values with its t interval. With one value, the interval is unknown (NaN)."""
    count, value = len(values_N), float(values_N.mean())
    if count == 1:
        return Interval(value, math.nan, math.nan, math.nan, 0)
    return _interval(value, float(values_N.std(ddof=1)) / math.sqrt(count), count - 1, -math.inf)


def mean_interval(intervals: Sequence[Interval], floor: float = 0.0) -> Interval:
    """The mean of independent estimates (one per sampling seed) and its interval. Neither end lies below `floor`."""
    value = float(np.mean([interval.value for interval in intervals]))
    error = float(np.sqrt(np.sum([interval.standard_error**2 for interval in intervals]))) / len(intervals)
    return _interval(value, error, sum(interval.degrees_of_freedom for interval in intervals), floor)


def jackknife_groups(count: int, strata: Sequence[int] | NDArray[np.int64] | None) -> list[NDArray[np.int64]]:
    """Indices of the samples that are left out together; each group has the same mixture of the strata."""
    order = np.arange(count) if strata is None else np.argsort(np.asarray(strata), kind="stable")
    groups = min(JACKKNIFE_GROUPS, count)
    return [order[group::groups] for group in range(groups)]


def jackknife_interval(value: float, left_out: Float64, floor: float = 0.0) -> Interval:
    """The interval of an estimate, from its values with each of G groups left out: a t interval with G - 1 degrees of
    freedom.
    """
    groups = len(left_out)
    error = float(np.sqrt((groups - 1) / groups * np.sum((left_out - left_out.mean()) ** 2)))
    return _interval(value, error, groups - 1, floor)


def as_features(features: ArrayLike | Any) -> Float64:
    """[N, D] in float64.

    Raises:
        ValueError: for another shape or values that are not finite.
    """
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"features must be [samples, dimensions], got the shape {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError("features hold values that are not finite; the extractor or the generated clips are broken")
    return values


def _interval(value: float, error: float, degrees_of_freedom: int, floor: float) -> Interval:
    from scipy.special import stdtrit  # only the t quantile: importing scipy.stats takes half a second

    reach = float(stdtrit(degrees_of_freedom, 0.975)) * error
    return Interval(value, max(floor, value - reach), value + reach, error, degrees_of_freedom)


def _distance_to(reference: FeatureStatistics, factor: Float64, other: FeatureStatistics) -> float:
    """`factor`: of the reference's covariance."""
    return _from_eigenvalues(reference, other, np.linalg.eigvalsh(factor.T @ other.covariance @ factor))


def _from_eigenvalues(first: FeatureStatistics, second: FeatureStatistics, eigenvalues: NDArray[Any]) -> float:
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()  # at low rank, rounding leaves tiny negative eigenvalues
    shift = first.mean - second.mean
    return max(0.0, float(shift @ shift + np.trace(first.covariance) + np.trace(second.covariance) - 2 * cross))


def _factor(covariance: Float64) -> Float64:
    """F [D, rank] with F Fᵀ = Σ, by pivoted Cholesky, which stops at the rank of the covariance."""
    from scipy.linalg.lapack import dpstrf

    lower, pivots, rank, _ = dpstrf(covariance, lower=1)
    factor = np.empty((len(covariance), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor
