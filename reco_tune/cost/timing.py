"""Timing that is robust against other load on the machine. Jobs are measured in turn, ratios are taken round by round,
and rounds are resampled. Knows clocks, training steps and medians, but not which arms are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from reco_tune.data.token_cache import TokenCache
from reco_tune.progress import Progress, quiet
from reco_tune.training.distributed import Group
from reco_tune.training.feed import Feed, MicroBatch
from reco_tune.training.schemes import Scheme
from reco_tune.training.step import OptimiserStep
from reco_tune.windows import WindowSpan

MOST_STARTS = 5
"""The largest number of starts that are measured. If there are more, they are grouped in strata."""

STARTS_OF_A_LENGTH = 3
"""The same for each length, if a schedule has several."""

FEWEST_ROUNDS = 3
"""Fewest rounds, however slow the work is. A median of fewer means nothing."""

RESAMPLES = 1000
"""Number of resamples of the bootstrap."""


Mark = Any
"""A point in time: seconds of a clock, or an event in a GPU's queue."""


def device_clock(device: torch.device, workers: int = 1) -> Callable[[], Mark]:
    """A function that marks a moment of the device's own time. `in_rounds` computes the seconds between two marks.

    On a GPU the mark is an event in its queue. Nothing waits before a round has ended, so steps follow each other as in
    training.

    On the CPU with one thread, the mark is the CPU time of that thread. Backward runs in this thread, too. While
    another process has the core, no time counts. With several threads or workers, only the wall clock includes the wait
    for the slowest.
    """
    if device.type == "cuda":

        def now() -> Any:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(device))
            return event

        return now
    return time.thread_time if torch.get_num_threads() == workers == 1 else time.perf_counter


def in_rounds(
    jobs: Sequence[Callable[[], object]],
    clock: Callable[[], Mark],
    seconds: float,
    progress: Progress = quiet,
    what: str = "measuring",
    fewest: int = FEWEST_ROUNDS,
    shuffled: bool = False,
    group: Group = Group(),
) -> np.ndarray:
    """Seconds [rounds, jobs] that each job takes, all of them in turn, for `seconds` or `fewest` rounds, whichever is
    longer.

    Args:
        shuffled: whether each round has its own random order. A job of a millisecond can be up to a tenth faster or
            slower, depending on the job before it.
        group: workers that do the same jobs together. All of them do as many rounds as rank 0.
    """
    order = np.random.default_rng(0)
    rounds: list[list[float]] = []
    began = time.perf_counter()
    elapsed = 0.0
    while len(rounds) < fewest or group.broadcast_json(elapsed * (1 + 1 / len(rounds)) < seconds):
        marks: list[tuple[Mark, Mark]] = [(0.0, 0.0)] * len(jobs)
        for number in order.permutation(len(jobs)) if shuffled else range(len(jobs)):
            before = clock()
            jobs[number]()
            marks[number] = before, clock()
        rounds.append([_seconds_between(*pair) for pair in marks])
        elapsed = time.perf_counter() - began
        progress(min(round(elapsed), round(seconds)), round(seconds), what)
    return np.array(rounds)


def _seconds_between(before: Mark, after: Mark) -> float:
    if isinstance(before, float | int):
        return float(after - before)
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000  # from milliseconds


