"""What quality costs: how the frontier grew with the device hours spent, and how much training compute each arm needs
for a quality.

Training compute is counted in the baseline's whole training: steps divided by the measured speed-up, over the
baseline's steps. So every arm stands at 1 under equal compute, and at 1 / speed-up under equal steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from reco_tune.pareto import hypervolume, speed_fvd
from reco_tune.reporting.ablation import arm_results
from reco_tune.reporting.aggregate import mean_interval
from reco_tune.reporting.curves import learning_curves
from reco_tune.reporting.ledger import STAGES
from reco_tune.reporting.runs import SEARCH, WHOLE, at_budget, budget_order, comparable, configurations
from reco_tune.settings import BASELINE
from reco_tune.study_log import StudyRecord

Curves = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
"""budget -> arm -> (training compute, validation cross-entropy)."""
HISTORY_COLUMNS = ("budget", "runs", "device_hours", "hypervolume", "trial")
"""Columns of hypervolume.csv."""
COMPUTE_COLUMNS = (
    "budget",
    "arm",
    "seeds",
    "compute",
    "training_flops",
    "fvd",
    "fvd_low",
    "fvd_high",
    "val_cross_entropy",
)
"""Columns of compute.csv."""
QUALITY_COLUMNS = ("budget", "arm", "val_cross_entropy", "compute", "compute_ratio")
"""Columns of compute_to_quality.csv."""


def hypervolume_history(study: StudyRecord, runs: pd.DataFrame) -> pd.DataFrame:
    """The hypervolume of each budget's frontier after so many device hours; a row where it grew, and one at the end.

    Runs count in the order in which they ended, what they cost whether or not they gave a point; a calibration that
    runs share counts with the first of them. The reference point is the frontier's own: speed-up 0 and the largest FVD
    of the budget.
    """
    kept = comparable(runs)
    ended = sorted(
        (run for run in study.runs.values() if run.ended is not None), key=lambda run: (run.ended, run.index)
    )
    spent = np.cumsum(_device_hours(runs, [run.trial for run in ended]))
    rows = []
    for budget in budget_order(runs):
        own = kept[at_budget(kept["budget"], budget)]
        own_points, reference = speed_fvd(own["speedup"], own["fvd"])
        points = dict(zip(own["trial"], map(tuple, own_points.tolist()), strict=True))
        front: list[tuple[float, float]] = []
        volume = 0.0
        for number, (run, hours) in enumerate(zip(ended, spent, strict=True), 1):
            point = points.get(run.trial, (math.nan, math.nan))
            if math.isfinite(point[0]) and not any(other[0] <= point[0] and other[1] <= point[1] for other in front):
                front = [other for other in front if not (point[0] <= other[0] and point[1] <= other[1])] + [point]
                grown = hypervolume(front, reference)
                if grown > volume:
                    rows.append((budget, number, float(hours), grown, run.trial))
                    volume = grown
        if len(ended) and volume:
            rows.append((budget, len(ended), float(spent[-1]), volume, ""))
    return pd.DataFrame(rows, columns=list(HISTORY_COLUMNS))


def compute_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Final quality of every arm and budget beside its training compute and FLOPs, means over seeds."""
    whole = _whole_steps(runs)
    kept = comparable(runs)
    kept = kept[kept["arm"] != SEARCH]
    rows = []
    for (budget, arm), result in arm_results(runs).items():
        name, at = (BASELINE, "both") if arm == WHOLE else (arm, budget)
        own = kept[(kept["arm"] == name) & at_budget(kept["budget"], at)]
        compute = [_compute(steps, speedup, whole) for steps, speedup in zip(own["steps"], own["speedup"], strict=True)]
        fvd = mean_interval(list(result.fvd.values()))
        flops, loss = _mean(own["training_flops"]), result.means["val_cross_entropy"]
        rows.append([budget, arm, len(result.fvd), _mean(compute), flops, *fvd, loss])
    return pd.DataFrame(rows, columns=list(COMPUTE_COLUMNS))


def compute_to_quality(curves: Curves) -> pd.DataFrame:
    """Training compute at which each arm first reached the baseline's validation cross-entropies at its rungs.

    Curves are straight between rungs. `compute` is empty where an arm never gets there, and its first rung's where that
    is below already (no more is known). `compute_ratio` is the baseline's compute over the arm's: above 1 the arm is
    cheaper.

    Args:
        curves: of `compute_curves`.
    """
    rows = []
    for budget, arms in curves.items():
        for spent, level in arms.get(BASELINE, []):
            for arm, curve in arms.items():
                compute = _reached(curve, level)
                rows.append([budget, arm, level, compute, spent / compute])
    return pd.DataFrame(rows, columns=list(QUALITY_COLUMNS))


def compute_curves(study: StudyRecord, runs: pd.DataFrame) -> Curves:
    """budget -> arm -> (training compute, validation cross-entropy) at every rung, means over seeds."""
    whole = _whole_steps(runs)
    speed = {(result.budget, result.arm): result.means["speedup"] for result in arm_results(runs).values()}
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for budget, arms in learning_curves(study).items():
        for arm, points in arms.items():
            pace = speed.get((budget, arm), math.nan)
            if math.isfinite(pace) and math.isfinite(whole):
                found.setdefault(budget, {})[arm] = [(_compute(step, pace, whole), value) for step, value in points]
    return found


def _reached(curve: Sequence[tuple[float, float]], level: float) -> float:
    """The compute at which a curve first lies at or below a level; NaN where it never does."""
    before: tuple[float, float] | None = None
    for compute, value in curve:
        if value <= level:
            if before is None:
                return compute
            share = (before[1] - level) / (before[1] - value) if before[1] > value else 1.0
            return before[0] + share * (compute - before[0])
        before = (compute, value)
    return math.nan


def _whole_steps(runs: pd.DataFrame) -> float:
    own = runs[(runs["arm"] == BASELINE) & (runs["budget"] == "both") & (runs["state"] == "evaluated")]
    return _mean(own["steps"])


def _compute(steps: float, speedup: float, whole_steps: float) -> float:
    return float(steps / speedup / whole_steps) if speedup > 0 and whole_steps > 0 else math.nan


def _device_hours(runs: pd.DataFrame, order: Sequence[str]) -> list[float]:
    """Hours of each run in that order, calibrations included: those that several runs share with the first of them."""
    table = runs.assign(key=configurations(runs)).set_index("trial")[["key", *STAGES]].reindex(list(order))
    calibration, *others = STAGES
    seconds = table[others].sum(axis=1) + table[calibration].where(~table["key"].duplicated()).fillna(0)
    return [float(spent) / 3600 for spent in seconds]


def _mean(values: Sequence[float] | pd.Series) -> float:
    known = [float(value) for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan
