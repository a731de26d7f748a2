"""The dispatcher: the actor between Tune's light trials, which submit jobs, and the warm worker groups, which do them.

Knows which group does which job, which attempt it is, and which job must stop. Knows nothing of settings, models or
Optuna. Writes no file: the driver reads its events and alone writes the log. Plain asyncio, without Ray.

Worker groups are long-lived Ray Train runs, so a trial does not pay for their start. Every rank of a group asks for its
jobs by number. This keeps ranks together without a collective, which could time out while they are idle. A group that
Train restarted has a new incarnation. The unfinished job of a dead group goes to the first group that asks.

A waiting caller is woken only when its own job, group or place in the log changes. So the cost of an event does not
depend on the number of callers.

Being moved is not failing. A run whose workers died continues from its last checkpoint. A death counts as the run's
own fault only if it follows another death without a new checkpoint between them, and its machines are still there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

ACTOR = {"num_cpus": 0, "max_concurrency": 1_000_000, "enable_task_events": False}
"""Ray's options for the actor. If more calls wait than Ray admits, the driver's own calls are not admitted, and all
wait for ever. Ray's default is 1,000, which is fewer than a cluster may have workers; a higher limit costs nothing.
Ray's record of every call is off: it takes a fifth of a call's time, and nobody reads it.
"""
POLL_SECONDS = 60.0
"""Longest time that a call waits for news. It bounds how long a dead caller's call stays here."""
MOST_LOST_MACHINES = 20
"""Deaths in a row that a job survives without a new checkpoint, whatever the cause. The job itself may take its
machines down.
"""
PROGRESS_SECONDS = 0.5
"""Shortest time between two reads of the progress by the driver."""
GRACE_SECONDS = 30.0
"""How long the ranks of a group wait for each other after one of them raised. Also how long a job may take to leave."""
ALIVE_SECONDS = 2.0
"""Time between two checks of a worker whose group has lost a machine."""
FINAL = ("evaluated", "failed", "pruned", "calibrated")
"""Events that end a job. `calibrated` ends only a calibration."""

JobOutcome = Literal["evaluated", "failed", "pruned", "calibrated", "paused"]
"""How a job ended. A `paused` job is not done: a resumed study continues it."""


@dataclass(frozen=True)
class Job:
    """One piece of work for a worker group; plain JSON values, so that any version of a worker can read it."""

    kind: Literal["trial", "calibration"]
    key: str
    """Name of the run, or `calibration.ARM`."""
    settings: dict[str, Any]
    """The experiment, nested."""
    settings_hash: str
    tokens: str
    """Path of the token cache."""
    folder: str
    """Folder of the run; unused by a calibration."""
    attempt: int = 1
    sampled: bool = False
    """Whether the run calibrates its own settings first."""
    baseline: dict[str, Any] | None = None
    """The experiment that speed and memory are relative to, as nested values; None if nothing is calibrated."""
    calibration: dict[str, float] | None = None
    """Speed metrics that are known already."""
    judged: bool = False
    """Whether the workers wait after every rung until Tune has judged it."""
    evaluated: bool = True
    """Whether the run generates clips at its end. If not, only its validation loss is known."""
    generates_at: tuple[int, ...] = ()
    """Ends of the rungs that generate clips and report their kernel distance."""
    storage: str | None = None
    """Address of the storage that carries files, if machines do not share the folders above."""
    cached: tuple[str, ...] = ()
    """Names in the storage of the parts of the cache folder, the token cache first."""
    stored: str = ""
    """Name of the run's folder in the storage."""


