"""The driver's hold on a study folder: the lock, the frozen settings, and the log with everything that follows it.

Knows the log, the search and whoever listens; knows nothing of Ray.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from reco_tune.errors import StudyError
from reco_tune.locks import HeldError, lock
from reco_tune.settings import WHERE, Space, flatten, load_space, save_space
from reco_tune.settings.files import make, merge
from reco_tune.settings.sections import Sections
from reco_tune.study.observer import Observer
from reco_tune.study.optuna_journal import OptunaJournal
from reco_tune.study.searcher import Search
from reco_tune.study_log import EventLog, EventName, Follower, StudyFolder, apply
from reco_tune.tracking import Mirror


class StudyWriter:
    """The log and everything that follows it: the record, the search, the observer, MLflow. One lock keeps one order
    for all.
    """

    def __init__(
        self,
        folder: StudyFolder,
        search: Search,
        observer: Observer,
        clock: Callable[[], float] = time.time,
        sync: Callable[[int], None] = os.fsync,
    ) -> None:
        """
        Args:
            clock, sync: of `EventLog`.
        """
        self.lock = threading.RLock()
        self.mirror: Mirror | None = None
        self.optuna: OptunaJournal | None = None
        self._log = EventLog(folder.events, clock, sync)
        self.observer = observer
        self._search = search
        follower = Follower(folder.events)
        for event in follower.poll():
            search.apply(event)
        self.study = follower.study
        """The state of the log."""

    def write(self, event: EventName, **fields: Any) -> None:
        """Writes one event and tells everyone."""
        with self.lock:
            written = self._log.append(event, **fields)
            apply(self.study, written)
            self._search.apply(written)
            if self.optuna is not None:
                self.optuna.follow(self._search)
            self.observer.on_event(written)
            if self.mirror is not None:
                self.mirror.notify()

    def begin_optuna(self, path: Path, name: str) -> None:
        """From now on, the search is also a file for Optuna's tools. It is written anew from the log."""
        with self.lock:
            self.optuna = OptunaJournal(path, name)
            self.optuna.follow(self._search)

    def close(self) -> None:
        self._log.close()


@contextmanager
def claimed(space: Space, folder: StudyFolder) -> Iterator[None]:
    """The folder of this study, locked, its settings frozen in it; nothing is touched where that cannot be.

    Raises:
        StudyError: where the folder holds another study, something else, or a live driver.
    """
    if folder.settings.exists():
        _check_same(space, folder)
    elif folder.path.exists() and any(not entry.name.startswith(folder.lock.name) for entry in folder.path.iterdir()):
        raise StudyError(f"{folder.path} is not empty and has no study; give another --output")
    with locked(folder):
        if not folder.settings.exists():
            freeze(space, folder)
        yield


def freeze(space: Space, folder: StudyFolder) -> None:
    """Writes the settings of a study. If that is interrupted, the old settings stay complete."""
    staging = folder.path / ".settings.yaml"
    save_space(frozen(space), staging)
    staging.replace(folder.settings)


def frozen(space: Space) -> Space:
    """The space with absolute paths, so that a study can be resumed from anywhere. `resources` are only in the
    experiment, because overrides of the file's resources must stay in effect when the study is resumed.
    """
    experiment = make(Sections, space.experiment, where="experiment")
    paths = {"data.cache_dir": str(experiment.cache_dir.resolve())}
    if experiment.data.root is not None:
        paths["data.root"] = str(experiment.data.root.resolve())
    if experiment.evaluation.extractor_path is not None:
        paths["evaluation.extractor_path"] = str(experiment.evaluation.extractor_path.resolve())
    warm_start = tuple(folder.resolve() for folder in space.warm_start)
    return space.model_copy(
        update={"experiment": merge(space.experiment, paths), "resources": {}, "warm_start": warm_start}
    )


@contextmanager
def locked(folder: StudyFolder) -> Iterator[None]:
    """A lock for one driver per study. The system releases it when the process ends, for whatever reason."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(folder.lock))
        except HeldError as error:
            raise StudyError(f"the study in {folder.path} is running ({error}); wait for it or stop it") from error
        yield


def _check_same(space: Space, folder: StudyFolder) -> None:
    """Refuses a folder whose study is another one."""

    def essence(of: Space) -> dict[str, Any]:
        values = flatten({**of.model_dump(mode="json", exclude={"source", "resources", "keep", "on_event"})})
        elsewhere = tuple(f"experiment.{key}" for key in WHERE)
        return {key: value for key, value in values.items() if not key.startswith(elsewhere)}

    theirs, ours = essence(load_space(folder.settings)), essence(space)
    different = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    if different:
        raise StudyError(
            f"{folder.path} holds another study (it differs in {different[0]}); give another --output, or resume"
            " that one"
        )
