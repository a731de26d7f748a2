"""What a study runs: tuning runs of the arms, fixed arms times budgets times seeds, then the sampled trials. Reads
settings only; launches nothing.

`full` is the baseline, as its settings define it, even if it does not run. Budgets count in its steps, and speeds are
relative to its step. It runs once and stands under both budgets.

An equal-compute arm gets the steps that the baseline's cost buys at the arm's speed. This speed is calibrated when the
study runs, and fixed in its log. Before that, it is estimated by the FLOP limit. Under a budget of a share of the
compute, `full` has another run, which is shorter. All runs under this budget are compared with the whole run of `full`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reco_tune import quantities
from reco_tune.cost.calibration import scheme_limit
from reco_tune.errors import SettingsError
from reco_tune.parts import nearest
from reco_tune.settings import (
    BASELINE,
    COMPUTE_SHARES,
    SEARCH,
    TUNE,
    Experiment,
    Space,
    arm_experiment,
    check_options,
    check_own,
    pinned,
    step_cost,
)
from reco_tune.settings.measured import unmeasured
from reco_tune.training.schemes import plan_scheme
from reco_tune.tuning import tuning_name

FROZEN_SECTIONS = ("data", "tokenizer", "evaluation", "resources")
"""Sections that all runs of a study share. Runs that differ here could not be compared."""
DECIDED = {
    "training.steps": "is what budgets count in, so all runs share it; set it under `experiment`",
    "training.epochs": "is what budgets count in, so all runs share it; set it under `experiment`",
    "training.seed": "is what `seeds` decides; set those",
}
"""Settings that neither an arm nor the search may choose, and what to do instead."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a fixed arm."""

    trial: str
    """`full-s0`, `reco-equal_steps-s0`."""
    arm: str
    budget: str
    """A budget of the space, `both` for the baseline at its whole budget, or `tune`."""
    seed: int
    experiment: Experiment
    params: dict[str, Any] = field(default_factory=dict)
    """The point that a tuning run tries."""

    @property
    def steps(self) -> int:
        return self.experiment.training.steps


@dataclass(frozen=True)
class Plan:
    """Everything that a study will run, as far as it is known before the first trial."""

    space: Space
    arms: dict[str, Experiment]
    """Each fixed arm's settings as the space file gives them; the arm's name is also the key of its calibration."""
    baseline: Experiment
    """Settings of `full`, even if no arm of that name runs. Speed, memory and budgets are relative to it."""
    runs: tuple[PlannedRun, ...]
    """The runs of the table. Until an arm's settings are chosen, its runs have those of the file."""
    sampled: Experiment | None
    """Settings that stand for the sampled runs before anything is sampled. Each sampled run counts with the steps and
    the cost of these.
    """
    estimated: bool
    """Whether the steps of compute budgets come from FLOP limits, because the arms are not calibrated yet."""
    tuning: tuple[PlannedRun, ...] = ()
    """The tuning runs before the table, arm by arm."""
    untuned: tuple[str, ...] = ()
    """Arms whose settings are not chosen yet."""

    @property
    def fixed(self) -> tuple[PlannedRun, ...]:
        """Every run of a fixed arm, those that tune it first."""
        return (*self.tuning, *self.runs)

    @property
    def trials(self) -> int:
        """Sampled runs."""
        return self.space.trials

    @property
    def total(self) -> int:
        return len(self.fixed) + self.trials

    @property
    def kinds(self) -> dict[str, Experiment]:
        """The fixed arms' settings and, as `search`, those that stand for the sampled runs."""
        return self.arms | ({SEARCH: self.sampled} if self.sampled else {})

    @property
    def shared(self) -> Experiment:
        """One of the study's experiments: `data`, `tokenizer`, `evaluation` and `resources` are the same in all."""
        experiment = next(iter(self.arms.values()), self.sampled)
        assert experiment is not None  # a space has arms or trials
        return experiment

    @property
    def piece_blocks(self) -> tuple[int, ...]:
        """Lengths in blocks of the sub-clips that must be encoded by themselves."""
        return tuple(sorted({n for run in self.fixed for n in plan_scheme(run.experiment).encoded_piece_blocks}))

    def at_speeds(self, speedups: Mapping[str, float], tuned: Mapping[str, Mapping[str, Any]] | None = None) -> Plan:
        """The same plan with the steps that calibrated speed-ups, by arm, give under compute budgets.

        Args:
            tuned: settings that were chosen, by arm.
        """
        return _planned(replace(self, estimated=False), speedups, tuned or {})


