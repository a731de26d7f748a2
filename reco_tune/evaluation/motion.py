"""Motion distance: how differently generated clips change over time, which FVD hardly sees.

Knows pixels only: no extractor and no labels, so it is the same number under every protocol. Per clip it takes the
strength of the change at lags 1, 2 and 4 frames and of the acceleration (second difference), each where in the frame
and when in the clip, and compares the distributions of these numbers by their Fréchet distance, in units of the
reference's own variance.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from reco_tune.evaluation.frechet import FeatureStatistics, statistics_distance

LAGS_FRAMES = (1, 2, 4)
"""Lags longer than the clip are left out."""
SIDE_CELLS = 16
"""Frames are averaged down to at most this side first, so that pixel noise does not pass for motion."""
REGIONS, SEGMENTS = 2, 3
"""Where: a grid of 2 x 2 regions. When: thirds of the clip."""
BATCH_CLIPS = 64
SPREAD_FLOOR = 0.005
"""Smallest spread that counts, in the range 0..1 of a pixel: rounding must not pass for motion where the reference
rests.
"""


def motion_features(video_BFCHW: Tensor | NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square changes [B, D] of uint8 clips, in the range 0..1 of a pixel.

    Squares, not absolute values: faint noise of strength ε on motion of strength m adds ε²/2m instead of something like
    ε.
    """
    video = torch.from_numpy(np.array(video_BFCHW)) if isinstance(video_BFCHW, np.ndarray) else video_BFCHW
    return torch.cat([_changes(part) for part in video.split(BATCH_CLIPS)]).cpu().numpy()


def _changes(video_BFCHW: Tensor) -> Tensor:
    grey_BFHW = video_BFCHW.float().mean(dim=2) / 255
    height, width = (min(side, SIDE_CELLS) for side in grey_BFHW.shape[2:])
    grey_BFHW = F.adaptive_avg_pool2d(grey_BFHW, (height, width))
    frames = grey_BFHW.shape[1]
    changes = [grey_BFHW[:, lag:] - grey_BFHW[:, :-lag] for lag in LAGS_FRAMES if lag < frames]
    if frames > 2:
        changes.append(grey_BFHW[:, 2:] - 2 * grey_BFHW[:, 1:-1] + grey_BFHW[:, :-2])
    parts = []
    for change_BFHW in changes:
        energy = change_BFHW.square()[:, None]
        where = F.adaptive_avg_pool3d(energy, (1, REGIONS, REGIONS)).flatten(1)
        when = F.adaptive_avg_pool3d(energy, (SEGMENTS, 1, 1)).flatten(1)
        parts += [where, when]
    return torch.cat(parts, dim=1).sqrt().double()


def motion_distance(generated_ND: NDArray[np.float64], reference_MD: NDArray[np.float64]) -> float:
    """Fréchet distance of `motion_features` over the reference's own variance; 0 is no difference, 1 is as far as its
    clips lie apart.

    One unit for all features: where motion is periodic some are always 0 in the reference, and their own spread would
    be no unit. Biased by N like every Fréchet distance.
    """
    generated, reference = FeatureStatistics.of(generated_ND), FeatureStatistics.of(reference_MD)
    variance = max(float(np.trace(reference.covariance)), reference.dimensions * SPREAD_FLOOR**2)
    return statistics_distance(generated, reference) / variance
