"""The transformer: windows equal the full sequence, and no gradient passes the prefix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reco_tune.model import VideoTransformer
from reco_tune.training import window_loss

TOKENS, CODES, CLASSES, BATCH = 45, 20, 3, 4
EXACT = 1e-12
"""Relative; float64, sums in another order."""

WINDOWS = [(0, 45), (0, 18), (9, 18), (27, 18), (5, 7), (44, 1), (1, 44), (7, 36)]
"""Start and length; lengths above 32 take the attention's row blocks."""


def make_model(dtype: torch.dtype = torch.float64, num_tokens: int = TOKENS, depth: int = 3) -> VideoTransformer:
    return VideoTransformer(CODES, num_tokens, CLASSES, 16, depth, 2, generator=torch.Generator().manual_seed(0)).to(
        dtype
    )


def batch(num_tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(CODES, (BATCH, num_tokens), generator=generator, dtype=torch.int32)
    return tokens, torch.randint(CLASSES + 1, (BATCH,), generator=generator)


def gradients(model: VideoTransformer, loss: Tensor) -> dict[str, Tensor]:
    """By parameter; zeros where the loss does not depend on one."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(model.named_parameters(), found, strict=True)
    }


def assert_same(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    for name, expected in reference.items():
        assert (ours[name] - expected).norm() <= EXACT * expected.norm(), name


def reference_window(
    model: VideoTransformer, tokens: Tensor, labels: Tensor, start: int, length: int, cut: str = "stream and kv"
) -> Tensor:
    """Logits of a window by the textbook: every matrix written out, all inputs in one pass, the prefix cut off by
    `detach`.
    """
    heads, end = model.settings.heads, start + length
    stream = torch.cat(
        [model.class_embedding[labels][:, None], model.token_embedding[tokens[:, : end - 1].long()]], dim=1
    )
    stream = stream + model.position_embedding[:end]
    hidden = torch.arange(end)[None] > torch.arange(end)[:, None]
    for block in model.blocks:
        stream = torch.cat([stream[:, :start].detach(), stream[:, start:]], dim=1)
        normed = F.layer_norm(stream, stream.shape[-1:], block.attention_norm.weight)
        queries, keys, values = (
            part.reshape(BATCH, end, heads, -1).transpose(1, 2)
            for part in (normed @ block.qkv.weight.T).chunk(3, dim=-1)
        )
        if cut == "stream and kv":
            keys = torch.cat([keys[:, :, :start].detach(), keys[:, :, start:]], dim=2)
            values = torch.cat([values[:, :, :start].detach(), values[:, :, start:]], dim=2)
        scores = (queries @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
        mixed = (scores.softmax(-1) @ values).transpose(1, 2).reshape(BATCH, end, -1)
        stream = stream + mixed @ block.attention_out.weight.T
        normed = F.layer_norm(stream, stream.shape[-1:], block.mlp_norm.weight)
        stream = stream + F.gelu(normed @ block.mlp_in.weight.T) @ block.mlp_out.weight.T
    return F.layer_norm(stream[:, start:], stream.shape[-1:], model.final_norm.weight) @ model.head.weight.T


def reference_loss(
    model: VideoTransformer, tokens: Tensor, labels: Tensor, start: int, length: int, cut: str = "stream and kv"
) -> Tensor:
    logits = reference_window(model, tokens, labels, start, length, cut)
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, start : start + length].flatten().long())


def test_window_over_everything_has_the_gradient_of_the_full_sequence() -> None:
    model, (tokens, labels) = make_model(), batch()
    full = F.cross_entropy(model(tokens, labels).flatten(0, 1), tokens.flatten().long())
    window = window_loss(model, tokens, labels, 0, TOKENS).total
    assert_same(gradients(model, window), gradients(model, full))


@pytest.mark.parametrize(("start", "length"), WINDOWS)
def test_window_says_what_the_full_sequence_says_there(start: int, length: int) -> None:
    model, (tokens, labels) = make_model(), batch()
    full, window = model.window(tokens, labels, 0, TOKENS), model.window(tokens, labels, start, length)
    for whole, part in zip(full, window, strict=True):
        torch.testing.assert_close(part, whole[:, start : start + length], rtol=0, atol=EXACT)
    restricted = F.cross_entropy(
        full.logits_BWV[:, start : start + length].flatten(0, 1), tokens[:, start : start + length].flatten().long()
    )
    assert abs(window_loss(model, tokens, labels, start, length).cross_entropy - restricted).item() < EXACT


@pytest.mark.parametrize(("start", "length"), WINDOWS)
def test_gradient_is_that_of_a_reference_with_the_prefix_detached(start: int, length: int) -> None:
    model, (tokens, labels) = make_model(), batch()
    ours = gradients(model, window_loss(model, tokens, labels, start, length).total)
    assert_same(ours, gradients(model, reference_loss(model, tokens, labels, start, length)))


def test_detaching_the_stream_alone_is_another_gradient() -> None:
    """The trap: with the residual stream cut only, the prefix still trains the key and value projections."""
    model, (tokens, labels) = make_model(), batch()
    ours = gradients(model, window_loss(model, tokens, labels, 18, 18).total)["blocks.0.qkv.weight"]
    stream_only = gradients(model, reference_loss(model, tokens, labels, 18, 18, cut="stream"))["blocks.0.qkv.weight"]
    assert (ours - stream_only).norm() > 1e-3 * ours.norm()


def test_long_clips_take_the_same_values_through_blocks_of_64_rows() -> None:
    model, (tokens, labels) = make_model(num_tokens=210, depth=2), batch(210)
    ours = gradients(model, window_loss(model, tokens, labels, 60, 140).total)
    assert_same(ours, gradients(model, reference_loss(model, tokens, labels, 60, 140)))


@pytest.mark.parametrize(("start", "length"), [(9, 18), (7, 36)])
def test_nothing_outside_the_window_gets_a_gradient(start: int, length: int) -> None:
    model, (tokens, labels) = make_model(), batch()
    found = gradients(model, window_loss(model, tokens, labels, start, length, continuity_weight=0.1).total)
    rows = found["position_embedding"].abs().sum(dim=1)
    inside = torch.zeros(TOKENS, dtype=torch.bool)
    inside[start : start + length] = True
    assert (rows[inside] > 0).all() and (rows[~inside] == 0).all()
    assert (found["class_embedding"] == 0).all()
    read = torch.zeros(CODES, dtype=torch.bool)
    read[tokens[:, start - 1 : start + length - 1].long().unique()] = True  # input i is token i - 1
    codes = found["token_embedding"].abs().sum(dim=1)
    assert (codes[read] > 0).all() and (codes[~read] == 0).all()


def test_class_and_first_positions_are_trained_by_first_windows() -> None:
    model, (tokens, labels) = make_model(), batch()
    found = gradients(model, window_loss(model, tokens, labels, 0, 18).total)["class_embedding"].abs().sum(dim=1)
    used = torch.zeros(CLASSES + 1, dtype=torch.bool)
    used[labels.unique()] = True
    assert (found[used] > 0).all() and (found[~used] == 0).all()


def test_tokens_after_the_window_change_nothing() -> None:
    model, (tokens, labels) = make_model(), batch()
    before = gradients(model, window_loss(model, tokens, labels, 9, 18).total)
    tokens[:, 27:] = (tokens[:, 27:] + 1) % CODES
    after = gradients(model, window_loss(model, tokens, labels, 9, 18).total)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_losses_of_a_partition_add_up_to_the_full_loss() -> None:
    model, (tokens, labels) = make_model(), batch()
    parts = [(0, 18), (18, 9), (27, 17), (44, 1)]
    total = sum(
        length / TOKENS * window_loss(model, tokens, labels, start, length).cross_entropy for start, length in parts
    )
    assert abs(total - window_loss(model, tokens, labels, 0, TOKENS).cross_entropy).item() < EXACT


def test_bfloat16_autocast_trains_every_weight_of_a_window() -> None:
    """The trap of older torch: autocast keeps weights that the prefix cast without a graph, and the window has no
    gradient.
    """
    model, (tokens, labels) = make_model(torch.float32), batch()
    exact = gradients(model, window_loss(model, tokens, labels, 9, 18, continuity_weight=0.1).total)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients(model, window_loss(model, tokens, labels, 9, 18, continuity_weight=0.1).total)
    for name, expected in exact.items():
        assert (rounded[name] - expected).norm() <= 0.03 * expected.norm(), name  # 8 bits of mantissa


@pytest.mark.parametrize(("start", "length"), [(0, 45), (9, 18), (3, 40)])
def test_compiling_changes_nothing(start: int, length: int) -> None:
    """Traced as one graph; the backend that only traces, since kernels are not what is tested."""
    model, (tokens, labels) = make_model(torch.float32, depth=1), batch()
    eager = gradients(model, window_loss(model, tokens, labels, start, length).total)
    compiled = torch.compile(window_loss, backend="aot_eager", fullgraph=True, dynamic=False)
    traced = gradients(model, compiled(model, tokens, labels, start, length).total)
    for name, expected in eager.items():
        torch.testing.assert_close(traced[name], expected, rtol=1e-5, atol=1e-7)


def test_initial_weights_come_from_the_given_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, second = make_model(), make_model()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.isfinite(p).all() and p.std(correction=0) < 0.05 for p in first.parameters())


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, 0), (40, 6), (45, 1), (0, 46)])
def test_windows_outside_the_clip_are_refused(start: int, length: int) -> None:
    model, (tokens, labels) = make_model(), batch()
    with pytest.raises(ValueError, match=r"must lie in tokens 0\.\.44"):
        model.window(tokens, labels, start, length)


@pytest.mark.parametrize(
    "shape", [(0, 45, 1, 16, 1, 2), (20, 45, 0, 16, 1, 2), (20, 45, 1, 16, 0, 2), (20, 45, 1, 15, 1, 2)]
)
def test_shapes_that_cannot_be_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must"):
        VideoTransformer(*shape)
