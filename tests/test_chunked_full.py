"""The full sequence's gradient, a chunk at a time: the same numbers, in the memory of a window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reco_tune.cost import calibrate, memory_by_phase, scheme_limit
from reco_tune.cost.memory import peak_bytes
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import SettingsError
from reco_tune.model import Decoder
from reco_tune.model.flops import prefix_flops, step_flops
from reco_tune.settings import Experiment
from reco_tune.training import build_scheme, fit
from reco_tune.training.feed import Feed
from reco_tune.training.step import OptimiserStep

Make = Callable[..., Experiment]
CHUNKED = {"window.scheme": "chunked_full", "window.length_tokens": 18}
EXACT = 1e-12
"""Relative; float64, sums in another order."""


def gradients(model: Decoder, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("chunk", [1, 7, 18, 44, 45])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"objective.norm_weight": 0.3, "training.loss_chunk_tokens": 10},
        {"objective.norm_weight": 0.3, "objective.continuity_state": "final_norm"},
    ],
    ids=["plain", "norm and logits in parts", "final norm"],
)
def test_chunks_add_up_to_the_full_gradient(
    chunk: int, own: dict[str, object], toy_cache: TokenCache, toy_experiment: Make
) -> None:
    full = build_scheme(toy_experiment({**own, "window.scheme": "full"}), toy_cache)
    arm = build_scheme(
        toy_experiment(
            {**own, "window.scheme": "chunked_full", "window.length_tokens": chunk, "window.stride_tokens": 1}
        ),
        toy_cache,
    )
    model, batch = full.build_model().double(), Feed(full, toy_cache).next().batch
    expected, found = (scheme.loss(model, batch, 0) for scheme in (full, arm))
    for name in ("total", "cross_entropy", "norm"):
        assert getattr(found, name).item() == pytest.approx(getattr(expected, name).item(), rel=EXACT)
    for ours, reference in zip(gradients(model, 3 * found.total), gradients(model, 3 * expected.total), strict=True):
        assert (ours - reference).norm() <= EXACT * reference.norm()


def test_under_bfloat16_chunks_stay_close_to_the_full_gradient(toy_cache: TokenCache, toy_experiment: Make) -> None:
    """bfloat16 has 8 bits of mantissa: gradients agree to a few percent of their norm."""
    arm = build_scheme(toy_experiment(CHUNKED), toy_cache)
    model, batch = arm.build_model(), Feed(arm, toy_cache).next().batch
    exact = gradients(model, arm.loss(model, batch, 0).total)
    with torch.autocast("cpu", torch.bfloat16):
        loss = arm.loss(model, batch, 0).total
    for one, other in zip(gradients(model, loss), exact, strict=True):
        assert (one - other).norm() <= 0.05 * other.norm() + 1e-6


def test_a_run_in_chunks_is_the_baselines_run_and_resumes(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    """float32, twelve steps of AdamW: rounding grows to 1e-4. Interrupted and continued it is the same to the bit."""
    full = fit(toy_experiment({"window.scheme": "full"}), toy_cache, tmp_path / "full")
    whole = fit(toy_experiment(CHUNKED), toy_cache, tmp_path / "whole")
    fit(toy_experiment(CHUNKED), toy_cache, tmp_path / "parts", lambda step, metrics: step == 4)
    resumed = fit(toy_experiment(CHUNKED), toy_cache, tmp_path / "parts")
    for one, other, again in zip(*(run.model.parameters() for run in (full, whole, resumed)), strict=True):
        assert torch.allclose(one, other, atol=1e-4) and torch.equal(other, again)
    assert whole.metrics["val_cross_entropy"] == pytest.approx(full.metrics["val_cross_entropy"], abs=1e-4)
    assert whole.metrics["loss_tokens"] == full.metrics["loss_tokens"] == 12 * 8 * 45
    assert whole.metrics["backward_flops"] == full.metrics["backward_flops"]


def test_it_costs_the_baseline_and_a_first_pass(toy_cache: TokenCache, toy_experiment: Make) -> None:
    full, arm = (build_scheme(toy_experiment(own), toy_cache) for own in ({"window.scheme": "full"}, CHUNKED))
    settings = arm.model_settings
    assert arm.flops(0) == step_flops(settings, 0, 45) + prefix_flops(settings, 36)  # chunks at 0, 18 and 36
    assert (arm.tokens_seen(0), arm.tokens_predicted(0)) == (45, 45)
    assert 0.75 < scheme_limit(arm, full) < 0.9, "a step in chunks is slower: one forward of four passes is twice"
    assert arm.attention_flops(0) - full.attention_flops(0) == settings.costs.prefix_pair * 36 * 37 // 2


WIDER = {"model.width": 64, "model.depth": 3, "model.heads": 4, "training.batch_size": 64}


@pytest.mark.parametrize("gpus", [0, 1], ids=["cpu", "gpu"])
def test_it_takes_the_memory_of_a_window(gpus: int, toy_cache: TokenCache, toy_experiment: Make) -> None:
    def most(**own: object) -> int:
        experiment = toy_experiment({**WIDER, "resources.gpus_per_worker": gpus, **own})
        scheme = build_scheme(experiment, toy_cache)
        return max(peak_bytes(experiment, span).most for span in scheme.distribution())

    whole, window, chunks = most(**{"window.scheme": "full"}), most(), most(**CHUNKED)
    assert chunks < 0.8 * whole
    held = 64 * 36 * 2 * 3 * 64 * 4 * 2 + 4 * 10**6  # keys and values of 36 tokens, their gradients; the weights'
    assert chunks < window + held


def test_the_ledger_sees_what_the_largest_chunk_keeps(toy_cache: TokenCache, toy_experiment: Make) -> None:
    """Against every allocation of a step on tensors without storage; short-lived buffers are not kept."""
    experiment = toy_experiment({**WIDER, **CHUNKED})
    scheme = build_scheme(experiment, toy_cache)
    seen = OptimiserStep(scheme, torch.device("cpu")).activation_bytes(Feed(scheme, toy_cache).next())
    assert 0.7 < seen / peak_bytes(experiment, scheme.draw()).most < 1
    assert memory_by_phase(experiment, experiment).training > seen


def test_its_speed_is_measured_like_any_other(toy_cache: TokenCache, toy_experiment: Make) -> None:
    own = {"model.width": 64, "training.batch_size": 16}
    found = calibrate(toy_experiment(own | CHUNKED), toy_experiment(own | {"window.scheme": "full"}), toy_cache, 0.5)
    assert found["speedup"] < 1 and found["peak_memory_ratio"] < 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"objective.continuity_weight": 0.1},
            r"objective.continuity_weight \(0.1\).*leave it out, or use another scheme",
        ),
        ({"training.compile": True}, r"training.compile \(True\)"),
        ({"training.activation_checkpointing": True}, r"training.activation_checkpointing \(True\)"),
        ({"resources.shard_state": True}, r"resources.shard_state \(True\)"),
        ({"window.schedule": "short_to_long"}, r"window.schedule \(short_to_long\)"),
        ({"window.prefix_tokens": 9}, r"window.prefix_tokens \(9\) needs a prefix"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_in_chunks_is_refused(overrides: dict[str, object], words: str, toy_experiment: Make) -> None:
    with pytest.raises(SettingsError, match=words):
        toy_experiment({**CHUNKED, **overrides})
