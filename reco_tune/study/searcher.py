"""The next configuration of a search, from an Optuna study that is rebuilt from the events of the log.

Knows Optuna and settings, but not Ray or files. Ray's own Optuna searcher reports pruned trials as complete, leaves
trials without a finite objective running for ever, and repeats equal points. Here a trial is COMPLETE only if it was
evaluated at full length with finite objectives; otherwise it is PRUNED or FAIL. A known configuration is not run again.

An extended search keeps what it knows. Its ranges are those of the newest event `study` or `extended`. Points outside
of them are not run again, but stay on the frontier. TPE still learns from their numbers; the other samplers learn only
from points inside.

When the last sampled run has ended, finalists run again with further training seeds. A finalist is on the frontier, but
another configuration could take its place within their 95% intervals. Optuna does not see these runs.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from reco_tune.cost.planning import sampled_name
from reco_tune.errors import SettingsError
from reco_tune.pareto import contested, non_dominated
from reco_tune.settings import SEARCH, Experiment, Space, arm_experiment, make_experiment
from reco_tune.study.ranges import Ranges
from reco_tune.study.samplers import sampler_of
from reco_tune.study_log import StudyRecord

MOST_REFUSED = 100
"""Proposals in a row that the settings may refuse before the ranges are blamed."""
MOST_REPEATED = 20
"""Known configurations in a row that the sampler may propose before one is run again."""
GENERATION = "NSGAIISampler:generation"
"""Key under which NSGA-II keeps a trial's generation."""
ENDS = ("", "_low", "_high")
"""Suffixes of a metric and of the ends of its 95% interval."""


@dataclass(frozen=True)
class Proposal:
    """The next sampled run. Its `event` is kept in the log, and a rebuilt search needs nothing else."""

    trial: str
    experiment: Experiment
    event: dict[str, Any]


@dataclass
class KnownConfiguration:
    """A configuration that was asked or planned before."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of its evaluation; empty before it."""


class EvaluatedTrial(NamedTuple):
    """A sampled run that was told complete and breaks no constraint."""

    params: dict[str, Any]
    """What the sampler chose."""
    ends: list[list[float]]
    """For each objective its value and the ends of its 95% interval; NaN without one."""


