"""A whole study on simulated time. Search, job source, pruning, log and dispatcher are real. The machines, the
training time, Ray's delays and the faults are simulated.

Worker groups call the dispatcher as `study.worker` does, followers as `study.trial`, and the log's writer as
`study.runner`. A killed driver leaves its log, the checkpoints and the results. Everything else is rebuilt.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reco_tune.cost import Plan
from reco_tune.errors import RunFailedError, SettingsError
from reco_tune.settings import SEARCH, Experiment
from reco_tune.simulation.checks import check_log
from reco_tune.simulation.clock import SimulatedLoop
from reco_tune.simulation.faults import Fault, FaultRates, machine_faults, study_faults
from reco_tune.simulation.workload import Workload
from reco_tune.study.bookkeeping import Bookkeeping
from reco_tune.study.dispatcher import Dispatcher, Job
from reco_tune.study.runner import GATHER_SECONDS
from reco_tune.study.worker_pool import MACHINES_SECONDS, PROGRESS_PER_SECOND
from reco_tune.study_log import StudyFolder, StudyRecord, read_study
from reco_tune.training.loop import rung_steps

GROUP_START_SECONDS = 26.0
"""Until a worker group starts to work: a Train run of Ray, measured on two idle cores."""
TRIAL_SECONDS = 0.4
"""Time of Tune's thread for each trial that starts, with reused actors."""
RESULT_SECONDS = 0.005
"""Time of Tune's thread for each report."""
WRITE_SECONDS = 0.002
"""Time to write one event on a normal disk."""
CHECKPOINT_SECONDS = 5.0
"""Time to write the checkpoint of a run that is asked to leave."""
MIRROR_SECONDS = 0.03
"""Time to send one event to MLflow over the network."""
MIRROR_LOOK_SECONDS = 60.0
DEADLINE = 5.0
"""Deadline of runs that may hang, if resources.trial_deadline_seconds is not set; in lengths of the longest run."""


@dataclass
class Simulated:
    """Results of a simulated study. Seconds are simulated unless stated otherwise."""

    gpus: int
    groups: int
    wall: float = 0.0
    handed_out: float = 0.0
    """Time when the last new job was dispatched. What follows is the tail."""
    busy: float = 0.0
    """GPU seconds of work, including lost work."""
    busy_before_tail: float = 0.0
    lost: float = 0.0
    """GPU seconds of work that had to be repeated."""
    down: float = 0.0
    """GPU seconds of machines that were unavailable."""
    down_before_tail: float = 0.0
    silence: float = 0.0
    """Longest time without an event in the log while the driver was alive."""
    mirror_lag: float = 0.0
    """Largest delay of MLflow in seconds."""
    slowest_answer: float = 0.0
    """Longest time that a worker waited for the answer to a report."""
    faults: Counter[str] = field(default_factory=Counter)
    work: list[tuple[float, int]] = field(default_factory=list)
    """(time, change in the number of busy groups)."""
    cpu: dict[str, float] = field(default_factory=lambda: {"search": 0.0, "judgement": 0.0, "log": 0.0})
    """Real CPU seconds of the driver."""
    events: int = 0
    study: StudyRecord = field(default_factory=StudyRecord)
    problems: list[str] = field(default_factory=list)
    """Violations found in the log, one sentence each."""

    @property
    def utilisation(self) -> float:
        """Share of the available GPU time spent working, from the start until the last job was dispatched."""
        return self.busy_before_tail / max(1e-9, self.gpus * self.handed_out - self.down_before_tail)


def simulate(
    plan: Plan,
    workload: Workload,
    gpus: int,
    rates: FaultRates,
    seed: int,
    folder: Path,
    gpus_per_machine: int = 8,
) -> Simulated:
    """Runs the plan on simulated time. The log is in `folder` afterwards.

    Raises:
        SettingsError: if not even one worker group fits.
        StandstillError: if the study deadlocks.
    """
    if gpus < plan.shared.resources.workers:
        raise SettingsError(
            f"a run needs {plan.shared.resources.workers} workers, but there are {gpus} GPUs; raise --gpus or lower"
            " resources.workers"
        )
    loop = SimulatedLoop()
    simulation = _Simulation(loop, plan, workload, gpus, rates, seed, StudyFolder(folder), gpus_per_machine)
    try:
        loop.run_until_complete(simulation.study())
    finally:
        loop.close()
    found = simulation.found
    found.study = read_study(folder)
    found.problems = check_log(plan, folder)
    return found


