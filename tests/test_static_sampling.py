"""One step for all positions of a clip, as on a GPU: the same codes as sampling step by growing step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_generation import LABELS, TOKENS, make_model, seeded
from torch.fx.experimental.proxy_tensor import make_fx

from reco_tune.errors import RunFailedError
from reco_tune.model import kv_cache, sampling
from reco_tune.model.kv_cache import BLOCK_TOKENS, StaticCache, masked, skipping
from reco_tune.model.sampling import Drawing, Noise, Sampler, StaticSampler, Stream, with_rounded_products

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "plain": {},
    "top-k": {"temperature": 0.7, "top_k": 5},
    "top-p": {"top_p": 0.8},
    "guidance": {"guidance": 2.0},
    "all": {"guidance": 1.5, "temperature": 0.9, "top_k": 9, "top_p": 0.9},
}


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        *(pytest.param(options, 0, id=name) for name, options in OPTIONS.items()),
        *(
            pytest.param(OPTIONS["all"], prompt, id=f"all, a prompt of {prompt}")
            for prompt in (1, 9, TOKENS - 1, TOKENS)
        ),
    ],
)
def test_gives_the_codes_of_the_growing_cache(options: dict[str, Any], prompt: int) -> None:
    """In float64, with room for more clips than come; those are the codes of no cache at all (`test_generation`)."""
    model, drawing = make_model(), Drawing(**options)
    given = torch.randint(16, (len(LABELS), prompt), generator=seeded(1)) if prompt else None
    static = StaticSampler(model, drawing, clips=len(LABELS) + 2)
    found = static(LABELS, Noise.of(seeded(), len(LABELS)), given)
    expected = Sampler(model, drawing)(LABELS, Noise.of(seeded(), len(LABELS)), given)
    assert torch.equal(found, expected)
    assert len(found.unique(dim=0)) > 1
    assert torch.equal(
        static(LABELS[:4], Noise.of(seeded(3), 4)), Sampler(model, drawing)(LABELS[:4], Noise.of(seeded(3), 4))
    ), "what an earlier call left in the cache must not be seen"


@pytest.mark.parametrize("options", ["greedy", "all"])
def test_a_step_recorded_once_serves_every_position(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CUDA graph does: the operations of one call, on the tensors of that call, again and again."""

    def record(step: Callable[[], object], position: torch.Tensor) -> Callable[[], object]:
        with torch.no_grad():
            graph = make_fx(lambda unused: (step(), unused)[1])(torch.zeros(1))
        return lambda: graph(torch.zeros(1))

    model, drawing = make_model(), Drawing(**OPTIONS[options])
    given = torch.randint(16, (len(LABELS), 9), generator=seeded(1))
    monkeypatch.setattr(sampling, "recorded", record)
    static = StaticSampler(model, drawing, clips=len(LABELS))
    for prompt in (None, given):
        found = static(LABELS, Noise.of(seeded(), len(LABELS)), prompt)
        assert torch.equal(found, Sampler(model, drawing)(LABELS, Noise.of(seeded(), len(LABELS)), prompt))


@pytest.mark.parametrize("tokens", [1, 2, BLOCK_TOKENS, BLOCK_TOKENS + 1])
def test_clips_of_any_length(tokens: int) -> None:
    model, drawing = make_model(tokens), Drawing()
    assert StaticCache.tokens_held(tokens) % BLOCK_TOKENS == 0 and StaticCache.tokens_held(tokens) >= tokens
    found = StaticSampler(model, drawing, 6)(LABELS, Noise.of(seeded(), 6))
    assert torch.equal(found, Sampler(model, drawing)(LABELS, Noise.of(seeded(), 6)))


def test_clips_do_not_depend_on_who_is_sampled_with_them() -> None:
    """Three batches, each with a generator of its own, in one; and one batch in two parts."""
    model, drawing = make_model(), Drawing(top_k=5)
    alone = [Sampler(model, drawing)(LABELS, Noise.of(seeded(seed), 6)) for seed in range(3)]
    together = Noise([(Stream(seeded(seed), 6), 6) for seed in range(3)])
    found = StaticSampler(model, drawing, 18)(LABELS.repeat(3), together)
    assert torch.equal(found, torch.cat(alone))
    halves = [
        StaticSampler(model, drawing, 4)(LABELS[first : first + 4], Noise([(Stream(seeded(2), 6, first), count)]))
        for first, count in ((0, 4), (4, 2))
    ]
    assert torch.equal(torch.cat(halves), alone[2])


