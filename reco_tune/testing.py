"""Checks a custom decoder in tests: `check_decoder(MyDecoder(...))`."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from reco_tune.model import Decoder
from reco_tune.model.counting import tensors_of
from reco_tune.windows import PADDING

TOLERANCE = 1e-5
"""Relative tolerance in float64, because some kernels round intermediate values to float32."""


def check_decoder(decoder: Decoder) -> None:
    """Checks the properties that windows and sampling need. Uses a float64 copy of the decoder and two clips of
    random codes.

    Raises:
        AssertionError: if one fails, with a sentence that explains it.
    """
    model = copy.deepcopy(decoder).double().train()
    shape, name = model.shape, type(model).__name__
    assert shape.num_tokens >= 4, f"the check needs a {name} of at least 4 tokens, not {shape.num_tokens}"
    draw = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(shape.num_codes, (2, shape.num_tokens), generator=draw)
    other_BT = (tokens_BT + 1 + torch.randint(max(1, shape.num_codes - 1), tokens_BT.shape, generator=draw)) % (
        shape.num_codes
    )
    labels_B = torch.arange(2) % (shape.num_classes + 1)
    if shape.condition_tokens > 1:  # one text with padding, one without
        labels_B = torch.randint(shape.num_classes, shape.condition_shape(2), generator=draw)
        labels_B[0, 0] = PADDING
    start = shape.num_tokens // 2
    length = max(1, (shape.num_tokens - start) // 2)
    with torch.no_grad():
        whole_BTD = _states(model, tokens_BT, labels_B, name)
        _check_causality(model, whole_BTD, tokens_BT, other_BT, labels_B, start, name)
        _check_prefix(model, whole_BTD, tokens_BT, other_BT, labels_B, start, length, name)
        _check_cache(model, whole_BTD, tokens_BT, labels_B, name)
    _check_gradient(model, tokens_BT, labels_B, start, length, name)
    if model.layers():
        _check_layers(model, tokens_BT, labels_B, start, length, name)


def _states(model: Decoder, tokens_BT: Tensor, labels_B: Tensor, name: str) -> Tensor:
    shape = model.shape
    hidden_BTD = model.hidden(tokens_BT, labels_B, 0, shape.num_tokens)
    expected = (2, shape.num_tokens, shape.width)
    assert hidden_BTD.shape == expected, f"{name}.advance gives states {tuple(hidden_BTD.shape)}, not {expected}"
    logits = model.logits(hidden_BTD)
    expected = (2, shape.num_tokens, shape.num_codes)
    assert logits.shape == expected, f"{name}.logits gives scores {tuple(logits.shape)}, not {expected}"
    again_BTD = model.hidden(tokens_BT, labels_B, 0, shape.num_tokens)
    assert _alike(again_BTD, hidden_BTD), (
        f"{name} gives different states for the same tokens in training mode; turn dropout off, because runs must be"
        " reproducible"
    )
    return hidden_BTD


def _check_causality(
    model: Decoder, whole_BTD: Tensor, tokens_BT: Tensor, other_BT: Tensor, labels_B: Tensor, start: int, name: str
) -> None:
    changed_BT = torch.cat([tokens_BT[:, :start], other_BT[:, start:]], dim=1)
    moved_BTD = model.hidden(changed_BT, labels_B, 0, model.shape.num_tokens)
    assert _alike(moved_BTD[:, : start + 1], whole_BTD[:, : start + 1]), (
        f"{name} leaks future tokens: its states of tokens 0..{start} depend on the codes from {start} on"
    )


def _check_prefix(
    model: Decoder,
    whole_BTD: Tensor,
    tokens_BT: Tensor,
    other_BT: Tensor,
    labels_B: Tensor,
    start: int,
    length: int,
    name: str,
) -> None:
    window_BWD = model.hidden(tokens_BT, labels_B, start, length)
    changed_BT = torch.cat([other_BT[:, : start - 1], tokens_BT[:, start - 1 :]], dim=1)
    moved_BWD = model.hidden(changed_BT, labels_B, start, length)
    assert not torch.equal(window_BWD, moved_BWD), (
        f"{name} trains a window without its context: its states do not depend on the tokens before it"
    )
    assert _alike(window_BWD, whole_BTD[:, start : start + length]), (
        f"{name}'s positions do not continue after a prefix, or its past is incomplete: the states of tokens"
        f" {start}..{start + length - 1} differ from those of the full sequence"
    )


def _check_cache(model: Decoder, whole_BTD: Tensor, tokens_BT: Tensor, labels_B: Tensor, name: str) -> None:
    read = model.reader()
    for position in range(model.shape.num_tokens):
        cached_BV = read(tokens_BT, labels_B, position, position + 1)
        assert _alike(cached_BV, model.logits(whole_BTD[:, position])), (
            f"cached sampling with {name} gives different scores for token {position} than the full sequence"
        )


def _check_gradient(model: Decoder, tokens_BT: Tensor, labels_B: Tensor, start: int, length: int, name: str) -> None:
    """Compares with the gradient of a window whose past was computed without a graph."""
    parameters = [own for own in model.parameters() if own.requires_grad]
    with torch.no_grad():
        past = model.advance(model.inputs(tokens_BT, labels_B, 0, start))[1]
    leaks = f"a gradient goes through the prefix of {name}"
    assert not any(tensor.requires_grad for tensor in tensors_of(past)), f"{leaks}: its past requires one"
    hidden_BWD = model.advance(model.inputs(tokens_BT, labels_B, start, start + length), past)[0]
    expected = torch.autograd.grad(model.logits(hidden_BWD).square().sum(), parameters, allow_unused=True)
    logits_BWV = model.window(tokens_BT, labels_B, start, length).logits_BWV
    found = torch.autograd.grad(logits_BWV.square().sum(), parameters, allow_unused=True)
    for own, right in zip(found, expected, strict=True):
        same = own is right or (own is not None and right is not None and _alike(own, right))
        empty = (own is None or not own.any()) and (right is None or not right.any())
        assert same or empty, f"{leaks}: a window's gradient is not that of the window alone"
    assert any(own is not None and bool(own.any()) for own in found), f"{name}.advance gives no gradient at all"


def _check_layers(model: Decoder, tokens_BT: Tensor, labels_B: Tensor, start: int, length: int, name: str) -> None:
    parameters = [own for own in model.parameters() if own.requires_grad]
    calls: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
        for number, layer in enumerate(model.layers())
    ]
    plain_BWD = model.hidden(tokens_BT, labels_B, 0, length)
    for handle in handles:
        handle.remove()
    assert calls == [*range(len(handles))], (
        f"{name}.layers() gives {len(handles)} layers; each must be called as a module, once and in this order"
    )
    plain_BWD = model.hidden(tokens_BT, labels_B, start, length)
    again_BWD = model.hidden(tokens_BT, labels_B, start, length, activation_checkpointing=True)
    twice = f"the layers of {name} cannot be recomputed for backward: a layer must not change its input in place"
    assert _alike(again_BWD, plain_BWD), twice
    expected, found = (
        torch.autograd.grad(model.logits(hidden).square().sum(), parameters, allow_unused=True)
        for hidden in (plain_BWD, again_BWD)
    )
    for own, right in zip(found, expected, strict=True):
        assert own is right or (own is not None and right is not None and _alike(own, right)), twice


def _alike(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= TOLERANCE * expected.norm())
