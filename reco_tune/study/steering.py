"""Handles requests: a study grows, runs are stopped or retried, all runs pause. Runs in the driver, which alone writes
the log. Knows the log, the jobs and the requests; calls Ray only through functions that it is given.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any

from reco_tune.cost.planning import plan
from reco_tune.errors import ReCoTuneError, StudyError, command
from reco_tune.study import requests
from reco_tune.study.growth import Growth, check_extendable, grown, in_log, news
from reco_tune.study.job_source import JobSource
from reco_tune.study.limits import limit_reached
from reco_tune.study.requests import LOOK_SECONDS, Request
from reco_tune.study.searcher import rehearse
from reco_tune.study.study_writer import StudyWriter, freeze, frozen, locked
from reco_tune.study.unchanged import check_unchanged
from reco_tune.study_log import (
    AGAIN,
    ENDED,
    EventLog,
    RunRecord,
    StudyFolder,
    StudyRecord,
    named_run,
    read_study,
)

STOPPED = "stopped by hand"
"""Reason of a run that the user stopped. Such a run is in no table."""
FAILED = "--failed"
"""In place of a run's name: every run that failed."""


class Steering:
    """Handles requests while a study runs."""

    def __init__(
        self,
        folder: StudyFolder,
        writer: StudyWriter,
        jobs: JobSource,
        stop: Callable[[str, str], None],
        pause: Callable[[], None],
        limit: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """
        Args:
            stop: asks a running run to stop, with the reason.
            pause: asks all runs to pause.
            limit: called with the limit that the study has reached, as long as it is reached.
        """
        self.grew = threading.Event()
        """The study has new jobs."""
        self._folder, self._writer, self._jobs = folder, writer, jobs
        self._stop, self._pause, self._limit = stop, pause, limit
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)

    def start(self) -> None:
        """Starts looking for requests."""
        self._thread.start()

    def close(self) -> None:
        """Stops; later requests wait for the next driver."""
        self._closing.set()
        self._thread.join()

    def look(self) -> None:
        """Handles all waiting requests."""
        for request in requests.waiting(self._folder):
            with self._writer.lock:
                if request.name not in self._writer.study.requests:
                    self._take(request)
                requests.remove(self._folder, request)

    def _run(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            with suppress(Exception):  # a full disk or a lost cluster: the driver reports it
                self.look()
                self.check_limits()

    def check_limits(self) -> None:
        """Checks the study's limits by its log and the clock."""
        study = self._writer.study
        idle = max(0.0, time.time() - study.time) if study.time else 0.0
        reason = limit_reached(self._jobs.plan.space, study, idle)
        if reason and self._jobs.left:
            self._limit(reason)

    def _take(self, request: Request) -> None:
        refused = {}
        try:
            if request.what == "extend":
                self._extend(Growth(**request.fields["growth"]), request.name)
                return
            if request.what == "stop":
                self._end(request.fields["runs"])
            elif request.what == "retry":
                self._again(request.fields["runs"])
            elif request.what == "pause":
                self._pause()  # the next driver finds the request answered
            else:
                raise StudyError(
                    f"the study does not know the request `{request.what}`, because it runs with another version of"
                    " ReCo-Tune; use the same version"
                )
        except ReCoTuneError as error:
            refused = {"refused": str(error)}
        except (KeyError, TypeError, ValueError) as error:
            refused = {"refused": f"the request is invalid ({type(error).__name__}: {error})"}
        about = {"runs": request.fields["runs"]} if "runs" in request.fields else {}
        self._writer.write("requested", request=request.name, what=request.what, **about, **refused)

    def _extend(self, growth: Growth, name: str) -> None:
        before, study = self._jobs.plan, self._writer.study
        check_extendable(study, self._folder.path)
        space = frozen(grown(before.space, growth))
        planned = plan(space)
        check_unchanged(space, study, self._folder)
        pause = f"`{command('pause', self._folder.path)}` it first, then extend it"
        was = before.shared.where_settings()
        for key, value in sorted(planned.shared.where_settings().items()):
            if value != was[key]:
                raise StudyError(f"--set {key}: this cannot change while the study runs; {pause}")
        if set(planned.piece_blocks) - set(before.piece_blocks):
            raise StudyError(
                f"a new arm trains on pieces of {planned.piece_blocks} blocks, which are not encoded yet; {pause}"
            )
        if planned.trials:
            rehearse(space)
        freeze(space, self._folder)
        self._writer.write("extended", what=news(before.space, space), **in_log(space), request=name)
        self._jobs.grow(planned)
        self.grew.set()

    def _end(self, names: Sequence[str]) -> None:
        for run in stoppable(self._writer.study, names):
            if self._jobs.withdraw(run.trial):
                self._writer.write("pruned", trial=run.trial, reason=STOPPED)
            else:
                self._stop(run.trial, STOPPED)

    def _again(self, names: Sequence[str]) -> None:
        for run in retryable(self._writer.study, names):
            self._writer.write("retried", trial=run.trial, attempt=run.attempt + 1, reason=AGAIN)
            self._jobs.again(run.trial)
            self.grew.set()


def stoppable(study: StudyRecord, names: Sequence[str]) -> list[RunRecord]:
    """
    The run to stop.

    Raises:
        StudyError: if there is no such run, or it has ended.
    """
    runs = [named_run(study, name) for name in names]
    for run in runs:
        if run.state in ENDED:
            raise StudyError(f"run {run.trial} has ended ({run.state}) already")
    return runs


def retryable(study: StudyRecord, names: Sequence[str]) -> list[RunRecord]:
    """
    The runs to retry.

    Raises:
        StudyError: for an unknown run, or one that has not failed or been stopped; or if no run has failed.
    """
    if list(names) == [FAILED]:
        failed = [run for run in study.runs.values() if run.state == "failed"]
        if not failed:
            raise StudyError("no run of the study has failed; give one that was stopped")
        return failed
    runs = [named_run(study, name) for name in names]
    for run in runs:
        if run.state not in ("failed", "pruned"):
            raise StudyError(f"run {run.trial} is {run.state}; only runs that failed or were stopped can be retried")
    return runs


def stop_runs(folder: StudyFolder, names: Sequence[str]) -> None:
    """Stops runs, whether or not the study is running.

    Raises:
        StudyError: as `stoppable`.
        StoppedError: if the driver has not answered yet.
    """
    if requests.answered(folder, "stop", runs=list(names)) is None:
        stop_aside(folder, names)


def retry_runs(folder: StudyFolder, names: Sequence[str]) -> bool:
    """Retries runs. True if a driver is running and does it; otherwise the next driver will.

    Raises:
        StudyError: as `retryable`.
        StoppedError: if the driver has not answered yet.
    """
    if requests.answered(folder, "retry", runs=list(names)) is not None:
        return True
    retry_aside(folder, names)
    return False


def pause_study(folder: StudyFolder) -> None:
    """Pauses a running study.

    Raises:
        StudyError: if the study is not running.
        StoppedError: if the driver has not answered yet.
    """
    if requests.answered(folder, "pause") is None:
        raise StudyError(f"the study in {folder.path} is not running; `{command('resume', folder.path)}` continues it")


def stop_aside(folder: StudyFolder, names: Sequence[str]) -> None:
    """Stops a run of a study that is not running: it will not start or continue.

    Raises:
        StudyError: as `stoppable`, and if the study is running.
    """
    with locked(folder):
        runs = stoppable(read_study(folder.path), names)
        _append(folder, "pruned", [{"trial": run.trial, "reason": STOPPED} for run in runs])


def retry_aside(folder: StudyFolder, names: Sequence[str]) -> None:
    """Marks runs for the next driver of the study to retry.

    Raises:
        StudyError: as `retryable`, and if the study is running.
    """
    with locked(folder):
        runs = retryable(read_study(folder.path), names)
        events = [{"trial": run.trial, "attempt": run.attempt + 1, "reason": AGAIN} for run in runs]
        _append(folder, "retried", events)


def _append(folder: StudyFolder, event: Any, all_fields: list[dict[str, Any]]) -> None:
    with closing(EventLog(folder.events)) as log:
        for fields in all_fields:
            log.append(event, **fields, aside=True)
