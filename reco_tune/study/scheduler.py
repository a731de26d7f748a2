"""Pareto-ASHA: which runs continue at a rung, by non-dominated sorting of speed against a cheap proxy of quality.

The decision is a pure function of the study's record. So the log is the whole state, and a resumed study decides as the
killed one would have. This is asynchronous successive halving in its stopping form (Li et al. 2020, "A System for
Massively Parallel Hyperparameter Tuning"): no run waits for a rung to fill. Several objectives are handled as in
Schmucker et al. 2021 ("Multi-objective Asynchronous Successive Halving").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from reco_tune import quantities
from reco_tune.pareto import Fronts, deciding_rungs
from reco_tune.settings import BASELINE, SEARCH, Pruning, Space, stands_under
from reco_tune.study_log import JUDGED, RunRecord, StudyRecord
from reco_tune.training.loop import rung_steps


class Pool(NamedTuple):
    """A group of runs that are judged together at a rung. Sampled runs are compared at one step. Fixed arms are
    compared under one budget, with one training seed, at one share of their training, because arms take different
    numbers of steps for the same compute. Runs that tune an arm are compared only with each other.
    """

    budget: str
    """`search` of sampled runs."""
    seed: int
    at: int | Fraction
    arm: str = ""
    """The arm that the run tunes."""

    def step_of(self, run: RunRecord) -> int | None:
        """The step of a run at this rung; None if it was not there, or belongs to another comparison."""
        if self.budget == SEARCH:
            return int(self.at) if run.arm == SEARCH and _report(run, int(self.at)) else None
        if self.arm != (run.arm if run.tunes else ""):
            return None
        if run.arm == SEARCH or run.seed != self.seed or not stands_under(run.budget, self.budget):
            return None
        return next((int(report["step"]) for report in run.reports if _share(run, report["step"]) == self.at), None)


class Rungs:
    """The points of runs at the rungs of a study. Each event updates it, so a judgement does not sort again. Built from
    the record at any time, it is the same.
    """

    def __init__(self, study: StudyRecord) -> None:
        self._study = study
        self._kept: dict[tuple[Pool, tuple[tuple[str, float], ...]], _Rung] = {}

    def at(self, pool: Pool, axes: Mapping[str, float]) -> _Rung:
        """The points of runs that have all these axes at the rung."""
        key = (pool, tuple(axes.items()))
        if key not in self._kept:
            rung = self._kept[key] = _Rung()
            for run in self._study.runs.values():
                if all(map(math.isfinite, point := _point(axes, self._study, run, pool.step_of(run)))):
                    rung.points[run.trial] = point
            rows = [self._study.runs[trial].index for trial in rung.points]
            rung.fronts = Fronts(rows, list(rung.points.values()))
        return self._kept[key]

    def look(self, trial: str) -> None:
        """A run has reported or was calibrated."""
        run = self._study.runs.get(trial)
        if run is None:
            return
        for (pool, axes), rung in self._kept.items():
            if (pool.budget == SEARCH) != (run.arm == SEARCH):
                continue
            point = _point(dict(axes), self._study, run, pool.step_of(run))
            before = rung.points.pop(trial, None)
            if before is not None and before != point:
                rung.fronts.remove(run.index)
            if all(map(math.isfinite, point)):
                rung.points[trial] = point
                if before != point:
                    rung.fronts.insert(run.index, point)


@dataclass
class _Rung:
    """Runs that are known at a rung."""

    points: dict[str, tuple[float, ...]] = field(default_factory=dict)
    fronts: Fronts = field(default_factory=Fronts)


def prune_reason(space: Space, study: StudyRecord, trial: str, step: int, rungs: Rungs | None = None) -> str:
    """The reason to stop a run at the rung that ends at `step`. Empty if it continues.

    A point consists of the objectives that are known at the rung (the calibrated speed) and of the proxy for the
    others. Runs that were pruned or failed later still count at the rungs that they reached. A run without a proxy is
    not judged. If one seed of an arm was stopped, the arm is in no comparison, so its other seeds stop too.

    Args:
        rungs: the study's rungs, if the caller keeps them.
    """
    pruning, run = space.pruning, study.runs.get(trial)
    if run is None or not is_judged(pruning, run) or step not in deciding_steps(pruning, run):
        return ""
    rung, of = _rung(run, step), run.settings["training.rungs"]
    if run.arm != SEARCH and not run.tunes and (other := _stopped_seed(study, run)) is not None:
        return f"{JUDGED}{rung} of {of} it stopped because seed {other} of its arm was stopped"
    axes = _axes(space, {**_speeds(study, run), **_report(run, step)})
    known = (rungs or Rungs(study)).at(_pool(run, step), axes)
    point = known.points.get(trial)
    if point is None or known.fronts.goes_on(run.index, point, pruning.reduction_factor):
        return ""
    beside = "runs" if run.arm == SEARCH else "points" if run.tunes else f"arms of seed {run.seed}"
    return (
        f"{JUDGED}{rung} of {of} it was not among the best 1 in {pruning.reduction_factor} of {len(known.points)}"
        f" {beside}; {known.fronts.dominating(point)} dominate it"
    )


def is_judged(pruning: Pruning, run: RunRecord) -> bool:
    """Whether a run may be stopped at a rung. The baseline never is, nor a run that a person had tried again."""
    if pruning.kind == "none" or run.insisted:
        return False
    return not run.repeats if run.arm == SEARCH else run.tunes or (pruning.arms and run.arm != BASELINE)


def measured_steps(pruning: Pruning, run: RunRecord) -> tuple[int, ...]:
    """Steps at which a run generates clips: those at which it is judged by them, or other runs are compared with it."""
    beside = pruning.arms and run.arm == BASELINE
    return deciding_steps(pruning, run) if pruning.generates_clips and (beside or is_judged(pruning, run)) else ()


def deciding_steps(pruning: Pruning, run: RunRecord) -> tuple[int, ...]:
    """Steps at the ends of the rungs at which a run may be stopped."""
    steps, rungs = int(run.settings["training.steps"]), int(run.settings["training.rungs"])
    deciding = deciding_rungs(rungs, pruning.grace_rungs, pruning.reduction_factor)
    return tuple(step for step in rung_steps(steps, rungs) if _rung(run, step) in deciding)


class ParetoAsha(FIFOScheduler):
    """Tune's scheduler: has every rung judged before the run may continue.

    It never ends a light trial itself. A run that is asked to stop leaves its worker group at the end of the step, and
    its trial ends with it, because the trial stands for the run's place in the cluster.
    """

    _supports_buffered_results = False

    def __init__(self, judge: Callable[[str, int], None] | None = None) -> None:
        """Args: judge: called with (run, step) for every rung; asks the run to stop if it must."""
        super().__init__()
        self._judge = judge

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        if self._judge is not None and "step" in result:
            self._judge(trial.config["trial"], int(result["step"]))
        return str(TrialScheduler.CONTINUE)

    def __reduce__(self) -> tuple[type[ParetoAsha], tuple[()]]:
        return (ParetoAsha, ())  # Tune pickles its configuration; a restored one is never used


def _rung(run: RunRecord, step: int) -> int:
    """Number of the rung that ends at a step, counted from 1."""
    return step * int(run.settings["training.rungs"]) // int(run.settings["training.steps"])


def _share(run: RunRecord, step: int) -> Fraction:
    """Share of its training that is done at the end of a rung."""
    return Fraction(_rung(run, step), int(run.settings["training.rungs"]))


def _pool(run: RunRecord, step: int) -> Pool:
    if run.arm == SEARCH:
        return Pool(SEARCH, 0, step)
    return Pool(run.budget, run.seed, _share(run, step), run.arm if run.tunes else "")


def _stopped_seed(study: StudyRecord, run: RunRecord) -> int | None:
    """The first seed of a fixed arm's runs under the same budget that was stopped at a rung."""
    return next(
        (
            other.seed
            for other in study.runs.values()
            if (other.arm, other.budget) == (run.arm, run.budget) and other.stopped_at_rung
        ),
        None,
    )


def _speeds(study: StudyRecord, run: RunRecord) -> dict[str, float]:
    """Key of a calibration: each sampled run has its own, the runs of a fixed arm share one."""
    return study.calibrations.get(run.trial if run.arm == SEARCH else run.arm, {})


def _report(run: RunRecord, step: int) -> dict[str, float]:
    """Report of a run at a rung; empty if it was not there."""
    return next((report for report in run.reports if report["step"] == step), {})


def _axes(space: Space, known: Mapping[str, float]) -> dict[str, float]:
    """The objectives that are known at a rung, and the proxy, each with the sign that makes lower values better."""
    directions = {name: direction for name, direction in space.objectives.items() if name in known}
    directions[space.pruning.metric] = (
        "maximize" if quantities.ALL[space.pruning.metric].better == "higher" else "minimize"
    )
    return {name: -1.0 if direction == "maximize" else 1.0 for name, direction in directions.items()}


def _point(axes: Mapping[str, float], study: StudyRecord, run: RunRecord, step: int | None) -> tuple[float, ...]:
    if step is None:
        return (math.nan,) * len(axes)
    report, speeds = _report(run, step), _speeds(study, run)
    return tuple(sign * report.get(name, speeds.get(name, math.nan)) for name, sign in axes.items())
