"""Sampling: cached equals uncached, draws follow their distribution, and pieces are joined as their scheme says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from reco_tune.generation import Request, codes, generate_clips
from reco_tune.model import VideoTransformer
from reco_tune.model.sampling import Drawing, Noise, Sampler, guide
from reco_tune.settings import Experiment, TokenGrid
from reco_tune.tokenizers import Tokenizer, fit_tokenizer

CODES, TOKENS, CLASSES = 16, 45, 3
GRID = TokenGrid(5, 3, 3)


def make_model(num_tokens: int = TOKENS) -> VideoTransformer:
    """Weights large enough for tokens and classes to matter; float64, so that no two scores are equal by rounding."""
    model = VideoTransformer(CODES, num_tokens, CLASSES, 16, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 if parameter.dim() == 1 else 12)
    return model


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"temperature": 0}, id="greedy"),
        pytest.param({}, id="plain"),
        pytest.param({"temperature": 0.7, "top_k": 5}, id="top-k"),
        pytest.param({"top_p": 0.8}, id="top-p"),
        pytest.param({"guidance": 2.0}, id="guidance"),
        pytest.param(
            {"guidance": 1.5, "temperature": 0.9, "top_k": 9, "top_p": 0.9, "prompt": 9}, id="all, after a prompt"
        ),
        pytest.param({"prompt": 1}, id="a prompt of one token"),
    ],
)
def test_cached_is_uncached(options: dict[str, Any]) -> None:
    model, prompt = make_model(), options.get("prompt", 0)
    options = {key: value for key, value in options.items() if key != "prompt"}
    given = torch.randint(CODES, (len(LABELS), prompt), generator=seeded(1))
    cached = model.generate(LABELS, seeded(), **options, prompt_BP=given if prompt else None)

    generator, drawing = seeded(), Drawing(**options)
    guidance = drawing.guidance
    tokens = torch.zeros(len(LABELS), TOKENS, dtype=torch.long)
    tokens[:, :prompt] = given
    for position in range(prompt, TOKENS):
        with torch.no_grad():
            logits = model(tokens, LABELS)[:, position].float()
            null = model(tokens, torch.full_like(LABELS, model.null_class))[:, position].float()
        rows = torch.cat([logits, null]) if guidance != 1 else logits
        noise = None if drawing.greedy else torch.empty(len(LABELS), CODES).exponential_(generator=generator)
        tokens[:, position] = drawing.codes(rows, noise)
    assert torch.equal(cached, tokens)
    assert len(cached.unique(dim=0)) > 1


def test_greedy_takes_what_the_model_finds_likeliest() -> None:
    model = make_model()
    tokens = model.generate(LABELS, temperature=0)
    assert torch.equal(tokens, model(tokens, LABELS).argmax(dim=-1))
    assert torch.equal(tokens, model.generate(LABELS, seeded(), temperature=1e-6))
    assert torch.equal(tokens, model.generate(LABELS, seeded(), top_k=1))
    assert torch.equal(tokens, model.generate(LABELS, seeded(), top_p=1e-6))


def test_guidance_of_zero_forgets_the_class_and_of_one_is_none() -> None:
    model = make_model()
    null = model.generate(torch.full_like(LABELS, model.null_class), seeded())
    assert torch.equal(model.generate(LABELS, seeded(), guidance=0.0), null)
    given, other = torch.randn(2, 4, 5, generator=seeded())
    torch.testing.assert_close(guide(torch.cat([given, other]), 1.0), given)


def test_draws_come_from_the_given_generator_alone() -> None:
    model, state = make_model(), torch.random.get_rng_state()
    first, same, other = (model.generate(LABELS, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_prompt_is_kept_and_may_be_everything() -> None:
    model, whole = make_model(), torch.randint(CODES, (len(LABELS), TOKENS), generator=seeded())
    assert torch.equal(model.generate(LABELS, seeded(), prompt_BP=whole), whole)
    assert torch.equal(model.generate(LABELS, seeded(), prompt_BP=whole[:, :7])[:, :7], whole[:, :7])
    with pytest.raises(ValueError, match="must not exceed the clip's 45 tokens"):
        model.generate(LABELS, prompt_BP=torch.cat([whole, whole], dim=1))


def test_bfloat16_autocast_samples() -> None:
    model = make_model().float()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.generate(LABELS, seeded(), guidance=1.5)
    assert tokens.shape == (len(LABELS), TOKENS) and tokens.min() >= 0 and tokens.max() < CODES


PROBABILITIES = torch.tensor([0.15, 0.5, 0.05, 0.3])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, [0.15, 0.5, 0.05, 0.3], id="plain"),
        pytest.param({"temperature": 0.5}, [0.0225, 0.25, 0.0025, 0.09], id="a temperature of one half squares"),
        pytest.param({"top_k": 2}, [0, 0.5, 0, 0.3], id="top-k"),
        pytest.param({"top_k": 9}, [0.15, 0.5, 0.05, 0.3], id="top-k above the vocabulary"),
        pytest.param({"top_p": 0.45}, [0, 1, 0, 0], id="the likeliest code holds it"),
        pytest.param({"top_p": 0.6}, [0, 0.5, 0, 0.3], id="the smallest set that holds it"),
        pytest.param({"top_p": 0.9}, [0.15, 0.5, 0, 0.3], id="all but the rarest"),
        pytest.param({"top_p": 1.0}, [0.15, 0.5, 0.05, 0.3], id="top-p of one"),
        pytest.param({"top_k": 3, "top_p": 0.55}, [0, 0.5, 0, 0.3], id="top-p of what top-k left: 0.53 is not enough"),
        pytest.param({"temperature": 0}, [0, 1, 0, 0], id="greedy"),
    ],
)
def test_draws_follow_the_distribution(options: dict[str, Any], expected: list[float]) -> None:
    draws = 20_000
    noise = torch.empty(draws, 4).exponential_(generator=seeded())
    codes = Drawing(**options).codes(PROBABILITIES.log().expand(draws, 4), noise)
    share = torch.tensor(expected) / sum(expected)
    seen = codes.bincount(minlength=4) / draws
    assert ((seen - share).abs() <= 4.5 * (share * (1 - share) / draws).sqrt() + 1e-6).all(), (
        seen
    )  # 4.5 standard deviations


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Drawing(**options)


@pytest.mark.parametrize("codes", [16, 8192])
def test_draws_are_those_of_multinomial(codes: int) -> None:
    """So that clips sampled before this was written out come again, bit for bit."""
    logits = 3 * torch.randn(20, codes, generator=seeded(1))
    expected = torch.multinomial((logits - logits.amax(dim=-1, keepdim=True)).softmax(dim=-1), 1, generator=seeded())
    found = Drawing().codes(logits, Noise.of(seeded(), 20).fill_(torch.empty(20, codes)))
    assert torch.equal(found, expected[:, 0])


def test_huge_logits_do_not_overflow_at_tiny_temperatures() -> None:
    assert Drawing(temperature=1e-8).codes(torch.tensor([[1e30, -1e30, 0.9e30]]), torch.ones(1, 3)).item() == 0


class Recording(Sampler):
    """Remembers the prompts that it was given and what it made of them."""

    calls: ClassVar[list[tuple[Tensor | None, Tensor]]] = []

    def __call__(self, labels_B: Tensor, noise: Noise, prompt_BP: Tensor | None = None) -> Tensor:
        tokens = super().__call__(labels_B, noise, prompt_BP)
        self.calls.append((prompt_BP, tokens))
        return tokens


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor | None, Tensor]]:
    """What samplers of this test are asked for and give."""
    monkeypatch.setattr(codes, "sampler_for", lambda model, drawing, clips, bfloat16: Recording(model, drawing))
    monkeypatch.setattr(Recording, "calls", [])
    return Recording.calls


@pytest.fixture(scope="module")
def tokenizer(toy_experiment: Callable[..., Experiment]) -> Tokenizer:
    clips = torch.randint(256, (12, 9, 3, 12, 12), dtype=torch.uint8, generator=seeded()).numpy()
    return fit_tokenizer(toy_experiment().tokenizer, clips)


def test_whole_clips_are_the_decoded_sequence(tokenizer: Tokenizer, toy_experiment: Callable[..., Experiment]) -> None:
    model = make_model()
    (made,) = generate_clips(model, toy_experiment({"sampling.top_k": 5}), tokenizer, GRID, [Request(LABELS, 4)])
    assert made.tokens_BT is not None and made.video_BFCHW.dtype == torch.uint8
    assert torch.equal(made.tokens_BT, model.generate(LABELS, seeded(4), top_k=5))
    assert torch.equal(made.video_BFCHW, tokenizer.decode(made.tokens_BT.view(-1, *GRID)))
    assert made.video_BFCHW.shape == (len(LABELS), 9, 3, 12, 12)


@pytest.mark.parametrize(
    ("blocks", "pieces"),
    [pytest.param(2, 4, id="2 of 5"), pytest.param(3, 2, id="3 of 5"), pytest.param(4, 2, id="4 of 5, cut")],
)
def test_pieces_go_on_from_their_last_frame_encoded_again(
    blocks: int, pieces: int, tokenizer: Tokenizer, toy_experiment: Callable[..., Experiment], calls: list[Any]
) -> None:
    model = make_model(blocks * 9)
    experiment = toy_experiment({"window.scheme": "fewer_frames", "window.length_blocks": blocks})
    (made,) = generate_clips(model, experiment, tokenizer, GRID, [Request(LABELS, 4)])
    assert made.tokens_BT is None and made.video_BFCHW.shape == (len(LABELS), 9, 3, 12, 12)
    assert len(calls) == pieces and calls[0][0] is None
    step = 2 * (blocks - 1)
    for piece, (prompt, tokens) in enumerate(calls):
        frames = tokenizer.decode(tokens.view(len(LABELS), blocks, 3, 3))
        begin = piece * step
        shown = made.video_BFCHW[:, begin + 1 : begin + step + 1]
        assert torch.equal(shown, frames[:, 1 : shown.shape[1] + 1])
        if prompt is not None:
            assert torch.equal(prompt, tokenizer.encode(made.video_BFCHW[:, begin : begin + 1]).flatten(1))
            assert torch.equal(tokens[:, :9], prompt)


@pytest.mark.parametrize(("blocks", "pieces"), [pytest.param(2, 4, id="2 of 5"), pytest.param(4, 2, id="4 of 5, cut")])
def test_token_pieces_go_on_from_their_last_block(
    blocks: int, pieces: int, tokenizer: Tokenizer, toy_experiment: Callable[..., Experiment], calls: list[Any]
) -> None:
    model = make_model(blocks * 9)
    experiment = toy_experiment({"window.scheme": "fewer_frames_tokens", "window.length_blocks": blocks})
    (made,) = generate_clips(model, experiment, tokenizer, GRID, [Request(LABELS, 4)])
    assert made.tokens_BT is not None and made.tokens_BT.shape == (len(LABELS), TOKENS)
    assert len(calls) == pieces
    for piece, (_, tokens) in enumerate(calls):
        shown = made.tokens_BT[:, piece * (blocks - 1) * 9 :][:, : blocks * 9]
        assert torch.equal(shown, tokens[:, : shown.shape[1]])
    assert torch.equal(made.video_BFCHW, tokenizer.decode(made.tokens_BT.view(-1, *GRID)))


def test_seeds_make_clips(tokenizer: Tokenizer, toy_experiment: Callable[..., Experiment]) -> None:
    model = make_model()
    requests = [Request(LABELS, seed) for seed in (1, 1, 2)]
    first, same, other = (
        made.video_BFCHW for made in generate_clips(model, toy_experiment(), tokenizer, GRID, requests)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)
