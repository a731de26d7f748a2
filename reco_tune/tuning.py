"""Tuning runs: the points that every arm tries before the table, and the choice of each arm's point.

All arms try the same points on the same seeds, each at the longest of its budgets. An arm's point is the one with the
lowest mean. Knows settings and the log's records; trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from reco_tune.settings import TUNE, Tune
from reco_tune.study_log import ENDED, RunRecord


class PointResult(NamedTuple):
    """Results of a point for one arm."""

    params: dict[str, Any]
    values: tuple[float, ...]
    """Values of the metric, one for each run in `judged`."""
    runs: tuple[RunRecord, ...]
    judged: tuple[RunRecord, ...]
    """Runs that have the metric, one per tuning seed. Pruned and failed runs do not have it."""

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values) if self.values else math.nan


def tuning_name(arm: str, point: int, seed: int) -> str:
    """Name of a tuning run; points are counted from 0."""
    return f"{arm}-{TUNE}{point}-s{seed}"


def tuning_runs(runs: Iterable[RunRecord], arm: str) -> list[RunRecord]:
    """Tuning runs of an arm."""
    return [run for run in runs if run.arm == arm and run.tunes]


def tuning_ended(runs: Iterable[RunRecord], arm: str) -> bool:
    """Whether an arm's tuning runs were planned and all have ended."""
    own = tuning_runs(runs, arm)
    return bool(own) and all(run.state in ENDED for run in own)


def point_results(tune: Tune, runs: Iterable[RunRecord], arm: str) -> list[PointResult]:
    """Results in the order of the points."""
    own, found = tuning_runs(runs, arm), []
    for params in tune.points:
        theirs = tuple(run for run in own if run.params == params)
        judged = tuple(
            run for run in theirs if run.state == "evaluated" and math.isfinite(run.metrics.get(tune.metric, math.nan))
        )
        found.append(PointResult(params, tuple(run.metrics[tune.metric] for run in judged), theirs, judged))
    return found


def best_point(results: Iterable[PointResult]) -> PointResult | None:
    """The point with the lowest mean, among those with the most evaluated seeds. On a tie, the first. None if no run
    was evaluated.
    """
    known = [result for result in results if result.values]
    return min(known, key=lambda result: (-len(result.values), result.mean), default=None)


def in_words(values: Mapping[str, Any]) -> str:
    """Chosen values as text."""
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
