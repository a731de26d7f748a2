"""The driver of a study: it plans, starts Ray, lets Tune decide, and alone writes the log.

The study folder holds the whole state. Everything here (Optuna's study, Tune's trials, the worker groups) is rebuilt
from the log when a study is resumed. So a driver may be killed at any instruction. Evaluated runs are not repeated, and
running ones continue from their checkpoint under the same name.
"""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.exceptions import ActorUnavailableError, RayError
from ray.tune.error import TuneError
from ray.tune.search import Searcher

from reco_tune.cost.planning import Plan, check_measured
from reco_tune.errors import ReCoTuneError, RunFailedError, StoppedError, command, no_space
from reco_tune.evaluation import prepare_evaluation
from reco_tune.preparation import prepare_tokens
from reco_tune.settings import Space
from reco_tune.study import preflight
from reco_tune.study.bookkeeping import Bookkeeping
from reco_tune.study.cluster import Placement, beside_workers, cluster, nodes, place
from reco_tune.study.dispatcher import ACTOR, Dispatcher
from reco_tune.study.job_source import JobInputs, JobSource
from reco_tune.study.notices import Notices
from reco_tune.study.observer import Observer
from reco_tune.study.phases import Phases
from reco_tune.study.ray_internals import HEAD, notebook_reporter, running_clusters
from reco_tune.study.scheduler import ParetoAsha
from reco_tune.study.steering import Steering
from reco_tune.study.storage import Storage, cached_parts
from reco_tune.study.trial import NoTrialOutput, Proposals, Suggestion, follow
from reco_tune.study.worker_pool import WorkerPool
from reco_tune.study_log import StudyFolder, StudyRecord
from reco_tune.tracking import Mirror

HEAD_SECONDS = 1.0
"""Seconds between two checks that the cluster's head is alive, after a study was told to stop."""
LONGEST_LEAVE_SECONDS = 15.0
"""Longest time that a stopping driver takes if its cluster has ended."""
GATHER_SECONDS = 1e-4
"""Seconds between two reads of the dispatcher's events, for each worker group. Events of many groups travel together.
"""
TRIAL_BYTES = 128 * 2**20
"""Memory that Ray reserves for a trial's light process. Trials reserve nothing else. So they start at once, take no
worker's CPU, and Ray spreads them over the machines by free memory.
"""
TRIAL_RETRIES = 20
"""How often Tune restarts a trial's light process, which dies with its machine. The work itself is not lost."""


@dataclass(frozen=True)
class Options:
    """Options of launching a study; none of them changes a result."""

    name: str = ""
    """Name of the study. If empty, the name of its folder."""
    address: str | None = None
    """Address of a running Ray cluster. Without one, the study starts its own on this machine."""
    tracking_uri: str | None = None
    """MLflow server. Without one, a sqlite file in the study folder."""
    track: bool = True
    """Whether MLflow mirrors the log."""
    command: str = ""
    """The command line, for the record."""


@dataclass(frozen=True)
class StudyResult:
    """The outcome of `run` or `resume`."""

    folder: StudyFolder
    study: StudyRecord
    interrupted: bool
    """Whether it was stopped (Ctrl-C). `resume` continues it."""


