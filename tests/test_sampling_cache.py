"""A past that is kept in 8 bits, or in part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from reco_tune.errors import SettingsError
from reco_tune.generation import drawing_of
from reco_tune.model import VideoTransformer
from reco_tune.model.kv_cache import WHOLE, Kept, LayerCache
from reco_tune.model.sampling import Drawing, Noise, Sampler
from reco_tune.settings import Experiment

Make = Callable[..., Experiment]
LABELS = torch.tensor([0, 1, 2])


def make_model() -> VideoTransformer:
    return VideoTransformer(20, 45, 3, 32, 3, 2, generator=torch.Generator().manual_seed(0)).double()


def sampled(kept: Kept) -> torch.Tensor:
    noise = Noise.of(torch.Generator().manual_seed(1), 3)
    return Sampler(make_model(), Drawing(kept=kept))(LABELS, noise)


@pytest.mark.parametrize("kept", [Kept(blocks=5, block_tokens=9), Kept(blocks=4, block_tokens=9)])
def test_all_blocks_are_the_whole_past_to_the_bit(kept: Kept) -> None:
    """Beside the first block, four more are all that there are."""
    assert torch.equal(sampled(kept), sampled(WHOLE))


@pytest.mark.parametrize(
    ("inputs", "read"),
    [
        pytest.param(1, [0], id="the condition"),
        pytest.param(10, [*range(10)], id="token 9, the first of block 1"),
        pytest.param(19, [*range(19)], id="token 18: the end of the first block is input 9"),
        pytest.param(28, [*range(10), *range(19, 28)], id="token 27, the first of block 3: block 2 and the first"),
        pytest.param(36, [*range(10), *range(19, 36)], id="token 35, the last of block 3"),
        pytest.param(45, [*range(10), *range(28, 45)], id="the last token"),
    ],
)
def test_which_inputs_are_read_by_hand(inputs: int, read: list[int]) -> None:
    skip, to = Kept(blocks=2, block_tokens=9).skipped(inputs)
    assert [at for at in range(inputs) if not skip <= at < to] == read


def test_a_part_of_the_past_is_attention_with_the_rest_masked_out() -> None:
    draw = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, 2, 30, 8, generator=draw, dtype=torch.float64) for _ in range(3))
    kept = Kept(blocks=1, block_tokens=9)
    cache = LayerCache(30, kept)
    for at in range(30):
        one = slice(at, at + 1)
        found = cache.attend(queries[:, :, one], keys[:, :, one], values[:, :, one])
    skip, to = kept.skipped(30)
    assert (skip, to) == (10, 28)
    scores = queries[:, :, 29:] @ keys.transpose(-1, -2) / 8**0.5
    scores[..., skip:to] = -torch.inf
    assert torch.allclose(found, scores.softmax(-1) @ values, rtol=1e-12)


def test_8_bits_are_within_a_step_of_the_scale() -> None:
    """Each number is off by half a step of 1/127 of its vector's largest at most; attention averages that."""
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 2, 20, 8, generator=draw, dtype=torch.float64) for _ in range(3)]
    caches = LayerCache(20), LayerCache(20, Kept(int8=True))
    for at in range(20):
        exact, rounded = (cache.attend(*(part[:, :, at : at + 1] for part in parts)) for cache in caches)
    assert 0 < (exact - rounded).abs().max() < 0.05
    stores = [(cache._keys, cache._values) for cache in caches]
    held = [sum(t.numel() * t.element_size() for one in pair for t in vars(one).values()) for pair in stores]
    assert held[1] == held[0] // 8 + held[0] // 8, "a byte a number, and a scale for eight of them"


def test_settings_reach_the_sampler(toy_experiment: Make) -> None:
    assert drawing_of(toy_experiment()).kept == Kept(block_tokens=9)
    small = toy_experiment({"sampling.cache_precision": "int8", "sampling.cache_blocks": 2})
    assert drawing_of(small).kept == Kept(int8=True, blocks=2, block_tokens=9)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"resources.gpus_per_worker": 1}, r"sampling.cache_blocks \(2\).*resources.gpus_per_worker is 1"),
        ({"sampling.cache_blocks": 0}, "sampling.cache_blocks"),
    ],
)
def test_where_it_cannot_be_it_is_refused(overrides: dict[str, object], words: str, toy_experiment: Make) -> None:
    with pytest.raises(SettingsError, match=words):
        toy_experiment({"sampling.cache_blocks": 2, **overrides})