def plan(space: Space) -> Plan:
    """The runs of a space, in the order in which they start: the arms of the file, budget by budget, seed by seed.
    Steps under a compute budget follow from the arms' FLOP limits. Once the arms are calibrated, `Plan.at_speeds` gives
    the steps at their measured speeds.

    Raises:
        SettingsError: for a search or an arm that would make the runs of one study incomparable.
    """
    space = pinned(space)
    _check(space)
    arms, baseline = {name: arm_experiment(space, name) for name in space.arms}, arm_experiment(space, BASELINE)
    if baseline.window.scheme != "full":
        raise SettingsError(
            f"arm `{BASELINE}` is the baseline, which trains full sequences, but its window.scheme is"
            f" {baseline.window.scheme}; rename that arm"
        )
    sampled = arm_experiment(space, None, {"training.seed": space.seeds[0]}) if space.trials else None
    judging = [*([sampled] if sampled else []), *(arms.values() if space.pruning.arms or space.tune else [])]
    for judged in judging:
        if space.pruning.kind != "none" and space.pruning.grace_rungs >= judged.training.rungs:
            raise SettingsError(
                f"pruning.grace_rungs ({space.pruning.grace_rungs}) leaves none of the {judged.training.rungs}"
                " training.rungs to prune at; lower it or raise training.rungs"
            )
    for name, experiment in (arms | ({SEARCH: sampled} if sampled else {})).items():
        if baseline.training.epochs is not None and (
            experiment.training.steps != baseline.training.steps or "training.batch_size" in space.search
        ):
            whose = "sampled runs" if name == SEARCH else f"arm `{name}`"
            raise SettingsError(
                f"training.epochs ({baseline.training.epochs:g}) gives {whose} other steps than the baseline, because"
                " training.batch_size differs, but budgets count the baseline's steps; set training.steps"
            )
    for own in [*arms.values(), *([sampled] if sampled is not None else [])]:
        check_options(own)
    check_own("samplers", space.sampler.kind, space.sampler.options, "sampler.kind", "sampler.options")
    check_measured(space, baseline)
    if space.tune is not None and space.tune.metric == quantities.VAL_CROSS_ENTROPY.name:
        for name, experiment in arms.items():
            if plan_scheme(experiment).trains_pieces:
                raise SettingsError(
                    f"tune.metric is {space.tune.metric}, which arm `{name}` does not have: it trains on pieces of a"
                    f" clip; set tune.metric to {quantities.FVD.name}"
                )
    limits = {name: estimated_speedup(experiment, baseline) for name, experiment in arms.items()}
    return _planned(Plan(space, arms, baseline, (), sampled, estimated=True), limits, {})


def estimated_speedup(experiment: Experiment, baseline: Experiment) -> float:
    """The FLOP limit: the baseline's step over the arm's expected step."""
    return scheme_limit(plan_scheme(experiment), plan_scheme(baseline))


def sampled_name(number: int) -> str:
    """Name of the n-th sampled run."""
    return f"{SEARCH}-{number:04d}"


def budget_steps(budget: str, baseline_steps: int, speedup: float) -> int:
    """Optimiser steps of an arm under a budget, at its speed; `both` is the baseline at its whole budget."""
    share = COMPUTE_SHARES.get(budget)
    return baseline_steps if share is None else max(1, round(share * baseline_steps * speedup))


def _planned(planned: Plan, speedups: Mapping[str, float], tuned: Mapping[str, Mapping[str, Any]]) -> Plan:
    """The plan with the runs of its fixed arms."""
    space, arms = planned.space, planned.arms
    return replace(
        planned,
        runs=_runs(space, arms, speedups, tuned),
        tuning=_tuning(space, arms, speedups),
        untuned=tuple(arm for arm in arms if space.tune is not None and arm not in tuned),
    )


def _runs(
    space: Space,
    arms: Mapping[str, Experiment],
    speedups: Mapping[str, float],
    tuned: Mapping[str, Mapping[str, Any]],
) -> tuple[PlannedRun, ...]:
    runs: dict[str, PlannedRun] = {}
    for budget in space.budgets:
        for seed in space.seeds:
            for arm, experiment in arms.items():
                for own in _budgets(arm, budget):
                    name = f"{arm}-s{seed}" if own == "both" else f"{arm}-{own}-s{seed}"
                    if name not in runs:
                        steps = _steps(own, arm, experiment, speedups)
                        counted = {} if own in ("both", "equal_steps") else {"training.steps": steps}
                        overrides = {**tuned.get(arm, {}), "training.seed": seed, **counted}
                        runs[name] = PlannedRun(name, arm, own, seed, arm_experiment(space, arm, overrides))
    return tuple(runs.values())


