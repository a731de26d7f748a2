"""Cross-entropy per block: doubles with known answers, and which tokens each scheme's model is judged on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reco_tune.data.token_cache import TokenCache
from reco_tune.evaluation.loss_distribution import loss_by_block, training_clips
from reco_tune.model import VideoTransformer
from reco_tune.settings import Experiment
from reco_tune.training import build_scheme

Make = Callable[..., Experiment]


def model_and_clips(clips: int) -> tuple[VideoTransformer, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = VideoTransformer(16, 12, 3, 16, 2, 2, generator=generator)
    return model, torch.randint(16, (clips, 12), generator=generator), torch.randint(3, (clips,), generator=generator)


def test_uniform_logits_cost_the_logarithm_of_the_codes() -> None:
    model, tokens, labels = model_and_clips(5)
    torch.nn.init.zeros_(model.head.weight)
    assert loss_by_block(model, tokens, labels, 4) == pytest.approx([math.log(16)] * 3, rel=1e-6)


@pytest.mark.parametrize("clips", [1, 32, 45], ids=lambda clips: f"{clips} clips")
def test_its_mean_is_the_cross_entropy_of_the_clips(clips: int) -> None:
    model, tokens, labels = model_and_clips(clips)
    expected = F.cross_entropy(model(tokens, labels).flatten(0, 1), tokens.flatten())
    assert np.mean(loss_by_block(model, tokens, labels, 4)) == pytest.approx(expected.item(), rel=1e-5)


def test_a_block_that_is_known_costs_nothing() -> None:
    """A head that always says code 7 with certainty: free where the tokens are 7, dear where they are not."""
    model, tokens, labels = model_and_clips(4)
    torch.nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.final_norm.weight.zero_()
        model.final_norm.bias = torch.nn.Parameter(torch.ones(16))
        model.head.weight[7] = 10
    tokens[:] = 3
    tokens[:, 4:8] = 7
    first, second, third = loss_by_block(model, tokens, labels, 4)
    assert second < 1e-6 and first == third == pytest.approx(160, rel=1e-3)


def test_whole_clips_for_models_of_whole_clips(toy_cache: TokenCache, toy_experiment: Make) -> None:
    tokens, labels = training_clips(build_scheme(toy_experiment({"window.scheme": "window"}), toy_cache), toy_cache, 10)
    np.testing.assert_array_equal(tokens, toy_cache.tokens("train")[:10])
    np.testing.assert_array_equal(labels, toy_cache.labels("train")[:10])


def test_pieces_for_models_of_pieces(toy_cache: TokenCache, toy_experiment: Make) -> None:
    arm = build_scheme(toy_experiment({"window.scheme": "fewer_frames", "window.length_blocks": 2}), toy_cache)
    tokens, _ = training_clips(arm, toy_cache, 200)  # more than there are
    assert tokens.shape == (96, 18)
    np.testing.assert_array_equal(tokens[6], toy_cache.pieces("train", 2)[6, 6 % 4])
    arm = build_scheme(toy_experiment({"window.scheme": "fewer_frames_tokens", "window.length_blocks": 2}), toy_cache)
    tokens, _ = training_clips(arm, toy_cache, 10)
    np.testing.assert_array_equal(tokens[7], toy_cache.tokens("train")[7, 3 * 9 : 5 * 9])


def test_unconditional_clips_have_one_class(toy_cache: TokenCache, toy_experiment: Make) -> None:
    _, labels = training_clips(
        build_scheme(toy_experiment({"data.class_conditional": False}), toy_cache), toy_cache, 10
    )
    assert not labels.any()
