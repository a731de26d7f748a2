"""Compares our Fréchet distance with SciPy's matrix square root, which published FVD code uses: time, and difference
of the values.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from reco_tune.benchmarks.shapes import BenchOptions
from reco_tune.benchmarks.tables import Column, Row, Table, ratio_to_ours
from reco_tune.cost.timing import in_rounds
from reco_tune.evaluation.frechet import FeatureStatistics, statistics_distance

DIMENSIONS = 400
"""Number of I3D's logits."""
_COLUMNS = (
    Column("samples", "samples", "d"),
    Column("dimensions", "dimensions", "d"),
    Column("ours", "ours, ms", ".1f"),
    Column("scipy", "SciPy, ms", ".1f"),
    Column("ratio", "its time / ours", ".1f"),
    Column("ratio_low", "95% from", ".1f"),
    Column("ratio_high", "to", ".1f"),
    Column("value", "ours", ".6g"),
    Column("scipy_value", "SciPy's", ".6g"),
    Column("difference", "relative difference", ".1e"),
)


def bench_frechet(samples: Sequence[int], bench: BenchOptions, dimensions: int = DIMENSIONS) -> Table:
    """One row per number of samples. Features are correlated Gaussians whose variances fall off like those of a
    network.

    Time is CPU time of one thread, so that other load on the machine does not change it. It does not include
    collecting the statistics.
    """
    with threadpool_limits(1):
        rows = [_row(count, dimensions, bench) for count in samples]
    return Table("fvd", "Fréchet distance of given statistics beside scipy.linalg.sqrtm", _COLUMNS, rows)


def _row(count: int, dimensions: int, bench: BenchOptions) -> Row:
    first, second = (FeatureStatistics.of(_features(count, dimensions, seed)) for seed in (0, 1))
    jobs = [partial(statistics_distance, first, second), partial(scipy_distance, first, second)]
    values = [job() for job in jobs]
    times_RJ = in_rounds(jobs, time.process_time, bench.seconds, bench.progress, f"{count} samples")
    row: Row = {"samples": count, "dimensions": dimensions, "ours": 1e3 * float(np.median(times_RJ[:, 0]))}
    ratio = ratio_to_ours(times_RJ[:, 1], times_RJ[:, 0])
    row |= {
        "scipy": 1e3 * float(np.median(times_RJ[:, 1])),
        **{key: value for key, value in ratio.items() if key != "seconds"},
    }
    difference = abs(values[1] - values[0]) / values[0] if math.isfinite(values[1]) else None
    return row | {"value": values[0], "scipy_value": values[1], "difference": difference}


def scipy_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """The distance by the real part of sqrtm(Σ1 Σ2), as in StyleGAN-V's code and its descendants."""
    from scipy.linalg import sqrtm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns that the product is singular; the table shows the effect
        cross = np.trace(sqrtm(first.covariance @ second.covariance)).real
    shift = first.mean - second.mean
    return float(shift @ shift + np.trace(first.covariance) + np.trace(second.covariance) - 2 * cross)


def _features(count: int, dimensions: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixing = np.linalg.qr(np.random.default_rng(2).normal(size=(dimensions, dimensions)))[0]
    spread = (1 + np.arange(dimensions)) ** -0.5
    features: np.ndarray = generator.normal(size=(count, dimensions)) * spread @ mixing + 0.1 * seed
    return features
