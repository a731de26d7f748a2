"""Controls for exposure bias: random codes among what a model reads, and a prefix that it draws itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from reco_tune.cost import calibrate, scheme_limit
from reco_tune.cost.memory import peak_bytes
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import SettingsError
from reco_tune.settings import Experiment
from reco_tune.training import Group, build_scheme, fit, window_loss
from reco_tune.training.feed import Feed
from reco_tune.training.objectives import hidden_states, loss_terms
from reco_tune.training.resampling import Draws, resampled
from reco_tune.windows import WindowSpan

Make = Callable[..., Experiment]
LATE = {"window.first_frame_probability": 0.0}
DROPPED, RESAMPLED = {"training.token_dropout": 0.25}, {"window.prefix_resampled": 0.5, **LATE}
EXACT = 1e-12


def feed_of(experiment: Experiment, cache: TokenCache, group: Group = Group()) -> Feed:
    return Feed(build_scheme(experiment, cache), cache, group)


@pytest.mark.parametrize("scheme", ["full", "window", "fewer_frames", "chunked_full"])
def test_token_dropout_replaces_that_share_of_what_is_read_and_no_target(
    scheme: str, toy_cache: TokenCache, toy_experiment: Make
) -> None:
    own = {"window.scheme": scheme}
    clean, noisy = (feed_of(toy_experiment({**own, **more}), toy_cache) for more in ({}, DROPPED))
    changed, seen = 0, 0
    for _ in range(50):
        (batch, span), (other, same) = clean.next(), noisy.next()
        assert span == same and torch.equal(batch.tokens_BT, other.tokens_BT)
        assert batch.inputs_BT is None and other.inputs_BT is not None and other.inputs_BT.dtype == torch.int32
        changed, seen = changed + int((other.inputs_BT != other.tokens_BT).sum()), seen + other.tokens_BT.numel()
    assert changed / seen == pytest.approx(0.25 * 15 / 16, abs=0.021)  # 4 standard deviations of 7,200 draws


def test_a_loss_reads_the_noise_and_predicts_the_clip(toy_cache: TokenCache, toy_experiment: Make) -> None:
    arm = build_scheme(toy_experiment(DROPPED), toy_cache)
    model, (batch, _) = arm.build_model().double(), Feed(arm, toy_cache).next()
    assert batch.inputs_BT is not None
    hidden = hidden_states(model, batch.inputs_BT, batch.labels_B, 9, 18, arm.options)
    expected = loss_terms(model, hidden, batch.tokens_BT[:, 9:27], arm.options)
    assert torch.equal(arm.loss(model, batch, 9).total, expected.total)
    assert not torch.equal(expected.total, window_loss(model, batch.inputs_BT, batch.labels_B, 9, 18).total)


@pytest.mark.parametrize("rate", [0.0, 0.001])
def test_without_noise_a_run_is_the_plain_one_to_the_bit(
    rate: float, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    """A thousandth of 27 tokens is none: the pass that draws is left out, and nothing of it is counted."""
    settings = {"window.prefix_resampled": rate, "training.token_dropout": 0.0}
    plain = fit(toy_experiment(), toy_cache, tmp_path / "plain")
    noisy = fit(toy_experiment(settings), toy_cache, tmp_path / "noisy")
    for one, other in zip(plain.model.parameters(), noisy.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert plain.metrics["training_flops"] == noisy.metrics["training_flops"]


def test_a_prefix_is_drawn_from_the_models_own_predictions(toy_cache: TokenCache, toy_experiment: Make) -> None:
    """Frequencies of 4,000 draws of one token against the softmax after the true tokens before it."""
    arm = build_scheme(toy_experiment(RESAMPLED), toy_cache)
    model, (batch, _) = arm.build_model().double(), Feed(arm, toy_cache).next()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # far from uniform
        expected = model(*batch.read)[0, 7].softmax(-1)
        codes, labels = (part[:1].expand(4000, *part.shape[1:]) for part in batch.read)
        uniforms = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0))
        found = resampled(model, codes, labels, 18, Draws(torch.full((4000, 1), 7), uniforms))
    frequencies = found[:, 7].bincount(minlength=16) / 4000
    assert found.dtype == torch.int32 and torch.equal(found[:, 8:], codes[:, 8:])
    assert expected.max() > 3 / 16 and (frequencies - expected).abs().max() < 0.03  # 4 standard deviations


def test_draws_at_the_ends_give_codes_with_a_probability(toy_cache: TokenCache, toy_experiment: Make) -> None:
    """Rounding once put the last draw behind the last code, and a draw of 0 before the first possible one."""
    arm = build_scheme(toy_experiment(RESAMPLED), toy_cache)
    model, (batch, _) = arm.build_model(), Feed(arm, toy_cache).next()
    with torch.no_grad():
        model.head.weight.zero_()  # type: ignore[union-attr, operator]
    ends = torch.tensor([[0.0, 1 - 2**-24]]).expand(8, 2)
    found = resampled(model, *batch.read, 18, Draws(torch.tensor([[0, 1]]).expand(8, 2), ends))
    assert set(found[:, 0].tolist()) == {0} and set(found[:, 1].tolist()) == {15}, "uniform over 16 codes"


def test_a_resampled_loss_is_that_of_a_window_after_other_tokens(toy_cache: TokenCache, toy_experiment: Make) -> None:
    arm = build_scheme(toy_experiment(RESAMPLED), toy_cache)
    model, (batch, span) = arm.build_model().double(), Feed(arm, toy_cache).next()
    assert batch.draws is not None and batch.draws.places_BK.shape == (8, round(0.5 * span.start))
    assert int(batch.draws.places_BK.max()) < span.start
    assert all(len(set(places)) == len(places) for places in batch.draws.places_BK.tolist())
    codes = resampled(model, *batch.read, span.start, batch.draws)
    hidden = hidden_states(model, codes, batch.labels_B, *span, arm.options)
    expected = loss_terms(model, hidden, batch.tokens_BT[:, span.start : span.start + span.length], arm.options)
    found = arm.loss(model, batch, span)
    assert torch.equal(found.total, expected.total)
    parameters = list(model.parameters())
    for one, other in zip(
        *(torch.autograd.grad(total, parameters, allow_unused=True) for total in (found.total, expected.total)),
        strict=True,
    ):
        assert one is other or torch.equal(one, other)


@pytest.mark.parametrize("own", [DROPPED, RESAMPLED, {**DROPPED, **RESAMPLED}], ids=["dropped", "resampled", "both"])
def test_noise_resumes_bit_for_bit_and_is_shared_by_ranks(
    own: dict[str, object], toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    experiment = toy_experiment(own)
    whole = fit(experiment, toy_cache, tmp_path / "whole")
    fit(experiment, toy_cache, tmp_path / "parts", lambda step, metrics: step == 4)
    resumed = fit(experiment, toy_cache, tmp_path / "parts")
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    alone, *ranks = (feed_of(experiment, toy_cache, group) for group in (Group(), Group(0, 2), Group(1, 2)))
    for _ in range(3):
        batch, parts = alone.next().batch, [feed.next().batch for feed in ranks]
        assert torch.equal(torch.cat([part.read[0] for part in parts]), batch.read[0])
        if batch.draws is not None:
            for name in Draws._fields:
                shares = [getattr(part.draws, name) for part in parts]
                assert torch.equal(torch.cat(shares), getattr(batch.draws, name))


def test_drawing_costs_a_forward_of_the_prefix_and_some_heads(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    plain, arm = (build_scheme(toy_experiment(own), toy_cache) for own in (LATE, RESAMPLED))
    costs = arm.model_settings.costs
    extra = 27 * costs.token + 27 * 28 // 2 * costs.pair + 14 * costs.head  # round(0.5 * 27) is 14
    assert arm.flops(27) - plain.flops(27) == arm.prefix_flops(27) - plain.prefix_flops(27) == extra
    assert arm.attention_flops(27) - plain.attention_flops(27) == 27 * 28 // 2 * costs.pair
    assert arm.backward_flops(27) == plain.backward_flops(27) and arm.flops(0) == plain.flops(0)
    metrics = fit(toy_experiment(RESAMPLED), toy_cache, tmp_path).metrics
    fresh = build_scheme(toy_experiment(RESAMPLED), toy_cache)
    assert metrics["training_flops"] == 8 * sum(fresh.flops(fresh.draw(step)) for step in range(12))
    assert metrics["loss_tokens"] == 12 * 8 * 18


def test_drawing_is_in_the_measured_speed_and_memory(toy_cache: TokenCache, toy_experiment: Make) -> None:
    wide = {"model.width": 64, "training.batch_size": 16}
    full = toy_experiment({**wide, "window.scheme": "full"})
    plain, drawn = (calibrate(toy_experiment({**wide, **own}), full, toy_cache, 0.4) for own in (LATE, RESAMPLED))
    assert drawn["speedup"] < plain["speedup"] and drawn["speedup_limit"] < plain["speedup_limit"]
    limits = [
        scheme_limit(build_scheme(toy_experiment({**wide, **own}), toy_cache), build_scheme(full, toy_cache))
        for own in (LATE, RESAMPLED)
    ]
    assert limits == [plain["speedup_limit"], drawn["speedup_limit"]]
    span = WindowSpan(27, 18)
    for gpus in (0, 1):
        most = [
            peak_bytes(toy_experiment({**wide, **own, "resources.gpus_per_worker": gpus}), span).most
            for own in (LATE, RESAMPLED)
        ]
        assert most[0] <= most[1] < 1.5 * most[0]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"window.prefix_keep": 0.9}, r"window.prefix_keep \(0.9\) replaces tokens.*window.prefix_resampled \(0.5\)"),
        ({"window.prefix_tokens": 9}, r"window.prefix_tokens \(9\) cuts the prefix"),
        ({"resources.shard_state": True}, r"resources.shard_state \(True\)"),
        ({"window.scheme": "masked_full"}, r"window.prefix_resampled \(0.5\) needs a prefix"),
        ({"window.prefix_resampled": 1.1}, "window.prefix_resampled"),
        ({"training.token_dropout": 1.0}, "training.token_dropout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_together_is_refused(overrides: dict[str, object], words: str, toy_experiment: Make) -> None:
    with pytest.raises(SettingsError, match=words):
        toy_experiment({**RESAMPLED, **overrides})


def test_full_sequences_have_no_prefix_to_resample(toy_experiment: Make) -> None:
    """So that a study may share the setting between its windows and its baseline."""
    full = {"window.scheme": "full"}
    assert toy_experiment({**full, "window.prefix_resampled": 0.5}).result_hash() == toy_experiment(full).result_hash()


def test_places_are_spread_over_the_prefix() -> None:
    places = Draws.of(2000, 10, 3, np.random.default_rng(0)).places_BK
    assert (places.flatten().bincount(minlength=10) / 2000 - 0.3).abs().max() < 0.045  # 4 standard deviations
