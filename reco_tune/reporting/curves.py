"""Curves of the arms as means over training seeds: by frame or block, and over training steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reco_tune import quantities
from reco_tune.reporting.budgets import BUDGETS, at_budget
from reco_tune.reporting.runs import SEARCH
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
    """arm -> (generated clips, mean FVD of that many) in rising order; arms whose clips were too few to be halved are
    left out.
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
    study: StudyRecord, name: str = "val_cross_entropy"
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """budget -> arm -> (step, mean over seeds) of a metric reported at the rungs."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for budget in BUDGETS:
        for arm, runs in _by_arm(study, budget).items():
            rungs = [
                [(report["step"], report[name]) for report in run.reports if name in report]
                for run in runs
                if run.state == "evaluated"
            ]
            rungs = [points for points in rungs if points]
            if rungs:
                steps = [step for step, _ in rungs[0]]
                found.setdefault(budget, {})[arm] = list(
                    zip(steps, _mean([[value for _, value in points] for points in rungs]), strict=False)
                )
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
