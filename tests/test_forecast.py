"""Forecasts: counted by hand, and not far from what a run then takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_device import fake_device

from reco_tune.bundled import bundled
from reco_tune.cost import Forecast, Rates, RunForecast, forecast, measure_rates, plan, rates, seconds_per_clip
from reco_tune.cost.rates import GENERATION_RATE, PROBE_SECONDS, per_second, probe
from reco_tune.data.token_cache import TokenCache
from reco_tune.model.flops import forward_flops, parameter_count
from reco_tune.settings import Experiment, Space, load_space
from reco_tune.training import build_scheme, fit, plan_scheme

Make = Callable[..., Experiment]


def space(experiment: Experiment, **fields: object) -> Space:
    arms = {"full": {}, "reco": {}, "fewer_frames": {}}
    return Space.model_validate(
        {"question": "?", "experiment": experiment.model_dump(mode="json"), "arms": arms, **fields}
    )


def shared(toy_experiment: Make) -> Experiment:
    return toy_experiment({"window.length_tokens": 18, "window.stride_tokens": 9})


def test_runs_and_steps_by_hand(toy_experiment: Make) -> None:
    planned = plan(
        space(
            shared(toy_experiment),
            budgets=("equal_steps", "equal_compute"),
            seeds=(0, 1),
            trials=3,
            search={"objective.continuity_weight": {"float": [0, 1]}},
        )
    )
    cost = forecast(planned, Rates(1e9))
    names = [run.trial for run in cost.runs]
    assert names[:3] == ["full-s0", "reco-equal_steps-s0", "fewer_frames-equal_steps-s0"]
    assert names.count("full-s0") == 1, "the baseline runs once for both budgets"
    assert len(names) == len(set(names)) == 2 + 4 + 4 + 3 and names[-1] == "search-0002"
    steps = {run.trial: run.steps for run in cost.runs}
    assert steps["full-s0"] == steps["reco-equal_steps-s0"] == steps["search-0000"] == 12
    assert (
        steps["reco-equal_compute-s0"] > 1.8 * 12
        and steps["fewer_frames-equal_compute-s0"] > steps["reco-equal_compute-s0"]
    )


def test_equal_compute_costs_the_baseline(toy_experiment: Make) -> None:
    experiment = toy_experiment(
        {"window.length_tokens": 18, "window.stride_tokens": 9, "training.steps": 1000, "training.rungs": 1}
    )
    cost = forecast(plan(space(experiment, budgets=("equal_compute",))), Rates(1e9))
    full, *others = [run.training_flops for run in cost.runs]
    assert others == pytest.approx([full] * len(others), rel=2e-3)  # steps are whole, pieces are not validated


def test_clips_at_deciding_rungs_are_sampled_too(toy_experiment: Make) -> None:
    """Two of three rungs decide, with 256 clips each."""
    search = {"trials": 1, "search": {"objective.continuity_weight": {"float": [0, 1]}}}
    by_loss, by_clips = (
        forecast(plan(space(shared(toy_experiment), **search, pruning=pruning)), Rates(1e9))
        for pruning in (
            {"kind": "pareto_asha", "reduction_factor": 2},
            {"kind": "pareto_asha", "reduction_factor": 2, "metric": "kernel_distance"},
        )
    )
    whole = plan_scheme(toy_experiment({"window.scheme": "full"})).model_settings
    more = 2 * 256 * forward_flops(whole, 0, 45) / GENERATION_RATE / 1e9
    assert by_clips.runs[-1].device_seconds - by_loss.runs[-1].device_seconds == pytest.approx(more)
    assert by_clips.runs[:-1] == by_loss.runs[:-1], "fixed arms are not judged"


def test_flops_are_those_of_the_ledger(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path) -> None:
    cost = forecast(plan(space(shared(toy_experiment))), Rates(1e9))
    experiment = toy_experiment({"window.scheme": "full"})
    arm = build_scheme(experiment, toy_cache)
    validation = 3 * 16 * forward_flops(arm.model_settings, 0, 45)
    assert cost.runs[0].training_flops == fit(experiment, toy_cache, tmp_path).metrics["training_flops"] + validation


def test_disk_holds_the_run_at_its_fullest(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path) -> None:
    experiment = toy_experiment({"window.scheme": "full", "model.width": 64})
    used = []

    def measure(step: int, metrics: dict[str, float]) -> bool:
        used.append(sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()))
        return False

    fit(experiment, toy_cache, tmp_path, measure)
    assert max(used) < forecast(plan(space(experiment)), Rates(1e9)).runs[0].disk_bytes < 4 * max(used)


def test_parameter_count(toy_cache: TokenCache, toy_experiment: Make) -> None:
    arm = build_scheme(toy_experiment(), toy_cache)
    assert parameter_count(arm.model_settings) == sum(p.numel() for p in arm.build_model().parameters())


def test_wall_clock_is_no_shorter_than_the_longest_run() -> None:
    seconds = (30.0, 20.0, 10.0)
    cost = Forecast([RunForecast("a", "full", "both", 0, 1, 1.0, one, 1) for one in seconds], Rates(1.0))
    assert cost.device_seconds == cost.wall_seconds(1) == 60
    assert cost.wall_seconds(2) == cost.wall_seconds(1000) == 30
    assert cost.wall_seconds(1, workers=2) == 30


@pytest.mark.parametrize("overrides", [{}, {"model.preset": "770M"}], ids=["toy", "large"])
def test_the_rate_is_measured_in_a_moment(overrides: dict[str, object], toy_experiment: Make) -> None:
    """Also of a model of which one step would take minutes."""
    began = time.monotonic()
    found = measure_rates(toy_experiment(overrides))
    assert 1e8 < found.flops_per_second < 1e15 and found.bytes_per_second is None
    assert PROBE_SECONDS < time.monotonic() - began < 20


def test_a_rate_is_that_of_a_fifth_of_a_second_of_work() -> None:
    """A device of a millisecond a step, at first ten times slower: 20 tokens a step told of launches alone."""
    done, seconds = 0, [0.0]

    def work() -> None:
        nonlocal done
        done += 1
        seconds[0] += 0.01 if done < 5 else 0.001

    found = per_second(work, 1000, torch.device("cpu"), clock=lambda: seconds[0])
    assert found == pytest.approx(1e6) and done * 0.001 > PROBE_SECONDS


def test_the_probe_has_the_work_of_a_real_step() -> None:
    """On a GPU all its tokens, width and clips; on a CPU what a tenth of a second allows, at the same width."""
    experiment = plan(load_space(bundled("search_spaces") / "paper_ablation.yaml")).baseline
    whole = plan_scheme(experiment).model_settings
    shape, clips = probe(experiment, on_gpu=True)
    assert (shape.width, shape.num_tokens, shape.num_codes, clips) == (768, 5120, 8192, 6)
    shape, _ = probe(experiment, on_gpu=False)
    assert (shape.width, shape.heads, shape.num_codes) == (whole.width, whole.heads, whole.num_codes)
    assert shape.num_tokens < whole.num_tokens


def test_the_probe_runs_on_a_device(toy_experiment: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What sampling may take there is the part of it that a worker has."""
    half = {"resources.gpus_per_worker": 0.5, "resources.calibrate_on_shared_gpus": True}
    monkeypatch.setattr(rates, "total_bytes", lambda device: 80)
    with fake_device() as device:
        monkeypatch.setattr(rates, "prepare_device", lambda experiment: device)
        found = measure_rates(toy_experiment({"training.precision": "bfloat16", **half}))
    assert found.flops_per_second > 0 and found.bytes_per_second is not None and found.memory_bytes == 40


