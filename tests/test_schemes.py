"""What a micro-batch of each scheme computes, and which clips it gets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from reco_tune.data.token_cache import TokenCache
from reco_tune.settings import Experiment
from reco_tune.training import Group, build_scheme, window_loss
from reco_tune.training.feed import Feed, FeedAhead, MicroBatch, held_out
from reco_tune.training.parameters import FlatParameters
from reco_tune.training.schemes import Batch
from reco_tune.training.step import OptimiserStep

Make = Callable[..., Experiment]


def gradients(arm, loss) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
    model = arm.build_model().double()
    loss(model).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def test_masked_full_is_the_loss_of_the_window_with_gradient_through_everything(
    toy_cache: TokenCache, toy_experiment: Make
) -> None:
    masked = build_scheme(toy_experiment({"window.scheme": "masked_full"}), toy_cache)
    window = build_scheme(toy_experiment({"window.scheme": "window"}), toy_cache)
    batch = held_out(masked, toy_cache, 4)
    model = masked.build_model().double()
    for start in masked.distribution():
        a, b = masked.loss(model, batch, start), window.loss(model, batch, start)
        for one, other in zip(a, b, strict=True):
            assert torch.allclose(one, other, rtol=1e-12, atol=0)  # float64
    seen = [
        gradients(arm, lambda m, arm=arm: arm.loss(m, batch, 27).total)[1] for arm in (masked, window)
    ]  # class embedding
    assert seen[0].abs().sum() > 0, "the full graph reaches the class token"
    assert seen[1].abs().sum() == 0, "a prefix without gradient does not"


def test_masked_full_over_the_whole_clip_is_full(toy_cache: TokenCache, toy_experiment: Make) -> None:
    full = build_scheme(toy_experiment({"window.scheme": "full"}), toy_cache)
    masked = build_scheme(toy_experiment({"window.scheme": "masked_full", "window.length_tokens": 45}), toy_cache)
    batch = held_out(full, toy_cache, 4)
    for a, b in zip(
        gradients(full, lambda m: full.loss(m, batch, 0).total),
        gradients(masked, lambda m: masked.loss(m, batch, 0).total),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_the_loss_is_window_loss_with_the_objective_of_the_settings(
    toy_cache: TokenCache, toy_experiment: Make
) -> None:
    objective = {
        "objective.continuity_weight": 0.3,
        "objective.continuity_reduction": "sum",
        "objective.continuity_state": "final_norm",
        "objective.norm_weight": 0.2,
    }
    arm = build_scheme(toy_experiment({"window.scheme": "window", **objective}), toy_cache)
    batch, model = held_out(arm, toy_cache, 4), arm.build_model()
    how = {"continuity_reduction": "sum", "continuity_state": "final_norm", "norm_weight": 0.2}
    expected = window_loss(model, *batch.read, 9, 18, 0.3, **how)
    assert all(torch.equal(a, b) for a, b in zip(arm.loss(model, batch, 9), expected, strict=True))


@pytest.mark.parametrize(
    ("scheme", "model_tokens", "loss_tokens", "seen_at_start", "starts"),
    [
        ("full", 45, 45, (0, 45), [0]),
        ("window", 45, 18, (9, 27), [0, 9, 18, 27]),
        ("masked_full", 45, 18, (9, 45), [0, 9, 18, 27]),
        ("fewer_frames", 18, 18, (0, 18), [0]),
        ("fewer_frames_tokens", 18, 18, (9, 18), [0, 9, 18, 27]),
    ],
)
def test_shapes_of_a_scheme(
    scheme: str,
    model_tokens: int,
    loss_tokens: int,
    seen_at_start: tuple[int, int],
    starts: list[int],
    toy_cache: TokenCache,
    toy_experiment: Make,
) -> None:
    arm = build_scheme(toy_experiment({"window.scheme": scheme}), toy_cache)
    assert arm.model_settings.num_tokens == model_tokens
    assert arm.loss_tokens == loss_tokens
    assert arm.tokens_seen(seen_at_start[0]) == seen_at_start[1]
    assert [span.start for span in arm.distribution()] == starts
    assert {arm.draw().start for _ in range(50)} == set(starts)


def test_fewer_frames_gets_pieces_encoded_by_themselves(toy_cache: TokenCache, toy_experiment: Make) -> None:
    arm = build_scheme(toy_experiment({"window.scheme": "fewer_frames", "window.length_blocks": 3}), toy_cache)
    known = {piece.tobytes(): number for clip in toy_cache.pieces("train", 3) for number, piece in enumerate(clip)}
    feed = Feed(arm, toy_cache)
    found = [known[row.tobytes()] for _ in range(12) for row in feed.next().batch.tokens_BT.numpy()]
    assert set(found) == {0, 1, 2}


def test_fewer_frames_tokens_gets_blocks_of_whole_clips(toy_cache: TokenCache, toy_experiment: Make) -> None:
    arm = build_scheme(toy_experiment({"window.scheme": "fewer_frames_tokens", "window.length_blocks": 3}), toy_cache)
    known = {start: {clip[start : start + 27].tobytes() for clip in toy_cache.tokens("train")} for start in (0, 9, 18)}
    feed = Feed(arm, toy_cache)
    drawn = [feed.next() for _ in range(12)]
    assert all({row.tobytes() for row in batch.tokens_BT.numpy()} <= known[span.start] for batch, span in drawn)
    assert {span.start for _, span in drawn} == {0, 9, 18}


def test_a_piece_inside_the_clip_has_no_loss_on_the_block_it_is_given(
    toy_cache: TokenCache, toy_experiment: Make
) -> None:
    """Its block 0 is a later block of the clip: training on it would teach sampling to open a clip with a later block's
    codes.
    """
    arm = build_scheme(toy_experiment({"window.scheme": "fewer_frames_tokens"}), toy_cache)
    model, batch = arm.build_model(), Feed(arm, toy_cache).next().batch
    with torch.no_grad():
        logits = model(batch.tokens_BT, batch.labels_B)
        whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.tokens_BT.flatten().long())
        later = torch.nn.functional.cross_entropy(logits[:, 9:].flatten(0, 1), batch.tokens_BT[:, 9:].flatten().long())
        assert torch.equal(arm.loss(model, batch, 0).cross_entropy, whole)
        assert torch.equal(arm.loss(model, batch, 9).cross_entropy, later)
    assert (arm.tokens_predicted(0), arm.tokens_predicted(9)) == (18, 9)


def test_every_clip_comes_once_an_epoch(toy_cache: TokenCache, toy_experiment: Make) -> None:
    feed = Feed(build_scheme(toy_experiment({"window.scheme": "full"}), toy_cache), toy_cache)
    epochs = [
        np.concatenate([feed.next().batch.tokens_BT.numpy() for _ in range(12)]) for _ in range(2)
    ]  # 96 clips, 8 a batch
    clips = sorted(row.tobytes() for row in toy_cache.tokens("train"))
    assert [sorted(row.tobytes() for row in epoch) for epoch in epochs] == [clips, clips]
    assert not np.array_equal(*epochs), "every epoch has an order of its own"


@pytest.mark.parametrize("scheme", ["window", "fewer_frames", "fewer_frames_tokens"])
def test_ranks_share_the_batch_of_one_worker(scheme: str, toy_cache: TokenCache, toy_experiment: Make) -> None:
    experiment = toy_experiment({"window.scheme": scheme, "training.class_dropout": 0.5})
    alone, *ranks = (
        Feed(build_scheme(experiment, toy_cache), toy_cache, group) for group in (Group(), Group(0, 2), Group(1, 2))
    )
    for _ in range(5):
        whole, parts = alone.next(), [feed.next() for feed in ranks]
        assert {part.span for part in parts} == {whole.span}
        assert torch.equal(torch.cat([part.batch.tokens_BT for part in parts]), whole.batch.tokens_BT)
        assert torch.equal(torch.cat([part.batch.labels_B for part in parts]), whole.batch.labels_B)


def test_class_dropout_drops_that_share(toy_cache: TokenCache, toy_experiment: Make) -> None:
    feed = Feed(build_scheme(toy_experiment({"training.class_dropout": 0.25}), toy_cache), toy_cache)
    labels = torch.cat([feed.next().batch.labels_B for _ in range(200)])
    assert float((labels == 3).float().mean()) == pytest.approx(0.25, abs=0.04)  # 3.7 standard deviations of 1600 draws


def test_unconditional_has_one_class(toy_cache: TokenCache, toy_experiment: Make) -> None:
    arm = build_scheme(toy_experiment({"data.class_conditional": False}), toy_cache)
    assert arm.model_settings.num_classes == 1
    assert set(Feed(arm, toy_cache).next().batch.labels_B.tolist()) == {0}


def test_flat_parameters_change_no_number_and_give_absent_gradients_zeros(
    toy_cache: TokenCache, toy_experiment: Make
) -> None:
    arm = build_scheme(toy_experiment({"window.scheme": "window"}), toy_cache)
    batch: Batch = held_out(arm, toy_cache, 4)
    plain, flat = arm.build_model(), arm.build_model()
    vectors = FlatParameters(flat)
    for model in (plain, flat):
        arm.loss(model, batch, 18).total.backward()
    assert plain.class_embedding.grad is None and torch.equal(
        flat.class_embedding.grad, torch.zeros_like(flat.class_embedding)
    )
    for a, b in zip(plain.parameters(), flat.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.grad is None or torch.equal(a.grad, b.grad)
    norm = torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]).norm()
    assert torch.allclose(vectors.gradient.norm(), norm)  # the gaps between parameters hold zeros


def test_one_step_is_clip_grad_norm_and_adamw_of_torch(toy_cache: TokenCache, toy_experiment: Make) -> None:
    """Against torch's own, parameter by parameter; float32 rounding: 1e-6."""
    experiment = toy_experiment({"window.scheme": "full", "training.gradient_clip": 0.05, "training.weight_decay": 0.1})
    arm = build_scheme(experiment, toy_cache)
    ours, theirs = OptimiserStep(arm, torch.device("cpu")), arm.build_model()
    adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    feed = Feed(arm, toy_cache)
    for _ in range(3):
        micro_batch = feed.next()
        ours.run([micro_batch], 1e-2)
        adamw.zero_grad()
        arm.loss(theirs, micro_batch.batch, 0).total.backward()
        assert torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05) > 0.05, "clipping must be at work here"
        adamw.step()
    for a, b in zip(ours.model.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("scheme", ["window", "fewer_frames"])
def test_a_feed_ahead_is_the_feed(scheme: str, toy_cache: TokenCache, toy_experiment: Make) -> None:
    """What it has made already is no part of its state, or a resumed run would leave out a micro-batch."""
    experiment = toy_experiment({"window.scheme": scheme, "training.class_dropout": 0.5})

    def fresh() -> Feed:
        return Feed(build_scheme(experiment, toy_cache), toy_cache)

    def told(micro_batch: MicroBatch) -> tuple[object, ...]:
        return micro_batch.batch.tokens_BT.tolist(), micro_batch.batch.labels_B.tolist(), micro_batch.span

    plain, ahead = fresh(), FeedAhead(fresh(), torch.device("cpu"))
    for _ in range(15):  # beyond the end of an epoch
        assert ahead.state_dict() == plain.state_dict()
        assert told(ahead.next()) == told(plain.next())
    again = FeedAhead(fresh(), torch.device("cpu"))
    again.next()
    again.load_state_dict(ahead.state_dict())
    assert [told(again.next()) for _ in range(3)] == [told(plain.next()) for _ in range(3)]


def test_what_a_feed_ahead_cannot_make_is_told_when_it_is_wanted(toy_cache: TokenCache, toy_experiment: Make) -> None:
    feed = Feed(build_scheme(toy_experiment(), toy_cache), toy_cache)
    ahead = FeedAhead(feed, torch.device("cpu"))
    made = []

    def failing() -> MicroBatch:
        made.append(1)
        if len(made) == 3:
            raise OSError("the disk is gone")
        return Feed.next(feed)

    feed.next = failing  # type: ignore[method-assign]
    assert ahead.next() and ahead.next()
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.next()
