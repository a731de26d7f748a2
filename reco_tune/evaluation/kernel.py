"""Kernel distance: the unbiased squared maximum mean discrepancy with a polynomial kernel, as in KID.

Unlike the Fréchet distance it has no sample-size bias and needs far fewer samples. It can be negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reco_tune.evaluation.frechet import Float64, Interval, as_features, jackknife_groups, jackknife_interval

BLOCK_ROWS = 512
"""Rows of the kernel matrix held at once."""


def kernel_distance(features_ND: ArrayLike | Any, features_MD: ArrayLike | Any) -> float:
    """MMD² = mean k(x, x') over x != x' + mean k(y, y') over y != y' - 2 mean k(x, y), k(a, b) = (a·b / D + 1)³
    (Bińkowski et al., 2018).

    Raises:
        ValueError: for arrays that are not [N, D] with the same D, fewer than 2 samples, or values that are not finite.
    """
    first, second = _checked(features_ND, features_MD)
    return (
        _mean_of_pairs(first)
        + _mean_of_pairs(second)
        - 2 * float(_row_sums(first, second).sum()) / (len(first) * len(second))
    )


def kernel_interval(
    features_ND: ArrayLike | Any, reference_MD: ArrayLike | Any, strata: Sequence[int] | NDArray[np.int64] | None = None
) -> Interval:
    """The kernel distance with a 95% interval from a delete-group jackknife over the generated clips. The reference
    is held fixed.

    It works like `frechet_interval`, but the estimate has no bias. So the interval also covers the distance of
    infinitely many clips. It can reach below 0.

    Raises:
        ValueError: as `kernel_distance`.
    """
    first, second = _checked(features_ND, reference_MD)
    count = len(first)
    within = _row_sums(first, first) - _own(first)  # per clip: the sum of its kernels with all other clips
    across = _row_sums(first, second)
    rest = _mean_of_pairs(second)

    def distance(pairs: float, crossed: float, left: int) -> float:
        return pairs / max(1, left * (left - 1)) + rest - 2 * crossed / (max(1, left) * len(second))

    value = distance(float(within.sum()), float(across.sum()), count)
    left_out = []
    for members in jackknife_groups(count, strata):
        part = first[members]
        inside = float((_row_sums(part, part) - _own(part)).sum())
        pairs = float(within.sum()) - 2 * float(within[members].sum()) + inside
        left_out.append(distance(pairs, float(across.sum() - across[members].sum()), count - len(members)))
    return jackknife_interval(value, np.array(left_out), floor=-math.inf)


def _checked(features_ND: ArrayLike | Any, features_MD: ArrayLike | Any) -> tuple[Float64, Float64]:
    first, second = as_features(features_ND), as_features(features_MD)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"features have {first.shape[1]} and {second.shape[1]} dimensions; they must come from one extractor"
        )
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a kernel distance needs 2 samples on each side, got {len(first)} and {len(second)}")
    return first, second


def _mean_of_pairs(features: Float64) -> float:
    count = len(features)
    return float((_row_sums(features, features) - _own(features)).sum()) / (count * (count - 1))


def _own(features: Float64) -> Float64:
    """Kernels of samples with themselves."""
    own: Float64 = (np.einsum("nd,nd->n", features, features) / features.shape[1] + 1) ** 3
    return own


def _row_sums(first: Float64, second: Float64) -> Float64:
    """For each sample of `first`: the sum of its kernels with all samples of `second`."""
    dimensions = first.shape[1]
    sums = np.empty(len(first))
    for row in range(0, len(first), BLOCK_ROWS):
        kernel = first[row : row + BLOCK_ROWS] @ second.T / dimensions + 1
        sums[row : row + BLOCK_ROWS] = (kernel * kernel * kernel).sum(
            axis=1
        )  # `** 3` would call pow, which takes ten times as long
    return sums
