"""A text is a class of several words: windows, sampling and costs say of it what they say of a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from own_decoders import OneLayer
from torch import Tensor
from torch.autograd import grad

from reco_tune.cost import speedup_limit, step_flops
from reco_tune.cost.memory import memory_by_phase
from reco_tune.data.texts import padded
from reco_tune.data.word_list import WordList
from reco_tune.errors import SettingsError
from reco_tune.model import Decoder, DecoderSettings, HuggingFaceDecoder, Inputs, VideoTransformer
from reco_tune.model import flops as module
from reco_tune.model.attention import beside_padding
from reco_tune.model.build import build_decoder, shape_of
from reco_tune.settings import Experiment
from reco_tune.testing import check_decoder
from reco_tune.training.objectives import window_loss
from reco_tune.windows import PADDING, WindowSampler

T, V, WORDS, C = 18, 12, 9, 4
TOKENS = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(1))
TEXTS = torch.tensor([[PADDING, PADDING, 3, 5], [1, 2, 0, 8], [PADDING, PADDING, PADDING, WORDS]])
"""Padded, whole, and none."""


def built_in(words: int = C) -> VideoTransformer:
    draw = torch.Generator().manual_seed(0)
    return VideoTransformer(V, T, WORDS, width=32, depth=3, heads=4, generator=draw, condition_tokens=words).double()


def llama(text_offset: int | None = None) -> HuggingFaceDecoder:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, intermediate_size=48, vocab_size=64)
    model = transformers.AutoModelForCausalLM.from_config(config)
    return HuggingFaceDecoder(model, V, T, WORDS, text_offset=text_offset, condition_tokens=C).double()


class ReadsTexts(OneLayer):
    """What a decoder of one's own adds to read texts."""

    def __init__(self, num_codes: int, num_tokens: int, num_classes: int, condition_tokens: int = 1) -> None:
        super().__init__(num_codes, num_tokens, num_classes)
        self.shape = DecoderSettings(
            num_codes=num_codes,
            num_tokens=num_tokens,
            num_classes=num_classes,
            width=8,
            condition_tokens=condition_tokens,
        )
        self.before = torch.nn.Embedding(condition_tokens, 8)

    def inputs(self, tokens_BT: Tensor, labels_B: Tensor, begin: int, end: int) -> Inputs:
        words_BC, padding_B = self.words_and_padding(labels_B)
        found = super().inputs(tokens_BT, words_BC[:, -1], begin, end).embedded_BSD
        if begin == 0:
            earlier = self.classes(words_BC[:, :-1]) + self.before.weight[1:]
            found = torch.cat([earlier, found], dim=1)
        return Inputs(found, begin, padding_B)

    def advance(self, inputs: Inputs, past: Any = None) -> tuple[Tensor, Any]:
        queries, keys, values = self.qkv(inputs.embedded_BSD).chunk(3, dim=-1)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=1), torch.cat([past[1], values], dim=1)
        assert inputs.padding_B is not None
        seen = beside_padding(inputs.padding_B, queries.shape[1], keys.shape[1])
        attended = F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None], attn_mask=seen)
        return inputs.embedded_BSD + attended[:, 0], (keys, values)


def own() -> ReadsTexts:
    torch.manual_seed(0)
    return ReadsTexts(V, T, WORDS, C).double()