class Bell:
    """Wakes the few callers that wait for one thing."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def awaited(self) -> bool:
        return bool(self._waiting)

    def ring(self) -> None:
        """The thing may have changed."""
        for waiting in self._waiting:
            _go_on(waiting)

    async def wait(self, ready: Callable[[], bool], seconds: float | None) -> bool:
        """Waits until it is ready. False if it was not ready in that time."""
        try:
            async with asyncio.timeout(seconds):
                while not ready():
                    waiting = asyncio.get_running_loop().create_future()
                    self._waiting.add(waiting)
                    try:
                        await waiting
                    finally:
                        self._waiting.discard(waiting)
        except TimeoutError:
            return ready()
        return True


@dataclass
class JobState:
    """What the dispatcher knows of one job."""

    job: Job
    bell: Bell = field(default_factory=Bell)
    queued: bool = False
    began: bool = False
    """Whether a worker has reported the start of this attempt."""
    held_by: str = ""
    """Incarnation of the group that works on the job."""
    clock: asyncio.Task[None] | None = None
    """Timer that runs out if this attempt lasts too long."""
    saved: int = 0
    """Step of its newest checkpoint."""
    died: int | None = None
    """The value of `checkpoint` when its workers died last."""
    deaths: int = 0
    """Number of deaths in a row without a new checkpoint between them."""
    faults: int = 0
    """Number of these, after the first, that were not the death of a machine."""
    outcome: JobOutcome | None = None
    stop: str | None = None
    """Why it should stop."""
    moving: bool = False
    """Whether it should leave its machines and continue on others."""
    overdue: bool = False
    """Whether it should stop because it lasts too long. It has then failed."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    judged: int = 0
    """Number of its reports that Tune has judged."""
    settled: set[int] = field(default_factory=set)
    """Ranks that raised in this attempt and wait for the others."""


@dataclass
class GroupState:
    """A worker group, over all its restarts."""

    bell: Bell = field(default_factory=Bell)
    incarnation: str = ""
    retired: set[str] = field(default_factory=set)
    given: list[str] = field(default_factory=list)
    """Jobs of this incarnation in order; every rank reads it by number."""
    workers: list[Any] = field(default_factory=list)
    """The actors of this incarnation."""
    machines: set[str] = field(default_factory=set)
    """Where they are."""
    struck: bool = False
    """Whether one of the machines is lost."""
    evicted: bool = False
    """Whether one of its machines will soon be taken away. It gets no more work."""
    dead: int = 0
    """Number of workers that have died, if the group has lost a machine."""


