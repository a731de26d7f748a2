"""What becomes of a small error in the first block: the divergence of the hidden states block by block, and the law of
its growth.

Knows models and tokens; nothing of pixels. Teacher-forced: the same tokens are read with and without the error, so the
curve shows how far the model's states carry it, not what sampling makes of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reco_tune.model import Decoder
from reco_tune.model.teacher_forcing import ANALYSED_AT_ONCE, clips_at_once
from reco_tune.quantities import FEWEST_GROWTH_BLOCKS, RESOLVED_AIC

NOISE_SHARE = 0.01
"""Root mean square of the error relative to that of the inputs it is added to: small enough for the response to be
linear.
"""
DRAWS = 4
"""Errors that the curve is averaged over."""


@dataclass(frozen=True)
class GrowthFit:
    """Least squares of the divergence d_k over the blocks k = 1, 2, ... by d = a + b k and by log d = a + b k."""

    kind: Literal["linear", "exponential", "not resolved"]
    """Which has the smaller AIC (both on the scale of d) by `quantities.RESOLVED_AIC` or more."""
    linear_slope: float
    """Divergence per block, with its 95% interval."""
    linear_low: float
    linear_high: float
    exponential_rate: float
    """Logarithm of the factor per block, with its 95% interval; above 0 the error grows, below it fades."""
    exponential_low: float
    exponential_high: float
    aic_linear: float
    aic_exponential: float


@torch.no_grad()
def error_growth(
    model: Decoder,
    tokens_BT: Tensor,
    labels_B: Tensor,
    tokens_per_block: int,
    seed: int = 0,
    noise_share: float = NOISE_SHARE,
) -> list[float]:
    """Relative divergence ||h' - h|| / ||h|| of the states that read block k's tokens, after noise was added to block
    0's inputs.

    h is the output of the last block before the final norm, averaged as squares over positions, clips and draws of the
    noise. The state at position t reads token t-1, so the last block has one state fewer. Entry 0 is the disturbed
    block itself.
    """
    device = model.device
    generator = torch.Generator().manual_seed(seed)
    blocks = model.settings.num_tokens // tokens_per_block
    disturbed, size = torch.zeros(blocks, dtype=torch.float64), torch.zeros(blocks, dtype=torch.float64)
    noise = [torch.randn(tokens_per_block, model.settings.width, generator=generator).to(device) for _ in range(DRAWS)]
    at_once = clips_at_once(model.settings)
    for group, group_labels in zip(tokens_BT.split(ANALYSED_AT_ONCE), labels_B.split(ANALYSED_AT_ONCE), strict=True):
        group, group_labels = group.to(device).long(), group_labels.to(device)
        disturbed_end = min(tokens_per_block + 1, model.settings.num_tokens)
        inputs = model.inputs(group, group_labels, 1, disturbed_end).embedded_BSD
        scale = noise_share * inputs.square().mean().sqrt()  # of the whole group, however few clips fit at once
        for tokens, labels in zip(group.split(at_once), group_labels.split(at_once), strict=True):
            clean_BTD = model.hidden(tokens, labels, 0, model.settings.num_tokens)
            size += len(noise) * _energy_by_block(clean_BTD, tokens_per_block, blocks)
            for draw in noise:
                moved_BTD = model.disturbed(tokens, labels, scale * draw)
                disturbed += _energy_by_block(moved_BTD - clean_BTD, tokens_per_block, blocks)
    return (disturbed / size.clamp_min(1e-300)).sqrt().tolist()


def fit_growth(divergence: list[float]) -> GrowthFit | None:
    """The law of a curve of `error_growth`, entry 0 (the disturbed block itself) left out.

    None for fewer than `FEWEST_GROWTH_BLOCKS`, or where the error does not reach one of them: no law can be told then.
    """
    values = np.asarray(divergence[1:], dtype=np.float64)
    if len(divergence) < FEWEST_GROWTH_BLOCKS or values.min() <= 0:
        return None
    count = len(values)
    slope, slope_reach, slope_rest = _line(values)
    rate, rate_reach, rate_rest = _line(np.log(values))
    smallest = 1e-24 * float((values**2).mean())  # a perfect fit has no finite AIC
    aic_linear = count * math.log(max(slope_rest / count, smallest)) + 6
    aic_exponential = (
        count * math.log(max(rate_rest / count, 1e-24)) + 2 * float(np.log(values).sum()) + 6
    )  # density of d, not of log d
    ahead = aic_linear - aic_exponential
    return GrowthFit(
        "not resolved" if abs(ahead) < RESOLVED_AIC else "exponential" if ahead > 0 else "linear",
        slope,
        slope - slope_reach,
        slope + slope_reach,
        rate,
        rate - rate_reach,
        rate + rate_reach,
        aic_linear,
        aic_exponential,
    )


def _energy_by_block(hidden_BTD: Tensor, tokens_per_block: int, blocks: int) -> Tensor:
    """Sum of squares over clips, width and the positions 1 + k n .. n + k n that read block k."""
    by_position = hidden_BTD.double().square().sum(dim=(0, 2))[1:]
    padded = F.pad(by_position, (0, blocks * tokens_per_block - len(by_position)))
    return padded.view(blocks, tokens_per_block).sum(dim=1).cpu()


def _line(values: np.ndarray) -> tuple[float, float, float]:
    """Slope over 0, 1, 2, ..., half its 95% interval, and the residual sum of squares."""
    from scipy.special import stdtrit

    places = np.arange(len(values)) - (len(values) - 1) / 2
    slope = float(places @ values / (places @ places))
    rest = float(((values - values.mean() - slope * places) ** 2).sum())
    freedom = len(values) - 2
    return slope, float(stdtrit(freedom, 0.975)) * math.sqrt(rest / freedom / float(places @ places)), rest
