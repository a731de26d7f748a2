"""Counted operations: small cases by hand, PyTorch's own counter as a second opinion, and the limits of the known
settings.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from reco_tune.cost import speedup_limit, step_flops
from reco_tune.model import ModelSettings, VideoTransformer
from reco_tune.model.flops import attention_flops, forward_flops, prefix_flops
from reco_tune.windows import WindowSampler


def settings(num_tokens: int, width: int, depth: int, num_codes: int) -> ModelSettings:
    return ModelSettings(num_codes=num_codes, num_tokens=num_tokens, num_classes=1, width=width, depth=depth, heads=1)


@pytest.mark.parametrize(
    ("model", "fewer_frames", "uniform", "balanced"),
    [
        pytest.param(settings(45, 64, 3, 256), 2.58, 2.16, 2.28, id="45 tokens, D=64, L=3"),
        pytest.param(settings(1280, 768, 12, 8192), 2.68, 2.08, 2.25, id="1,280 tokens, 110M"),
        pytest.param(settings(5120, 768, 12, 8192), 3.14, 2.12, 2.38, id="5,120 tokens, 110M"),
    ],
)
def test_limits_of_a_window_of_two_blocks_in_five(
    model: ModelSettings, fewer_frames: float, uniform: float, balanced: float
) -> None:
    block = model.num_tokens // 5
    full = step_flops(model, 0, model.num_tokens)
    assert full / step_flops(model, 0, 2 * block) == pytest.approx(fewer_frames, abs=0.005)
    for probability, expected in (("uniform", uniform), (0.5, balanced)):
        sampler = WindowSampler(model.num_tokens, 2 * block, block, probability, seed=0)  # type: ignore[arg-type]
        assert speedup_limit(model, sampler) == pytest.approx(expected, abs=0.005)


def test_one_token_by_hand() -> None:
    """D=2, L=1, V=3: qkv 2·2·6, out 2·2·2, MLP 2·(2·8 + 8·2), one pair of Q K^T and of P V 2·2 + 2·2, head 2·2·3."""
    assert forward_flops(settings(1, 2, 1, 3), 0, 1) == 24 + 8 + 64 + 8 + 12
    assert step_flops(settings(1, 2, 1, 3), 0, 1) == 3 * 116


def test_prefix_by_hand() -> None:
    """D=2, L=2, three tokens: the lower layer costs 96 a token and 8 for each of 6 pairs, the last one K and V only,
    2·2·4 a token.
    """
    assert prefix_flops(settings(9, 2, 2, 3), 3) == 3 * 96 + 6 * 8 + 3 * 16
    assert prefix_flops(settings(9, 2, 1, 3), 3) == 3 * 16


def test_attention_is_what_grows_with_the_pairs() -> None:
    """The rest of a step is linear in the tokens: F(s, n) without attention is n times that of one token, P(s)
    likewise.
    """
    model, start, length = settings(45, 8, 2, 16), 9, 18
    a_token, a_prefix_token = 2 * 24 * 64 + 2 * 8 * 16, 24 * 64 + 4 * 64
    assert (
        step_flops(model, start, length) - attention_flops(model, start, length)
        == 3 * length * a_token + start * a_prefix_token
    )


def test_pairs_of_a_partition_are_those_of_the_whole() -> None:
    model = settings(45, 8, 2, 16)
    parts = sum(forward_flops(model, start, length) for start, length in ((0, 18), (18, 9), (27, 18)))
    assert parts == forward_flops(model, 0, 45)


@pytest.mark.parametrize(("start", "length"), [(0, 12), (0, 5), (4, 5), (7, 5)])
def test_products_without_attention_are_those_that_torch_counts(start: int, length: int) -> None:
    """Attention is left out: torch counts masked pairs too. Its backward of a product is two products, as here."""
    model = VideoTransformer(20, 12, 1, 16, 3, 2, generator=torch.Generator().manual_seed(0))
    tokens, labels = torch.zeros(2, 12, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.window(tokens, labels, start, length).logits_BWV.sum().backward()
    counted: dict[Any, int] = counter.get_flop_counts()["Global"]
    products = sum(
        flops for operation, flops in counted.items() if operation in (torch.ops.aten.mm, torch.ops.aten.addmm)
    )
    pairs = 3 * 3 * (length * start + length * (length + 1) // 2) + 2 * start * (start + 1) // 2
    assert products == 2 * (step_flops(model.settings, start, length) - 4 * 16 * pairs)


@pytest.mark.parametrize(("start", "length"), [(-1, 3), (0, 0), (43, 3)])
def test_windows_outside_the_clip_are_refused(start: int, length: int) -> None:
    with pytest.raises(ValueError, match=r"tokens 0\.\.44"):
        step_flops(settings(45, 64, 3, 256), start, length)


def test_a_sampler_of_other_clips_is_refused() -> None:
    with pytest.raises(ValueError, match="clips of 40 tokens"):
        speedup_limit(settings(45, 64, 3, 256), WindowSampler(40, 16, 8, 0.5, seed=0))
