"""Whatever has the three functions of a decoder is trained in windows, sampled and counted like the built-in one."""

from __future__ import annotations

import pytest
import torch
from own_decoders import WRONG, OneLayer
from torch.autograd import grad

from reco_tune.cost import speedup_limit, step_flops
from reco_tune.evaluation.error_growth import error_growth
from reco_tune.evaluation.smoothness import smoothness
from reco_tune.model import Decoder, VideoTransformer
from reco_tune.model.counting import count
from reco_tune.testing import check_decoder
from reco_tune.training.objectives import window_loss
from reco_tune.windows import WindowSampler

T, V = 18, 12
TOKENS = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2])


@pytest.fixture
def own() -> OneLayer:
    torch.manual_seed(0)
    return OneLayer(V, T, 2).double()


@pytest.fixture
def built_in() -> VideoTransformer:
    return VideoTransformer(V, T, 2, width=32, depth=3, heads=4, generator=torch.Generator().manual_seed(0)).double()


def test_what_is_a_decoder_passes(own: OneLayer, built_in: VideoTransformer) -> None:
    check_decoder(own)
    check_decoder(built_in)


@pytest.mark.parametrize(("wrong", "words"), WRONG.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_wrong_is_said_in_one_sentence(wrong: type[OneLayer], words: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=words) as found:
        check_decoder(wrong(V, T, 2))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("start", "length", "cut"), [(0, T, None), (7, 5, None), (7, 11, 3), (7, 5, 0), (17, 1, 16)])
def test_the_shortcut_changes_no_number(built_in: VideoTransformer, start: int, length: int, cut: int | None) -> None:
    """The three functions of the built-in transformer say what its own windows say, also after a cut prefix."""
    shortcut = built_in.window(TOKENS, LABELS, start, length, cut)
    written_once = Decoder.window(built_in, TOKENS, LABELS, start, length, cut)
    assert torch.allclose(shortcut.hidden_BWD, written_once.hidden_BWD, rtol=1e-12, atol=1e-15)
    assert torch.allclose(shortcut.logits_BWV, written_once.logits_BWV, rtol=1e-12, atol=1e-15)
    weights = list(built_in.parameters())
    pairs = zip(
        grad(shortcut.logits_BWV.square().sum(), weights, allow_unused=True),
        grad(written_once.logits_BWV.square().sum(), weights, allow_unused=True),
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours is theirs or torch.allclose(ours, theirs, rtol=1e-10, atol=1e-15)


def test_a_window_over_everything_is_the_full_sequence(own: OneLayer) -> None:
    whole = torch.nn.functional.cross_entropy(own(TOKENS, LABELS).flatten(0, 1), TOKENS.flatten())
    window = window_loss(own, TOKENS, LABELS, 0, T)
    assert torch.equal(window.total, whole)
    assert window_loss(own, TOKENS, LABELS, 5, 6, continuity_weight=0.1).continuity > 0


def test_what_needs_a_head_by_name_is_refused(own: OneLayer) -> None:
    with pytest.raises(ValueError, match="norm_and_head"):
        window_loss(own, TOKENS, LABELS, 5, 6, chunk_tokens=2)
    with pytest.raises(ValueError, match="names no layers to compute again"):
        window_loss(own, TOKENS, LABELS, 5, 6, activation_checkpointing=True)


def test_cached_greedy_sampling_is_uncached_argmax(own: OneLayer) -> None:
    codes = own.generate(LABELS, temperature=0.0)
    assert torch.equal(own(codes, LABELS).argmax(dim=-1), codes)
    guided = own.generate(LABELS, temperature=0.0, guidance=2.0, prompt_BP=TOKENS[:, :4])
    given, null = own(guided, LABELS), own(guided, torch.full_like(LABELS, own.null_class))
    assert torch.equal((null + 2 * (given - null)).argmax(dim=-1)[:, 4:], guided[:, 4:])
    assert torch.equal(guided[:, :4], TOKENS[:, :4])


def test_counting_finds_what_the_formula_says(built_in: VideoTransformer) -> None:
    """All but the last layer's shortcut, which only the formula knows of."""
    formula = built_in.settings.costs
    found = count(built_in, built_in._states_without_storage, built_in.logits, built_in.shape)
    assert found.costs[:3] == formula[:3]
    assert found.cached == built_in.settings.cached_per_token
    assert found.parameters == sum(parameter.numel() for parameter in built_in.parameters())
    assert next(built_in.parameters()).device.type == "cpu", "weights are back where they were"


def test_costs_of_a_decoder_without_a_formula(own: OneLayer) -> None:
    width, pairs = 8, T * (T + 1) // 2
    by_hand = T * (2 * width * 3 * width + 2 * width * V) + 4 * width * pairs
    assert step_flops(own.settings, 0, T) == 3 * by_hand
    sampler = WindowSampler(T, 6, 3, 0.5, seed=0)
    assert 1.5 < speedup_limit(own.settings, sampler) < 3


def test_analyses_look_at_any_decoder(own: OneLayer, built_in: VideoTransformer) -> None:
    curve = error_growth(own, TOKENS, LABELS, tokens_per_block=6)
    assert len(curve) == 3 and all(value > 0 for value in curve)
    assert smoothness(own, TOKENS, LABELS, tokens_per_block=6)[0] > 0
    noise = 0.1 * torch.randn(6, 32, dtype=torch.float64)
    ours, written_once = built_in.disturbed(TOKENS, LABELS, noise), Decoder.disturbed(built_in, TOKENS, LABELS, noise)
    assert torch.allclose(ours, written_once, rtol=1e-10)


CLIPS, CLASSES = torch.zeros((2, 10), dtype=torch.long), torch.zeros(2, dtype=torch.long)
NO_CLIPS = {
    "floats": (CLIPS.float(), CLASSES, r"tokens_BT is float32, not int64 or int32; give tokens_BT.long\(\)"),
    "a code too many": (CLIPS + 8, CLASSES, r"tokens_BT holds 8, but the model has codes 0..7"),
    "a code below none": (CLIPS - 1, CLASSES, "tokens_BT holds -1, but the model has codes 0..7"),
    "one clip": (CLIPS[0], CLASSES, r"tokens_BT has shape \(10,\), where it must have 2 axes"),
    "short clips": (CLIPS[:, :3], CLASSES, "tokens_BT has 3 tokens a clip, but"),
    "labels of floats": (CLIPS, CLASSES.float(), "labels_B is float32"),
    "no class": (CLIPS, CLASSES + 4, "labels_B holds 4, but the model has classes .*0..3"),
    "labels of other clips": (CLIPS, CLASSES[:1], "tokens_BT has 2 clips, but labels_B 1"),
}


@pytest.mark.parametrize("case", NO_CLIPS)
def test_what_are_no_clips_of_a_model_is_said_in_one_sentence(case: str) -> None:
    """It was "index out of range in self", and on a GPU the end of the process."""
    tokens, labels, sentence = NO_CLIPS[case]
    model = VideoTransformer(8, 10, 3, 16, 1, 2)
    for asked in (
        lambda: window_loss(model, tokens, labels, 0, 10),
        lambda: model(tokens, labels),
        lambda: model.window(tokens, labels, 4, 5),
    ):
        with pytest.raises(ValueError, match=sentence):
            asked()
    if "label" in case and "other" not in case:
        with pytest.raises(ValueError, match=sentence):
            model.generate(labels)
    assert window_loss(model, CLIPS.int(), CLASSES + 3, 0, 10).total > 0, "int32 codes and the null class"
