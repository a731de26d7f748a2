"""Whether generated clips copy training clips: how close each lies to its nearest training clip, compared with
held-out clips.

A clip counts as a copy if it lies closer to a training clip than 95% of the held-out clips do. The test follows
Meehan, Chaudhuri and Dasgupta (2020). A generator that copies nothing therefore has a rate of about 0.05. A generator
whose clips are far from all real clips has a lower rate. That is no merit: check its FVD.
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
"""Share of held-out clips that lie closer to a training clip than the threshold for a copy."""
_Z = 1.959964
"""Normal quantile of a 95% interval."""


@dataclass(frozen=True)
class Memory:
    """The threshold below which a clip counts as a copy, and the features it is measured with."""

    training_MD: Float64
    """Features of all training clips."""
    heldout: FeatureStatistics
    """Statistics of held-out clips, as many as the training clips behind the main FVD."""
    distance: float
    """A clip that lies closer than this to a training clip is a copy."""

    @classmethod
    def of(cls, training_MD: Float64, heldout_ND: Float64, heldout: FeatureStatistics) -> Memory:
        nearest = nearest_distances(heldout_ND, training_MD)
        return cls(training_MD, heldout, float(np.quantile(nearest, NEARER_SHARE)))

    def copies(self, generated_ND: Float64) -> Share:
        """The share of generated clips that are copies."""
        return share(int((nearest_distances(generated_ND, self.training_MD) < self.distance).sum()), len(generated_ND))


@dataclass(frozen=True)
class Share:
    """A share with its 95% interval."""

    value: float
    low: float
    high: float


def nearest_distances(features_ND: Float64, training_MD: Float64) -> Float64:
    """Euclidean distance from each row to the nearest training clip."""
    found: Float64 = cKDTree(training_MD).query(features_ND)[0]
    return found


def share(hits: int, of: int) -> Share:
    """The share with Wilson's interval, which has a width even at 0% or 100%."""
    value, spread = hits / of, _Z**2 / of
    middle = (value + spread / 2) / (1 + spread)
    reach = _Z * math.sqrt(value * (1 - value) / of + spread / (4 * of)) / (1 + spread)
    return Share(value, max(0.0, middle - reach), min(1.0, middle + reach))
