"""Curves of the arms as means over training seeds: by frame or block, and over training steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reco_tune import quantities
from reco_tune.quantities import VAL_CROSS_ENTROPY
from reco_tune.reporting.budgets import BUDGETS, at_budget
from reco_tune.reporting.numbers import number, quoted
from reco_tune.settings import SEARCH
from reco_tune.study_log import RunRecord, StudyRecord


def arm_curves(study: StudyRecord, budget: str) -> dict[str, dict[str, list[float]]]:
    """arm -> curve of `quantities.CURVES` -> mean over the evaluated runs of one budget; arms in the order of the space
    file.
    """
    found = {}
    for arm, runs in _by_arm(study, budget).items():
        evaluated = [run for run in runs if run.state == "evaluated"]
        curves = {
            name: _mean([run.curves[name] for run in evaluated if run.curves.get(name)]) for name in quantities.CURVES
        }
        found[arm] = {name: curve for name, curve in curves.items() if curve}
    return {arm: curves for arm, curves in found.items() if curves}


def bias_curves(study: StudyRecord, budget: str) -> dict[str, list[tuple[int, float]]]:
    """arm -> (number of generated clips, mean FVD of that many), in rising order. Leaves out arms with too few clips to
    halve.
    """
    found = {}
    for arm, runs in _by_arm(study, budget).items():
        curves = [
            run.curves[quantities.FVD_BY_SAMPLES]
            for run in runs
            if run.state == "evaluated" and quantities.FVD_BY_SAMPLES in run.curves
        ]
        if curves and min(map(len, curves)) > 1:
            most, values = int(runs[0].settings["evaluation.samples"]), _mean(curves)
            found[arm] = [(most >> (len(values) - 1 - place), value) for place, value in enumerate(values)]
    return found


def learning_curves(
    study: StudyRecord, budgets: Sequence[str], name: str = VAL_CROSS_ENTROPY.name
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """budget -> arm -> (step, mean over seeds) of a metric reported at the rungs."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for budget in budgets:
        for arm, (steps, curves) in _rungs(study, budget, name).items():
            found.setdefault(budget, {})[arm] = list(zip(map(float, steps), _mean(curves), strict=False))
    return found


class Turn(NamedTuple):
    """An arm at one budget whose validation loss was lowest before the end: it overfits from there."""

    budget: str
    arm: str
    step: int
    """Step of the lowest loss, at a rung."""
    steps: int
    """Steps of the whole run."""
    best: float
    last: float
    passes_per_step: float = math.nan
    """Passes over the training clips; NaN if the number of clips is not known."""

    @property
    def words(self) -> str:
        first, last = (number(step * self.passes_per_step, 1) for step in (self.step, self.steps))
        passes = f" (pass {first} of {last})" if last else ""
        return (
            f"{quoted(self.arm)} {BUDGETS[self.budget].words} overfits after step {self.step} of {self.steps}{passes}:"
            f" its validation cross-entropy rose from {number(self.best, 3)} to {number(self.last, 3)}."
        )


def turns(study: StudyRecord, budgets: Sequence[str]) -> list[Turn]:
    """Arms whose mean validation cross-entropy is lowest before the last rung and higher at the end for every seed. One
    seed alone may fluctuate.
    """
    found = []
    for budget in budgets:
        for arm, (steps, curves) in _rungs(study, budget, VAL_CROSS_ENTROPY.name).items():
            mean = _mean(curves)
            best = int(np.argmin(mean))
            if best < len(mean) - 1 and all(curve[len(mean) - 1] > curve[best] for curve in curves):
                pace = passes_per_step(_by_arm(study, budget)[arm][0])
                found.append(Turn(budget, arm, steps[best], steps[len(mean) - 1], mean[best], mean[-1], pace))
    return found


def passes_per_step(run: RunRecord) -> float:
    """Passes over the training clips per optimiser step; NaN if a run of an earlier version does not record the number
    of clips.
    """
    steps, passes = run.metrics.get(quantities.STEPS.name), run.metrics.get(quantities.PASSES.name)
    if steps and passes is not None:
        return passes / steps
    batch, clips = (run.settings.get(key) for key in ("training.batch_size", "data.train_clips"))
    return batch / clips if batch and clips else math.nan


def passes_curves(
    study: StudyRecord, budgets: Sequence[str], name: str = VAL_CROSS_ENTROPY.name
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """budget -> arm -> (passes over the training clips, mean over seeds) of a metric reported at the rungs."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for budget, arms in learning_curves(study, budgets, name).items():
        runs = _by_arm(study, budget)
        for arm, points in arms.items():
            pace = passes_per_step(runs[arm][0])
            if math.isfinite(pace):
                found.setdefault(budget, {})[arm] = [(step * pace, value) for step, value in points]
    return found


def _rungs(study: StudyRecord, budget: str, name: str) -> dict[str, tuple[list[int], list[list[float]]]]:
    """arm -> (steps, values of a metric at them by run) of the evaluated runs that reported it."""
    found = {}
    for arm, runs in _by_arm(study, budget).items():
        own = [
            [(report["step"], report[name]) for report in run.reports if name in report]
            for run in runs
            if run.state == "evaluated"
        ]
        own = [points for points in own if points]
        if own:
            found[arm] = [int(step) for step, _ in own[0]], [[value for _, value in points] for points in own]
    return found


def _by_arm(study: StudyRecord, budget: str) -> dict[str, list[RunRecord]]:
    found: dict[str, list[RunRecord]] = {arm: [] for arm in study.arms}
    for run in sorted(study.runs.values(), key=lambda run: run.index):
        if run.arm != SEARCH and at_budget(run.budget, budget):
            found.setdefault(run.arm, []).append(run)
    return {arm: runs for arm, runs in found.items() if runs}


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    """Point by point over the curves' common length."""
    if not curves:
        return []
    length = min(map(len, curves))
    return [float(value) for value in np.mean([list(curve)[:length] for curve in curves], axis=0)]
