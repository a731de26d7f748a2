"""Means, intervals and paired differences over training seeds: formulas only, no tables.

There are two sources of noise. `sampling` is which clips were generated; each run's own interval measures it.
`training` is which seed trained the model; it needs two seeds or more. The spread over training seeds already includes
the sampling noise of each run.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import (
    nctdtrinc,
    ndtri,
    stdtr,
    stdtrit,
)  # of scipy.stats the quantiles alone: it takes half a second to import

CONFIDENCE = 0.95
LEVEL = 0.05
"""Of tests, two-sided."""
POWER = 0.8
_LARGEST_LOG = math.log(sys.float_info.max)
_Z = float(ndtri(0.5 + CONFIDENCE / 2))


class Estimate(NamedTuple):
    """One run's FVD with its own 95% sampling interval."""

    value: float
    low: float
    high: float

    def over(self, scale: float) -> Estimate:
        return Estimate(self.value / scale, self.low / scale, self.high / scale)

    @property
    def variance(self) -> float:
        """Sampling variance that the interval implies; 0 if the run has no interval.

        Uses the high end, because the low end may have been cut off at 0. Treats the interval as normal. A run's own
        interval has t quantiles with at least 19 degrees of freedom, so the variance is at most 1.14 times too large.
        """
        return ((self.high - self.value) / _Z) ** 2 if math.isfinite(self.low) and math.isfinite(self.high) else 0.0


class Difference(NamedTuple):
    """a minus b, paired by training seed."""

    delta: float
    low: float
    high: float
    p_value: float
    """P-value of the t test over training seeds that belongs to the interval: below 0.05 if the interval excludes zero.
    NaN at one seed.
    """
    detectable: float
    """Smallest true difference that this comparison by itself finds with 80% power at the 5% level."""
    seeds: int

    @property
    def resolved(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


class Ratio(NamedTuple):
    """a over b, paired by training seed: the geometric mean with its 95% interval. With one seed, the interval is
    unbounded.
    """

    value: float
    low: float
    high: float
    seeds: int


def mean_interval(runs: Sequence[Estimate], floor: float = 0.0, ceiling: float = math.inf) -> Estimate:
    """Mean over training seeds with its 95% interval, whose ends are clipped to `floor` and `ceiling`.

    One seed: the run's own sampling interval. Two or more: mean ± t · sqrt(v / n), where v is the variance over seeds,
    but at least the mean sampling variance. Two seeds may agree by chance; their samples are still random.
    """
    if len(runs) == 1:
        value, low, high = runs[0]
        return Estimate(value, low if math.isfinite(low) else math.nan, high if math.isfinite(high) else math.nan)
    scale = _scale(runs)
    runs = [run.over(scale) for run in runs]
    values = np.array([run.value for run in runs])
    variance = max(float(values.var(ddof=1)), float(np.mean([run.variance for run in runs])))
    half = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2)) * math.sqrt(variance / len(values)) * scale
    mean = float(values.mean()) * scale
    return Estimate(mean, max(floor, mean - half), min(ceiling, mean + half))


def paired_difference(a: Mapping[int, Estimate], b: Mapping[int, Estimate]) -> Difference | None:
    """a minus b over the training seeds that both have; None if they share none.

    One seed: the sampling interval of the difference, which does not include training-seed noise. More: a t interval
    over the differences by seed, and the p-value of the same t test. Their variance is taken to be at least the
    sampling variance, because seeds may agree by chance.
    """
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    scale = _scale([run[seed] for run in (a, b) for seed in seeds])
    pairs = [(a[seed].over(scale), b[seed].over(scale)) for seed in seeds]
    deltas = np.array([one.value - other.value for one, other in pairs])
    sampling = float(np.mean([one.variance + other.variance for one, other in pairs]))
    mean, count = float(deltas.mean()), len(seeds)
    delta = mean * scale
    if count == 1:
        error = math.sqrt(sampling) * scale if sampling > 0 else math.inf
        return Difference(
            delta, delta - _Z * error, delta + _Z * error, math.nan, (_Z + float(ndtri(POWER))) * error, 1
        )
    spread = math.sqrt(max(float(deltas.var(ddof=1)), sampling) / count)
    if spread == 0 and delta:  # all seeds agree exactly, as shares of few clips may: the spread is unknown
        return Difference(delta, -math.inf, math.inf, math.nan, math.nan, count)
    half = float(stdtrit(count - 1, 1 - LEVEL / 2)) * spread * scale
    p_value = float(2 * stdtr(count - 1, -abs(mean) / spread)) if spread else 1.0
    return Difference(delta, delta - half, delta + half, p_value, _shift(count, LEVEL) * spread * scale, count)


def paired_ratio(a: Mapping[int, float], b: Mapping[int, float]) -> Ratio | None:
    """a over b, with a t interval over the logarithms by seed. With one seed, the interval is unbounded. None if no
    seed has both above 0.
    """
    seeds = [seed for seed in sorted(set(a) & set(b)) if a[seed] > 0 and b[seed] > 0]
    logs = np.array([math.log(a[seed]) - math.log(b[seed]) for seed in seeds])
    if not len(logs):
        return None
    mean, count = float(logs.mean()), len(logs)
    half = (
        math.inf
        if count == 1
        else float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2) * logs.std(ddof=1)) / math.sqrt(count)
    )
    value, low, high = (math.exp(end) if end < _LARGEST_LOG else math.inf for end in (mean, mean - half, mean + half))
    return Ratio(value, low, high, count)


def needed_seeds(difference: Difference, most: int, comparisons: int = 1) -> int | None:
    """Fewest training seeds that find a true difference of the measured size with 80% power; None above `most`.

    With one seed, at most the sampling noise is known, so the number is a lower bound. It is at least 3, because a
    spread from two seeds is not reliable.

    Args:
        comparisons: number of comparisons in the table. The first step of Holm's correction divides the level by it.
    """
    half, seeds = difference.high - difference.delta, difference.seeds
    if seeds == 1 and math.isinf(half) and difference.delta != 0:
        return 3 if most >= 3 else None
    if not (math.isfinite(half) and difference.delta != 0):
        return None
    spread = half / _Z if seeds == 1 else half / float(stdtrit(seeds - 1, 1 - LEVEL / 2)) * math.sqrt(seeds)
    for count in range(max(3, seeds + 1), most + 1):
        if _shift(count, LEVEL / comparisons) * spread / math.sqrt(count) <= abs(difference.delta):
            return count
    return None


def sign_flip_floor(seeds: int) -> float:
    """The smallest two-sided p-value that a sign-flip test of that many differences can give. A t test has no such
    floor.
    """
    return min(1.0, 2.0 ** (1 - seeds))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values with Holm's correction, each to be compared with the same level. NaN stays NaN and does not count."""
    known = sorted((p, position) for position, p in enumerate(p_values) if math.isfinite(p))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, position) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[position] = largest
    return adjusted


def _scale(runs: Sequence[Estimate]) -> float:
    """A power of two near the largest value. Dividing by it changes no digit, and squares of 1e300 then fit into a
    float.
    """
    largest = max((abs(end) for run in runs for end in run if math.isfinite(end)), default=0.0)
    return 2.0 ** (math.frexp(largest)[1] - 1)


def _shift(seeds: int, level: float) -> float:
    """True difference, in standard errors, that a two-sided paired t test finds with 80% power. From the noncentral t
    distribution.
    """
    return float(nctdtrinc(seeds - 1, 1 - POWER, stdtrit(seeds - 1, 1 - level / 2)))
