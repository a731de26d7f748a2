"""Optical-flow consistency: the share of the change between frames that no motion explains.

Uses pixels and scikit-image's classical flow (iterative Lucas-Kanade: Le Besnerais and Champagnat, 2005); no network
and no labels. Smooth motion scores low. Flicker, and frames that do not follow each other, score high. A shift of
whole frames also scores low, because it is motion. `motion` detects such shifts, and measures how much moves.
"""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from reco_tune.errors import SettingsError

CLIPS = 64
"""Only the first clips are measured: flow takes up to 30 ms per pair of frames."""
SIDE_PX = 64
"""Larger frames are averaged down to this side."""
MISSING = (
    "evaluation.flow needs scikit-image, which is not installed: `pip install 'reco-tune[flow]'`, or leave"
    " evaluation.flow at false"
)


def require_flow() -> None:
    """
    Raises:
        SettingsError: where scikit-image is not installed.
    """
    if importlib.util.find_spec("skimage") is None:
        raise SettingsError(MISSING)


def flow_changes(video_BFCHW: Tensor | NDArray[np.uint8]) -> NDArray[np.float64]:
    """For each uint8 clip [B, 2]: the summed squared change between neighbouring frames, and the part of it that
    remains after warping along the flow.
    """
    from skimage.registration import optical_flow_ilk
    from skimage.transform import warp

    video = torch.from_numpy(np.array(video_BFCHW)) if isinstance(video_BFCHW, np.ndarray) else video_BFCHW.cpu()
    grey_BFHW = video.float().mean(dim=2) / 255
    height, width = (min(side, SIDE_PX) for side in grey_BFHW.shape[2:])
    small_BFHW = F.adaptive_avg_pool2d(grey_BFHW, (height, width)).double().numpy()
    places = np.mgrid[:height, :width]
    changes = np.zeros((len(small_BFHW), 2))
    for sums, frames in zip(changes, small_BFHW, strict=True):
        for before, after in itertools.pairwise(frames):
            if not np.array_equal(before, after):
                moved = warp(after, places + optical_flow_ilk(before, after), mode="edge")
                sums += ((after - before) ** 2).sum(), ((moved - before) ** 2).sum()
    return changes


def unexplained(changes_B2: NDArray[np.float64]) -> float:
    """The unexplained share, summed over all clips; 0 where nothing changes."""
    total, left = changes_B2.sum(axis=0)
    return float(left / total) if total > 0 else 0.0
