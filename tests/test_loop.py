"""The loop: an interrupted run equals an uninterrupted one; the ledger, the rungs, what stops a run."""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import CheckpointError, DataError, RunFailedError
from reco_tune.model import VideoTransformer
from reco_tune.model.flops import prefix_flops, step_flops
from reco_tune.settings import Experiment
from reco_tune.training import build_scheme, fit, load_model, loop
from reco_tune.training.loop import RungMeasurement, rung_steps
from reco_tune.training.step import learning_rate_at

Make = Callable[..., Experiment]
SCHEMES = ("full", "window", "masked_full", "fewer_frames", "fewer_frames_tokens")
TIMES = {"training_seconds", "tokens_per_second", "data_wait_share"}


class Crash(Exception):
    """Stands for the death of a process: raised out of `report`."""


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in TIMES}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("crash_rung", [0, 1, 2])
def test_resumed_equals_uninterrupted(
    scheme: str, crash_rung: int, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    experiment = toy_experiment(
        {
            "window.scheme": scheme,
            "training.micro_batches": 2,
            "training.class_dropout": 0.3,
            "objective.continuity_weight": 0.1,
        }
    )
    whole = fit(experiment, toy_cache, tmp_path / "whole")
    rungs = []

    def crash(step: int, metrics: dict[str, float]) -> bool:
        rungs.append(step)
        if len(rungs) == crash_rung + 1:
            raise Crash
        return False

    with pytest.raises(Crash):
        fit(experiment, toy_cache, tmp_path / "crashed", crash)
    resumed = fit(experiment, toy_cache, tmp_path / "crashed", crash)

    assert rungs == [
        *[4, 8, 12][: crash_rung + 1],
        *[4, 8, 12][crash_rung:],
    ], "the rung of the crash is told again, no other"
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    )
    assert without_times(whole.metrics) == without_times(resumed.metrics)
    histories = [pq.read_table(tmp_path / run / "history.parquet").to_pydict() for run in ("whole", "crashed")]
    assert histories[0] == histories[1]
    assert histories[0]["step"] == list(range(1, 13))


def test_crash_between_rungs_goes_back_to_the_last_rung(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    experiment = toy_experiment()
    whole = fit(experiment, toy_cache, tmp_path / "whole")
    looks = []

    def crash(done: int, total: int, what: str) -> None:
        looks.append(done)
        if len(looks) == 2:
            raise Crash  # steps 5..8 are done, their rung is not

    with pytest.raises(Crash):
        fit(experiment, toy_cache, tmp_path / "crashed", progress=crash)
    resumed = fit(experiment, toy_cache, tmp_path / "crashed")
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    )
    assert without_times(whole.metrics) == without_times(resumed.metrics)


