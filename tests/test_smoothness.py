"""Local Lipschitz estimates: against the continuity term, by hand, and that scale alone moves only the raw ones."""

from __future__ import annotations

import math

import pytest
import torch

from reco_tune.evaluation.smoothness import smoothness
from reco_tune.model import VideoTransformer
from reco_tune.training import window_loss


@pytest.fixture
def case() -> tuple[VideoTransformer, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = VideoTransformer(16, 20, 3, 16, 2, 2, generator=generator)
    return model, torch.randint(16, (40, 20), generator=generator), torch.randint(3, (40,), generator=generator)


def test_is_the_continuity_term_under_the_root(case) -> None:
    model, tokens, labels = case
    term = window_loss(model, tokens, labels, 0, 20, continuity_weight=1.0).continuity.item()  # mean over the width
    assert smoothness(model, tokens, labels, 4).tokens ** 2 == pytest.approx(16 * term, rel=1e-5)


def test_by_hand(case, monkeypatch) -> None:
    """h_i = i in every one of 16 coordinates: steps of 4 along tokens, of 16 over a frame of 4 tokens."""
    model, tokens, labels = case
    line = torch.arange(20.0)[None, :, None].expand(40, 20, 16)
    monkeypatch.setattr(model, "hidden", lambda tokens, labels, start, length: line[: len(tokens)])
    found = smoothness(model, tokens, labels, 4)
    size = 4 * math.sqrt(sum(i * i for i in range(20)) / 20)
    assert tuple(found) == pytest.approx((4, 4 / size, 16, 16 / size))


def test_scale_alone_moves_the_raw_ones_only(case) -> None:
    """A tenth of h everywhere: it has shrunk and turned nowhere."""
    model, tokens, labels = case
    before = smoothness(model, tokens, labels, 4)
    original = model.hidden
    model.hidden = lambda *arguments: original(*arguments) / 10  # type: ignore[method-assign]
    after = smoothness(model, tokens, labels, 4)
    assert (after.tokens, after.frames) == pytest.approx((before.tokens / 10, before.frames / 10))
    assert (after.tokens_relative, after.frames_relative) == pytest.approx(
        (before.tokens_relative, before.frames_relative)
    )


def test_clips_of_one_block_have_no_next_frame(case) -> None:
    model, tokens, labels = case
    found = smoothness(model, tokens, labels, 20)
    assert math.isnan(found.frames) and math.isnan(found.frames_relative) and found.tokens > 0