MODELS: dict[str, Callable[[], Decoder]] = {
    "built in": built_in,
    "llama, own words": llama,
    "llama, its words": lambda: llama(text_offset=40),
    "three functions": own,
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@every_model
def test_what_reads_texts_is_a_decoder(make: Callable[[], Decoder]) -> None:
    check_decoder(make())


@every_model
def test_a_window_over_everything_is_the_full_sequence(make: Callable[[], Decoder]) -> None:
    model = make()
    whole = F.cross_entropy(model(TOKENS, TEXTS).flatten(0, 1), TOKENS.flatten())
    window = window_loss(model, TOKENS, TEXTS, 0, T)
    assert torch.equal(window.total, whole)
    weights = list(model.parameters())
    pairs = zip(grad(whole, weights, allow_unused=True), grad(window.total, weights, allow_unused=True), strict=True)
    assert all(ours is theirs or torch.equal(ours, theirs) for ours, theirs in pairs)


@every_model
@pytest.mark.parametrize(("start", "length"), [(1, 5), (7, 11), (17, 1)])
def test_a_window_says_what_the_full_sequence_says_there(make: Callable[[], Decoder], start: int, length: int) -> None:
    model = make()
    whole = model.hidden(TOKENS, TEXTS, 0, T)[:, start : start + length]
    assert torch.allclose(model.hidden(TOKENS, TEXTS, start, length), whole, rtol=1e-10, atol=1e-13)


@every_model
def test_cached_greedy_sampling_is_uncached_argmax(make: Callable[[], Decoder]) -> None:
    model = make()
    codes = model.generate(TEXTS, temperature=0.0)
    assert torch.equal(codes, model(codes, TEXTS).argmax(dim=-1))


@every_model
def test_the_text_is_never_cut(make: Callable[[], Decoder]) -> None:
    """A window that sees none of the tokens before it still sees the words, and no gradient goes to them."""
    model = make()
    other = TEXTS.clone()
    other[:, -2] = torch.tensor([4, 7, PADDING])
    cut = model.window(TOKENS, TEXTS, 9, 4, prefix_tokens=0).logits_BWV
    moved = model.window(TOKENS, other, 9, 4, prefix_tokens=0).logits_BWV
    assert (cut != moved).flatten(1).any(dim=1).tolist() == [True, True, False]
    found = torch.autograd.grad(cut.square().sum(), list(model.parameters()), allow_unused=True)
    words = [g for (name, _), g in zip(model.named_parameters(), found, strict=True) if _of_words(name)]
    assert words and all(g is None or not g.any() for g in words)


@every_model
def test_nobody_sees_padding(make: Callable[[], Decoder]) -> None:
    """What stands at padded places is the null word; moving its vector moves only the text that is nothing else."""
    model = make()
    before = model(TOKENS, TEXTS)
    with torch.no_grad():
        table = model.class_embedding if isinstance(model, VideoTransformer) else model.classes.weight  # type: ignore[union-attr]
        table[-1] += 1
    assert (model(TOKENS, TEXTS) != before).flatten(1).any(dim=1).tolist() == [False, False, True]


def test_a_class_is_a_text_of_one_word() -> None:
    """With the same weights, a text of one word among padding is the class of that number."""
    one, text = built_in(words=1), built_in()
    text.load_state_dict({**text.state_dict(), **one.state_dict()})
    words = torch.tensor([4, 0, WORDS])
    texts = torch.full((3, C), PADDING)
    texts[:, -1] = words
    for start, length, cut in ((0, T, None), (7, 5, None), (7, 11, 3)):
        of_class = one.window(TOKENS, words, start, length, cut).logits_BWV
        assert torch.allclose(text.window(TOKENS, texts, start, length, cut).logits_BWV, of_class, rtol=0, atol=1e-14)
    assert torch.equal(text.without_condition(texts)[0], texts[2])
    assert torch.equal(text.generate(texts, temperature=0.0), one.generate(words, temperature=0.0))


def test_the_shortcut_and_checkpointing_change_no_number() -> None:
    model = built_in()
    for start, length, cut in ((0, T, None), (7, 5, None), (7, 5, 2)):
        expected = Decoder.hidden(model, TOKENS, TEXTS, start, length, cut)
        for again in (False, True):
            found = model.hidden(TOKENS, TEXTS, start, length, cut, activation_checkpointing=again)
            assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_guidance_compares_with_no_text() -> None:
    model = built_in()
    none = model.without_condition(TEXTS)
    given, null = model(TOKENS, TEXTS)[:, 0], model(TOKENS, none)[:, 0]
    expected = (null + 2.5 * (given - null)).argmax(dim=-1)
    assert torch.equal(model.generate(TEXTS, temperature=0.0, guidance=2.5)[:, 0], expected)


def test_what_is_no_text_of_the_model_is_refused() -> None:
    model = built_in()
    for wrong, words in ((TEXTS[:, 1:], "4"), (TEXTS[:, 0], "2 axes"), (TEXTS + 1 + WORDS, "words")):
        with pytest.raises(ValueError, match=words):
            model(TOKENS, wrong)


@pytest.mark.parametrize(("start", "length"), [(0, T), (0, 6), (5, 6)])
def test_words_are_counted_as_inputs(start: int, length: int) -> None:
    """Against pairs and tokens counted one by one."""
    settings = built_in().settings
    costs = settings.costs
    words, inputs = C - 1, start + length
    own = range(0 if start == 0 else words + start, words + inputs)
    forward = sum(costs.token + costs.pair * (place + 1) for place in own) + costs.head * length
    before = range(0 if start == 0 else words + start)
    prefix = sum(costs.prefix_token + costs.prefix_pair * (place + 1) for place in before)
    assert step_flops(settings, start, length) == 3 * forward + prefix
    assert module.backward_flops(settings, start, length) == 2 * forward
    assert module.prefix_flops(settings, start) == prefix


def test_counted_costs_are_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter of decoders without a formula, on the one that has one."""
    model = built_in().float()
    counted = Decoder.settings.func(model)  # type: ignore[attr-defined]
    assert (counted.costs.token, counted.costs.pair, counted.costs.head) == model.settings.costs[:3]
    assert counted.parameters == sum(weight.numel() for weight in model.parameters())
    assert module.parameter_count(model.settings) == counted.parameters
    sampler = WindowSampler(T, 6, 3, 0.5, seed=0)
    assert speedup_limit(model.settings, sampler) < speedup_limit(built_in(words=1).settings, sampler), (
        "words are made anew in every step"
    )


def test_settings_make_models_of_texts() -> None:
    model = Experiment().model.model_copy(update={"condition": "text", "text_tokens": C, "width": 32, "heads": 4})
    shape = shape_of(model, V, T, WORDS)
    assert shape.condition_tokens == build_decoder(model, shape).shape.condition_tokens == C
    options = {"config": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": T + 2}}
    short = model.model_copy(update={"kind": "huggingface", "options": options})
    with pytest.raises(SettingsError, match="20 positions"):
        shape_of(short, V, T, WORDS)
    with pytest.raises(SettingsError, match="condition_tokens"):
        shape_of(model.model_copy(update={"kind": "own_decoders:OneLayer"}), V, T, WORDS)


def test_memory_grows_with_words() -> None:
    def training(**changes: Any) -> int:
        small = {"width": 32, "depth": 2, "heads": 2, **changes}
        experiment = Experiment.model_validate({"model": small, "data": {"size_px": 16, "clip_frames": 5}})
        return memory_by_phase(experiment, experiment).training

    assert training() < training(condition="text", text_tokens=8) < training(condition="text", text_tokens=16)


def test_words_by_hand() -> None:
    words = WordList.fit(["A dog runs.", "a cat; a dog"])
    assert words.encode("a DOG flies") == [1, 2, 0] and words.unknown("a dog flies") == ["flies"]
    assert padded([[1, 2], [], [4, 5, 6, 7]], 3, 9).tolist() == [[-1, 1, 2], [-1, -1, 9], [4, 5, 6]]


def _of_words(name: str) -> bool:
    return name.startswith(("class", "word_", "before"))
