"""Whether generated clips are training clips again: how near each lies to its nearest one, measured by how near new
real clips do.

A clip counts as copied where it lies nearer to a training clip than all but 5% of held-out clips do (after the test of
data copying by Meehan, Chaudhuri and Dasgupta, 2020). A generator that copies nothing therefore has a rate of about
0.05; one whose clips are far from all real ones has less, which is no merit: FVD tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from reco_tune.evaluation.frechet import FeatureStatistics

Float64 = NDArray[np.float64]
NEARER_SHARE = 0.05
"""Of the held-out clips that lie nearer to a training clip than what counts as a copy."""
_Z = 1.959964
"""Of a normal 95% interval."""


@dataclass(frozen=True)
class Memory:
    """What tells copies from new clips."""

    training_MD: Float64
    """Features of all training clips that could have been copied."""
    heldout: FeatureStatistics
    """Of as many held-out clips as training clips make the statistics of the first FVD."""
    distance: float
    """Below which a clip is a copy."""

    @classmethod
    def of(cls, training_MD: Float64, heldout_ND: Float64, heldout: FeatureStatistics) -> Memory:
        nearest = nearest_distances(heldout_ND, training_MD)
        return cls(training_MD, heldout, float(np.quantile(nearest, NEARER_SHARE)))

    def copies(self, generated_ND: Float64) -> Share:
        """Of generated clips."""
        return share(int((nearest_distances(generated_ND, self.training_MD) < self.distance).sum()), len(generated_ND))


@dataclass(frozen=True)
class Share:
    """A share with its 95% interval."""

    value: float
    low: float
    high: float


def nearest_distances(features_ND: Float64, training_MD: Float64) -> Float64:
    """Euclidean distance of each row to the nearest of the others."""
    found: Float64 = cKDTree(training_MD).query(features_ND)[0]
    return found


def share(hits: int, of: int) -> Share:
    """With Wilson's interval, which has a width also where all or none are hit."""
    value, spread = hits / of, _Z**2 / of
    middle = (value + spread / 2) / (1 + spread)
    reach = _Z * math.sqrt(value * (1 - value) / of + spread / (4 * of)) / (1 + spread)
    return Share(value, max(0.0, middle - reach), min(1.0, middle + reach))
