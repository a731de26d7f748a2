"""The search as a file that Optuna's own tools open: `optuna.journal` in the study's folder.

Derived from the log like everything else: it is written anew from the log when the study goes on, and can be deleted.

    storage = JournalStorage(JournalFileBackend("studies/NAME/optuna.journal"))
    study = optuna.load_study(study_name="NAME", storage=storage)
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from reco_tune.study.searcher import Search

RUN = "run"
"""Attribute of a trial that names its run."""


class OptunaJournal:
    """Follows one search."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._ids: list[int] = []
        """Runs of the file's trials, by number."""
        self._running: set[int] = set()
        self._rebuilt = -1
        """The value of `Search.rebuilt` when the file was begun."""

    def follow(self, search: Search) -> None:
        """Updates the file from the search. It is only a copy: if it cannot be written, the study continues."""
        with suppress(OSError):
            if search.rebuilt != self._rebuilt:
                self._begin(search)
            trials = search.trials
            for number in [*self._running]:
                if trials[number].state.is_finished():
                    self._finish(self._ids[number], trials[number])
                    self._running.discard(number)
            for trial in trials[len(self._ids) :]:
                self._add(trial, search.names.get(trial.number, ""))

    def _begin(self, search: Search) -> None:
        for path in (self._path, self._path.with_name(f"{self._path.name}.lock")):
            path.unlink(missing_ok=True)
        self._storage = JournalStorage(JournalFileBackend(str(self._path)))
        study = optuna.create_study(storage=self._storage, study_name=self._name, directions=search.directions)
        study.set_metric_names(search.objectives)
        self._study = self._storage.get_study_id_from_name(self._name)
        self._ids, self._running, self._rebuilt = [], set(), search.rebuilt

    def _add(self, trial: FrozenTrial, run: str) -> None:
        fields = {name: getattr(trial, name) for name in ("state", "params", "distributions", "intermediate_values")}
        template = FrozenTrial(
            number=-1,
            trial_id=-1,
            value=None,
            values=trial.values,
            user_attrs={**trial.user_attrs, **({RUN: run} if run else {})},
            system_attrs=_attributes(trial),
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
            **fields,
        )
        self._ids.append(self._storage.create_new_trial(self._study, template))
        if not trial.state.is_finished():
            self._running.add(trial.number)

    def _finish(self, place: int, trial: FrozenTrial) -> None:
        for key, value in _attributes(trial).items():
            self._storage.set_trial_system_attr(place, key, value)
        self._storage.set_trial_state_values(place, trial.state, trial.values)


def _attributes(trial: FrozenTrial) -> dict[str, Any]:
    """A trial's attributes as JSON returns them: with lists in place of tuples.

    Constraints are there twice: by name, and as a list in the form of Optuna before 5, which optuna-dashboard (0.21)
    still reads.
    """
    found: dict[str, Any] = json.loads(json.dumps(trial.system_attrs))
    if trial.constraints:
        found["constraints"] = list(trial.constraints.values())
    return found
