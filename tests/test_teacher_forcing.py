"""Clips read in pieces: the same losses and states however little fits at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from reco_tune.data.token_cache import TokenCache
from reco_tune.evaluation.error_growth import error_growth
from reco_tune.evaluation.loss_distribution import loss_by_block
from reco_tune.evaluation.smoothness import smoothness
from reco_tune.model import VideoTransformer, teacher_forcing
from reco_tune.model.teacher_forcing import clips_at_once, logits_of_clips
from reco_tune.settings import Experiment
from reco_tune.training import fit

Make = Callable[..., Experiment]


@pytest.fixture
def case() -> tuple[VideoTransformer, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = VideoTransformer(16, 20, 3, 16, 2, 2, generator=generator).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 5
    return model, torch.randint(16, (40, 20), generator=generator), torch.randint(3, (40,), generator=generator)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Logits of 7 tokens, and states of 3 clips, fit at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_forcing, "LOGITS_BYTES", 7 * 4 * 16)
        patch.setattr(teacher_forcing, "STATES_BYTES", 3 * 64 * 20 * 16)
        yield


def test_logits_in_pieces_are_those_of_the_whole(case, little_memory: None) -> None:
    model, tokens, labels = case
    parts = list(logits_of_clips(model, tokens, labels))
    assert max(len(logits) for logits, _ in parts) == 7 and len(parts) == -(-40 * 20 // 7)
    torch.testing.assert_close(
        torch.cat([logits for logits, _ in parts]), model(tokens, labels).flatten(0, 1), rtol=1e-12, atol=1e-12
    )
    assert torch.equal(torch.cat([codes for _, codes in parts]), tokens.flatten())
    assert not parts[0][0].requires_grad


def test_what_fits_is_not_cut(case) -> None:
    """So that the small studies of before keep their bits."""
    model, tokens, labels = case
    ((logits, _),) = logits_of_clips(model, tokens, labels)
    assert torch.equal(logits, model(tokens, labels).flatten(0, 1))
    assert clips_at_once(model.settings) == 32


@pytest.mark.parametrize(
    "analysis", [loss_by_block, error_growth, smoothness], ids=lambda analysis: str(analysis.__name__)
)
def test_analyses_do_not_depend_on_what_fits(analysis: Callable[..., list[float]], case, request) -> None:
    whole = list(analysis(*case, 4))
    request.getfixturevalue("little_memory")
    assert clips_at_once(case[0].settings) == 3
    assert list(analysis(*case, 4)) == pytest.approx(whole, rel=1e-10)


def test_validation_in_pieces(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path, request) -> None:
    """Bit for bit what one pass over all clips of a batch gives where they fit, to float32's rounding where not."""
    experiment = toy_experiment({"training.steps": 2, "training.rungs": 1})
    found = fit(experiment, toy_cache, tmp_path / "whole")
    tokens, labels = torch.tensor(toy_cache.tokens("test")[:16]).long(), torch.tensor(toy_cache.labels("test")[:16])
    with torch.no_grad():
        sums = [
            float(F.cross_entropy(found.model(part, label).flatten(0, 1), part.flatten(), reduction="sum"))
            for part, label in zip(tokens.split(8), labels.split(8), strict=True)
        ]
    assert found.metrics["val_cross_entropy"] == sum(sums) / tokens.numel()
    request.getfixturevalue("little_memory")
    cut = fit(experiment, toy_cache, tmp_path / "cut")
    assert cut.metrics["val_cross_entropy"] == pytest.approx(found.metrics["val_cross_entropy"], rel=1e-6)
