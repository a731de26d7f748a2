"""The decisions of a driver: which job comes next, what an event means, whether a run continues at a rung, and when a
study has ended.

Knows the log, the search and what is left to do. Knows nothing of Ray, so a simulated study uses the same code as a
real one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from reco_tune.cost.planning import Plan
from reco_tune.errors import RunFailedError
from reco_tune.quantities import MOVES
from reco_tune.settings import Space
from reco_tune.study.dispatcher import Job
from reco_tune.study.growth import growth_since, in_log
from reco_tune.study.job_source import CALIBRATION, JobSource
from reco_tune.study.observer import Observer
from reco_tune.study.provenance import environment, study_provenance
from reco_tune.study.retention import give_up, give_up_run
from reco_tune.study.scheduler import Rungs, prune_reason
from reco_tune.study.searcher import Search, broken_constraints
from reco_tune.study.storage import StorageError, fetch_results
from reco_tune.study.study_writer import StudyWriter
from reco_tune.study_log import ENDED, StudyFolder, StudyRecord, read_study


class Bookkeeping:
    """The decisions for one study, from the state of its log on. Called from several threads."""

    def __init__(
        self,
        plan: Plan,
        folder: StudyFolder,
        observer: Observer = Observer(),
        clock: Callable[[], float] = time.time,
        sync: Callable[[int], None] = os.fsync,
    ) -> None:
        """Args: clock: Unix seconds. sync: flushes what was written to a file descriptor to the disk."""
        self._folder, self._observer = folder, observer
        self._search = Search(plan.space)
        self.writer = StudyWriter(folder, self._search, observer, clock, sync)
        self.jobs = JobSource(plan, folder, self.writer, self._search)
        self._rungs = Rungs(self.study)

    @property
    def study(self) -> StudyRecord:
        return self.writer.study

    @property
    def _space(self) -> Space:
        """The current settings. A study may grow while it runs."""
        return self.jobs.plan.space

    def begin(self, name: str = "", command: str = "") -> None:
        """Begins the log of a new study: its settings, and results of earlier studies. For an existing log, writes what
        has been added to the study.
        """
        if self.study.name:
            if new := growth_since(self.study, self._space):
                self.writer.write("extended", what=new, **in_log(self._space), aside=True)
            return
        self.writer.write(
            "study",
            name=name or self._folder.path.resolve().name,
            question=self._space.question,
            **in_log(self._space),
            constraints={
                metric: bound.model_dump(exclude_none=True) for metric, bound in self._space.constraints.items()
            },
            provenance=study_provenance(command),
            environment=environment(),
        )
        for earlier in self._space.warm_start:
            for known in self._search.known_from(read_study(earlier)):
                self.writer.write("known", **known)

    def next(self) -> Job | None:
        """The next job: first the calibrations, then the runs that tune the arms, then unfinished runs of the log, then
        proposals of the search. None if nothing is left, or if the next job depends on jobs that have not ended
        (`jobs.exhausted` tells).
        """
        with self.writer.lock:
            return self.jobs.next()

    def judge(self, trial: str, step: int) -> str:
        """The reason to stop the run at the rung that ends at `step`, which is in the log. Empty if it continues."""
        with self.writer.lock:
            return prune_reason(self._space, self.study, trial, step, self._rungs)

    def take_in(self, event: dict[str, Any]) -> None:
        """Writes an event of the dispatcher to the log, with its consequences.

        Raises:
            RunFailedError: if a worker reports that no job can continue.
            StorageError: if a run's results cannot be fetched.
        """
        name, key, kind = event.pop("event"), event.pop("key"), event.pop("kind")
        if name == "halted":
            raise RunFailedError(event["reason"])
        if name == "evaluated" and (reason := broken_constraints(self._space, event["metrics"])):
            event["reason"] = reason
        if kind == "trial":
            if name in ENDED:
                event.setdefault("metrics", {})[MOVES.name] = float(self.study.runs[key].moves)
            storage = self.jobs.inputs.storage if name in ENDED else None
            if storage:
                fetched = fetch_results(storage, self.jobs.stored(key), self._folder.trial(key))
                if name == "evaluated" and not fetched:
                    raise StorageError(f"the storage {storage.address} has lost what run {key} left")
            with self.writer.lock:
                self.writer.write(name, **({"key": key} if name == "calibrated" else {}), trial=key, **event)
                self._rungs.look(key)
            if storage:
                storage.forget(self.jobs.stored(key))
            if name in ENDED:
                give_up_run(self._folder, self.study.runs[key], self._space.keep)
        elif name == "calibrated":
            self.writer.write(name, key=key.removeprefix(CALIBRATION), **event)
            self._observer.on_phase(
                len(self.study.calibrations), len(self.jobs.plan.arms), "calibrating the speed of the arms"
            )
        elif name == "failed":
            self.jobs.unmeasurable(key.removeprefix(CALIBRATION), event["reason"])

    def conclude(self) -> bool:
        """Whether the study is finished. If so, writes it to the log.

        Raises:
            RunFailedError: if nothing can continue.
        """
        for obstacle in self.jobs.obstacles:
            raise RunFailedError(obstacle)
        unfinished = any(record.state not in ENDED for record in self.study.runs.values())
        if unfinished or not self.jobs.exhausted or not self.study.runs:
            return False
        for obstacle in self.jobs.untunable:
            raise RunFailedError(obstacle)
        self.writer.write("finished")
        give_up(self._folder, self.study, self._space)
        return True
