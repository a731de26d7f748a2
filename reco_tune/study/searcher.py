"""Which configuration comes next: an Optuna study asked and told one event at a time, rebuilt from the log's events alone.

Knows Optuna and settings; knows nothing of Ray or files. Ray's own Optuna searcher tells pruned trials as complete, leaves trials
without a finite objective running for ever and repeats equal points; here a trial is COMPLETE only where it was evaluated at full
length with every objective finite, else PRUNED or FAIL, and a configuration that is known already is not run again.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from reco_tune.errors import SettingsError
from reco_tune.settings import Experiment, Range, Space, arm_experiment
from reco_tune.study.planning import SEARCH, sampled_name

MOST_REFUSED = 100
"""Proposals in a row that settings may refuse before the ranges themselves are at fault."""
MOST_REPEATED = 20
"""Known configurations that the sampler may propose in a row before one is run again."""


@dataclass(frozen=True)
class Proposal:
    """The next sampled run; `event` is what the log keeps of it and what a rebuilt search needs."""

    trial: str
    experiment: Experiment
    event: dict[str, Any]


@dataclass
class Known:
    """A configuration that was asked or planned before."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Of its evaluation; empty while there is none."""


class Search:
    """The search of one study. Every change of its state is an event of the log: feed it those, and it stands where it stood.

    The n-th proposal is drawn by a sampler seeded with (seed, n), so it depends on nothing but the events before it.
    """

    def __init__(self, space: Space) -> None:
        """
        Raises:
            SettingsError: for ranges that the sampler cannot handle.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._space = space
        self._distributions = {key: to_distribution(key, range_) for key, range_ in space.search.items()}
        self._grid = list(_grid_points(space)) if space.sampler.kind == "grid" else None
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(directions=list(space.objectives.values()), storage=self._storage, study_name="search")
        self._id = self._storage.get_study_id_from_name("search")
        self._notes: dict[str, Any] = {}
        """What the sampler noted at the study so far."""
        self._numbers: dict[str, int] = {}
        """Optuna's trial number of each sampled run that is not told yet."""
        self._known: dict[str, Known] = {}
        """By settings hash, fixed runs included."""
        self._hashes: dict[str, str] = {}
        """Settings hash of each run."""
        self.asked = 0
        """Runs asked so far."""
        self._drawn = 0
        """Optuna's trials so far: runs and skipped proposals."""

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to ask."""
        return self.asked >= self._space.trials or (self._grid is not None and self._drawn >= len(self._grid))

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """Optuna's trials, told and running, skipped proposals included."""
        return self._study.get_trials(deepcopy=False)

    def ask(self) -> Proposal | None:
        """The next run; None where none is left. The caller writes its event to the log and gives it to `apply`.

        Raises:
            SettingsError: where settings refuse everything that the ranges give.
        """
        skipped: list[dict[str, Any]] = []
        while not self.exhausted:
            number = self._drawn
            trial = self._draw(number)
            params, notes = dict(trial.params), self._new_notes()
            known, reason, experiment = None, "", None
            try:
                experiment = arm_experiment(self._space, None, {"training.seed": self._space.seeds[0], **params})
                known = self._known.get(experiment.result_hash())
            except SettingsError as error:
                reason = str(error)
            if experiment is not None and (known is None or len(skipped) >= MOST_REPEATED):
                name = sampled_name(self.asked)
                event = {
                    "trial": name,
                    "arm": SEARCH,
                    "budget": "equal_steps",
                    "seed": self._space.seeds[0],
                    "params": params,
                    "settings": experiment.flat(),
                    "settings_hash": experiment.result_hash(),
                }
                extra = {"skipped": skipped, "sampler": notes}
                self._numbers[name] = number  # `apply` finds it drawn already
                return Proposal(name, experiment, event | {key: value for key, value in extra.items() if value})
            if len(skipped) >= MOST_REFUSED:
                raise SettingsError(
                    f"search: {MOST_REFUSED} proposals in a row could not be run ({reason or 'all known'}); change the ranges"
                )
            values = self._values(known.metrics) if known is not None else None
            skipped.append({"params": params, "values": values, "reason": reason or "known", "sampler": notes})
            self._tell(number, values)
        return None

    def apply(self, event: Mapping[str, Any]) -> None:
        """Takes in one event of the log; those that do not touch the search are ignored."""
        name, trial = event["event"], event.get("trial", "")
        if name in ("planned", "asked"):
            self._known.setdefault(event["settings_hash"], Known())
            self._hashes[trial] = event["settings_hash"]
        if name == "asked":
            self.asked += 1
            if trial not in self._numbers:  # read from the log, not drawn just now
                for skip in event.get("skipped", []):
                    self._tell(self._add(skip["params"], skip.get("sampler", {})), skip["values"])
                self._numbers[trial] = self._add(event["params"], event.get("sampler", {}))
        elif name == "evaluated":
            self._known[self._hashes[trial]].metrics = dict(event["metrics"])
            if trial in self._numbers:
                self._tell(self._numbers.pop(trial), self._values(event["metrics"]))
        elif name in ("pruned", "failed") and trial in self._numbers:
            state = TrialState.PRUNED if name == "pruned" else TrialState.FAIL
            self._study.tell(self._numbers.pop(trial), state=state)

    def _draw(self, number: int) -> optuna.Trial:
        """Optuna's next trial, with every dimension drawn."""
        self._study.sampler = self._sampler(number)
        if self._grid is not None:
            self._study.enqueue_trial(self._grid[number])
        self._drawn += 1
        return self._study.ask(self._distributions)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = (self._space.sampler.seed * 1_000_003 + number) % 2**32
        if self._space.sampler.kind == "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(3, self._space.trials // 3)), multivariate=True)
        if self._space.sampler.kind == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=min(50, max(4, self._space.trials // 4)))
        return optuna.samplers.RandomSampler(seed=seed)

    def _new_notes(self) -> dict[str, Any]:
        """What the sampler noted while it drew the last trial: NSGA-II keeps generations at trials and parents at the study."""
        at_trial = {key: value for key, value in self.trials[-1].system_attrs.items() if key != "fixed_params"}
        at_study = self._storage.get_study_system_attrs(self._id)
        new = {key: value for key, value in at_study.items() if self._notes.get(key) != value}
        self._notes = dict(at_study)
        notes: dict[str, Any] = json.loads(json.dumps({"trial": at_trial, "study": new}))
        return {where: values for where, values in notes.items() if values}

    def _add(self, params: Mapping[str, Any], notes: Mapping[str, Any]) -> int:
        """A trial of the log becomes one of Optuna's, running."""
        drawn = optuna.trial.create_trial(
            state=TrialState.RUNNING, params=dict(params), distributions=self._distributions, system_attrs=notes.get("trial", {})
        )
        self._study.add_trial(drawn)
        for key, value in notes.get("study", {}).items():
            self._storage.set_study_system_attr(self._id, key, value)
            self._notes[key] = value
        self._drawn += 1
        return self._drawn - 1

    def _tell(self, number: int, values: list[float] | None) -> None:
        if values is None:
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self._study.tell(number, values)

    def _values(self, metrics: Mapping[str, float]) -> list[float] | None:
        """The objectives, or None where one is missing or not finite."""
        values = [metrics.get(name, math.nan) for name in self._space.objectives]
        return values if all(math.isfinite(value) for value in values) else None


def to_distribution(key: str, range_: Range) -> BaseDistribution:
    """Optuna's form of a search range.

    Raises:
        SettingsError: for a whole-number range with a broken step.
    """
    if range_.choice is not None:
        return CategoricalDistribution(list(range_.choice))
    if range_.int is not None:
        step = range_.step or 1
        if step != int(step):
            raise SettingsError(f"search: {key} is a whole number, but its step is {step}; give a whole step")
        return IntDistribution(*range_.int, log=range_.log, step=int(step))
    assert range_.float is not None
    return FloatDistribution(*range_.float, log=range_.log, step=range_.step)


def _grid_points(space: Space) -> list[dict[str, Any]]:
    levels: dict[str, list[Any]] = {}
    for key, range_ in space.search.items():
        if range_.choice is not None:
            levels[key] = list(range_.choice)
            continue
        bounds = range_.int or range_.float
        assert bounds is not None
        if range_.log or (range_.float is not None and not range_.step):
            raise SettingsError(f"search: the grid sampler needs a step for {key}; give step, or choice with its values")
        step = range_.step or 1
        count = int((bounds[1] - bounds[0]) / step + 1e-9) + 1
        levels[key] = [(int if range_.int else float)(round(bounds[0] + i * step, 12)) for i in range(count)]
    return [dict(zip(levels, point, strict=True)) for point in itertools.product(*levels.values())]
