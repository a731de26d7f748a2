"""The gradient of a loss over whole clips, computed one chunk of tokens at a time. Memory holds the graph of one chunk,
and the keys and values of all tokens with their gradients.

    without gradient    chunk 0, 1, ... n-2        keys and values are kept
    with gradient       chunk n-1, n-2, ... 0      computed again, then backward at once: from its loss, and from the
                                                   gradients that later chunks gave for its keys and values

The sum over the chunks is exactly the full sequence's gradient (StreamBP does the same for language models). Knows the
built-in transformer, but not the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from reco_tune.model.attention import KeysValues, joined
from reco_tune.model.transformer import VideoTransformer
from reco_tune.windows import WindowSpan

Judge = Callable[[Tensor, WindowSpan], Tensor]
"""(hidden [B, C, D] of a chunk, its span) -> the chunk's share of the loss."""


def chunk_spans(num_tokens: int, chunk_tokens: int) -> list[WindowSpan]:
    """Spans that begin at 0, C, 2C, ...; the last one ends with the clip."""
    return [WindowSpan(at, min(chunk_tokens, num_tokens - at)) for at in range(0, num_tokens, chunk_tokens)]


def gradient_in_chunks(
    model: VideoTransformer, tokens_BT: Tensor, labels_B: Tensor, spans: Sequence[WindowSpan], judge: Judge
) -> list[Tensor]:
    """The gradient of the sum of `judge` over all chunks, one tensor for each of the model's parameters.

    Args:
        spans: the chunks in order (`chunk_spans`).
    """
    kept = read_chunks(model, tokens_BT, labels_B, spans[:-1])
    wanted = [KeysValues(*(_zeros(part) for part in layer)) for layer in kept]
    gradient = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for span in reversed(spans):
        _add_chunk(model, tokens_BT, labels_B, span, judge, kept, wanted, gradient)
    return gradient


def _add_chunk(
    model: VideoTransformer,
    tokens_BT: Tensor,
    labels_B: Tensor,
    span: WindowSpan,
    judge: Judge,
    kept: Sequence[KeysValues],
    wanted: Sequence[KeysValues],
    gradient: Sequence[Tensor],
) -> None:
    """Adds the chunk's share of the parameters' gradient to `gradient`, and its gradient for earlier keys and values to
    `wanted`. The chunk's graph is freed when this returns.
    """
    start, length = span
    with torch.enable_grad():
        hidden_BCD, own, before = compute_chunk(model, tokens_BT, labels_B, span, kept)
        made, weights = [judge(hidden_BCD, span)], []
    if start + length < tokens_BT.shape[1]:
        made += [part for layer in own for part in layer]
        weights = [part[:, :, start : start + length].to(made[-1].dtype) for layer in wanted for part in layer]
    exact = torch.autocast(tokens_BT.device.type, enabled=False) if _has_autocast(tokens_BT) else nullcontext()
    with exact:
        found = torch.autograd.grad(made, [*model.parameters(), *before], [None, *weights], allow_unused=True)
    torch.clear_autocast_cache()  # drop casts of the weights: they belong to a graph that is freed
    earlier = [part[:, :, :start] for layer in wanted for part in layer] if start else []
    for total, share in zip([*gradient, *earlier], found, strict=True):
        if share is not None:
            total += share


@torch.no_grad()
def read_chunks(
    model: VideoTransformer, tokens_BT: Tensor, labels_B: Tensor, spans: Sequence[WindowSpan]
) -> list[KeysValues]:
    """Keys and values of these chunks in every layer; empty if there are no chunks."""
    found: list[KeysValues | None] = [None] * len(model.blocks)
    *lower, last = model.blocks
    for start, length in spans:
        hidden_BCD = model.inputs(tokens_BT, labels_B, start, start + length).embedded_BSD
        for number, block in enumerate(lower):
            hidden_BCD, own = block.after(hidden_BCD, found[number])
            found[number] = joined(own.keys, own.values, found[number])
        own = last.keys_values(hidden_BCD)
        found[-1] = joined(own.keys, own.values, found[-1])
    torch.clear_autocast_cache()  # drop casts of the weights: they carry no gradient
    return [layer for layer in found if layer is not None]


def compute_chunk(
    model: VideoTransformer, tokens_BT: Tensor, labels_B: Tensor, span: WindowSpan, kept: Sequence[KeysValues]
) -> tuple[Tensor, list[KeysValues], list[Tensor]]:
    """Hidden states of a chunk, its own keys and values, and the kept ones as leaves of a graph."""
    hidden_BCD = model.inputs(tokens_BT, labels_B, span.start, span.start + span.length).embedded_BSD
    before = [
        KeysValues(*(part[:, :, : span.start].detach().requires_grad_() for part in layer))
        for layer in kept
        if span.start
    ]
    found = []
    earlier: list[KeysValues] | list[None] = before or [None] * len(model.blocks)
    for block, past in zip(model.blocks, earlier, strict=True):
        hidden_BCD, own = block.after_with_gradient(hidden_BCD, past)
        found.append(own)
    return hidden_BCD, found, [part for layer in before for part in layer]


def _has_autocast(tensor: Tensor) -> bool:
    return torch.amp.is_autocast_available(tensor.device.type)


def _zeros(part: Tensor) -> Tensor:
    """A zero tensor for a sum over chunks, in float32 or better."""
    return torch.zeros_like(part, dtype=torch.promote_types(part.dtype, torch.float32))
