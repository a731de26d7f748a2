"""How a small error in the first block grows: the divergence of the hidden states per block, and a fit of its growth.

Knows models and tokens, not pixels. The model is teacher-forced: it reads the same tokens with and without the error.
So the curve shows how far the model's states carry the error. Sampling plays no part in it.
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
"""Root mean square of the error, relative to that of the inputs it is added to. It is small enough for the response
to be linear.
"""
DRAWS = 4
"""Random errors over which the curve is averaged."""


@dataclass(frozen=True)
class GrowthFit:
    """Least-squares fits of the divergence d_k over blocks k = 1, 2, ...: d = a + b k, and log d = a + b k."""

    kind: Literal["linear", "exponential", "not resolved"]
    """The fit whose AIC (both on the scale of d) is smaller by at least `quantities.RESOLVED_AIC`."""
    linear_slope: float
    """Divergence per block, with its 95% interval."""
    linear_low: float
    linear_high: float
    exponential_rate: float
    """Logarithm of the growth factor per block, with its 95% interval. Above 0 the error grows; below 0 it fades."""
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
    """Relative divergence ||h' - h|| / ||h|| of the states that read block k's tokens, with noise added to the inputs
    of block 0.

    h is the output of the last block before the final norm. Squares are averaged over positions, clips and noise
    draws before the root is taken. The state at position t reads token t-1, so the last block has one state fewer.
    Entry 0 is the disturbed block itself.
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
        scale = noise_share * inputs.square().mean().sqrt()  # of the whole group, not of the part that fits
        for tokens, labels in zip(group.split(at_once), group_labels.split(at_once), strict=True):
            clean_BTD = model.hidden(tokens, labels, 0, model.settings.num_tokens)
            size += len(noise) * _energy_by_block(clean_BTD, tokens_per_block, blocks)
            for draw in noise:
                moved_BTD = model.disturbed(tokens, labels, scale * draw)
                disturbed += _energy_by_block(moved_BTD - clean_BTD, tokens_per_block, blocks)
    return (disturbed / size.clamp_min(1e-300)).sqrt().tolist()


def fit_growth(divergence: list[float]) -> GrowthFit | None:
    """Fits both growth laws to a curve of `error_growth`. Entry 0, the disturbed block itself, is left out.

    Returns None with fewer than `FEWEST_GROWTH_BLOCKS` blocks, or where the error does not reach one of the blocks.
    """
    values = np.asarray(divergence[1:], dtype=np.float64)
    if len(divergence) < FEWEST_GROWTH_BLOCKS or values.min() <= 0:
        return None
    count = len(values)
    slope, slope_reach, slope_rest = _line(values)
    rate, rate_reach, rate_rest = _line(np.log(values))
    smallest = 1e-24 * float((values**2).mean())  # a floor: a perfect fit would have an infinite AIC
    aic_linear = count * math.log(max(slope_rest / count, smallest)) + 6
    aic_exponential = (
        count * math.log(max(rate_rest / count, 1e-24)) + 2 * float(np.log(values).sum()) + 6
    )  # Jacobian: turns the density of log d into the density of d
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
    """Sum of squares over clips, width and the n positions that read block k: 1 + k n .. n + k n."""
    by_position = hidden_BTD.double().square().sum(dim=(0, 2))[1:]
    padded = F.pad(by_position, (0, blocks * tokens_per_block - len(by_position)))
    return padded.view(blocks, tokens_per_block).sum(dim=1).cpu()


def _line(values: np.ndarray) -> tuple[float, float, float]:
    """Slope over 0, 1, 2, ..., the half-width of its 95% interval, and the residual sum of squares."""
    from scipy.special import stdtrit

    places = np.arange(len(values)) - (len(values) - 1) / 2
    slope = float(places @ values / (places @ places))
    rest = float(((values - values.mean() - slope * places) ** 2).sum())
    freedom = len(values) - 2
    return slope, float(stdtrit(freedom, 0.975)) * math.sqrt(rest / freedom / float(places @ places)), rest