class Dispatcher:
    """An asynchronous actor; every method is short or a bounded wait for news."""

    def __init__(
        self,
        workers: int,
        max_failures: int,
        deadline_seconds: float | None = None,
        kill: Callable[[Any], None] = lambda worker: None,
        alive: Callable[[Any], Awaitable[bool]] | None = None,
        poll_seconds: float | None = POLL_SECONDS,
    ) -> None:
        """
        Args:
            workers: ranks of a group.
            max_failures: how many deaths of its workers a job survives that are its own fault.
            deadline_seconds: longest that one attempt of a job may take.
            kill: ends a worker that does not leave by itself.
            alive: whether a worker still is; by default only its successor tells that it is not.
            poll_seconds: longest that a call waits for news; for ever where None, which is for callers that do not die.
        """
        self._workers, self._max_failures = workers, max_failures
        self._deadline, self._kill, self._alive = deadline_seconds, kill, alive
        self._poll = poll_seconds
        self._watching: set[asyncio.Task[None]] = set()
        self._jobs: dict[str, JobState] = {}
        self._groups: dict[int, GroupState] = {}
        self._queue: deque[str] = deque()
        self._idle: dict[int, GroupState] = {}
        """Groups whose workers wait for a job, first come first served."""
        self._events: list[dict[str, Any]] = []
        self._posted = self._written = 0
        """Number of events so far, and of those that the driver has written to disk."""
        self._unwritten: deque[tuple[int, asyncio.Future[None]]] = deque()
        """Callers that wait until that many events are on disk, in order."""
        self._progress: dict[str, tuple[int, int, str]] = {}
        self._progress_due = False
        self._leave: Literal["", "at a rung", "now"] = ""
        """Whether everybody should leave."""
        self._abandoned = False
        self._news, self._never = Bell(), Bell()

    # --- the driver's side ---

    async def submit(self, job: Job) -> None:
        """Accepts a job. Groups take it once a trial follows it. A job that has ended begins anew."""
        known = self._jobs.get(job.key)
        if known is None or known.outcome is not None:
            self._jobs[job.key] = JobState(job)

    async def news(
        self, written: int = 0, seconds: float | None = None
    ) -> tuple[list[dict[str, Any]], dict[str, tuple[int, int, str]]]:
        """Events since the last call, in order, and the latest progress of running jobs. Waits for either. Only the
        writer of the log may call it.

        Args:
            written: number of further events that are on disk. The workers that posted them may continue.
            seconds: how long to wait; None for the default of all calls.
        """
        self._written += written
        while self._unwritten and self._unwritten[0][0] <= self._written:
            _go_on(self._unwritten.popleft()[1])
        await self._news.wait(
            lambda: bool(self._events) or self._progress_due, self._poll if seconds is None else seconds
        )
        events, self._events = self._events, []
        progress, self._progress, self._progress_due = self._progress, {}, False
        return events, progress

    async def stop(self, key: str, reason: str) -> None:
        """Asks one job to stop: it ends as pruned."""
        self._jobs[key].stop = reason

    async def pause(self, at_rung: bool = False) -> None:
        """Nothing new starts. Running jobs leave as paused: now, or at their next rung (a job without another rung ends
        first). Groups without work end.
        """
        for key in self._queue:
            self._end(self._jobs[key], "paused")
        self._close("at a rung" if at_rung and self._leave != "now" else "now")

    async def abandon(self) -> None:
        """The driver cannot write any more. Followers may leave. What workers have posted stays unanswered, as if the
        driver had died.
        """
        self._abandoned = True
        for state in self._jobs.values():
            if state.outcome is None:
                self._end(state, "paused")
        while self._unwritten:
            _go_on(self._unwritten.popleft()[1])
        self._close("now")

    async def lose(self, slot: int, reason: str) -> None:
        """A worker group is gone. Another one gets its job."""
        group = self._groups.setdefault(slot, GroupState())
        group.struck = True
        self._idle.pop(slot, None)
        self._queue.extendleft(self._reclaim(group, reason))
        self._hand_out()

    async def machines(self, lost: Sequence[str], going: Sequence[str]) -> None:
        """Called whenever machines are lost, or will be taken away soon.

        Jobs on machines that will be taken away are asked to leave. If a machine is lost, its group's job goes to a
        free group when the last of the workers has died, because a lost machine may have no successor.
        """
        for slot, group in self._groups.items():
            if not group.struck and group.machines.intersection(lost):
                group.struck = True
                for worker in group.workers if self._alive is not None else ():
                    self._watching.add(asyncio.create_task(self._watch(slot, group, worker)))
            group.evicted = bool(group.machines.intersection(going))
            if group.evicted or group.struck:  # a dead worker's last question may still wait
                self._idle.pop(slot, None)
            elif group.bell.awaited:  # perhaps the notice was taken back
                self._idle.setdefault(slot, group)
            for state in self._unfinished(group):
                state.moving = group.evicted and state.began
        self._hand_out()

    # --- the Tune trial's side ---

    async def follow(self, key: str, seen: int) -> tuple[list[dict[str, Any]], JobOutcome | None, int]:
        """Starts a job if it has not started, and waits for news of it. Returns its unjudged reports, its outcome, and
        the number of reports that were judged before. All of these are in the log, because judgements and proposals
        rest on the log.

        Tune's scheduler has judged the first `seen` reports. If it decided against the run, `stop` was called before. A
        trial that restarts because its machine was lost has seen none. Its judged reports are not judged again, because
        other runs have reported since.
        """
        state = self._jobs[key]
        if seen > state.judged:
            state.judged = seen
            state.bell.ring()
        if not state.queued:
            state.queued = True
            if self._leave:
                self._end(state, "paused")
            else:
                self._queue.append(key)
                self._hand_out()
        await state.bell.wait(lambda: len(state.reports) > state.judged or state.outcome is not None, self._poll)
        told = state.reports[state.judged :], state.outcome, state.judged
        await self._in_log()
        return told

    # --- the workers' side ---

    async def take(
        self, slot: int, incarnation: str, number: int, worker: Any = None, machine: str = ""
    ) -> Job | Literal["leave"] | None:
        """Job number `number` of this incarnation of a group, the same for every rank. None means: ask again.

        Args:
            worker: the actor that asks. It may have to be killed later.
            machine: the machine of the actor.
        """
        group = self._groups.setdefault(slot, GroupState())
        if incarnation != group.incarnation and incarnation not in group.retired:
            unfinished = self._reclaim(group, "its machine was lost" if group.struck else "its worker died")
            group.retired.add(group.incarnation)
            group.incarnation, group.workers, group.dead = incarnation, [], 0
            group.machines, group.struck, group.evicted = set(), False, False
            for key in unfinished:
                self._give(group, key)
            self._idle.pop(slot, None)
            group.bell.ring()
        if worker is not None and worker not in group.workers:
            group.workers.append(worker)
            group.machines.add(machine)
        free = not group.evicted and not group.struck and incarnation not in group.retired
        if number == len(group.given) and free:
            self._idle[slot] = group
            self._hand_out()
        await group.bell.wait(
            lambda: incarnation in group.retired or number < len(group.given) or bool(self._leave), self._poll
        )
        if incarnation in group.retired:
            return "leave"
        if number < len(group.given):
            state = self._jobs[group.given[number]]
            if self._deadline is not None and state.clock is None:
                state.clock = asyncio.create_task(self._limit_time(group, state, self._deadline))
            return state.job
        if not group.bell.awaited:  # nobody knows whether it will ask again
            self._idle.pop(slot, None)
        return "leave" if self._leave else None

    async def post(self, key: str, event: str, fields: dict[str, Any]) -> None:
        """Posts an event of a running job. It is in the log when this returns."""
        state = self._jobs[key]
        if state.outcome is not None:
            return  # another attempt was faster
        if event == "started":
            state.began = True
        elif event == "calibrated":
            state.job = replace(state.job, calibration=fields["metrics"])
        self._log(event, key, **fields)
        if event in FINAL and (event != "calibrated" or state.job.kind == "calibration"):
            self._end(state, event)  # type: ignore[arg-type]
        await self._kept()

    async def report(self, key: str, step: int, metrics: dict[str, float]) -> bool:
        """Posts a rung's report. It is in the log when this returns. True asks all ranks to stop now."""
        state = self._jobs[key]
        state.reports.append({"step": step, **metrics})
        state.saved = max(state.saved, step)
        number = len(state.reports)
        self._log("reported", key, step=step, metrics=metrics)
        state.bell.ring()
        await self._kept()
        if state.job.judged:
            await state.bell.wait(
                lambda: state.judged >= number or state.outcome is not None or bool(self._leave), seconds=None
            )
        return bool(self._leave) or self._asked_to_leave(state)

    async def saved(self, key: str, step: int) -> None:
        """A job has a checkpoint of this step, between two reports."""
        self._jobs[key].saved = max(self._jobs[key].saved, step)

    async def left(self, key: str, step: int) -> None:
        """A job stopped because it was asked to; its checkpoint is of this step."""
        state = self._jobs[key]
        state.saved = max(state.saved, step)
        if state.moving and state.stop is None and state.outcome is None and not self._leave:
            state.held_by, state.clock = "", None
            state.bell.ring()
            self._move(state, "its machine is about to go", moved=True)
            self._queue.appendleft(key)
            self._hand_out()
            return
        outcome: JobOutcome = "failed" if state.overdue else "pruned" if state.stop is not None else "paused"
        if outcome != "paused" and state.outcome is None:
            self._log(outcome, key, step=step, reason=state.stop)
        self._end(state, outcome)

    async def halt(self, key: str, reason: str) -> None:
        """A worker reports that neither its job nor any other can continue. The driver ends the study; a resumed study
        continues all jobs.
        """
        self._log("halted", key, reason=reason)
        await self.abandon()

    async def progress(self, key: str, done: int, total: int, what: str) -> bool:
        """Progress of a job. True asks it to stop as soon as it can."""
        if not self._progress:
            asyncio.get_running_loop().call_later(PROGRESS_SECONDS, self._show_progress)
        self._progress[key] = (done, total, what)
        return key in self._jobs and self._asked_to_leave(self._jobs[key])

    async def raised(self, key: str, rank: int, reason: str) -> bool:
        """A rank's job raised, so the run has failed. True once all ranks have raised: the group can then continue.

        False after the grace period: other ranks hang in a collective, and only a restart of the group frees them.
        """
        state = self._jobs[key]
        state.settled.add(rank)
        if state.outcome is None:
            self._log("failed", key, reason=reason)
            self._end(state, "failed")
        state.bell.ring()
        return await state.bell.wait(lambda: len(state.settled) == self._workers, GRACE_SECONDS)

    # --- helpers ---

    def _hand_out(self) -> None:
        """Assigns waiting jobs to waiting groups."""
        while self._queue and self._idle:
            group = self._idle.pop(next(iter(self._idle)))
            self._give(group, self._queue.popleft())
            group.bell.ring()

    def _give(self, group: GroupState, key: str) -> None:
        group.given.append(key)
        self._jobs[key].held_by = group.incarnation

    def _unfinished(self, group: GroupState) -> list[JobState]:
        """What a group has in hand; a job may have come back to it after it had left."""
        held = (self._jobs[key] for key in dict.fromkeys(group.given))
        return [state for state in held if state.outcome is None and state.held_by == group.incarnation]

    def _asked_to_leave(self, state: JobState) -> bool:
        return self._leave == "now" or state.stop is not None or state.moving

    async def _limit_time(self, group: GroupState, state: JobState, seconds: float) -> None:
        """Ends a job that lasts too long. It is asked to stop; after the grace period its workers are killed."""
        incarnation = group.incarnation
        reason = f"it did not end within resources.trial_deadline_seconds ({seconds:g})"

        def gone() -> bool:
            return state.outcome is not None or state.held_by != incarnation

        if await state.bell.wait(gone, seconds):
            return
        state.stop, state.overdue = reason, True
        if await state.bell.wait(gone, min(GRACE_SECONDS, seconds)):
            return
        self._log("failed", state.job.key, reason=reason)
        self._end(state, "failed")
        for worker in group.workers:
            self._kill(worker)

    async def _watch(self, slot: int, group: GroupState, worker: Any) -> None:
        """Waits for the end of a worker whose group has lost a machine. Until then, the group's other workers may still
        report.
        """
        assert self._alive is not None
        incarnation = group.incarnation
        while group.incarnation == incarnation and await self._alive(worker):
            await asyncio.sleep(ALIVE_SECONDS)
        if group.incarnation != incarnation:
            return
        group.dead += 1
        if group.dead == self._workers:
            self._idle.pop(slot, None)
            self._queue.extendleft(self._reclaim(group, "its machine was lost"))
            self._hand_out()

    def _reclaim(self, group: GroupState, reason: str) -> list[str]:
        """The unfinished job of a group whose workers are gone, ready for its next attempt. Empty if it has failed.

        The first death does not count against the run, nor a death after a new checkpoint, nor one with its machine.
        """
        unfinished = []
        for state in self._unfinished(group):
            if not state.began:  # given to a worker that never began: no attempt was used
                pass
            elif self._leave:
                self._end(state, "paused")
            else:
                outside = group.struck or group.evicted
                same_place = state.died is not None and state.saved <= state.died
                state.deaths = state.deaths + 1 if same_place else 1
                state.faults = (state.faults if same_place else 0) + (same_place and not outside)
                state.died = state.saved
                if state.faults > self._max_failures or state.deaths > MOST_LOST_MACHINES:
                    failure = f"{reason}, {state.deaths} times in a row without a new checkpoint between"
                    self._log("failed", state.job.key, reason=failure)
                    self._end(state, "failed")
                else:
                    self._move(state, reason, moved=outside or not same_place)
            if state.outcome is None:
                unfinished.append(state.job.key)
            state.held_by, state.clock = "", None
            state.bell.ring()
        group.given = []
        return unfinished

    def _move(self, state: JobState, reason: str, moved: bool) -> None:
        """Prepares the next attempt of a job.

        Args:
            moved: whether the run is not to blame.
        """
        state.job = replace(state.job, attempt=state.job.attempt + 1)
        state.began, state.moving = False, False
        state.settled.clear()
        self._log("retried", state.job.key, attempt=state.job.attempt, reason=reason, moved=moved)

    def _end(self, state: JobState, outcome: JobOutcome) -> None:
        state.outcome = outcome
        state.bell.ring()

    def _close(self, leave: Literal["at a rung", "now"]) -> None:
        """Everybody may go."""
        self._leave = leave
        self._queue.clear()
        for group in self._groups.values():
            group.bell.ring()
        for state in self._jobs.values():
            state.bell.ring()

    async def _in_log(self) -> None:
        """Waits until everything posted so far is on disk, or will never be."""
        if self._written < self._posted and not self._abandoned:
            waiting = asyncio.get_running_loop().create_future()
            self._unwritten.append((self._posted, waiting))
            await waiting

    async def _kept(self) -> None:
        """Returns when everything posted so far is on disk. If it never gets there, this never returns: a worker must
        not believe that its report is safe when a killed driver has lost it.
        """
        posted = self._posted
        await self._in_log()
        if self._written < posted:
            await self._never.wait(lambda: False, seconds=None)

    def _log(self, event: str, key: str, **fields: Any) -> None:
        self._posted += 1
        self._events.append({"event": event, "key": key, "kind": self._jobs[key].job.kind, **fields})
        self._news.ring()

    def _show_progress(self) -> None:
        self._progress_due = True
        self._news.ring()


def _go_on(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():  # its caller may be gone
        waiting.set_result(None)
