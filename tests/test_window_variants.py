"""Settings beyond the paper's: schedules of lengths, cut and corrupted prefixes, neighbours in time, memory
for time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reco_tune.cost import calibrate, scheme_limit, step_flops
from reco_tune.cost.timing import span_strata
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import SettingsError
from reco_tune.model import VideoTransformer
from reco_tune.settings import Experiment
from reco_tune.training import Group, build_scheme, fit, window_loss
from reco_tune.training.feed import Feed
from reco_tune.training.objectives import continuity_term
from reco_tune.training.step import OptimiserStep
from reco_tune.windows import WindowSampler, WindowSchedule, WindowSpan, prefix_inputs, schedule_lengths

Make = Callable[..., Experiment]
EXACT = 1e-12
"""Relative; float64, sums in another order."""


def make_model() -> VideoTransformer:
    return VideoTransformer(20, 45, 3, 16, 3, 2, generator=torch.Generator().manual_seed(0)).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(20, (4, 45), generator=generator), torch.randint(3, (4,), generator=generator)


def gradients(model: VideoTransformer, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]


def assert_close(ours: list[Tensor], reference: list[Tensor]) -> None:
    for one, other in zip(ours, reference, strict=True):
        assert (one - other).norm() <= EXACT * other.norm()


@pytest.mark.parametrize(
    ("shape", "schedule", "lengths"),
    [
        pytest.param((45, 18, 9), "constant", [18], id="constant"),
        pytest.param((45, 18, 9), "short_to_long", [18, 27, 36, 45], id="a stride a stage"),
        pytest.param((45, 18, 9), "long_to_short", [45, 36, 27, 18], id="back"),
        pytest.param((5120, 2048, 1024), "short_to_long", [2048, 3072, 4096, 5120], id="the paper's clip"),
        pytest.param((45, 9, 3), "short_to_long", [9, 21, 33, 45], id="several strides a stage"),
        pytest.param((45, 27, 14), "short_to_long", [27, 41, 45], id="the last cut by the clip"),
        pytest.param((45, 45, 9), "short_to_long", [45], id="nothing to grow"),
    ],
)
def test_lengths_of_a_schedule(shape: tuple[int, int, int], schedule: str, lengths: list[int]) -> None:
    assert schedule_lengths(*shape, schedule) == lengths  # type: ignore[arg-type]


def test_a_constant_schedule_draws_what_its_sampler_draws() -> None:
    sampler, windows = WindowSampler(45, 18, 9, 0.5, seed=3), WindowSchedule(45, 18, 9, 0.5, seed=3, steps=100)
    assert [windows.draw(step) for step in range(100)] == [WindowSpan(sampler.draw(), 18) for _ in range(100)]


@pytest.mark.parametrize("schedule", ["constant", "short_to_long", "long_to_short"])
def test_shares_are_those_of_the_draws(schedule: str) -> None:
    windows = WindowSchedule(45, 18, 9, 0.5, seed=0, steps=4000, schedule=schedule, full_fraction=0.25)  # type: ignore[arg-type]
    drawn = [windows.draw(step) for step in range(4000)]
    expected = windows.distribution()
    assert sum(expected.values()) == pytest.approx(1)
    assert all(span == (0, 45) for span in drawn[3000:]), "the last quarter is full sequences"
    counts = Counter(drawn)
    assert set(counts) == set(expected)
    assert all(
        counts[span] / 4000 == pytest.approx(share, abs=0.02) for span, share in expected.items()
    )  # 2.5 standard deviations


def test_a_schedule_goes_through_its_lengths_in_order() -> None:
    windows = WindowSchedule(45, 18, 9, 0.5, seed=0, steps=10, schedule="short_to_long")
    assert [windows.draw(step).length for step in range(12)] == [18, 18, 27, 27, 27, 36, 36, 45, 45, 45, 45, 45]


@pytest.mark.parametrize(
    ("start", "kept", "read"), [(0, 5, 0), (4, 5, 4), (6, 5, 6), (7, 5, 6), (27, 5, 6), (27, 0, 1), (27, None, 27)]
)
def test_prefix_inputs_are_the_class_and_the_nearest_tokens(start: int, kept: int | None, read: int) -> None:
    assert prefix_inputs(start, kept) == read


@pytest.mark.parametrize("kept", [17, 18, 45])
def test_a_prefix_that_is_short_enough_is_not_cut(kept: int) -> None:
    """Input 0 is the class, so start 18 has 17 token inputs before the window."""
    model, (tokens, labels) = make_model(), batch()
    for whole, cut in zip(
        model.window(tokens, labels, 18, 18), model.window(tokens, labels, 18, 18, prefix_tokens=kept), strict=True
    ):
        assert torch.equal(whole, cut)


@pytest.mark.parametrize(("start", "length", "kept"), [(18, 18, 9), (27, 18, 0), (9, 36, 1)])
def test_a_cut_prefix_is_the_reference_with_the_far_tokens_masked_out(start: int, length: int, kept: int) -> None:
    """Every matrix written out over all inputs; nobody, the kept prefix included, may look at inputs 1 .. start - kept
    - 1.
    """
    model, (tokens, labels) = make_model(), batch()
    end = start + length
    stream = torch.cat([model.class_embedding[labels][:, None], model.token_embedding[tokens[:, : end - 1]]], dim=1)
    stream = stream + model.position_embedding[:end]
    hidden = torch.arange(end)[None] > torch.arange(end)[:, None]
    hidden[start - kept :, 1 : start - kept] = True
    for block in model.blocks:
        stream = torch.cat([stream[:, :start].detach(), stream[:, start:]], dim=1)
        normed = F.layer_norm(stream, stream.shape[-1:], block.attention_norm.weight)
        queries, keys, values = (
            part.reshape(4, end, 2, -1).transpose(1, 2) for part in (normed @ block.qkv.weight.T).chunk(3, dim=-1)
        )
        keys, values = (torch.cat([part[:, :, :start].detach(), part[:, :, start:]], dim=2) for part in (keys, values))
        mixed = (queries @ keys.transpose(-1, -2) / 8**0.5).masked_fill(hidden, -torch.inf).softmax(-1) @ values
        stream = stream + mixed.transpose(1, 2).reshape(4, end, -1) @ block.attention_out.weight.T
        normed = F.layer_norm(stream, stream.shape[-1:], block.mlp_norm.weight)
        stream = stream + F.gelu(normed @ block.mlp_in.weight.T) @ block.mlp_out.weight.T
    logits = model.head(model.final_norm(stream[:, start:]))
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, start:end].flatten())
    ours = window_loss(model, tokens, labels, start, length, prefix_tokens=kept).total
    assert abs(ours - loss).item() < EXACT
    assert_close(gradients(model, ours), gradients(model, loss))


def test_a_cut_prefix_costs_what_a_nearer_window_costs(toy_cache: TokenCache, toy_experiment: Make) -> None:
    arm = build_scheme(toy_experiment({"window.scheme": "window", "window.prefix_tokens": 8}), toy_cache)
    assert [arm.flops(start) for start in (0, 9, 18, 27)] == [
        step_flops(arm.model_settings, start, 18) for start in (0, 9, 9, 9)
    ]
    assert [arm.tokens_seen(start) for start in (0, 9, 27)] == [18, 27, 27]


@pytest.mark.parametrize(("start", "length"), [(0, 45), (9, 18), (27, 18)])
def test_checkpointed_blocks_have_the_same_gradients(start: int, length: int) -> None:
    model, (tokens, labels) = make_model(), batch()
    plain, again = (
        gradients(model, window_loss(model, tokens, labels, start, length, 0.1, activation_checkpointing=on).total)
        for on in (False, True)
    )
    assert_close(again, plain)


@pytest.mark.parametrize("chunk", [1, 7, 36, 1000])
def test_chunked_cross_entropy_is_the_whole_one(chunk: int) -> None:
    model, (tokens, labels) = make_model(), batch()
    whole = window_loss(model, tokens, labels, 9, 9, 0.1)
    parts = window_loss(model, tokens, labels, 9, 9, 0.1, chunk_tokens=chunk)
    for one, other in zip(parts, whole, strict=True):
        assert abs(one - other).item() < EXACT
    assert_close(gradients(model, 3 * parts.total), gradients(model, 3 * whole.total))


def test_chunks_under_bfloat16_stay_close_to_float32() -> None:
    """bfloat16 has 8 bits of mantissa: gradients agree to a few percent of their norm."""
    model, (tokens, labels) = make_model().float(), batch()
    exact = gradients(model, window_loss(model, tokens, labels, 9, 18).total)
    with torch.autocast("cpu", torch.bfloat16):
        loss = window_loss(model, tokens, labels, 9, 18, chunk_tokens=10).total
    for one, other in zip(gradients(model, loss), exact, strict=True):
        assert (one - other).norm() <= 0.05 * other.norm() + 1e-6


@pytest.mark.parametrize(
    ("setting", "most"),
    [
        pytest.param({"training.activation_checkpointing": True}, 0.6, id="blocks"),
        pytest.param({"training.loss_chunk_tokens": 16}, 0.6, id="loss"),
    ],
)
def test_memory_settings_keep_less_for_backward(
    setting: dict[str, object],
    most: float,
    toy_cache: TokenCache,
    toy_experiment: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toy_cache, "num_codes", 2048 if "training.loss_chunk_tokens" in setting else 16)
    kept = []
    for own in ({}, setting):
        arm = build_scheme(toy_experiment({"window.scheme": "window", "model.depth": 4, **own}), toy_cache)
        step = OptimiserStep(arm, torch.device("cpu"))
        kept.append(step.activation_bytes(Feed(arm, toy_cache).next()))
    assert kept[1] < most * kept[0]


@pytest.mark.parametrize("scheme", ["full", "masked_full", "fewer_frames", "fewer_frames_tokens"])
def test_memory_settings_change_no_loss_of_any_scheme(scheme: str, toy_cache: TokenCache, toy_experiment: Make) -> None:
    saving = {"training.activation_checkpointing": True, "training.loss_chunk_tokens": 10}
    arms = [build_scheme(toy_experiment({"window.scheme": scheme, **own}), toy_cache) for own in ({}, saving)]
    model, micro_batch = arms[0].build_model().double(), Feed(arms[0], toy_cache).next()
    whole, parts = (gradients(model, arm.loss(model, micro_batch.batch, micro_batch.span).total) for arm in arms)
    assert_close(parts, whole)


def test_sites_compare_the_same_place_of_adjacent_frames(toy_cache: TokenCache, toy_experiment: Make) -> None:
    still = torch.randn(2, 1, 9, 16, dtype=torch.float64).expand(2, 3, 9, 16).reshape(2, 27, 16)
    assert continuity_term(still, distance=9) == 0 < continuity_term(still)
    hidden = torch.randn(2, 27, 16, dtype=torch.float64)
    by_hand = (hidden[:, 9:] - hidden[:, :18]).square().sum(-1).mean()
    assert continuity_term(hidden, "sum", 9).item() == pytest.approx(by_hand.item(), rel=1e-12)
    arm = build_scheme(
        toy_experiment({"objective.continuity_neighbours": "sites", "objective.continuity_weight": 0.1}), toy_cache
    )
    model, micro_batch = arm.build_model(), Feed(arm, toy_cache).next()
    expected = window_loss(model, *micro_batch.batch.read, 9, 18, 0.1, neighbour_distance=9)
    assert torch.equal(arm.loss(model, micro_batch.batch, 9).total, expected.total)


def test_corruption_replaces_that_share_of_the_prefix_and_no_target(
    toy_cache: TokenCache, toy_experiment: Make
) -> None:
    shared = {"window.scheme": "window", "window.first_frame_probability": 0.2}
    clean, corrupted = (
        Feed(build_scheme(toy_experiment({**shared, "window.prefix_keep": keep}), toy_cache), toy_cache)
        for keep in (1.0, 0.75)
    )
    changed, seen = 0, 0
    for _ in range(100):
        (batch, span), (other, same) = clean.next(), corrupted.next()
        assert span == same
        different = batch.tokens_BT != other.tokens_BT
        assert not different[:, span.start :].any()
        changed, seen = changed + int(different.sum()), seen + 8 * span.start
    assert changed / seen == pytest.approx(
        0.25 * 15 / 16, abs=0.015
    )  # a random code is the right one once in 16; 4 standard deviations


def test_ranks_share_the_corruption_of_one_worker(toy_cache: TokenCache, toy_experiment: Make) -> None:
    experiment = toy_experiment({"window.prefix_keep": 0.5})
    alone, *ranks = (
        Feed(build_scheme(experiment, toy_cache), toy_cache, group) for group in (Group(), Group(0, 2), Group(1, 2))
    )
    for _ in range(5):
        whole, parts = alone.next(), [feed.next() for feed in ranks]
        assert torch.equal(torch.cat([part.batch.tokens_BT for part in parts]), whole.batch.tokens_BT)


EVERYTHING = {
    "window.schedule": "short_to_long",
    "window.full_fraction": 0.2,
    "window.prefix_tokens": 10,
    "window.prefix_keep": 0.8,
    "objective.continuity_neighbours": "sites",
    "objective.continuity_weight": 0.1,
    "training.micro_batches": 2,
    "training.activation_checkpointing": True,
    "training.loss_chunk_tokens": 50,
    "training.steps": 20,
    "training.rungs": 4,
}


def test_a_run_with_everything_resumes_bit_for_bit(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path) -> None:
    experiment = toy_experiment(EVERYTHING)
    whole = fit(experiment, toy_cache, tmp_path / "whole")
    fit(experiment, toy_cache, tmp_path / "parts", lambda step, metrics: step == 10)
    resumed = fit(experiment, toy_cache, tmp_path / "parts")
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    )
    counted = ("tokens_seen", "loss_tokens", "training_flops", "peak_memory_bytes", "val_cross_entropy")
    assert [whole.metrics[name] for name in counted] == [resumed.metrics[name] for name in counted]


def test_the_ledger_of_a_schedule_by_hand(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path) -> None:
    experiment = toy_experiment({"window.schedule": "long_to_short", "window.full_fraction": 0.25})
    arm = build_scheme(experiment, toy_cache)
    drawn = [arm.draw(step) for step in range(12)]
    metrics = fit(experiment, toy_cache, tmp_path).metrics
    assert [span.length for span in drawn] == [45, 45, 36, 36, 27, 27, 18, 18, 18, 45, 45, 45]
    assert metrics["loss_tokens"] == 8 * sum(span.length for span in drawn)
    assert metrics["tokens_seen"] == 8 * sum(span.start + span.length for span in drawn)
    assert metrics["training_flops"] == 8 * sum(step_flops(arm.model_settings, *span) for span in drawn)


def test_the_limit_of_a_schedule_is_that_of_its_whole_course(toy_cache: TokenCache, toy_experiment: Make) -> None:
    constant = build_scheme(toy_experiment(), toy_cache)
    full = step_flops(constant.model_settings, 0, 45)
    last = build_scheme(toy_experiment({"window.full_fraction": 0.25}), toy_cache)
    baseline = build_scheme(toy_experiment({"window.scheme": "full"}), toy_cache)
    assert scheme_limit(last, baseline) == pytest.approx(
        full / (0.75 * constant.expected_flops() + 0.25 * full), rel=1e-12
    )
    there, back = (
        build_scheme(toy_experiment({"window.schedule": way}), toy_cache) for way in ("short_to_long", "long_to_short")
    )
    assert scheme_limit(there, baseline) == pytest.approx(scheme_limit(back, baseline), rel=1e-12)
    assert 1 < scheme_limit(there, baseline) < scheme_limit(constant, baseline)


def test_strata_hold_every_length_with_its_share() -> None:
    distribution = WindowSchedule(450, 180, 10, 0.5, seed=0, steps=100, schedule="short_to_long").distribution()
    strata = span_strata(distribution)
    assert len(strata) == 3 + 3 + 3 + 1 and sum(strata.values()) == pytest.approx(1)
    for length in (180, 270, 360, 450):
        one, other = (
            sum(share for span, share in spans.items() if span.length == length) for spans in (strata, distribution)
        )
        assert one == pytest.approx(other) == pytest.approx(0.25)


def test_a_schedule_is_calibrated_over_its_lengths(toy_cache: TokenCache, toy_experiment: Make) -> None:
    own = {"window.schedule": "short_to_long", "model.width": 64, "training.batch_size": 16}
    full = toy_experiment(own | {"window.scheme": "full"})
    result = calibrate(toy_experiment(own), full, toy_cache, seconds=1.0)
    assert 1.2 < result["speedup_limit"] < 1.5
    assert 0.8 < result["limit_fraction"] < 1.2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"window.scheme": "fewer_frames", "window.schedule": "short_to_long"},
            r"window.schedule \(short_to_long\).*pieces of one length",
        ),
        (
            {"window.scheme": "fewer_frames_tokens", "window.full_fraction": 0.2},
            r"window.full_fraction \(0.2\).*leave it out",
        ),
        (
            {"window.scheme": "masked_full", "window.prefix_tokens": 9},
            r"window.prefix_tokens \(9\) needs a prefix, but .* masked_full computes",
        ),
        ({"window.scheme": "fewer_frames", "window.prefix_keep": 0.9}, r"window.prefix_keep \(0.9\) needs a prefix"),
        (
            {
                "objective.continuity_neighbours": "sites",
                "objective.continuity_weight": 0.1,
                "window.length_tokens": 17,
            },
            r"window.length_tokens \(17\) must hold 2 blocks of 9 tokens; lengthen the window",
        ),
        (
            {
                "objective.continuity_neighbours": "sites",
                "objective.continuity_weight": 0.1,
                "window.scheme": "fewer_frames_tokens",
            },
            "must hold 3 blocks",
        ),
        ({"window.full_fraction": 1.0}, "window.full_fraction"),
        ({"window.prefix_keep": 1.5}, "window.prefix_keep"),
        ({"training.loss_chunk_tokens": 0}, "training.loss_chunk_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_in_one_sentence(
    overrides: dict[str, object], words: str, toy_experiment: Make
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        toy_experiment(overrides)
    assert "\n" not in str(caught.value)


def test_full_sequences_ignore_what_shapes_windows(toy_experiment: Make) -> None:
    """So that a study may share such a setting between its windows and its baseline, and the baseline is still one
    setting.
    """
    shaped = {key: value for key, value in EVERYTHING.items() if key.startswith("window.")}
    full = {"window.scheme": "full"}
    assert toy_experiment({**full, **shaped}).result_hash() == toy_experiment(full).result_hash()


def test_codes_of_a_corrupted_prefix_are_codes(toy_cache: TokenCache, toy_experiment: Make) -> None:
    feed = Feed(
        build_scheme(toy_experiment({"window.prefix_keep": 0.0, "window.first_frame_probability": 0.0}), toy_cache),
        toy_cache,
    )
    tokens = np.concatenate([feed.next().batch.tokens_BT.numpy()[:, :9].ravel() for _ in range(20)])
    assert tokens.dtype == np.int32 and set(tokens) == set(range(16))
