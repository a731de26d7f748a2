"""How much faster an arm's step is than the baseline's: measured in pairs in one process, and the limit that FLOPs set.

On a shared machine, step times from training are too noisy. Here both steps run in turn, through the same objects as
in training, so that a disturbance hits both. Knows arms and their baseline, but not studies or where the numbers go.
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

    s is a span (start and length) of the window, and p(s) its share of the run, so a schedule of lengths counts as a
    whole. Each step is complete, with its own model, batch and precision. For a step of several micro-batches, one
    micro-batch and the work that comes once a step are measured (`TimedStep.pieces`).

    After a warm-up, rounds of (full step, arm's step) for every measured span are repeated for `seconds`
    (`timing.speedup_of`), and at least `timing.FEWEST_ROUNDS` times. If the arm's step is the baseline's, nothing is
    measured, and the speed-up is 1.

    The limit is set by FLOPs. The ratio of peak memory compares the allocator's peaks on CUDA. On the CPU it compares
    weights, gradients, AdamW's moments and what the forward pass keeps for backward. So on the CPU the ratio is
    deterministic and leaves out short-lived buffers.

    Args:
        baseline: the study's `full`, as its settings define it. Speed and memory are relative to it.
        group: the run's workers. All of them must call this. Their joint step is measured, with communication. A
            single process measures one worker's share of the batch.

    Returns:
        speedup, speedup_low, speedup_high, speedup_limit, limit_fraction, peak_memory_ratio, calibration_seconds (of
        the device), calibration_load (of the machine, per core, at the beginning) and calibration_clock (of the warm
        device). The names are those of `quantities`. All ranks get the same values.
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
    return group.broadcast_json(measured)  # rank 0's values, because the clocks of ranks differ slightly


def scheme_limit(scheme: Scheme, baseline: Scheme) -> float:
    """FLOPs of the baseline's step / expected FLOPs of the scheme's step. No implementation can exceed this limit,
    unless its baseline is inefficient.
    """
    clips = baseline.experiment.training.batch_size / scheme.experiment.training.batch_size
    return clips * baseline.expected_flops() / scheme.expected_flops()


def load_per_core() -> float:
    """Load average of the last minute, per core; 0 if the system does not report it."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def clock_mhz(device: torch.device) -> float | None:
    """Current clock speed of the device (on the CPU, the mean over this process's cores); None if the system does not
    report it.
    """
    if device.type == "cuda":
        try:
            return float(torch.cuda.clock_rate(device))
        except Exception:  # NVML may be missing, and errors differ: a missing clock speed must not end a calibration
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
    """Seconds [rounds, starts] of the full step and of the arm's, measured in turn."""
    steps = [step.pieces(start) for own in starts for step, start in ((full, 0), (arm, own))]
    jobs = [job for pieces in steps for _, job in pieces]
    for _ in range(2):  # allocation, caches and compilation are not part of a step
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
    """Peak memory of a step of the baseline and of the arm; for the arm, at the span that needs most."""
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
