"""Speed-ups: the formulas by hand, and a real measurement of a small model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from reco_tune import quantities as q
from reco_tune.cost import calibrate, calibration, scheme_limit, speedup_limit, step_flops
from reco_tune.cost.timing import TimedStep, bootstrap_interval, device_clock, in_rounds, speedup_of, start_strata
from reco_tune.data.token_cache import TokenCache
from reco_tune.settings import Experiment
from reco_tune.training import build_scheme
from reco_tune.training.step import OptimiserStep
from reco_tune.windows import WindowSampler

Make = Callable[..., Experiment]
BIG_ENOUGH = {"model.width": 64, "training.batch_size": 16}
"""So that arithmetic, not Python, takes the time."""


def test_the_baseline_is_one_without_measuring(toy_cache: TokenCache, toy_experiment: Make) -> None:
    full = toy_experiment({"window.scheme": "full"})
    result = calibrate(toy_experiment({"window.scheme": "full", "training.learning_rate": 1}), full, toy_cache, 1000)
    assert result.pop(q.CALIBRATION_SECONDS.name) == 0
    for name in (q.CALIBRATION_LOAD.name, q.CALIBRATION_CLOCK.name):  # of the machine, whatever it does
        result.pop(name, None)
    assert set(result.values()) == {1.0}


def test_speedup_by_hand() -> None:
    full = np.array(
        [[3.0, 3.0], [3.0, 3.0], [100.0, 100.0], [30.0, 30.0], [3.0, 3.0]]
    )  # a disturbed round, one that is slow all over
    arm = np.array(
        [[1.0, 50.0], [1.0, 2.0], [1.0, 2.0], [10.0, 20.0], [40.0, 2.0]]
    )  # and a disturbed step of each kind
    assert speedup_of(full, arm, np.array([0.5, 0.5])) == pytest.approx(3 / (0.5 * 1 + 0.5 * 2))


def test_bootstrap_interval_is_seeded_and_holds_the_truth() -> None:
    noise = np.random.default_rng(1)
    full, arm = noise.normal(2.0, 0.1, (60, 2)), noise.normal(1.0, 0.05, (60, 2))
    weights = np.array([0.25, 0.75])
    low, high = bootstrap_interval(full, arm, weights, seed=0)
    assert (low, high) == bootstrap_interval(full, arm, weights, seed=0)
    assert low < 2.0 < high and high - low < 0.15
    still = np.ones((5, 2))
    assert bootstrap_interval(2 * still, still, weights, seed=0) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("stride", "first", "expected"),
    [
        pytest.param(9, 0.5, {0: 0.5, 9: 0.5 / 3, 18: 0.5 / 3, 27: 0.5 / 3}, id="few-starts-all-measured"),
        pytest.param(9, 0.0, {9: 1 / 3, 18: 1 / 3, 27: 1 / 3}, id="a-start-never-drawn-is-not-measured"),
        pytest.param(1, 0.46, {0: 0.46, 4: 0.14, 11: 0.14, 18: 0.14, 25: 0.12}, id="many-starts-in-strata"),
    ],
)
def test_start_strata(stride: int, first: float, expected: dict[int, float]) -> None:
    assert start_strata(WindowSampler(45, 18, stride, first, seed=0).distribution()) == pytest.approx(expected)


@pytest.mark.parametrize("first", [0.0, 0.5, "uniform"])
def test_strata_keep_the_mean_start(first: float, toy_experiment: Make) -> None:
    distribution = WindowSampler(1280, 512, 1, first, seed=0).distribution()  # type: ignore[arg-type]
    strata = start_strata(distribution)
    assert len(strata) == 5 and sum(strata.values()) == pytest.approx(1)
    assert sum(s * p for s, p in strata.items()) == pytest.approx(sum(s * p for s, p in distribution.items()), abs=1)


def test_rounds_take_turns_until_the_time_is_up() -> None:
    ticks, order = iter(range(1000)), []
    times_RJ = in_rounds(
        [lambda: order.append("a"), lambda: order.append("b")], lambda: next(ticks), seconds=0, fewest=4
    )
    assert times_RJ.tolist() == [[1, 1]] * 4
    assert order == ["a", "b"] * 4
    order.clear()
    assert (
        in_rounds(
            [lambda: order.append("a"), lambda: next(ticks)], lambda: next(ticks), 0, fewest=20, shuffled=True
        ).tolist()
        == [[1, 2]] * 20
    )


def test_on_a_gpu_a_round_is_queued_and_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is waited for around each step has gaps that training has not."""
    queue: list[object] = []

    class Event:
        """Tells its place in the queue as its time."""

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            queue.append(stream)
            self.place = len(queue)

        def synchronize(self) -> None:
            queue.append("waited")

        def elapsed_time(self, later: Event) -> float:
            return 1000.0 * (later.place - self.place)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "event")
    jobs = [lambda: queue.append("a"), lambda: queue.append("b")]
    times_RJ = in_rounds(jobs, device_clock(torch.device("cuda")), seconds=0, fewest=2)
    assert queue == ["event", "a", "event", "event", "b", "event", "waited", "waited"] * 2
    assert times_RJ.tolist() == [[2.0, 2.0]] * 2


def test_limits(toy_cache: TokenCache, toy_experiment: Make) -> None:
    arms = {
        scheme: build_scheme(toy_experiment({"window.scheme": scheme}), toy_cache)
        for scheme in ("full", "window", "masked_full", "fewer_frames")
    }
    whole, full = arms["full"].model_settings, arms["full"]
    assert scheme_limit(full, full) == scheme_limit(arms["masked_full"], full) == 1
    assert scheme_limit(arms["window"], full) == pytest.approx(
        speedup_limit(whole, WindowSampler(45, 18, 9, 0.5, seed=0)), rel=1e-12
    )
    assert scheme_limit(arms["fewer_frames"], full) == step_flops(whole, 0, 45) / step_flops(whole, 0, 18)


