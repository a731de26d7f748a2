"""Memory of each phase, counted without allocating it: against what real steps keep, and what real samplers take."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fake_device import fake_device

from reco_tune.bundled import bundled
from reco_tune.cost import clips_sampled_at_once, memory_by_phase, plan, refuse_what_cannot_fit
from reco_tune.cost.memory import CONTEXT_BYTES, Allocations, FusedAttention, largest_spans, peak_bytes
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import SettingsError
from reco_tune.evaluation.error_growth import error_growth
from reco_tune.evaluation.loss_distribution import loss_by_block
from reco_tune.evaluation.smoothness import smoothness
from reco_tune.generation import clips_that_fit
from reco_tune.model import VideoTransformer
from reco_tune.model.flops import parameter_count
from reco_tune.model.sampling import Drawing, Noise, StaticSampler, static_bytes_per_clip
from reco_tune.model.teacher_forcing import analysis_bytes
from reco_tune.settings import Experiment, load_space
from reco_tune.training import build_scheme, plan_scheme
from reco_tune.training.feed import Feed, MicroBatch
from reco_tune.training.step import OptimiserStep

Make = Callable[..., Experiment]
OPTIONS: dict[str, dict[str, object]] = {
    "float32": {},
    "bfloat16": {"training.precision": "bfloat16", "objective.continuity_weight": 0.1},
    "saving": {"training.activation_checkpointing": True, "training.loss_chunk_tokens": 10},
    "normed": {"objective.norm_weight": 0.1, "objective.continuity_state": "final_norm"},
    "cut": {"window.prefix_tokens": 5},
}
WIDER = {"model.width": 64, "model.depth": 3, "model.heads": 4}


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        *(("window", options) for options in OPTIONS),
        *(("full", options) for options in OPTIONS if options != "cut"),
        *((scheme, "float32") for scheme in ("masked_full", "fewer_frames", "fewer_frames_tokens")),
    ],
)
def test_what_a_step_keeps_is_what_it_keeps(
    scheme: str, options: str, toy_cache: TokenCache, toy_experiment: Make
) -> None:
    """`saved_tensors_hooks` sees a real step; only the loss itself, 4 or 8 bytes, is not among what is saved."""
    experiment = toy_experiment({"window.scheme": scheme, **WIDER, **OPTIONS[options]})
    built = build_scheme(experiment, toy_cache)
    step, feed = OptimiserStep(built, torch.device("cpu")), Feed(built, toy_cache)
    for span in {min(built.distribution()), max(built.distribution())}:
        seen = step.activation_bytes(MicroBatch(feed.next().batch, span))
        assert abs(peak_bytes(experiment, span).kept - seen) <= 8


@pytest.mark.parametrize("options", ["float32", "bfloat16", "saving"])
@pytest.mark.parametrize("scheme", ["full", "window"])
def test_a_gpu_keeps_what_its_stand_in_keeps(
    scheme: str, options: str, toy_cache: TokenCache, toy_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`meta` tensors have no autocast; the fake device has torch's own casts, by CUDA's rules, but no attention."""
    own = {"resources.gpus_per_worker": 1, "window.first_frame_probability": 0.0, **WIDER, **OPTIONS[options]}
    experiment = toy_experiment({"window.scheme": scheme, **own})
    built = build_scheme(experiment, toy_cache)
    span, allocations = max(built.distribution()), Allocations()
    counted = peak_bytes(experiment, span).kept
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *heads, is_causal: FusedAttention.apply(*heads))
    with fake_device() as device, allocations:
        model, (batch, _) = built.build_model().to(device), Feed(built, toy_cache).next()
        moved = batch.moved(lambda tensor: tensor.to(device))
        before = allocations.now
        with torch.autocast(device.type, torch.bfloat16, enabled=options == "bfloat16"):
            total = built.loss(model, moved, span).total
        gc.collect()  # the fake device's own casts leave circles behind
        kept = allocations.now - before
        del total
    assert counted == pytest.approx(kept, rel=0.01)


@pytest.mark.parametrize("gpus", [0, 1], ids=["cpu", "gpu"])
@pytest.mark.parametrize("scheme", ["full", "window", "fewer_frames"])
def test_two_depths_tell_of_all(scheme: str, gpus: int, toy_experiment: Make) -> None:
    own = {"window.scheme": scheme, "resources.gpus_per_worker": gpus, "model.depth": 7}
    deep = toy_experiment({**WIDER, **own})
    counted = max(peak_bytes(deep, span).most for span in largest_spans(deep))
    assert memory_by_phase(deep, deep).training == pytest.approx(state_of(deep) + counted, rel=1e-3)


def state_of(experiment: Experiment) -> int:
    """Weights, gradients and moments."""
    return 16 * parameter_count(plan_scheme(experiment).model_settings)


def test_a_window_takes_less_than_the_whole_and_recomputing_less_than_keeping(toy_experiment: Make) -> None:
    def training(**changes: object) -> int:
        own = {key.replace("__", "."): value for key, value in changes.items()}
        experiment = toy_experiment({**WIDER, "training.batch_size": 64, **own})
        return memory_by_phase(experiment, experiment).training

    whole = training(window__scheme="full")
    assert training() < 0.75 * whole
    assert training(window__scheme="full", training__micro_batches=4) < 0.5 * whole
    assert training(window__scheme="full", training__activation_checkpointing=True) < 0.75 * whole
    assert training(window__scheme="masked_full") > 0.9 * whole


