"""Kernel distance: the unbiased squared maximum mean discrepancy with a polynomial kernel, as in KID.

Unlike a Fréchet distance it has no bias by the number of samples and settles with far fewer; it may be negative.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from reco_tune.evaluation.frechet import Float64, as_features

BLOCK_ROWS = 512
"""Rows of the kernel matrix held at once."""


def kernel_distance(features_ND: ArrayLike | Any, features_MD: ArrayLike | Any) -> float:
    """MMD² = mean k(x, x') over x != x' + mean k(y, y') over y != y' - 2 mean k(x, y), k(a, b) = (a·b / D + 1)³ (Bińkowski et al., 2018).

    Raises:
        ValueError: for arrays that are not [N, D] with the same D, fewer than 2 samples, or values that are not finite.
    """
    first, second = as_features(features_ND), as_features(features_MD)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"features have {first.shape[1]} and {second.shape[1]} dimensions; they must come from one extractor")
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a kernel distance needs 2 samples on each side, got {len(first)} and {len(second)}")
    across = _kernel_sum(first, second) / (len(first) * len(second))
    return _mean_of_pairs(first) + _mean_of_pairs(second) - 2 * across


def _mean_of_pairs(features: Float64) -> float:
    count, dimensions = features.shape
    own = float(((np.einsum("nd,nd->n", features, features) / dimensions + 1) ** 3).sum())
    return (_kernel_sum(features, features) - own) / (count * (count - 1))


def _kernel_sum(first: Float64, second: Float64) -> float:
    dimensions = first.shape[1]
    total = 0.0
    for row in range(0, len(first), BLOCK_ROWS):
        kernel = first[row : row + BLOCK_ROWS] @ second.T / dimensions + 1
        total += float((kernel * kernel * kernel).sum())  # three products: `** 3` calls pow and takes ten times as long
    return total
