"""Codes of a prefix drawn from what the model itself predicts of them, in one pass (parallel scheduled sampling,
arXiv 1906.04331).

Which tokens, and the draws, come from whoever makes batches: the same on any number of workers. Knows a decoder and
its codes; refuses to know windows and losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reco_tune.model import Decoder
from reco_tune.model.teacher_forcing import logits_at_once


class Draws(NamedTuple):
    """The draws for some tokens of each clip."""

    places_BK: Tensor
    """int64: places of the K tokens of each clip."""
    uniforms_BK: Tensor
    """float32 in [0, 1): the place of each draw in the distribution function of its codes."""

    @classmethod
    def of(cls, clips: int, tokens: int, count: int, draws: np.random.Generator) -> Draws:
        """`count` of the first `tokens` tokens of each clip."""
        order = draws.random((clips, tokens), dtype=np.float32)
        places = np.argpartition(order, count - 1, axis=1)[:, :count]
        uniforms = draws.random((clips, count), dtype=np.float32)
        return cls(torch.from_numpy(places.astype(np.int64)), torch.from_numpy(uniforms))

    def moved(self, move: Callable[[Tensor], Tensor]) -> Draws:
        return Draws(*map(move, self))


@torch.no_grad()
def resampled(model: Decoder, codes_BT: Tensor, labels_B: Tensor, start: int, draws: Draws) -> Tensor:
    """The clips with codes that the model predicts, after the given ones, at some places before `start`."""
    hidden_BSD = model.hidden(codes_BT, labels_B, 0, start)
    places_BK = draws.places_BK
    chosen_ND = hidden_BSD.gather(1, places_BK[..., None].expand(-1, -1, hidden_BSD.shape[-1])).flatten(0, 1)
    rows = logits_at_once(model.settings)
    parts = zip(chosen_ND.split(rows), draws.uniforms_BK.flatten().split(rows), strict=True)
    found_N = torch.cat([_drawn(model.logits(hidden), uniforms) for hidden, uniforms in parts])
    # older torch would hand the weights cast here, which carry no gradient, to the window
    torch.clear_autocast_cache()
    return codes_BT.scatter(1, places_BK, found_N.view_as(places_BK).to(codes_BT.dtype))


def _drawn(logits_NV: Tensor, uniforms_N: Tensor) -> Tensor:
    """The first code at which the distribution function exceeds the draw."""
    exact = torch.promote_types(logits_NV.dtype, torch.float32)
    below_NV = logits_NV.softmax(dim=-1, dtype=exact).cumsum(dim=-1)
    wanted_N1 = uniforms_N[:, None].to(exact) * below_NV[:, -1:]  # the last is 1 but for rounding
    return torch.searchsorted(below_NV, wanted_N1, right=True)[:, 0].clamp(max=logits_NV.shape[-1] - 1)