class Search:
    """The search of one study. Every change of its state is an event of the log, so the events restore it.

    The n-th proposal is drawn by a sampler seeded with (seed, n), so it depends only on the events before it.
    """

    def __init__(self, space: Space) -> None:
        """
        Raises:
            SettingsError: for ranges that the sampler cannot handle.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._space = space
        self._numbers: dict[str, int | None] = {}
        """Optuna's trial number of each sampled run that has not ended; None for runs that Optuna must not know."""
        self._params: dict[str, dict[str, Any]] = {}
        """What the sampler chose for each sampled run."""
        self._known: dict[str, KnownConfiguration] = {}
        """Configurations by settings hash, those of fixed runs included."""
        self._hashes: dict[str, str] = {}
        """Settings hash of each run."""
        self._feasible: dict[str, EvaluatedTrial] = {}
        self._repeated: Counter[str] = Counter()
        """How often each finalist was repeated."""
        self.asked = 0
        """Sampled runs asked so far, further seeds of finalists left out."""
        self._drawn = 0
        """Optuna's trials so far: runs, skipped proposals, and what earlier studies and fixed arms gave."""
        self._arms_told = 0
        """Number of fixed arms among these trials."""
        self._calibrated: dict[str, dict[str, float]] = {}
        """Speeds of fixed arms by run. The event that ends a run does not hold them."""
        self._arms: dict[str, dict[str, Any]] = {}
        """Points of the fixed runs that the search could have proposed, until they are evaluated."""
        self.names: dict[int, str] = {}
        """The run of each of Optuna's trials, if it has one."""
        self.rebuilt = 0
        """How often Optuna's study was rebuilt because the ranges had changed."""
        self._begin()

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to ask."""
        return not self.left

    @property
    def left(self) -> int:
        """Runs that are still to be asked, at most: how many finalists there are shows when the last sampled run has
        ended.
        """
        seeds = self._space.finalist_seeds
        if self._undrawn or self._numbers:
            return self._undrawn + seeds * self._space.trials
        return sum(max(0, seeds - self._repeated[trial]) for trial in self.finalists) if seeds else 0

    @property
    def finalists(self) -> dict[str, dict[str, Any]]:
        """Params by run of the finalists: sampled runs on the frontier whose place another run could take. Runs that
        break a constraint are not finalists and take no place.
        """
        signs = [[-1.0 if direction == "maximize" else 1.0] for direction in self._space.objectives.values()]
        ends_NM3 = np.array([run.ends for run in self._feasible.values()]).reshape(-1, len(signs), 3) * signs
        best_NM, worst_NM = np.nanmin(ends_NM3, axis=2), np.nanmax(ends_NM3, axis=2)
        front = np.flatnonzero(non_dominated(ends_NM3[..., 0]))
        runs = list(self._feasible.items())
        return {name: run.params for name, run in (runs[row] for row in front[contested(best_NM, worst_NM[front])])}

    @property
    def directions(self) -> list[optuna.study.StudyDirection]:
        return self._study.directions

    @property
    def objectives(self) -> list[str]:
        """Names of Optuna's values."""
        return list(self._space.objectives)

    @property
    def trials(self) -> list[FrozenTrial]:
        """Optuna's trials, told and running, skipped proposals included."""
        return self._study.get_trials(deepcopy=False)

    def ask(self) -> Proposal | None:
        """The next run. None if none is left, or if it depends on runs that have not ended (`left` tells). The caller
        writes its event to the log and passes it to `apply`.

        Raises:
            SettingsError: if the settings refuse every point of the ranges.
        """
        skipped: list[dict[str, Any]] = []
        while self._undrawn:
            number = self._drawn
            trial = self._draw(number)
            params, notes = dict(trial.params), self._new_notes()
            known, reason, experiment = None, "", None
            try:
                experiment = self._experiment(params, new_seed=self._space.repeats == "new_seed")
                known = self._known.get(experiment.result_hash())
            except SettingsError as error:
                reason = str(error)
            if experiment is not None and (known is None or len(skipped) >= MOST_REPEATED):
                name = sampled_name(self.asked)
                self._numbers[name] = number  # `apply` finds it drawn already
                self.names[number] = name
                return _proposal(name, experiment, params, skipped=skipped, sampler=notes)
            if len(skipped) >= MOST_REFUSED:
                raise SettingsError(
                    f"search: {MOST_REFUSED} proposals in a row could not be run"
                    f" ({reason or 'all were known already'}); change the ranges"
                )
            metrics = self._told(known.metrics) if known is not None else None
            skipped.append({"params": params, "metrics": metrics, "reason": reason or "known", "sampler": notes})
            self._tell(number, metrics)
        return self._again() if self.left else None

    def apply(self, event: Mapping[str, Any]) -> None:
        """Applies one event of the log. Events that do not concern the search are ignored."""
        name, trial = event["event"], event.get("trial", "")
        if name in ("study", "extended") and event.get("settings"):
            self._become(Space.model_validate(event["settings"]))
        if name in ("planned", "asked"):
            self._known.setdefault(event["settings_hash"], KnownConfiguration())
            self._hashes[trial] = event["settings_hash"]
        if name == "planned":
            self._calibrated[trial] = dict(event.get("metrics", {}))
            if point := self._point_of(event):
                self._arms[trial] = point
        if name == "asked" and "repeats" in event:
            self._repeated[event["repeats"]] += 1
        elif name == "asked":
            self.asked += 1
            self._params[trial] = dict(event["params"])
            if trial not in self._numbers:  # read from the log, not drawn just now
                for skip in event.get("skipped", []):
                    self._tell(self._add(skip["params"], skip.get("sampler", {})), skip["metrics"])
                added = self._add(event["params"], event.get("sampler", {}))
                self._numbers[trial], self.names[added] = added, trial
        elif name == "evaluated":
            whole = {**self._calibrated.pop(trial, {}), **event["metrics"]}
            self._known[self._hashes[trial]].metrics = whole
            if (point := self._arms.pop(trial, None)) is not None:
                self.names[self._drawn] = trial
                self._tell(self._add(point, {}), self._told(whole))
                self._grid_starts += 1
                self._arms_told += 1
            if trial in self._numbers:
                number, metrics = self._numbers.pop(trial), self._told(event["metrics"])
                if number is not None:
                    self._tell(number, metrics)
                if metrics is not None and not broken_constraints(self._space, metrics):
                    ends = [
                        [event["metrics"].get(name + end, math.nan) for end in ENDS] for name in self._space.objectives
                    ]
                    self._feasible[trial] = EvaluatedTrial(self._params[trial], ends)
        elif name == "known":
            self._known[event["settings_hash"]] = KnownConfiguration(dict(event["metrics"]))
            self._tell(self._add(event["params"], {}), event["metrics"])
            self._grid_starts += 1
        elif name in ("pruned", "failed") and trial in self._numbers:
            number = self._numbers.pop(trial)
            if number is not None:
                self._study.tell(number, state=TrialState.PRUNED if name == "pruned" else TrialState.FAIL)
        elif name == "retried" and trial in self._params and trial not in self._numbers:  # it had ended
            known = self._ranges.fits(self._params[trial])
            self._numbers[trial] = None
            if known:
                self._numbers[trial] = again = self._add(self._params[trial], {})
                self.names[again] = trial
            self._grid_starts += known

    def known_from(self, study: StudyRecord) -> list[dict[str, Any]]:
        """`known` events for sampled runs of an earlier study that this study could have made. They are evaluated, lie
        within these ranges, and agree in every setting that changes results. Known runs are left out.
        """
        events = []
        for run in study.runs.values():
            if run.state != "evaluated" or self._told(run.metrics) is None or not self._ranges.fits(run.params):
                continue
            experiment = arm_experiment(self._space, None, {"training.seed": run.seed, **run.params})
            if experiment.result_hash() == run.settings_hash and run.settings_hash not in self._known:
                events.append(
                    {
                        "study": study.name,
                        "run": run.trial,
                        "params": run.params,
                        "settings_hash": run.settings_hash,
                        "metrics": self._told(run.metrics),
                    }
                )
        return events

    def _begin(self) -> None:
        """An Optuna study without trials, over the ranges of the space."""
        space = self._space
        self._ranges = Ranges(space.search)
        whole = space.sampler.kind == "grid"
        self._grid = [dict(point) for point in space.points] or (self._ranges.grid() if whole else [])
        """Points to try, the whole search or its beginning."""
        self._grid_starts = 0
        """Number of the trial that has the first of these points."""
        self._whole = whole
        self._planned = space.trials
        """What the sampler was told of how long the search is: it stays, or a search that grows would warm up again."""
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(
            directions=list(space.objectives.values()), storage=self._storage, study_name="search"
        )
        self._id = self._storage.get_study_id_from_name("search")
        self._notes: dict[str, Any] = {}
        """What the sampler noted at the study so far."""

    def _become(self, space: Space) -> None:
        """Continues under these settings, with everything it knows."""
        before, self._space = self._space, space
        tried = max(0, self._drawn - self._grid_starts)
        if space.search == before.search and (self._drawn or space == before):
            return
        trials, planned = self.trials, self._planned
        self._begin()
        if not trials:
            return
        self._planned = planned or space.trials
        self.rebuilt += 1
        passed = [trial.params for trial in trials]
        left = self._grid if self._whole else self._grid[tried:]
        self._grid, self._grid_starts = [point for point in left if point not in passed], len(trials)
        running = {number: name for name, number in self._numbers.items()}
        for trial in trials:
            kept = self._moved(trial)
            if kept.state == TrialState.FAIL and trial.number in running:
                self._numbers[running[trial.number]] = None
            self._storage.create_new_trial(self._id, kept)  # as it is: `add_trial` refuses what lies outside

    def _moved(self, trial: FrozenTrial) -> FrozenTrial:
        """One of Optuna's trials under the ranges as they are now: a failed one where the sampler cannot learn from
        it.
        """
        fields: dict[str, Any] = {"number": -1, "trial_id": -1, "value": None}
        fields |= {key: getattr(trial, key) for key in ("user_attrs", "intermediate_values")}
        fields |= {key: getattr(trial, key) for key in ("datetime_start", "datetime_complete")}
        notes = {key: value for key, value in trial.system_attrs.items() if key.startswith("constraints")}
        outside = self._space.sampler.kind == "tpe" and self._ranges.learns(trial.params)  # others learn inside alone
        if trial.params and (self._ranges.fits(trial.params) or outside):
            if self._space.sampler.kind == "nsga2":
                notes[GENERATION] = 0  # those that are whole are the population that the next ones descend from
            return FrozenTrial(
                state=trial.state,
                params=trial.params,
                distributions=self._ranges.of(trial.params),
                system_attrs=notes,
                values=trial.values,
                **fields,
            )
        fields["datetime_complete"] = fields["datetime_complete"] or fields["datetime_start"]
        return FrozenTrial(state=TrialState.FAIL, params={}, distributions={}, system_attrs={}, **fields)

    def _point_of(self, event: Mapping[str, Any]) -> dict[str, Any] | None:
        """The point of a planned run of a fixed arm, where it is one that the search could propose."""
        space = self._space
        if not (space.trials and space.sampler.tell_arms) or event.get("seed") != space.seeds[0]:
            return None
        try:
            point = self._ranges.point_of(make_experiment({}, event["settings"], where=event["trial"]))
            if point is None or self._experiment(point, new_seed=False).result_hash() != event["settings_hash"]:
                return None
        except SettingsError:  # settings that an earlier version wrote
            return None
        return point

    @property
    def _undrawn(self) -> int:
        """Largest number of configurations that the sampler still proposes."""
        trials = max(0, self._space.trials - self.asked)
        return min(trials, max(0, len(self._grid) - (self._drawn - self._grid_starts))) if self._whole else trials

    def _again(self) -> Proposal | None:
        """The finalist that was asked again least, with the next training seed; None while a sampled run has
        not ended."""
        if self._numbers:
            return None
        finalists = self.finalists
        trial = min(finalists, key=lambda name: self._repeated[name])
        experiment = self._experiment(finalists[trial], new_seed=True)
        return _proposal(f"{trial}-s{experiment.training.seed}", experiment, finalists[trial], repeats=trial)

    def _experiment(self, params: Mapping[str, Any], new_seed: bool) -> Experiment:
        """The settings of a proposal: the study's first seed, or the first under which they are not known."""
        experiment = arm_experiment(self._space, None, {"training.seed": self._space.seeds[0], **params})
        while new_seed and experiment.result_hash() in self._known:
            experiment = arm_experiment(self._space, None, {**params, "training.seed": experiment.training.seed + 1})
        return experiment

    def _draw(self, number: int) -> optuna.Trial:
        """Optuna's next trial, with every dimension drawn."""
        self._study.sampler = sampler_of(self._space, number - self._arms_told, self._planned, self._ranges.always)
        if number - self._grid_starts < len(self._grid):
            self._study.enqueue_trial(self._grid[number - self._grid_starts])
        self._drawn += 1
        trial = self._study.ask(self._ranges.always)
        self._ranges.draw(trial)
        return trial

    def _new_notes(self) -> dict[str, Any]:
        """What the sampler noted while it drew the last trial: NSGA-II keeps generations at trials and parents at the
        study.
        """
        at_trial = {key: value for key, value in self.trials[-1].system_attrs.items() if key != "fixed_params"}
        at_study = self._storage.get_study_system_attrs(self._id)
        new = {key: value for key, value in at_study.items() if self._notes.get(key) != value}
        self._notes = dict(at_study)
        notes: dict[str, Any] = json.loads(json.dumps({"trial": at_trial, "study": new}))
        return {where: values for where, values in notes.items() if values}

    def _add(self, params: Mapping[str, Any], notes: Mapping[str, Any]) -> int:
        """A trial of the log becomes one of Optuna's, running."""
        drawn = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=self._ranges.of(params),
            system_attrs=notes.get("trial", {}),
        )
        self._study.add_trial(drawn)
        for key, value in notes.get("study", {}).items():
            self._storage.set_study_system_attr(self._id, key, value)
            self._notes[key] = value
        self._drawn += 1
        return self._drawn - 1

    def _tell(self, number: int, metrics: Mapping[str, float] | None) -> None:
        """Ends one of Optuna's trials: as complete, or as failed if there are no metrics."""
        if metrics is None:
            self._study.tell(number, state=TrialState.FAIL)
            return
        trial = optuna.Trial(self._study, self._storage.get_trial_id_from_study_id_trial_number(self._id, number))
        for name, bound in self._space.constraints.items():
            trial.set_constraint(name, bound.violation(metrics[name]))
        self._study.tell(number, [metrics[name] for name in self._space.objectives])

    @property
    def _metrics(self) -> list[str]:
        """Metrics of a run that Optuna needs: objectives and constraints."""
        return list(dict.fromkeys([*self._space.objectives, *self._space.constraints]))

    def _told(self, metrics: Mapping[str, float]) -> dict[str, float] | None:
        """These metrics, or None if one is missing or not finite."""
        told = {name: metrics.get(name, math.nan) for name in self._metrics}
        return told if all(map(math.isfinite, told.values())) else None


def rehearse(space: Space) -> None:
    """Proposes the first sampled run and forgets it.

    Raises:
        SettingsError: if the sampler cannot handle the ranges, or settings refuse everything that they give.
    """
    if Search(space).ask() is None:
        raise SettingsError("search: every point of its grid has invalid settings; change the ranges")


def _proposal(name: str, experiment: Experiment, params: Mapping[str, Any], **extra: Any) -> Proposal:
    event = {
        "trial": name,
        "arm": SEARCH,
        "budget": "equal_steps",
        "seed": experiment.training.seed,
        "params": params,
        "settings": experiment.flat(),
        "settings_hash": experiment.result_hash(),
    }
    return Proposal(name, experiment, event | {key: value for key, value in extra.items() if value})


def broken_constraints(space: Space, metrics: Mapping[str, float]) -> str:
    """Names the constraints that a run breaks, in one sentence; empty if it breaks none."""
    broken = [
        (name, bound)
        for name, bound in space.constraints.items()
        if name in metrics and bound.violation(metrics[name]) > 0
    ]
    return (
        "infeasible: " + ", ".join(f"{name} is {metrics[name]:g}, not {bound}" for name, bound in broken)
        if broken
        else ""
    )