class _Simulation:
    """The simulated world: everything that survives a killed driver."""

    def __init__(
        self,
        loop: SimulatedLoop,
        plan: Plan,
        workload: Workload,
        gpus: int,
        rates: FaultRates,
        seed: int,
        folder: StudyFolder,
        gpus_per_machine: int,
    ) -> None:
        resources = plan.shared.resources
        self.loop, self.plan, self.workload, self.rates, self.seed = loop, plan, workload, rates, seed
        self._folder, self.workers, self.per_machine = folder, resources.workers, gpus_per_machine
        jobs = len(plan.arms) + plan.total * (1 + plan.space.finalist_seeds)
        groups = min(gpus // resources.workers, jobs)  # resources.concurrent_trials belongs to another cluster
        self.found = Simulated(groups * resources.workers, groups)
        self._machines = -(-groups * resources.workers // gpus_per_machine)
        self.back_at: dict[int, float] = {}
        """Time at which each lost machine returns."""
        self.going: set[int] = set()
        self.slow_until = self.untracked_until = 0.0
        self._faults: list[tuple[float, int, Fault, Any]] = []
        self._numbers = itertools.count()
        for faults in [
            *(machine_faults(rates, machine, seed) for machine in range(self._machines)),
            *study_faults(rates, seed),
        ]:
            self._next_of(faults)
        self.steps: dict[str, int] = {}
        """Step of each run's newest checkpoint."""
        self.results: dict[str, dict[str, float]] = {}
        self._experiments: dict[str, Experiment] = {}
        self.epochs = 0
        self.deadline = resources.trial_deadline_seconds
        """Longest time that an attempt may take, in seconds."""
        if rates.hang_share and self.deadline is None:
            kinds = [run.experiment for run in plan.fixed] + ([plan.sampled] if plan.sampled else [])
            self.deadline = DEADLINE * max(
                workload.times(f"kind {n}", kind).whole(kind) for n, kind in enumerate(kinds)
            )

    @property
    def now(self) -> float:
        return self.loop.time()

    async def study(self) -> None:
        """Starts drivers one after another, until one of them ends the study."""
        while True:
            self.epochs += 1
            books = Bookkeeping(self.plan, self._folder, clock=lambda: self.now, sync=lambda descriptor: None)
            books.begin("simulated", "reco-tune simulate")
            driver = _Driver(self, books)
            try:
                if await driver.drive():
                    break
            finally:
                books.writer.close()
            await asyncio.sleep(self.rates.resume_seconds)
        self.found.wall = self.now
        for back in self.back_at.values():
            self.found.down -= max(0.0, back - self.now) * self.per_machine

    # --- faults ---

    def due(self) -> float:
        """Time of the next fault."""
        return self._faults[0][0] if self._faults else float("inf")

    def take_fault(self) -> Fault:
        _, _, fault, following = heapq.heappop(self._faults)
        if following is not None:
            self._next_of(following)
        if fault.kind == "notice":
            self._later(Fault(fault.at + self.rates.notice_seconds, "lost", fault.machine, fault.until))
        return fault

    def _later(self, fault: Fault, following: Any = None) -> None:
        heapq.heappush(self._faults, (fault.at, next(self._numbers), fault, following))

    def _next_of(self, faults: Any) -> None:
        if (fault := next(faults, None)) is not None:
            self._later(fault, faults)

    def experiment(self, job: Job) -> Experiment:
        if job.key not in self._experiments:
            self._experiments[job.key] = Experiment.model_validate(job.settings)
        return self._experiments[job.key]


class _Driver:
    """One driver and its cluster, until the study ends or the driver is killed."""

    def __init__(self, world: _Simulation, books: Bookkeeping) -> None:
        self._world, self._books, self._found = world, books, world.found
        resources = world.plan.shared.resources
        self._dispatcher = Dispatcher(
            world.workers,
            resources.max_failures,
            world.deadline,
            self._kill,
            self._alive,
            poll_seconds=None,
        )
        self._tasks: dict[asyncio.Task[Any], None] = {}
        """Ordered by start, so that a seed gives exactly the same sums."""
        self._ended = asyncio.Event()
        """Set when a trial has ended since the last check."""
        self._over: asyncio.Future[bool] = world.loop.create_future()
        self._live: set[str] = set()
        self._tune = asyncio.Lock()
        """Tune's single thread."""
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._living: set[tuple[int, int, str]] = set()
        self._noticed: dict[int, asyncio.Event] = {}
        self._working, self._since = 0, 0.0
        """Number of busy groups, and the sum of their start times."""

    async def drive(self) -> bool:
        """Returns whether the study has ended; False if the driver was killed."""
        for slot in range(self._found.groups):
            self._spawn(self._group(slot))
        for work in (self._write(), self._suffer(), self._mirror(), self._study()):
            self._spawn(work)
        try:
            return await self._over
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in [*self._tasks, *others]:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None and not self._over.done():
            self._over.set_exception(error)

    def _call(self, work: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        """A call of the actor. It continues even if its caller dies."""
        return asyncio.shield(self._spawn(work))

    # --- the driver ---

    async def _study(self) -> None:
        """Tune's part: as many trials as there are groups, while the study has jobs."""
        while True:
            self._ended.clear()
            job = None
            if len(self._live) < self._found.groups:
                async with self._tune:
                    began = time.process_time()
                    job = self._books.next()
                    self._found.cpu["search"] += time.process_time() - began
                    if job is not None:
                        await asyncio.sleep(TRIAL_SECONDS)
            if job is not None:
                await self._dispatcher.submit(job)
                self._live.add(job.key)
                self._spawn(self._follow(job.key))
                if job.attempt == 1:  # not a job that a killed driver had dispatched before
                    self._given_out()
                continue
            if not self._live:
                break
            await self._ended.wait()
        await self._dispatcher.pause()
        if not self._books.conclude():
            raise RunFailedError(f"{self._books.jobs.left} run(s) never finished")
        self._over.set_result(True)

    def _given_out(self) -> None:
        """Records that a new job was dispatched, perhaps the last one."""
        self._found.handed_out = self._world.now
        at_work = (self._working * self._world.now - self._since) * self._world.workers
        self._found.busy_before_tail = self._found.busy + at_work
        away = sum(max(0.0, back - self._world.now) for back in self._world.back_at.values())
        self._found.down_before_tail = self._found.down - away * self._world.per_machine

    async def _follow(self, key: str) -> None:
        """`study.trial.follow`, with the decisions of the scheduler."""
        seen, outcome = 0, None
        while outcome is None:
            reports, outcome, seen = await self._dispatcher.follow(key, seen)
            for report in reports:
                seen += 1
                async with self._tune:
                    await asyncio.sleep(RESULT_SECONDS)
                    began = time.process_time()
                    reason = self._books.judge(key, report["step"])
                    self._found.cpu["judgement"] += time.process_time() - began
                if reason:
                    await self._dispatcher.stop(key, reason)
        self._live.discard(key)
        self._ended.set()

    async def _write(self) -> None:
        """The log thread of `study.runner`."""
        written, last = 0, self._world.now
        while True:
            events, _ = await self._dispatcher.news(written)
            self._found.silence = max(self._found.silence, self._world.now - last)
            last = self._world.now
            for event in events:
                began = time.process_time()
                self._books.take_in(event)
                self._found.cpu["log"] += time.process_time() - began
                slow = self._world.now < self._world.slow_until
                await asyncio.sleep(self._world.rates.slow_write_seconds if slow else WRITE_SECONDS)
            written = len(events)
            self._found.events += written
            await asyncio.sleep(self._found.groups * GATHER_SECONDS)

    async def _mirror(self) -> None:
        """Sends one event after another to MLflow while its server is up."""
        sent, seen = self._found.events, self._found.events
        while True:
            await asyncio.sleep(MIRROR_LOOK_SECONDS)
            if self._world.now >= self._world.untracked_until:
                sent = min(seen, sent + int(MIRROR_LOOK_SECONDS / MIRROR_SECONDS))
                behind = (seen - sent) * MIRROR_SECONDS
            else:
                behind = self._world.untracked_until - self._world.now + (seen - sent) * MIRROR_SECONDS
            self._found.mirror_lag = max(self._found.mirror_lag, behind if seen > sent else 0.0)
            seen = self._found.events

    # --- faults ---

    async def _suffer(self) -> None:
        """Applies the drawn faults."""
        world = self._world
        for machine, back in world.back_at.items():
            if back > world.now:
                self._spawn(self._come_back(machine, back))
        while world.due() != float("inf"):
            await asyncio.sleep(max(0.0, world.due() - world.now))
            fault = world.take_fault()
            if fault.until <= world.now and fault.kind != "driver killed":
                continue  # it ended before this driver started
            self._found.faults["preempted" if fault.kind == "notice" else fault.kind] += 1
            if fault.kind == "slow disk":
                world.slow_until = fault.until
            elif fault.kind == "no tracking":
                world.untracked_until = fault.until
            elif fault.kind == "driver killed":
                if not self._over.done():
                    self._over.set_result(False)
            elif fault.kind == "notice":
                world.going.add(fault.machine)
                self._tell_machines()
                for slot in self._slots(fault.machine):
                    self._noticed.setdefault(slot, asyncio.Event()).set()
            else:
                if fault.machine in world.going:
                    world.going.discard(fault.machine)
                    self._found.faults["lost"] -= 1  # already counted at its notice
                world.back_at[fault.machine] = fault.until
                self._found.down += (fault.until - world.now) * world.per_machine
                for slot in self._slots(fault.machine):
                    self._die(slot)
                self._tell_machines()
                self._spawn(self._come_back(fault.machine, fault.until))

    async def _come_back(self, machine: int, at: float) -> None:
        await asyncio.sleep(max(0.0, at - self._world.now))
        self._tell_machines()

    def _tell_machines(self) -> None:
        async def tell() -> None:
            await asyncio.sleep(MACHINES_SECONDS)
            lost = [str(machine) for machine, back in self._world.back_at.items() if back > self._world.now]
            await self._dispatcher.machines(lost, [str(machine) for machine in sorted(self._world.going)])

        self._spawn(tell())

    def _slots(self, machine: int) -> list[int]:
        """Groups that have a worker on the machine."""
        first, workers = machine * self._world.per_machine, self._world.workers
        last = first + self._world.per_machine - 1
        return [slot for slot in range(first // workers, last // workers + 1) if slot < self._found.groups]

    def _machine(self, slot: int, rank: int) -> int:
        return (slot * self._world.workers + rank) // self._world.per_machine

    def _die(self, slot: int) -> None:
        if slot in self._serving:
            self._serving[slot].cancel()

    def _kill(self, worker: tuple[int, int, str]) -> None:
        if worker in self._living:
            self._found.faults["killed workers"] += 1
            self._die(worker[0])

    async def _alive(self, worker: tuple[int, int, str]) -> bool:
        return worker in self._living

    # --- the workers ---

    async def _group(self, slot: int) -> None:
        """A worker group, restarted as often as it dies."""
        ranks = range(self._world.workers)
        machines = {self._machine(slot, rank) for rank in ranks}
        for life in itertools.count():
            while (back := max(self._world.back_at.get(machine, 0.0) for machine in machines)) > self._world.now:
                await asyncio.sleep(back - self._world.now)
            await asyncio.sleep(GROUP_START_SECONDS)
            if any(self._world.back_at.get(machine, 0.0) > self._world.now for machine in machines):
                continue
            incarnation = f"{self._world.epochs}-{slot}-{life}"
            workers = {(slot, rank, incarnation) for rank in ranks}
            self._living |= workers
            self._noticed[slot] = asyncio.Event()
            self._serving[slot] = serving = self._spawn(self._serve(slot, incarnation))
            await asyncio.wait({serving})
            self._living -= workers
            if not serving.cancelled():
                return

    async def _serve(self, slot: int, incarnation: str) -> None:
        """`study.worker.serve`."""
        number = 0
        while True:
            taken = [
                self._call(
                    self._dispatcher.take(
                        slot, incarnation, number, (slot, rank, incarnation), str(self._machine(slot, rank))
                    )
                )
                for rank in range(self._world.workers)
            ]
            job = (await asyncio.gather(*taken))[0]
            if job == "leave":
                return
            number += 1
            began = self._world.now
            self._working, self._since = self._working + 1, self._since + began
            self._found.work.append((began, 1))
            try:
                await self._execute(slot, job)
            finally:
                self._working, self._since = self._working - 1, self._since - began
                self._found.busy += (self._world.now - began) * self._world.workers
                self._found.work.append((self._world.now, -1))

    async def _execute(self, slot: int, job: Job) -> None:
        """`study.worker.execute`."""
        world, key = self._world, job.key
        experiment = world.experiment(job)
        speed = world.workload.speed(experiment) if job.sampled or job.kind == "calibration" else {}
        times = world.workload.times(key, experiment)
        if job.kind == "calibration":
            await self._work(times.calibration)
            await self._call(self._dispatcher.post(key, "calibrated", {"metrics": speed}))
            return
        await self._call(self._dispatcher.post(key, "started", {"attempt": job.attempt, "provenance": {}}))
        if key not in world.results:
            if job.sampled and job.calibration is None:
                await self._work(times.calibration)
                await self._call(self._dispatcher.post(key, "calibrated", {"metrics": speed}))
            if not await self._train(slot, job, experiment):
                return
            seconds = {"training_seconds": experiment.training.steps * times.step * world.workers}
            await self._call(self._dispatcher.post(key, "completed", {"metrics": seconds}))
            await self._work(times.evaluation)
            params = self._params(key)
            world.results[key] = world.workload.result(key, params) | (job.calibration or speed) | seconds
        await self._call(
            self._dispatcher.post(
                key, "evaluated", {"metrics": dict(world.results[key]), "curves": {}, "provenance": {}}
            )
        )

    async def _train(self, slot: int, job: Job, experiment: Experiment) -> bool:
        """`training.fit`. Returns False if the run was asked to leave."""
        world, key, steps = self._world, job.key, experiment.training.steps
        step_seconds = world.workload.times(key, experiment).step
        ends = rung_steps(steps, experiment.training.rungs)
        draws = random.Random(f"{world.seed}-{key}-{job.attempt}")
        hangs_at = draws.choice(ends) if draws.random() < world.rates.hang_share else None
        done = world.steps.get(key, 0)
        for end in ends:
            if end < done:
                continue
            while done < end:
                if hangs_at == end:
                    self._found.faults["hung"] += 1
                    await self._lasting(key, done, None, experiment)
                noticed = self._noticed[slot]
                began, seconds = world.now, (end - done) * step_seconds
                if not await self._lasting(key, done, seconds, experiment, noticed):
                    done = end
                    break
                done = min(end, done + int((world.now - began) / step_seconds))
                if await self._call(self._dispatcher.progress(key, done, steps, "")):
                    await asyncio.sleep(CHECKPOINT_SECONDS)
                    world.steps[key] = done
                    await self._call(self._dispatcher.left(key, done))
                    return False
                noticed.clear()
            world.steps[key] = done
            metrics = world.workload.rung(key, self._params(key), end / steps)
            asked = world.now
            stop = await self._call(self._dispatcher.report(key, end, metrics))
            self._found.slowest_answer = max(self._found.slowest_answer, world.now - asked)
            if stop:
                await self._call(self._dispatcher.left(key, end))
                return False
        return True

    async def _lasting(
        self, key: str, done: int, seconds: float | None, experiment: Experiment, noticed: asyncio.Event | None = None
    ) -> bool:
        """Trains for the given time. Returns True if the machine will be lost and the run has learned that it must
        leave.

        If the workers die meanwhile, the run keeps its last checkpoint between rungs.
        """
        began, step_seconds = self._world.now, self._world.workload.times(key, experiment).step
        between = 60 * experiment.training.checkpoint_minutes
        told_every = max(1.0, self._found.groups / PROGRESS_PER_SECOND)
        try:
            async with asyncio.timeout(seconds):
                await (noticed or asyncio.Event()).wait()
                await asyncio.sleep(MACHINES_SECONDS + told_every + 20 * step_seconds)
                return True
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            kept = between * int((self._world.now - began) / between)
            self._found.lost += (self._world.now - began - kept) * self._world.workers
            if kept:
                self._world.steps[key] = done + int(kept / step_seconds)
                self._spawn(self._dispatcher.saved(key, self._world.steps[key]))
            raise

    async def _work(self, seconds: float) -> None:
        """Works for the given time. If the workers die meanwhile, all of this work is lost."""
        began = self._world.now
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self._found.lost += (self._world.now - began) * self._world.workers
            raise

    def _params(self, key: str) -> dict[str, Any]:
        run = self._books.study.runs[key]
        return run.params if run.arm == SEARCH else run.settings