@pytest.mark.parametrize(("how", "scheme"), [("asked to leave", "window"), *(("killed", scheme) for scheme in SCHEMES)])
def test_resumed_between_rungs_equals_uninterrupted(
    how: str, scheme: str, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rungs may last an hour, and a machine that is taken away gives two minutes of notice or none."""
    settings = {"window.scheme": scheme, "training.micro_batches": 2, "training.class_dropout": 0.3}
    whole = fit(toy_experiment(settings), toy_cache, tmp_path / "whole")
    monkeypatch.setattr(loop, "STEPS_BETWEEN_LOOKS", 1)
    reported: list[int] = []
    saved: list[int] = []

    def report(step: int, metrics: dict[str, float]) -> bool:
        return bool(reported.append(step))

    def crash(done: int, total: int, what: str) -> None:
        if done == 7:
            raise Crash

    often = toy_experiment(settings | {"training.checkpoint_minutes": 1e-9})
    if how == "killed":
        with pytest.raises(Crash):
            fit(often, toy_cache, tmp_path / "moved", report, progress=crash, saved=saved.append)
        assert saved == [1, 2, 3, 5, 6], "rungs end at 4 and 8"
    else:
        looks = iter(range(1, 100))
        left = fit(
            toy_experiment(settings),
            toy_cache,
            tmp_path / "moved",
            report,
            leave=lambda: next(looks) == 6,
            saved=saved.append,
        )
        assert left.stopped and left.steps == 6 and saved == [6]
    done: list[int] = []
    resumed = fit(often, toy_cache, tmp_path / "moved", report, progress=lambda step, total, what: done.append(step))
    assert done[0] == 7 and reported == [4, 8, 12], "no rung is told twice, none is lost"
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    )
    assert without_times(whole.metrics) == without_times(resumed.metrics)
    histories = [pq.read_table(tmp_path / run / "history.parquet").to_pydict() for run in ("whole", "moved")]
    assert histories[0] == histories[1]


def test_training_learns_and_the_saved_model_is_the_trained_one(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    reports: list[dict[str, float]] = []
    result = fit(
        toy_experiment({"window.scheme": "window", "training.steps": 150, "training.learning_rate": 1e-2}),
        toy_cache,
        tmp_path,
        lambda step, metrics: bool(reports.append(metrics)),
    )
    assert reports[-1]["val_cross_entropy"] < reports[0]["val_cross_entropy"] < math.log(16) - 0.5, (
        "uniform guesses cost ln V"
    )
    loaded = load_model(tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(result.model.state_dict().values(), loaded.model.state_dict().values(), strict=True)
    )
    assert loaded.experiment.window.scheme == "window"
    tokens, labels = (
        torch.from_numpy(toy_cache.tokens("test")[:4].copy()),
        torch.from_numpy(toy_cache.labels("test")[:4]),
    )
    assert torch.equal(loaded.model(tokens, labels), result.model(tokens, labels))


def test_two_micro_batches_are_one_batch(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path) -> None:
    """With one start, accumulating gradients must change nothing but rounding (float32: 1e-5)."""
    ends = [
        fit(
            toy_experiment({"window.scheme": "full", "training.micro_batches": parts}), toy_cache, tmp_path / str(parts)
        )
        for parts in (1, 2)
    ]
    for a, b in zip(weights(ends[0].model).values(), weights(ends[1].model).values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_validation_is_the_mean_over_held_out_tokens(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    result = fit(toy_experiment({"window.scheme": "window", "evaluation.validation_clips": 13}), toy_cache, tmp_path)
    tokens, labels = (
        torch.from_numpy(toy_cache.tokens("test")[:13].copy()),
        torch.from_numpy(toy_cache.labels("test")[:13]),
    )
    with torch.no_grad():
        chosen = result.model(tokens, labels).log_softmax(-1).gather(-1, tokens.long()[..., None])
    assert result.metrics["val_cross_entropy"] == pytest.approx(-float(chosen.mean()), rel=1e-6)


def test_ledger_counts_by_hand(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path) -> None:
    experiment = toy_experiment({"window.scheme": "window", "training.micro_batches": 2, "training.batch_size": 8})
    arm = build_scheme(experiment, toy_cache)
    starts = [arm.draw().start for _ in range(24)]
    metrics = fit(experiment, toy_cache, tmp_path).metrics
    assert len(set(starts)) > 1
    assert metrics["tokens_seen"] == 4 * sum(start + 18 for start in starts)
    assert metrics["loss_tokens"] == 4 * 24 * 18
    assert metrics["training_flops"] == 4 * sum(step_flops(arm.model_settings, start, 18) for start in starts)
    # the prefix is forward alone; of the window's three parts two are backward
    prefixes = 4 * sum(prefix_flops(arm.model_settings, start) for start in starts)
    assert metrics["backward_flops"] == (metrics["training_flops"] - prefixes) * 2 / 3
    assert metrics["forward_flops"] + metrics["backward_flops"] == metrics["training_flops"]
    assert metrics["steps"] == 12
    assert 0 < metrics["data_wait_share"] < 1
    assert metrics["training_seconds"] > 0


def test_a_window_needs_less_memory_than_the_full_graph(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    peak = {
        scheme: (
            fit(toy_experiment({"window.scheme": scheme}), toy_cache, tmp_path / scheme).metrics["peak_memory_bytes"]
        )
        for scheme in ("full", "window", "masked_full")
    }
    assert peak["window"] < 0.7 * peak["full"]
    assert peak["masked_full"] > 0.9 * peak["full"], "a mask on the loss saves no memory"


@pytest.mark.parametrize("scheme", ["full", "window", "fewer_frames"])
def test_the_peak_of_training_is_that_of_its_steps(
    scheme: str, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation once counted as training on a GPU, for the arms that validate alone: arms did not compare."""
    allocator = Allocator()
    monkeypatch.setattr(loop, "peak_bytes", lambda device: allocator.peak)
    monkeypatch.setattr(loop, "reset_peak_bytes", allocator.reset)
    monkeypatch.setattr(VideoTransformer, "hidden", allocator.watching(VideoTransformer.hidden))

    def measure(step: int, model: VideoTransformer) -> RungMeasurement:
        allocator.use(10**12)
        return RungMeasurement()

    found = fit(toy_experiment({"window.scheme": scheme}), toy_cache, tmp_path, measure=measure)
    assert found.metrics["peak_memory_bytes"] == 10**9
    assert all(parameter.grad is None for parameter in found.model.parameters()), "evaluation has no use for gradients"


class Allocator:
    """A count like a GPU's: a step's forward pass takes 1 GB, one without gradient a thousand times that."""

    def __init__(self) -> None:
        self.peak = 0

    def reset(self, device: torch.device) -> None:
        self.peak = 0

    def use(self, amount: int) -> None:
        self.peak = max(self.peak, amount)

    def watching(self, hidden: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.use(10**9 if torch.is_grad_enabled() else 10**12)
            return hidden(*args, **kwargs)

        return watched


def test_a_run_leaves_no_tensors_behind(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path) -> None:
    """A worker serves hundreds of runs. Measuring what a graph keeps once kept the graph itself, 24 MB of it a run."""

    def alive() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    fit(toy_experiment(), toy_cache, tmp_path / "first")
    before = alive()
    fit(toy_experiment(), toy_cache, tmp_path / "second")
    assert alive() <= before


def test_report_stops_a_run_and_leaves_it_resumable(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    whole = fit(toy_experiment(), toy_cache, tmp_path / "whole")
    stopped = fit(toy_experiment(), toy_cache, tmp_path / "run", lambda step, metrics: step == 8)
    assert (stopped.steps, stopped.stopped) == (8, True)
    assert not (tmp_path / "run" / "model").exists()
    resumed = fit(toy_experiment(), toy_cache, tmp_path / "run")
    assert (resumed.steps, resumed.stopped) == (12, False)
    assert without_times(resumed.metrics) == without_times(whole.metrics)


def test_everything_is_on_disk_when_report_is_called(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    def look(step: int, metrics: dict[str, float]) -> bool:
        assert pq.read_table(tmp_path / "history.parquet")["step"].to_pylist() == list(range(1, step + 1))
        assert [folder.name for folder in (tmp_path / "checkpoint").iterdir()] == [f"step-{step:08d}"]
        return False

    fit(toy_experiment(), toy_cache, tmp_path, look)


@pytest.mark.parametrize("scheme", ["fewer_frames", "fewer_frames_tokens"])
def test_pieces_have_no_full_sequence_validation(
    scheme: str, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    metrics = fit(toy_experiment({"window.scheme": scheme}), toy_cache, tmp_path).metrics
    assert "val_cross_entropy" not in metrics and "train_cross_entropy" in metrics


def test_a_loss_that_blows_up_is_told_with_its_step_and_way_out(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    experiment = toy_experiment({"training.learning_rate": 1e30, "window.scheme": "full"})
    with pytest.raises(RunFailedError, match=r"full run was (nan|inf).* at step \d+; lower training.learning_rate"):
        fit(experiment, toy_cache, tmp_path)


def test_checkpoint_of_other_settings_is_refused(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path) -> None:
    fit(toy_experiment(), toy_cache, tmp_path)
    with pytest.raises(CheckpointError, match=r"training\.learning_rate = 0\.003, but now it is 0.1"):
        fit(toy_experiment({"training.learning_rate": 0.1}), toy_cache, tmp_path)


def test_cache_of_another_grid_is_refused(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has clips of 5x3x3 tokens, but .* give 7x3x3"):
        fit(toy_experiment({"data.clip_frames": 13}), toy_cache, tmp_path)


@pytest.mark.parametrize(
    ("steps", "rungs", "expected"),
    [
        pytest.param(10, 5, [2, 4, 6, 8, 10], id="even"),
        pytest.param(7, 3, [3, 5, 7], id="ceil"),
        pytest.param(2, 5, [1, 2], id="fewer-steps-than-rungs"),
    ],
)
def test_rung_steps(steps: int, rungs: int, expected: list[int]) -> None:
    assert rung_steps(steps, rungs) == expected


def test_schedules(toy_experiment: Make) -> None:
    cosine = toy_experiment({"training.warmup_steps": 2, "training.learning_rate": 1.0}).training
    assert [learning_rate_at(step, cosine) for step in (0, 1, 2, 7)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert learning_rate_at(12, cosine) == pytest.approx(0)
    shared = toy_experiment({"training.warmup_fraction": 2 / 12, "training.learning_rate": 1.0}).training
    assert [learning_rate_at(step, shared) for step in range(12)] == [
        learning_rate_at(step, cosine) for step in range(12)
    ]
    constant = toy_experiment({"training.schedule": "constant", "training.learning_rate": 1.0}).training
    assert {learning_rate_at(step, constant) for step in range(12)} == {1.0}


def test_bfloat16_trains_close_to_float32(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path) -> None:
    ends = [
        fit(toy_experiment({"training.precision": name, "training.steps": 30}), toy_cache, tmp_path / name).metrics[
            "train_cross_entropy"
        ]
        for name in ("float32", "bfloat16")
    ]
    assert ends[0] != ends[1] and ends[0] == pytest.approx(ends[1], abs=0.05)  # bfloat16 has 8 bits of mantissa


def test_a_run_imports_neither_the_compiler_nor_pandas(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    """torch.optim.AdamW brings the first, pyarrow's conveniences the second: four seconds of every worker
    that starts."""
    code = """
import json, sys
from pathlib import Path
from reco_tune.data.token_cache import TokenCache
from reco_tune.settings import make_experiment
from reco_tune.training import fit
for _ in range(2):  # the second call resumes, and so reads what the first wrote
    fit(make_experiment(json.loads(sys.argv[1]), {}, where=""), TokenCache.open(Path(sys.argv[2])), Path(sys.argv[3]))
print([name for name in ("torch._dynamo", "pandas", "ray", "mlflow", "optuna", "decord") if name in sys.modules])
"""
    arguments = [json.dumps(toy_experiment().model_dump(mode="json")), str(toy_cache.path), str(tmp_path)]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert ended.stdout.strip() == "[]", ended.stderr[-2000:]