def test_a_calibration_holds_two_models(toy_experiment: Make) -> None:
    full, arm = toy_experiment({"window.scheme": "full"}), toy_experiment()
    found = memory_by_phase(arm, full)
    own = memory_by_phase(full, full)
    assert own.calibration == own.training
    assert found.calibration == own.training + state_of(arm) > found.training


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_a_static_sampler_takes_what_is_counted(guidance: float, bfloat16: bool) -> None:
    """A real one on the CPU, from its cache to the draw of a code."""
    model = VideoTransformer(512, 256, 3, 64, 3, 4, generator=torch.Generator().manual_seed(0))
    drawing, clips = Drawing(guidance=guidance, top_k=100, top_p=0.9), 12
    allocations = Allocations()
    with allocations, torch.no_grad():
        sampler = StaticSampler(model, drawing, clips, bfloat16)
        labels = torch.zeros(clips, dtype=torch.long)
        prompt = torch.zeros(clips, 250, dtype=torch.long)
        sampler(labels, Noise.of(None, clips), prompt)
    counted = clips * static_bytes_per_clip(model.settings, drawing, bfloat16)
    prompts = 64 * 4 * drawing.copies * clips * 251 * 16  # of 64 numbers a token; bounded by PREFILL_BYTES on its own
    assert 0.8 * counted < allocations.most < 1.05 * counted + prompts


@pytest.mark.parametrize("analysis", [loss_by_block, error_growth, smoothness], ids=lambda analysis: analysis.__name__)
def test_an_analysis_takes_no_more_than_is_counted(analysis: Callable[..., object]) -> None:
    model = VideoTransformer(512, 256, 3, 64, 3, 4, generator=torch.Generator().manual_seed(0))
    tokens, labels = torch.zeros(64, 256, dtype=torch.long), torch.zeros(64, dtype=torch.long)
    with Allocations() as allocations:
        analysis(model, tokens, labels, 64)
    assert 0.1 * analysis_bytes(model.settings) < allocations.most < analysis_bytes(model.settings)


SHIPPED = sorted(bundled("search_spaces").rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_fits_its_machine(path: Path) -> None:
    """Those that ask for GPUs an 80 GiB one, in every phase of every arm; once, the evaluation of 343M took 120 GiB."""
    planned = plan(load_space(path))
    for experiment in planned.kinds.values():
        taken = memory_by_phase(experiment, planned.baseline)
        assert min(taken.training, taken.generation) > 0
        if experiment.device_type == "cuda":
            assert taken.largest()[1] + CONTEXT_BYTES < 80 * 2**30
            large = experiment.model.width >= 4096  # whose keys and values take gibibytes a clip
            assert clips_sampled_at_once(experiment, 80 * 2**30) >= (4 if large else 64)
        else:
            assert taken.largest()[1] < 2**30
    refuse_what_cannot_fit(planned, 80 * 2**30, "node-1")


@pytest.mark.parametrize(
    ("overrides", "gibibytes", "said"),
    [
        (["training.micro_batches=1"], 80, r"for a training step.*gets 80\.0; raise training.micro_batches"),
        ([], 20, "for the two models of its calibration"),
        (["model.width=8192", "model.heads=64", "window.scheme=full"], 80, "a training step"),
    ],
    ids=["a batch at once", "a small card", "a large model"],
)
def test_what_cannot_fit_is_refused_with_the_way_out(overrides: list[str], gibibytes: float, said: str) -> None:
    planned = plan(load_space(bundled("search_spaces") / "experiments" / "ucf101_343M.yaml", overrides))
    with pytest.raises(SettingsError, match=f"arm `ucf101_343M` needs .* {said}"):
        refuse_what_cannot_fit(planned, gibibytes * 2**30, "node-1")


@pytest.mark.parametrize(("scheme", "share"), [("window", 0.85), ("fewer_frames_tokens", 0.85), ("fewer_frames", 0.5)])
def test_clips_that_fit_take_what_they_may(scheme: str, share: float) -> None:
    """Half where a tokenizer decodes and encodes between pieces: a plan counted on more than sampling took."""
    path = bundled("search_spaces") / "experiments" / "ucf101_110M.yaml"
    experiment = plan(load_space(path, [f"window.scheme={scheme}"])).shared
    settings, free = plan_scheme(experiment).model_settings, 100 * 2**30
    fit = clips_that_fit(settings, experiment, free)
    one = static_bytes_per_clip(settings, Drawing(guidance=1.5), True)
    assert fit * one < share * free < (fit + 5) * one + share * 2**31
    assert clips_that_fit(settings, experiment, 0) == 1


def test_a_state_that_would_fit_in_parts_is_told() -> None:
    """Of 7B parameters on 80 GiB; the number of workers divides the batch."""
    path = bundled("search_spaces") / "experiments" / "ucf101_343M.yaml"
    large = ["model.width=4096", "model.depth=32", "model.heads=32", "training.micro_batches=1"]
    large += ["training.activation_checkpointing=true", "training.loss_chunk_tokens=1024"]
    told = "raise training.micro_batches, set resources.shard_state to true with resources.workers at 5 or shrink"
    with pytest.raises(SettingsError, match=told):
        refuse_what_cannot_fit(plan(load_space(path, large)), 80 * 2**30, "node-1")