def _tuning(space: Space, arms: Mapping[str, Experiment], speedups: Mapping[str, float]) -> tuple[PlannedRun, ...]:
    """Each arm at the longest of its budgets: what is chosen there holds in all of them."""
    if space.tune is None:
        return ()
    runs = []
    for arm, experiment in arms.items():
        budgets = {own for budget in space.budgets for own in _budgets(arm, budget)}
        steps = max(_steps(budget, arm, experiment, speedups) for budget in budgets)
        counted = {} if steps == experiment.training.steps else {"training.steps": steps}
        for seed in space.tune.seeds:
            for number, point in enumerate(space.tune.points):
                own = arm_experiment(space, arm, {**point, "training.seed": seed, **counted})
                runs.append(PlannedRun(tuning_name(arm, number, seed), arm, TUNE, seed, own, point))
    return tuple(runs)


def _steps(budget: str, arm: str, experiment: Experiment, speedups: Mapping[str, float]) -> int:
    """Only budgets of compute need the arm's speed."""
    return budget_steps(budget, experiment.training.steps, speedups[arm] if budget in COMPUTE_SHARES else 1.0)


def _budgets(arm: str, budget: str) -> tuple[str, ...]:
    """What an arm runs for a budget of the space."""
    if arm != BASELINE:
        return (budget,)
    return ("both", budget) if COMPUTE_SHARES.get(budget, 1.0) < 1 else ("both",)


def _check(space: Space) -> None:
    tuned = space.tune.per_arm if space.tune is not None else {}
    arms = [(f"arm `{name}`", own) for name, own in space.arms.items()]
    for where, keys in [("search", space.search), ("tune.per_arm", tuned), *arms]:
        for key in keys:
            if key.split(".")[0] in FROZEN_SECTIONS:
                raise SettingsError(f"{where}: {key} is shared by all runs of a study; set it under `experiment`")
            if key in DECIDED:
                raise SettingsError(f"{where}: {key} {DECIDED[key]}")
    for key in filter(step_cost, tuned):
        raise SettingsError(
            f"tune.per_arm: {key} changes what a step costs, but speeds are measured before anything is tuned; name an"
            " arm for each value, or search it"
        )
    if space.keep.checkpoints == "best" and not arm_experiment(space, BASELINE).training.keep_best:
        raise SettingsError(
            "keep.checkpoints is best, but no run keeps its best weights; set training.keep_best under `experiment`"
        )
    if "window.scheme" in space.search:
        raise SettingsError("search: window.scheme cannot be searched; add an arm for each scheme")
    for where, metrics in (("objectives", space.objectives), ("constraints", space.constraints)):
        for metric in metrics:
            if metric not in quantities.ALL:
                raise SettingsError(f"{where}: {metric} is not a metric; {nearest(metric, quantities.ALL)}")
    for objective, direction in space.objectives.items():
        better = {"lower": "minimize", "higher": "maximize"}.get(quantities.ALL[objective].better, direction)
        if direction != better:
            raise SettingsError(
                f"objectives: {objective} is better when it is {quantities.ALL[objective].better}; write {better}"
            )


def check_measured(space: Space, experiment: Experiment, classes: bool | None = None) -> None:
    """Checks that runs measure every metric that the search reads. Otherwise every run would fail, or a constraint
    would have no effect.

    Args:
        classes: whether the data have classes, once that is known.

    Raises:
        SettingsError: if the runs of the study do not measure something.
    """
    if space.tune is not None and (why := unmeasured(space.tune.metric, experiment, classes)):
        raise SettingsError(f"tune.metric: {space.tune.metric} {why}")
    judged = space.trials or space.pruning.arms or space.tune is not None
    if judged and space.pruning.generates_clips and (why := unmeasured(space.pruning.metric, experiment)):
        raise SettingsError(f"pruning.metric: {space.pruning.metric} {why}, or leave it out")
    asked = [("objectives", metric) for metric in (space.objectives if space.trials else {})]
    for where, metric in [*asked, *(("constraints", metric) for metric in space.constraints)]:
        if why := unmeasured(metric, experiment, classes):
            raise SettingsError(f"{where}: {metric} {why}, or leave it out")
