"""Whether a generated clip of the built-in digits shows what its prompt says: which digit, and how it moves.

The digit is the one the clip classifier predicts. The motion is that of the centre of brightness from the first frame
to the second. The captions describe the same motion (`synthetic.digit_captions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reco_tune.data.synthetic import STEP_PX, digit_and_motion

SMALLEST_STEP = STEP_PX / 2
"""A digit that moves fewer pixels than this stands still."""


class PromptHits(NamedTuple):
    """Shares of clips that follow their prompts."""

    digit: float
    direction: float


def motion_signs(video_BFCHW: Tensor) -> Tensor:
    """int64 [B, 2]: vertical motion (down 1, up -1, none 0) and horizontal motion (right 1, left -1, none 0)."""
    frames_BFHW = video_BFCHW[:, :2].double().mean(dim=2)
    weight_BF = frames_BFHW.sum(dim=(2, 3)).clamp(min=1e-9)
    steps = []
    for axis in (2, 3):
        place = torch.arange(frames_BFHW.shape[axis], dtype=torch.float64, device=video_BFCHW.device)
        centre_BF = (frames_BFHW.sum(dim=5 - axis) * place).sum(dim=2) / weight_BF
        step_B = centre_BF[:, 1] - centre_BF[:, 0]
        steps.append(torch.where(step_B.abs() < SMALLEST_STEP, 0, step_B.sign()).long())
    return torch.stack(steps, dim=1)


def prompt_hits(prompts: Sequence[str], digit_N: NDArray[np.int64], motion_N2: NDArray[np.int64]) -> PromptHits:
    """
    Args:
        digit_N: the digit that each clip shows.
        motion_N2: the clips' `motion_signs`.
    """
    asked = np.array([digit_and_motion(prompt) for prompt in prompts])
    digit = float((asked[:, 0] == digit_N).mean())
    return PromptHits(digit, float((asked[:, 1:] == motion_N2).all(axis=1).mean()))
