"""Costs of a decoder that has no formula: torch's operation counter runs over a forward pass on tensors without
storage.

The counter takes attention as a full square of pairs, masked ones included. Counts at two lengths separate the cost of
a token from the cost of a pair. `flops` then multiplies the cost of a pair by the number of causal pairs. All costs are
assumed to grow with tokens or with pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reco_tune.model.shape import Costs, DecoderSettings


class Counted(NamedTuple):
    """What is counted for one decoder."""

    costs: Costs
    parameters: int
    frozen: int
    """Number of parameters that are not trained."""
    cached: int
    """Number of tensor elements that the past keeps for one token."""


def count(
    module: nn.Module,
    states: Callable[[int], tuple[Tensor, Any]],
    logits: Callable[[Tensor], Tensor],
    shape: DecoderSettings,
) -> Counted:
    """Counts the operations and weights of a decoder.

    Args:
        module: the decoder, which has the weights.
        states: computes hidden states [1, S, D] and past of the first n tokens, from tensors of the device `meta`.
        logits: computes the logits of hidden states.
    """
    words, tokens = shape.condition_tokens - 1, shape.num_tokens
    whole, half = words + tokens, words + max(1, tokens // 2)
    frozen = [own for own in module.modules() if _is_frozen(own)]
    untrained = sum(own.numel() for own in module.parameters() if not own.requires_grad)
    with torch.no_grad(), _without_storage(module):
        few, _, (_, past) = _operations(lambda: states(half - words), frozen)
        many, of_frozen, _ = _operations(lambda: states(tokens), frozen)
        head, of_frozen_head, _ = _operations(lambda: logits(torch.empty(1, 1, shape.width, device="meta")), frozen)
    squares = whole * (whole - half)
    pair = round((many - few * whole / half) / squares) if squares else 0
    token = round((many - pair * whole * whole) / whole)
    kept = sum(tensor.numel() for tensor in tensors_of(past)) // half
    costs = Costs(token, pair, head, token, pair, round(of_frozen / whole), of_frozen_head)
    return Counted(costs, sum(own.numel() for own in module.parameters()), untrained, kept)


def tensors_of(held: Any, _seen: set[int] | None = None) -> Iterator[Tensor]:
    """Every tensor that an object holds, in containers and attributes, each once."""
    seen = set() if _seen is None else _seen
    if id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict):
        for value in held.values():
            yield from tensors_of(value, seen)
    elif isinstance(held, list | tuple | set):
        for value in held:
            yield from tensors_of(value, seen)
    elif hasattr(held, "__dict__") and not isinstance(held, type | nn.Module):
        yield from tensors_of(vars(held), seen)


def _is_frozen(module: nn.Module) -> bool:
    """Whether the module multiplies by weights of its own that are not trained."""
    own = list(module.parameters(recurse=False))
    return any(weight.dim() > 1 for weight in own) and not any(weight.requires_grad for weight in own)


def _operations(compute: Callable[[], Any], frozen: list[nn.Module]) -> tuple[int, int, Any]:
    """Number of all operations, number of those in frozen modules, and the result."""
    from torch.utils.flop_counter import FlopCounterMode  # the import takes a second

    before: list[int] = []
    inside = 0

    def enter(*_: Any) -> None:
        before.append(counter.get_total_flops())

    def leave(*_: Any) -> None:
        nonlocal inside
        inside += counter.get_total_flops() - before.pop()

    handles = [own.register_forward_pre_hook(enter) for own in frozen]
    handles += [own.register_forward_hook(leave) for own in frozen]
    try:
        with FlopCounterMode(display=False) as counter:
            found = compute()
    finally:
        for handle in handles:
            handle.remove()
    return counter.get_total_flops(), inside, found


class _without_storage:
    """Within this context, the module's weights and buffers have shapes but no storage."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._own: list[tuple[dict[str, Any], str, Tensor]] = []

    def __enter__(self) -> None:
        for module in self._module.modules():
            own: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for held in own:
                for name, tensor in held.items():
                    if tensor is not None:
                        self._own.append((held, name, tensor))
                        bare = torch.empty_like(tensor, device="meta")
                        held[name] = nn.Parameter(bare, requires_grad=False) if held is module._parameters else bare

    def __exit__(self, *_: object) -> None:
        for held, name, tensor in self._own:
            held[name] = tensor
