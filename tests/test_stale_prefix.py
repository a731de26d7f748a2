"""Windows in order after the keys and values of earlier steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reco_tune.cost import calibrate, scheme_limit
from reco_tune.cost.memory import peak_bytes
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import SettingsError
from reco_tune.model.flops import forward_flops
from reco_tune.settings import Experiment
from reco_tune.training import build_scheme, fit, window_loss
from reco_tune.training.feed import Feed
from reco_tune.training.step import OptimiserStep

Make = Callable[..., Experiment]
STALE = {"window.scheme": "stale_prefix"}
SPANS = [(0, 18), (18, 18), (36, 9)]
EXACT = 1e-12
"""Relative; float64, sums in another order."""


def test_while_weights_stand_still_a_stale_prefix_is_a_fresh_one(toy_cache: TokenCache, toy_experiment: Make) -> None:
    arm = build_scheme(toy_experiment({**STALE, "objective.continuity_weight": 0.1}), toy_cache)
    model, feed = arm.build_model().double(), Feed(arm, toy_cache)
    parameters = list(model.parameters())
    for _ in range(2):
        for expected_span in SPANS:
            batch, span = feed.next()
            assert span == expected_span
            ours, fresh = arm.loss(model, batch, span), window_loss(model, *batch.read, *span, 0.1)
            found, expected = (
                torch.autograd.grad(loss.total, parameters, allow_unused=True, materialize_grads=True)
                for loss in (ours, fresh)
            )
            assert ours.total.item() == pytest.approx(fresh.total.item(), rel=EXACT)
            for one, other in zip(found, expected, strict=True):
                assert (one - other).norm() <= EXACT * other.norm()


def test_once_weights_move_the_prefix_is_that_of_the_earlier_ones(toy_cache: TokenCache, toy_experiment: Make) -> None:
    """By hand: the first window's keys and values come from a copy of the model as it was then."""
    arm = build_scheme(toy_experiment(STALE), toy_cache)
    model, before, feed = arm.build_model(), arm.build_model(), Feed(arm, toy_cache)
    batch, span = feed.next()
    arm.loss(model, batch, span)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        past = before.advance(before.inputs(*batch.read, 0, 18))[1]
        hidden = model.advance(model.inputs(*batch.read, 18, 36), past)[0]
        expected = torch.nn.functional.cross_entropy(
            model.logits(hidden).flatten(0, 1), batch.tokens_BT[:, 18:36].flatten().long()
        )
        again, later = feed.next()
        found = arm.loss(model, again, later).cross_entropy
        fresh = window_loss(model, *again.read, *later).cross_entropy
    assert torch.equal(again.tokens_BT, batch.tokens_BT) and later == (18, 18)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6) and abs(found - fresh) > 1e-4


def test_one_window_over_the_clip_is_the_baseline_to_the_bit(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    full = fit(toy_experiment({"window.scheme": "full"}), toy_cache, tmp_path / "full")
    stale = fit(toy_experiment({**STALE, "window.length_tokens": 45}), toy_cache, tmp_path / "stale")
    for one, other in zip(full.model.parameters(), stale.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("left_at", [4, 8], ids=["after a first window", "after a second"])
def test_it_resumes_bit_for_bit_inside_a_clip(
    left_at: int, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    """Rungs of 4 steps end between windows of the same clips: what they have left must be in the checkpoint."""
    experiment = toy_experiment({**STALE, "training.precision": "float32"})
    whole = fit(experiment, toy_cache, tmp_path / "whole")
    fit(experiment, toy_cache, tmp_path / "parts", lambda step, metrics: step == left_at)
    resumed = fit(experiment, toy_cache, tmp_path / "parts")
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert whole.metrics["val_cross_entropy"] == resumed.metrics["val_cross_entropy"]
    assert whole.metrics["loss_tokens"] == 8 * 4 * 45 == whole.metrics["tokens_seen"]
    assert whole.metrics["passes"] == 4 * 8 / 96, "12 steps read four batches"


def test_every_clip_comes_for_all_its_windows(toy_cache: TokenCache, toy_experiment: Make) -> None:
    arm = build_scheme(toy_experiment({**STALE, "training.steps": 7}), toy_cache)
    feed = Feed(arm, toy_cache)
    drawn = [feed.next() for _ in range(36)]
    clips = [batch.tokens_BT.numpy().tobytes() for batch, _ in drawn]
    assert clips[0::3] == clips[1::3] == clips[2::3] and len(set(clips)) == 12, "96 clips, 8 a batch"
    assert [span for _, span in drawn[:4]] == [*SPANS, SPANS[0]]
    assert arm.distribution() == {(0, 18): 3 / 7, (18, 18): 2 / 7, (36, 9): 2 / 7}


def test_it_costs_no_pass_over_the_prefix(toy_cache: TokenCache, toy_experiment: Make) -> None:
    arm, window, full = (build_scheme(toy_experiment(own), toy_cache) for own in (STALE, {}, {"window.scheme": "full"}))
    assert arm.flops(18) == 3 * forward_flops(arm.model_settings, 18, 18) < window.flops(18)
    assert arm.prefix_flops(18) == 0 and arm.backward_flops(18) == window.backward_flops(18)
    assert sum(arm.flops(start) for start, _ in SPANS) == full.flops(0), "its windows together are the full sequence"
    assert scheme_limit(arm, full) == pytest.approx(3, rel=1e-12)


def test_its_speed_and_memory_are_measured(toy_cache: TokenCache, toy_experiment: Make) -> None:
    wide = {"model.width": 64, "training.batch_size": 32}
    full, stale = toy_experiment({**wide, "window.scheme": "full"}), toy_experiment({**wide, **STALE})
    found = calibrate(stale, full, toy_cache, 0.4)
    assert 1.5 < found["speedup"] < 3.5 and found["peak_memory_ratio"] < 1
    arm = build_scheme(stale, toy_cache)
    span = max(arm.distribution())
    seen = OptimiserStep(arm, torch.device("cpu")).activation_bytes(Feed(arm, toy_cache).next())
    kept = 2 * 2 * 32 * 45 * 64 * 4  # layers, keys and values, clips, tokens, width, bytes
    assert seen > kept and peak_bytes(stale, span).most > kept


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"training.micro_batches": 2}, r"training.micro_batches \(2\).*stale_prefix cannot have it"),
        ({"resources.workers": 2}, r"resources.workers \(2\)"),
        ({"training.compile": True}, r"training.compile \(True\)"),
        ({"window.prefix_keep": 0.9}, r"window.prefix_keep \(0.9\) needs a prefix"),
        ({"window.schedule": "short_to_long"}, r"window.schedule \(short_to_long\)"),
        (
            {"objective.continuity_weight": 0.1, "window.length_tokens": 22},
            r"window.length_tokens \(22\) the last window of a clip has 1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_cannot_have_is_refused(overrides: dict[str, object], words: str, toy_experiment: Make) -> None:
    with pytest.raises(SettingsError, match=words):
        toy_experiment({**STALE, **overrides})