def start_strata(distribution: dict[int, float], most: int = MOST_STARTS) -> dict[int, float]:
    """The starts to measure and their weights. Up to `most` starts are all measured. If there are more, start 0 (if it
    is drawn) and some of the others are measured.

    The rest (equally likely, in order) is cut into equal parts. Each part is measured at its middle start, because step
    time is close to linear in the start.
    """
    possible = {start: p for start, p in sorted(distribution.items()) if p > 0}
    if len(possible) <= most:
        return possible
    chosen = {0: possible.pop(0)} if 0 in possible else {}
    for part in np.array_split(np.array(list(possible)), most - len(chosen)):
        chosen[int(part[len(part) // 2])] = sum(possible[int(start)] for start in part)
    return chosen


def span_strata(distribution: Mapping[WindowSpan, float]) -> dict[WindowSpan, float]:
    """The spans to measure and their weights: `start_strata` of each length. With several lengths, each has fewer
    strata.
    """
    by_length: dict[int, dict[int, float]] = {}
    for (start, length), share in distribution.items():
        by_length.setdefault(length, {})[start] = share
    most = MOST_STARTS if len(by_length) == 1 else STARTS_OF_A_LENGTH
    return {
        WindowSpan(s, length): w for length, starts in by_length.items() for s, w in start_strata(starts, most).items()
    }


def speedup_of(times_full_RS: np.ndarray, times_arm_RS: np.ndarray, weights_S: np.ndarray) -> float:
    """1 / Σ_s p(s) · (median over R rounds of: the arm's step from s / median of the round's full steps).

    A round's steps are close together in time, so a slow second of the machine slows both sides of each ratio. A ratio
    of medians over all rounds would lose this (docs/benchmark/index.md). The medians drop single slow steps.
    """
    shares_RS = times_arm_RS / np.median(times_full_RS, axis=1, keepdims=True)
    return float(1 / (np.median(shares_RS, axis=0) @ weights_S))


def bootstrap_interval(
    times_full_RS: np.ndarray, times_arm_RS: np.ndarray, weights_S: np.ndarray, seed: int
) -> tuple[float, float]:
    """95% percentile interval of the speed-up over resampled rounds."""
    rounds = len(times_full_RS)
    drawn = np.random.default_rng(seed).integers(rounds, size=(RESAMPLES, rounds))
    speedups = [speedup_of(times_full_RS[rows], times_arm_RS[rows], weights_S) for rows in drawn]
    low, high = np.percentile(speedups, [2.5, 97.5])
    return float(low), float(high)


class TimedStep:
    """An arm's optimiser step with one batch, from any start (or span, if lengths differ)."""

    def __init__(self, scheme: Scheme, cache: TokenCache, device: torch.device, group: Group = Group()) -> None:
        """
        Args:
            group: the run's workers, which all take part. A single process does one worker's share without them.
        """
        experiment = scheme.experiment
        self.feed = Feed(scheme, cache, group if group.size > 1 else Group(0, experiment.resources.workers))
        self.step = OptimiserStep(scheme, device, group)
        self.scheme = scheme
        self._micro_batches = [self.feed.next() for _ in range(experiment.training.micro_batches)]

    def run(self, start: WindowSpan | int) -> None:
        """A whole step at learning rate 0. It does all the work, but never changes the weights."""
        self.step.run(self.micro_batches(start), learning_rate=0.0)

    def pieces(self, start: WindowSpan | int) -> list[tuple[int, Callable[[], None]]]:
        """The pieces of a step and how often each runs: a micro-batch, and the last micro-batch with all that comes
        once a step. They replace `run`, at the cost of two micro-batches, because all micro-batches are alike here.
        """
        *earlier, last = self.micro_batches(start)
        pieces: list[tuple[int, Callable[[], None]]] = [(1, partial(self._last, last))]
        return [(len(earlier), partial(self._earlier, earlier[0])), *pieces] if earlier else pieces

    def run_once(self, start: WindowSpan | int) -> None:
        """A step of one micro-batch."""
        self._last(self.micro_batches(start)[-1])

    def _earlier(self, micro_batch: MicroBatch) -> None:
        self.step.backward(micro_batch, len(self._micro_batches))

    def _last(self, micro_batch: MicroBatch) -> None:
        self.step.run([micro_batch], learning_rate=0.0)

    def micro_batches(self, start: WindowSpan | int) -> list[MicroBatch]:
        span = self.scheme.span(start)
        return [MicroBatch(self.scheme.redrawn(batch, span), span) for batch, _ in self._micro_batches]
