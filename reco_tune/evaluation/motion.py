"""Motion distance: how differently generated clips change over time. FVD hardly sees this.

Knows pixels only. It needs no extractor or labels, so it is the same number under every protocol. For each clip it
takes the strength of the change at lags of 1, 2 and 4 frames, and of the acceleration (second difference). It takes
each of them per region of the frame and per segment of the clip. The Fréchet distance then compares the distributions
of these numbers, in units of the reference's own variance.
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
"""Frames are first averaged down to at most this side, so that pixel noise does not count as motion."""
REGIONS, SEGMENTS = 2, 3
"""A grid of 2 x 2 regions per frame, and thirds of the clip."""
BATCH_CLIPS = 64
SPREAD_FLOOR = 0.005
"""Smallest spread, in the pixel range 0..1. It keeps rounding from counting as motion where the reference stands
still.
"""


def motion_features(video_BFCHW: Tensor | NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square changes [B, D] of uint8 clips, in the pixel range 0..1.

    Squares are used instead of absolute values because they react less to noise: faint noise of strength ε on motion
    of strength m adds ε²/2m, not about ε.
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
    """Fréchet distance of `motion_features`, divided by the reference's own variance: 0 means no difference, 1 means
    as far apart as two clips of the reference.

    All features share one unit. Where motion is periodic, some features are always 0 in the reference, so their own
    spread cannot serve as a unit. Like every Fréchet distance it is biased by N.
    """
    generated, reference = FeatureStatistics.of(generated_ND), FeatureStatistics.of(reference_MD)
    variance = max(float(np.trace(reference.covariance)), reference.dimensions * SPREAD_FLOOR**2)
    return statistics_distance(generated, reference) / variance