def test_prompts_are_read_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, drawing = make_model(), Drawing(guidance=1.5)
    given = torch.randint(16, (len(LABELS), 9), generator=seeded(1))
    whole = StaticSampler(model, drawing, 6)(LABELS, Noise.of(seeded(), 6), given)
    monkeypatch.setattr("reco_tune.model.sampling.PREFILL_BYTES", 64 * 10 * 16 * 5)
    assert torch.equal(StaticSampler(model, drawing, 6)(LABELS, Noise.of(seeded(), 6), given), whole)


def test_products_are_rounded_as_autocast_rounds_them() -> None:
    model = make_model().float()
    rounded = with_rounded_products(model)
    assert rounded.head.weight.dtype == torch.bfloat16 and model.head.weight.dtype == torch.float32
    assert rounded.position_embedding is model.position_embedding, "what is not rounded is not there twice"
    tokens = torch.randint(16, (6, TOKENS), generator=seeded(1))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(rounded(tokens, LABELS), model(tokens, LABELS))


def test_bfloat16_samples_as_training_computes() -> None:
    """Greedy codes of a sure model: cached keys and values in bfloat16 change none of them."""
    model = make_model().float()
    found = StaticSampler(model, Drawing(temperature=0), 6, bfloat16=True)(LABELS, Noise.of(None, 6))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = model(found, LABELS).float()
    chosen = expected.gather(2, found[..., None])[..., 0]
    assert ((expected.amax(dim=-1) - chosen) <= 0.02 * expected.std()).all()


@pytest.mark.parametrize("sampler", [Sampler, lambda model, drawing: StaticSampler(model, drawing, 6)])
def test_a_model_without_numbers_is_told(sampler: Any) -> None:
    model = make_model()
    with torch.no_grad():
        model.head.weight[3, 3] = torch.nan
    with pytest.raises(RunFailedError, match="not finite"):
        sampler(model, Drawing())(LABELS, Noise.of(seeded(), 6))


@pytest.mark.parametrize("last", [0, 1, BLOCK_TOKENS - 1, BLOCK_TOKENS, 300])
def test_the_form_that_skips_blocks_is_the_plain_one(last: int) -> None:
    """Uncompiled, so that all positions are weighed; what lies behind the last is not multiplied by anything but 0."""
    draw = seeded()
    queries, keys, values = (torch.randn(3, 2, n, 16, dtype=torch.float64, generator=draw) for n in (1, 384, 384))
    position = torch.tensor([last])
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries, keys[:, :, : last + 1], values[:, :, : last + 1]
    )
    for form in (masked, skipping):
        torch.testing.assert_close(form(position, queries, keys, values), expected, rtol=1e-12, atol=1e-12)


def test_a_kernel_that_cannot_be_used_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody loses a trained model to a compiler that is missing, nor gets clips from a kernel that is wrong."""

    def broken() -> Any:
        raise RuntimeError("no C compiler found")

    shape = 2, BLOCK_TOKENS, 16, torch.float32, torch.device("cpu")
    kv_cache.skips_blocks.cache_clear()
    monkeypatch.setattr(kv_cache, "_compiled", broken)
    with pytest.warns(UserWarning, match="no C compiler found"):
        assert not kv_cache.skips_blocks(*shape)
    kv_cache.skips_blocks.cache_clear()
    monkeypatch.setattr(kv_cache, "_compiled", lambda: lambda position, queries, keys, values: queries)
    with pytest.warns(UserWarning, match="differ"):
        assert not kv_cache.skips_blocks(*shape)
    kv_cache.skips_blocks.cache_clear()
    monkeypatch.setattr(kv_cache, "_compiled", lambda: masked)
    assert kv_cache.skips_blocks(*shape)
    kv_cache.skips_blocks.cache_clear()


def test_one_graph_serves_every_position_and_any_number_of_clips() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    form = torch.compile(skipping, fullgraph=True, backend=count)
    for clips in (2, 3, 7):
        queries, keys = torch.randn(clips, 2, 1, 16), torch.randn(clips, 2, 384, 16)
        for part in (queries, keys):
            torch._dynamo.maybe_mark_dynamic(part, 0)
        for last in (0, 5, 200, 383):
            position = torch.tensor([last])
            torch.testing.assert_close(form(position, queries, keys, keys), masked(position, queries, keys, keys))
    assert len(graphs) == 1
