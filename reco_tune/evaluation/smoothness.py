"""How far a model's states jump between neighbours: local Lipschitz estimates of h along tokens and across frames.

Knows models and tokens, not pixels. A model can lower a penalty on the jumps simply by shrinking h, without becoming
smoother. So every estimate is given raw and relative to |h|, and only the relative one measures smoothness.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reco_tune.model import Decoder
from reco_tune.model.teacher_forcing import clips_at_once


class Smoothness(NamedTuple):
    """Root mean square of ||h_j - h_i|| over clips and pairs of neighbouring positions; h is the output of the last
    block.
    """

    tokens: float
    """j = i + 1: the square root of (width times the raw continuity term)."""
    tokens_relative: float
    """The same, divided by the root mean square of ||h||: 0 for constant states, √2 for uncorrelated states of mean
    zero.
    """
    frames: float
    """j = i + tokens per block: the same position in the next frame. NaN for clips of one block."""
    frames_relative: float


@torch.no_grad()
def smoothness(model: Decoder, tokens_BT: Tensor, labels_B: Tensor, tokens_per_block: int) -> Smoothness:
    """Computes the estimates on teacher-forced clips."""
    device = model.device
    sums = {"size": 0.0, "tokens": 0.0, "frames": 0.0}
    at_once = clips_at_once(model.settings)
    for tokens, labels in zip(tokens_BT.split(at_once), labels_B.split(at_once), strict=True):
        hidden_BTD = model.hidden(tokens.to(device).long(), labels.to(device), 0, model.settings.num_tokens).double()
        sums["size"] += float(hidden_BTD.square().sum())
        for name, lag in (("tokens", 1), ("frames", tokens_per_block)):
            sums[name] += float((hidden_BTD[:, lag:] - hidden_BTD[:, :-lag]).square().sum())
    clips, length = len(tokens_BT), model.settings.num_tokens
    size = (sums["size"] / (clips * length)) ** 0.5
    along, across = (
        (sums[name] / (clips * (length - lag))) ** 0.5 if lag < length else float("nan")
        for name, lag in (("tokens", 1), ("frames", tokens_per_block))
    )
    return Smoothness(along, along / max(size, 1e-300), across, across / max(size, 1e-300))
