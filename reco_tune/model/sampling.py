"""Which code is drawn from one position's logits. Pure functions of logits; knows nothing of models or caches."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_codes(
    logits_BV: Tensor,
    generator: torch.Generator | None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """One code [B] per row, after temperature, then `top_k`, then `top_p`; temperature 0 takes the likeliest.

    Raises:
        ValueError: for a negative temperature, or a `top_k` or `top_p` that leaves nothing.
    """
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError(
            f"temperature ({temperature}) must be 0 or more, top_k ({top_k}) 1 or more and top_p ({top_p}) in (0, 1]"
        )
    likeliest = logits_BV.amax(dim=-1, keepdim=True)
    if temperature == 0 or top_k == 1:
        return logits_BV.argmax(dim=-1)
    logits_BV = (
        logits_BV - likeliest
    ) / temperature  # the largest becomes 0, so that a tiny temperature cannot overflow
    if top_k is not None and top_k < logits_BV.shape[-1]:
        kth = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth, -torch.inf)
    probabilities_BV = logits_BV.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        probabilities_BV = _nucleus(probabilities_BV, top_p)
    return torch.multinomial(probabilities_BV, 1, generator=generator)[:, 0]


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: rows of the class stacked on rows of the null class [2B, V] -> null + g (class - null)
    [B, V].
    """
    given, null = logits.chunk(2)
    return null + guidance * (given - null)


def _nucleus(probabilities_BV: Tensor, top_p: float) -> Tensor:
    """Zero outside the smallest set of codes that holds `top_p`; not normalised."""
    ordered, order = probabilities_BV.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(probabilities_BV).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