H200 = Rates(flops_per_second=4e14, bytes_per_second=4.8e12, memory_bytes=141e9)


def test_sampling_on_a_gpu_is_counted_in_bytes() -> None:
    """By hand: 12 layers' keys and values of 768 in bfloat16, on average half of 5,120 tokens, twice for guidance."""
    experiment = plan(load_space(bundled("search_spaces") / "experiments" / "ucf101_110M.yaml")).shared
    by_hand = 2 * (12 * 2 * 768 * 2) * (5120 * 5120 / 2) / 4.8e12
    assert seconds_per_clip(experiment, H200) == pytest.approx(by_hand, rel=0.05)
    assert 6.5 < 2048 * seconds_per_clip(experiment, H200) / 60 < 8
    unguided = experiment.model_copy(update={"sampling": experiment.sampling.model_copy(update={"guidance": 1.0})})
    assert seconds_per_clip(unguided, H200) == pytest.approx(seconds_per_clip(experiment, H200) / 2, rel=0.02)


def test_sampling_counts_every_piece(toy_experiment: Make) -> None:
    """Four pieces of 2 blocks make 5 blocks, two of 3, two of 4 of which one is cut."""
    for blocks, pieces in ((2, 4), (3, 2), (4, 2)):
        experiment = toy_experiment({"window.scheme": "fewer_frames_tokens", "window.length_blocks": blocks})
        one = forward_flops(plan_scheme(experiment).model_settings, 0, 9 * blocks)
        assert seconds_per_clip(experiment, Rates(1e9)) == pytest.approx(pieces * one / GENERATION_RATE / 1e9)