def test_a_real_calibration(toy_cache: TokenCache, toy_experiment: Make) -> None:
    experiment, full = (toy_experiment({"window.scheme": scheme, **BIG_ENOUGH}) for scheme in ("window", "full"))
    first, second = (calibrate(experiment, full, toy_cache, seconds=1.5) for _ in range(2))
    assert first["speedup_low"] <= first["speedup"] <= first["speedup_high"]
    assert 1.3 < first["speedup"] < 1.2 * first["speedup_limit"]
    assert first["limit_fraction"] == first["speedup"] / first["speedup_limit"]
    assert 0.3 < first["peak_memory_ratio"] < 0.8
    assert first["peak_memory_ratio"] == second["peak_memory_ratio"], "bytes are counted, not sampled"
    assert 1.0 < first["calibration_seconds"] < 15
    assert first["calibration_load"] >= 0
    clock = first.pop("calibration_clock", None)  # a CPU of Arm does not tell
    told = "cpu MHz" in Path("/proc/cpuinfo").read_text()
    assert (clock is not None and 100 < clock < 10_000) if told else clock is None
    assert set(first) == {
        *(
            "speedup",
            "speedup_low",
            "speedup_high",
            "speedup_limit",
            "limit_fraction",
            "peak_memory_ratio",
            "calibration_seconds",
            "calibration_load",
        )
    }


def test_a_mask_on_the_loss_buys_nothing(toy_cache: TokenCache, toy_experiment: Make) -> None:
    masked, full = (toy_experiment({"window.scheme": scheme, **BIG_ENOUGH}) for scheme in ("masked_full", "full"))
    result = calibrate(masked, full, toy_cache, seconds=1.5)
    assert result["speedup_limit"] == 1
    assert result["speedup"] < 1.2 and result["peak_memory_ratio"] > 0.9


@pytest.mark.parametrize(
    ("own", "limit", "fastest_above", "memory"),
    [
        pytest.param({"model.depth": 2}, None, 1.5, (0.2, 0.9), id="a-smaller-model"),
        pytest.param({"training.batch_size": 8}, 2.0, 1.3, (0.3, 0.9), id="half-the-batch"),
        pytest.param({"training.activation_checkpointing": True}, 1.0, 0.4, (0.2, 0.9), id="blocks-computed-again"),
    ],
)
def test_speed_and_memory_are_relative_to_the_studys_baseline(
    own: dict[str, object],
    limit: float | None,
    fastest_above: float,
    memory: tuple[float, float],
    toy_cache: TokenCache,
    toy_experiment: Make,
) -> None:
    """An arm with a model or a batch of its own was measured against a baseline with the same: it stood at 1."""
    full = toy_experiment({"window.scheme": "full", "model.depth": 4, **BIG_ENOUGH})
    arm = toy_experiment({"window.scheme": "full", "model.depth": 4, **BIG_ENOUGH, **own})
    result = calibrate(arm, full, toy_cache, seconds=1.0)
    arms = build_scheme(full, toy_cache), build_scheme(arm, toy_cache)
    assert result["speedup_limit"] == pytest.approx(limit or arms[0].expected_flops() / arms[1].expected_flops())
    assert fastest_above < result["speedup"] and (result["speedup"] < 1.1) == (limit == 1)
    assert memory[0] < result["peak_memory_ratio"] < memory[1]


def test_measuring_leaves_the_weights_alone(toy_cache: TokenCache, toy_experiment: Make) -> None:
    """Or a long calibration would train on one batch until its numbers overflow."""
    arm = build_scheme(toy_experiment({"window.scheme": "window", "training.micro_batches": 2}), toy_cache)
    timed = TimedStep(arm, toy_cache, torch.device("cpu"))
    timed.run(0)
    timed.run(27)
    for measured, fresh in zip(timed.step.model.parameters(), arm.build_model().parameters(), strict=True):
        assert torch.equal(measured, fresh)


def test_what_comes_once_a_step_counts_once_a_step(
    toy_cache: TokenCache, toy_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW and clipping are shared by a step's micro-batches; two of these are measured, however many there are."""
    own = {"training.micro_batches": 4, "window.first_frame_probability": 1.0}
    full, arm = (toy_experiment({"window.scheme": scheme, **own}) for scheme in ("full", "window"))
    called = []
    for name in ("backward", "update"):
        before = getattr(OptimiserStep, name)
        monkeypatch.setattr(
            OptimiserStep, name, lambda *given, name=name, before=before: (called.append(name), before(*given))[1]
        )
    timed = TimedStep(build_scheme(arm, toy_cache), toy_cache, torch.device("cpu"))
    for count, piece in timed.pieces(0):
        for _ in range(count):
            piece()
    in_pieces, called[:] = list(called), []
    timed.run(0)
    assert called == in_pieces == ["backward"] * 4 + ["update"]

    seconds = [2.0, 2.5, 1.0, 1.5]  # the baseline's micro-batch and its last one, the arm's
    monkeypatch.setattr(calibration, "in_rounds", lambda jobs, *given, **named: np.array([seconds] * 3))
    measured = calibrate(arm, full, toy_cache, seconds=0.0)
    assert measured["speedup"] == pytest.approx((3 * 2.0 + 2.5) / (3 * 1.0 + 1.5))