class Driver:
    """One call of `run` or `resume`."""

    def __init__(self, plan: Plan, folder: StudyFolder, options: Options, observer: Observer) -> None:
        self._folder, self._options, self._observer = folder, options, Phases(folder, observer)
        self._books = Bookkeeping(plan, folder, self._observer)
        self._dispatcher: Any = None
        self._stopping, self._limited = threading.Event(), threading.Event()
        """Whether the study is to stop, by hand or by a limit."""
        self._head = ""
        """Address of the cluster's head."""
        self._left = threading.Event()
        """Whether nothing runs in the cluster any more."""
        self._pausing: threading.Thread | None = None
        self._broken = ""
        """Why the cluster cannot be heard any more."""
        self._pool: WorkerPool | None = None
        self._unfit: set[str] = set()
        """Machines that joined but cannot be used."""

    @property
    def study(self) -> StudyRecord:
        return self._books.study

    @property
    def _jobs(self) -> JobSource:
        return self._books.jobs

    @property
    def _space(self) -> Space:
        """The current settings. A study may grow while it runs."""
        return self._jobs.plan.space

    @property
    def _ending(self) -> bool:
        """Whether nothing new may begin."""
        return self._stopping.is_set() or self._limited.is_set()

    @property
    def _pool_gone(self) -> bool:
        return self._pool is not None and self._pool.gone

    def drive(self) -> StudyResult:
        """Runs the study to its end, from the state of its log."""
        with ExitStack() as stack:
            writer = self._books.writer
            stack.callback(writer.close)
            stack.callback(self._observer.close)
            stack.enter_context(self._interruptible())
            again = bool(self.study.name)
            self._books.begin(self._options.name, self._options.command)
            if self._space.trials:
                writer.begin_optuna(self._folder.optuna, self.study.name)
            if self._options.track:
                writer.mirror = Mirror(
                    self._folder, self._options.tracking_uri, lambda what: self._observer.on_phase(1, 1, what)
                )
                writer.mirror.notify()
                stack.callback(writer.mirror.close)
            if not self.study.finished:
                stack.enter_context(self._told())
                self._prepare()
                if again:
                    writer.write("resumed", command=self._options.command)
                if not self._stopping.is_set():
                    self._work()
        return StudyResult(self._folder, self.study, interrupted=self._stopping.is_set())

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Within this context, sends the messages that `on_event` asks for."""
        notices = Notices(self._observer, self._space, self._folder, self.study)
        self._books.writer.observer = notices
        try:
            yield
        except ReCoTuneError as error:
            notices.stopped_by(error)
            raise
        finally:
            notices.close()

    # --- before Ray ---

    def _prepare(self) -> None:
        """Token cache, and where there are pixels feature extractor and reference statistics; on disk when this
        returns.
        """
        experiment = self._jobs.plan.shared
        preflight.check_folder(experiment.cache_dir, "the cache folder")
        seen = {run.provenance.get("data_fingerprint", "") for run in self.study.runs.values()} - {""}
        cache = prepare_tokens(experiment, self._observer.on_phase, self._jobs.plan.piece_blocks, seen=seen)
        beside: tuple[Path, ...] = ()
        if cache.has_pixels:
            evaluation = prepare_evaluation(experiment, cache, self._observer.on_phase)
            check_measured(self._space, experiment, classes=evaluation.classifier is not None)
            beside = (cache.tokenizer_path, *evaluation.folders)
        storage, parts = None, {}
        if experiment.resources.storage is not None:
            storage = Storage(experiment.resources.storage)
            parts = cached_parts(experiment, cache.path, beside)
            for done, (name, part) in enumerate(parts.items(), start=1):
                if not storage.holds(name):
                    storage.put(part, name)
                self._observer.on_phase(done, len(parts), f"copying the cache to {storage.address}")
        self._jobs.inputs = JobInputs(str(cache.path.resolve()), storage, tuple(parts))

    # --- with Ray ---

    def _work(self) -> None:
        experiment, left = self._jobs.plan.shared, self._jobs.left
        others = running_clusters() if self._options.address is None else []
        if others:
            self._observer.on_phase(
                1,
                1,
                f"Ray is already running on this machine ({', '.join(others)}); this study starts its own cluster"
                " beside it",
            )
        self._observer.on_phase(0, 2, "starting Ray")
        with ExitStack() as stack:
            here = stack.enter_context(cluster(self._options.address, experiment.resources, self._folder.ray / "temp"))
            placement = place(experiment.resources, here, left)
            if self._options.address is not None:
                self._survey(placement)
            self._head = ray.get_runtime_context().gcs_address
            stack.callback(self._end_pausing)
            self._observer.on_phase(1, 2, f"starting {placement.groups} worker group(s)")
            name = f"dispatcher-{uuid.uuid4().hex[:12]}"
            self._dispatcher = (
                ray.remote(Dispatcher)  # with the driver: a machine that is lost must not take the dispatcher along
                .options(**ACTOR, resources={HEAD: 0.001}, name=name)
                .remote(
                    placement.workers,
                    experiment.resources.max_failures,
                    experiment.resources.trial_deadline_seconds,
                    ray.kill,
                    _alive,
                )
            )
            self._pool = WorkerPool(self._dispatcher, placement, self._folder.ray, left, self._room)
            stack.callback(self._pool.end)
            try:
                with self._draining(placement.groups):
                    self._tune_all(name, placement)
                    if not self._broken:
                        ray.get(self._dispatcher.pause.remote())
                        self._pool.join()
            except (RayError, TuneError, ReCoTuneError, OSError) as error:
                self._give_up(error)
            finally:
                self._dispatcher = None
        self._conclude()

    def _survey(self, placement: Placement) -> None:
        """
        Raises:
            StudyError, SettingsError: where a machine of the cluster is not fit for the study.
        """
        experiment, storage = self._jobs.plan.shared, self._jobs.inputs.storage
        folders = {"the study folder": self._folder.path, "the cache folder": experiment.cache_dir}
        machines = preflight.survey({"the storage": storage} if storage else folders)
        preflight.check_memory(self._jobs.plan, machines, placement.groups * placement.workers)

    def _room(self, joined: set[str]) -> int:
        """How many worker groups the cluster has room for now, and the study jobs.

        Args:
            joined: machines that are new: they must be fit for the study, too.
        """
        with self._books.writer.lock:
            left = self._jobs.left
        known = {name: own for name, own in nodes().items() if name not in self._unfit}
        try:
            placement = place(self._jobs.plan.shared.resources, known.values(), left)
            if joined:
                self._survey(placement)
        except ReCoTuneError as error:
            if joined:
                self._unfit |= joined
                self._tell(f"a machine that joined is not used: {error}")
            return 0
        if self._pool is not None and placement.groups > (before := self._pool.groups):
            self._tell(f"{placement.groups} worker groups instead of {before}: there is room and work for more")
        return placement.groups

    def _tell(self, what: str) -> None:
        """While runs are at work."""
        self._observer.on_phase(1, 1, what)
        self._observer.close()

    def _tune_all(self, dispatcher: str, placement: Placement) -> None:
        """Works until nothing is left to do and nobody has asked for more."""
        steering = Steering(self._folder, self._books.writer, self._jobs, self._stop_run, self._stop, self._limit)
        steering.start()
        try:
            more = True
            while more:
                steering.grew.clear()
                self._tune(dispatcher, placement)
                steering.look()
                more = steering.grew.is_set() and not (self._ending or self._broken)
        finally:
            steering.close()

    def _tune(self, dispatcher: str, placement: Placement) -> None:
        """Runs Tune, from the first calibration on. Tune's processes start while the worker groups do."""
        light = [{"memory": TRIAL_BYTES}]
        where = tune.PlacementGroupFactory(light, bundle_label_selector=[beside_workers(placement)])
        tune.Tuner(
            tune.with_resources(follow, where),
            tune_config=tune.TuneConfig(
                search_alg=Proposals(lambda: self._next(dispatcher), lambda: self._pool.groups if self._pool else 1),
                scheduler=ParetoAsha(self._judge if self._space.pruning.kind != "none" else None),
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["trial"],
                trial_dirname_creator=lambda trial: trial.config["trial"],
            ),
            run_config=tune.RunConfig(
                name=f"tune-{uuid.uuid4().hex[:8]}",
                storage_path=str(self._folder.ray.resolve()),
                failure_config=tune.FailureConfig(max_failures=TRIAL_RETRIES),
                callbacks=[NoTrialOutput()],
                verbose=0,
                progress_reporter=notebook_reporter(),
            ),
        ).fit()

    def _judge(self, trial: str, step: int) -> None:
        """A job has reported a rung. Asks it to stop if the scheduler decides so."""
        try:
            if reason := self._books.judge(trial, step):
                ray.get(self._dispatcher.stop.remote(trial, reason))
        except Exception as error:  # Tune would turn an exception of a scheduler into a traceback
            self._give_up(error)

    def _next(self, dispatcher: str) -> Suggestion:
        """The next trial's configuration: the calibrations, then what the log holds unfinished, then what the search
        proposes.
        """
        try:
            if self._ending or self._broken or self._jobs.obstacles or self._pool_gone:
                return Searcher.FINISHED
            job = self._books.next()
            if job is None:
                return Searcher.FINISHED if self._jobs.exhausted else None
            ray.get(self._dispatcher.submit.remote(job))
        except Exception as error:  # Tune would turn an exception of a searcher into a traceback
            self._give_up(error)
            return Searcher.FINISHED
        return {"dispatcher": dispatcher, "trial": job.key}

    # --- the dispatcher's events ---

    @contextmanager
    def _draining(self, groups: int) -> Iterator[None]:
        """Writes the dispatcher's events to the log while the block runs."""
        done, dispatcher = threading.Event(), self._dispatcher

        def write() -> None:
            written = 0
            while not self._broken:
                try:
                    seconds = 0 if done.is_set() else None
                    written = self._take(*ray.get(dispatcher.news.remote(written, seconds)))
                except Exception as error:
                    self._give_up(error)
                if done.is_set() and not written:
                    return
                done.wait(groups * GATHER_SECONDS)

        thread = threading.Thread(target=write, name="log", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            dispatcher.progress.remote("", 0, 0, "")  # wakes the thread; raises nothing where it is gone
            while thread.is_alive() and not self._broken:
                thread.join(1)
            thread.join(
                LONGEST_LEAVE_SECONDS
            )  # it may wait in Ray, which ends the process if it is shut down meanwhile

    def _take(self, events: list[dict[str, Any]], progress: dict[str, tuple[int, int, str]]) -> int:
        """Writes the dispatcher's events to the log. Returns how many there were."""
        for event in events:
            self._books.take_in(event)
        progress.pop("", None)
        for key, (done, total, what) in progress.items():
            self._observer.on_progress(key, done, total, what)
        return len(events)

    def _give_up(self, error: Exception) -> None:
        """Nothing can be heard or written any more. Running jobs are left as if the driver had died, so a resumed study
        continues them.
        """
        if not self._broken:
            if isinstance(error, ReCoTuneError):
                self._broken = str(error)
            elif no_space(error):
                self._broken = f"{self._folder.path} cannot be written, because its disk is full; free some space"
            else:
                self._broken = (
                    f"the driver lost its dispatcher ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                )
        dispatcher = self._dispatcher
        if dispatcher is not None:
            dispatcher.abandon.remote()  # raises nothing here where the dispatcher is gone

    # --- the end ---

    def _conclude(self) -> None:
        if not self._books.conclude() and not self._ending:
            why = (
                self._broken
                or "; ".join(dict.fromkeys(self._pool.lost.values() if self._pool else ()))
                or "their trials were lost"
            )
            most = "at most " if self._space.finalist_seeds else ""
            raise RunFailedError(
                f"{most}{self._jobs.left} run(s) are unfinished ({why});"
                f" `{command('resume', self._folder.path)}` continues them"
            )

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C, or SIGTERM, by which a machine that shuts down asks its processes to go. Once: running jobs leave
        with a checkpoint. Twice, or before anything runs: stop now. Resumable either way.
        """

        def interrupt(signum: int, frame: FrameType | None) -> None:
            if self._dispatcher is None and not self._stopping.is_set():
                self._stopping.set()
                goes_on = command("resume", self._folder.path)
                self._observer.on_phase(0, 1, f"stopping: `{goes_on}` continues the study")
                raise KeyboardInterrupt
            if self._stopping.is_set():
                raise KeyboardInterrupt
            self._stop()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        """Asks running jobs to leave with a checkpoint, and ends the study."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._observer.on_phase(
            0,
            1,
            "stopping: running trials write a checkpoint and stop; Ctrl-C again stops at once;"
            f" `{command('resume', self._folder.path)}` continues",
        )
        # in a thread: Ray must not be called by a handler that may have interrupted Ray itself
        self._pausing = threading.Thread(target=self._pause, args=(self._dispatcher,), daemon=True)
        self._pausing.start()

    def _limit(self, reason: str) -> None:
        """A limit is reached. Nothing new begins, and running jobs leave at their next rung."""
        if not (self._stopping.is_set() or self._limited.is_set()):
            self._limited.set()
            self._books.writer.write("limited", reason=reason)
            self._observer.on_phase(0, 1, f"{reason}; running trials stop at their next rung")
            ray.get(self._dispatcher.pause.remote(at_rung=True))

    def _stop_run(self, trial: str, reason: str) -> None:
        ray.get(self._dispatcher.stop.remote(trial, reason))

    def _pause(self, dispatcher: Any) -> None:
        """Tells the dispatcher to stop, and watches whether the cluster survives until then: a batch system sends
        SIGTERM to every process. If the head is gone, Ray may block its callers for a minute and then end the process
        with messages of its own. The user knows how to continue, and the log is whole, so the driver leaves at once.
        """
        dispatcher.pause.remote()
        while preflight.answers(self._head):
            if self._left.wait(HEAD_SECONDS):
                return
        if not self._left.wait(LONGEST_LEAVE_SECONDS):
            os._exit(StoppedError.exit_code)

    def _end_pausing(self) -> None:
        """Stops the watch. A call of Ray after its shutdown would end the process."""
        self._left.set()
        if self._pausing is not None:
            self._pausing.join()


async def _alive(worker: Any) -> bool:
    """Whether a worker's process is alive. One that cannot be reached for a while counts as alive."""
    try:
        await worker.__ray_ready__.remote()
    except ActorUnavailableError:
        return True
    except RayError:
        return False
    return True
