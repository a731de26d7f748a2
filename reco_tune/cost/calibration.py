"""How much faster an arm's step is than the baseline's: measured in pairs in one process, and the limit that FLOPs set.

A run's own step time on a shared machine is noise; here both steps run in turn, through the objects that training
itself drives, so that whatever disturbs one disturbs the other. Knows arms and their baseline; refuses to know studies
and where the numbers go.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from reco_tune import quantities as q
from reco_tune.cost.timing import TimedStep, bootstrap_interval, device_clock, in_rounds, span_strata, speedup_of
from reco_tune.data.token_cache import TokenCache
from reco_tune.progress import Progress, quiet
from reco_tune.settings import Experiment
from reco_tune.training.distributed import Group, prepare_device
from reco_tune.training.schemes import Scheme, build_scheme
from reco_tune.windows import WindowSpan


def calibrate(
    experiment: Experiment,
    baseline: Experiment,
    cache: TokenCache,
    seconds: float,
    progress: Progress = quiet,
    group: Group = Group(),
) -> dict[str, float]:
    """Speed-up of a real optimiser step over the baseline's, t_full / Σ_s p(s) · t_s, with a 95% bootstrap interval.

    Each step is whole: with its own model, batch and precision. s is a span (start and length) of the window, p(s) its
    share of the run: a schedule of lengths counts with its whole course. A step of several micro-batches is put
    together of what a micro-batch takes and what comes once a step (`TimedStep.pieces`). Rounds of (full step, arm's
    step) for every measured span are repeated for `seconds` after a warm-up (`timing.speedup_of`); steps so slow that
    `timing.FEWEST_ROUNDS` take longer overrun it. A step that is the baseline's is not measured: it is 1. Also gives
    the limit that FLOPs set, the fraction of it that was reached, and the ratio of peak memory: on CUDA of the
    allocator's peaks, on the CPU of weights, gradients, AdamW's moments and what the forward pass keeps for backward
    (deterministic; short-lived buffers are not in it).

    Args:
        baseline: what speed and memory are relative to: the study's `full`, as its settings define it.
        group: the run's workers, all of which call this: what is measured is their step together, communication
            included. A process alone measures one worker's share of the batch.

    Returns:
        speedup, speedup_low, speedup_high, speedup_limit, limit_fraction, peak_memory_ratio, calibration_seconds,
        calibration_load, calibration_clock (`quantities` names; the seconds are the device's, the load is the machine's
        per core as it began, the clock is the device's while it was warm), the same on all ranks.
    """
    began, load = time.perf_counter(), load_per_core()
    if experiment.step_settings() == baseline.step_settings():
        return _result(1.0, 1.0, 1.0, 1.0, 1.0, 0.0, load, clock_mhz(torch.device(experiment.device_type)))
    device = prepare_device(experiment)
    schemes = build_scheme(baseline, cache), build_scheme(experiment, cache)
    strata = span_strata(schemes[1].distribution())
    full, arm = (TimedStep(scheme, cache, device, group) for scheme in schemes)
    peaks = _peak_bytes(full, arm)
    times_full, times_arm = _measure(full, arm, list(strata), seconds, progress, group)
    clock = clock_mhz(device)  # while it is warm
    weights = np.array(list(strata.values()))
    low, high = bootstrap_interval(times_full, times_arm, weights, seed=0)
    speedup = speedup_of(times_full, times_arm, weights)
    spent, limit = (time.perf_counter() - began) * group.size, scheme_limit(schemes[1], schemes[0])
    measured = _result(speedup, low, high, limit, peaks[1] / peaks[0], spent, load, clock)
    return group.broadcast_json(measured)  # one that counts: clocks of ranks differ by a little


def scheme_limit(scheme: Scheme, baseline: Scheme) -> float:
    """FLOPs of the baseline's step / expected FLOPs of the scheme's: what no implementation can exceed but by doing the
    baseline badly.
    """
    clips = baseline.experiment.training.batch_size / scheme.experiment.training.batch_size
    return clips * baseline.expected_flops() / scheme.expected_flops()


def load_per_core() -> float:
    """Processes that wanted a core in the last minute, per core; 0 where the system does not tell."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def clock_mhz(device: torch.device) -> float | None:
    """Clock speed of the device at this moment, of a CPU the mean over this process's cores; None where the system does
    not tell.
    """
    if device.type == "cuda":
        try:
            return float(torch.cuda.clock_rate(device))
        except Exception:  # without NVML, and whatever that raises: a record must not end a calibration
            return None
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    speeds = [float(line.split(":")[1]) for line in text.splitlines() if line.startswith("cpu MHz")]
    own = [speeds[core] for core in sorted(os.sched_getaffinity(0)) if core < len(speeds)]
    return sum(own) / len(own) if own else None


def _measure(
    full: TimedStep, arm: TimedStep, starts: Sequence[WindowSpan], seconds: float, progress: Progress, group: Group
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds [rounds, starts] of the full step and of the arm's, taken in turn."""
    steps = [step.pieces(start) for own in starts for step, start in ((full, 0), (arm, own))]
    jobs = [job for pieces in steps for _, job in pieces]
    for _ in range(2):  # allocator, caches and compilation: not part of a step
        for job in jobs:
            job()
    clock = device_clock(full.step.device, group.size)
    times_RJ = in_rounds(jobs, clock, seconds, progress, "calibration", group=group)
    counts = [[count for count, _ in pieces] for pieces in steps]
    ends = np.cumsum([len(own) for own in counts])
    times_RS = np.stack(
        [times_RJ[:, end - len(own) : end] @ own for own, end in zip(counts, ends, strict=True)], axis=1
    )
    return times_RS[:, 0::2], times_RS[:, 1::2]


def _peak_bytes(full: TimedStep, arm: TimedStep) -> tuple[int, int]:
    """Peak memory of a step of either; the arm's at its worst start."""
    spans = arm.scheme.distribution()
    lengths = {span.length for span in spans}
    starts = [end(span for span in spans if span.length == length) for length in sorted(lengths) for end in (min, max)]
    if full.step.device.type == "cpu":
        return _kept_bytes(full, [0]), _kept_bytes(arm, starts)
    for timed, own in ((full, [0]), (arm, starts)):
        for start in own:
            timed.run_once(start)  # both optimisers have their state from here on
    return _allocated_peak(full, arm, [0]), _allocated_peak(arm, full, starts)


def _kept_bytes(timed: TimedStep, starts: Sequence[WindowSpan | int]) -> int:
    return timed.step.fixed_bytes + max(timed.step.activation_bytes(timed.micro_batches(start)[0]) for start in starts)


def _allocated_peak(timed: TimedStep, other: TimedStep, starts: Sequence[WindowSpan | int]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    for start in starts:
        timed.run_once(start)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - other.step.fixed_bytes


def _result(
    speedup: float,
    low: float,
    high: float,
    limit: float,
    memory: float,
    seconds: float,
    load: float,
    clock: float | None,
) -> dict[str, float]:
    return {
        q.SPEEDUP.name: speedup,
        q.SPEEDUP_LOW.name: low,
        q.SPEEDUP_HIGH.name: high,
        q.SPEEDUP_LIMIT.name: limit,
        q.LIMIT_FRACTION.name: speedup / limit,
        q.PEAK_MEMORY_RATIO.name: memory,
        q.CALIBRATION_SECONDS.name: seconds,
        q.CALIBRATION_LOAD.name: load,
        **({} if clock is None else {q.CALIBRATION_CLOCK.name: clock}),
    }
