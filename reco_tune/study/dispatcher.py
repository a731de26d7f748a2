"""The dispatcher: the actor between Tune's light trials, which submit jobs, and the warm worker groups, which do them.

Knows who does what, which attempt it is and who must stop; knows nothing of settings, models or Optuna, and writes no
file: the driver drains its events and is the one writer of the log. Plain asyncio: not even Ray is imported here.

Worker groups are long-lived Ray Train runs, so a trial does not pay for one. Every rank of a group takes its jobs from
here by number, which keeps ranks together without a collective that could time out while they are idle. A group that
Train restarted shows up under a new incarnation. The unfinished job of a group that died is handed out again, to
whoever asks first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

POLL_SECONDS = 20.0
"""Longest a call waits for news before it returns without; bounds what a dead caller leaves behind."""
GRACE_SECONDS = 30.0
"""How long the ranks of a group wait for each other after one of them raised, and how long a job may take to leave."""
ALIVE_SECONDS = 2.0
"""Between two looks at a worker."""
FINAL = ("evaluated", "failed", "pruned", "calibrated")
"""Events that end a job; `calibrated` only that of a calibration."""

JobOutcome = Literal["evaluated", "failed", "pruned", "calibrated", "paused"]
"""How a job ended; `paused` is not done yet, a resumed study goes on with it."""


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
    """The experiment that speed and memory are relative to, nested; None where nothing is calibrated."""
    calibration: dict[str, float] | None = None
    """Speed metrics that are known already."""
    judged: bool = False
    """Whether the workers wait after every rung until Tune has judged it."""
    generates_at: tuple[int, ...] = ()
    """Ends of the rungs whose reports hold the kernel distance of clips that are generated there."""
    storage: str | None = None
    """Address through which files come and go where the machines do not share the folders above."""
    cached: tuple[str, ...] = ()
    """Names of what the storage holds of the cache folder, the token cache first."""
    stored: str = ""
    """Under which name the storage holds the run's folder."""


@dataclass
class JobState:
    """What the dispatcher knows of one job."""

    job: Job
    queued: bool = False
    began: bool = False
    """Whether a worker said so for this attempt."""
    deaths: int = 0
    """How often its workers died."""
    outcome: JobOutcome | None = None
    reason: str = ""
    stop: str | None = None
    """Why it should stop at its next report."""
    overdue: bool = False
    """Whether it should stop because it lasts too long: it has failed then."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    judged: int = 0
    """How many of the reports Tune has judged."""
    settled: set[int] = field(default_factory=set)
    """Ranks that raised in this attempt and wait for the others."""


@dataclass
class GroupState:
    """A worker group, over all its restarts."""

    incarnation: str = ""
    retired: set[str] = field(default_factory=set)
    given: list[str] = field(default_factory=list)
    """Jobs of this incarnation in order; every rank reads it by number."""
    workers: list[Any] = field(default_factory=list)
    """The actors of this incarnation."""
    dead: int = 0
    """How many of them have died."""
    clock: asyncio.Task[None] | None = None
    """Runs out when its job lasts too long."""


class Dispatcher:
    """An asynchronous actor; every method is short or a bounded wait for news."""

    def __init__(
        self,
        workers: int,
        max_failures: int,
        deadline_seconds: float | None = None,
        kill: Callable[[Any], None] = lambda worker: None,
        alive: Callable[[Any], Awaitable[bool]] | None = None,
    ) -> None:
        """
        Args:
            workers: ranks of a group.
            max_failures: how often a job is tried again after its workers died.
            deadline_seconds: longest that one attempt of a job may take.
            kill: ends a worker that does not leave by itself.
            alive: whether a worker still is; by default only its successor tells that it is not.
        """
        self._workers, self._max_failures = workers, max_failures
        self._deadline, self._kill, self._alive = deadline_seconds, kill, alive
        self._watching: set[asyncio.Task[None]] = set()
        self._jobs: dict[str, JobState] = {}
        self._groups: dict[int, GroupState] = {}
        self._queue: deque[str] = deque()
        self._events: list[dict[str, Any]] = []
        self._posted = self._written = 0
        """Events so far, and how many of them the driver has on disk."""
        self._progress: dict[str, tuple[int, int, str]] = {}
        self._leave = False
        self._news = asyncio.Condition()

    # --- the driver's side ---

    async def submit(self, job: Job) -> None:
        """Takes a job in; groups take it once somebody follows it."""
        self._jobs.setdefault(job.key, JobState(job))

    async def news(self) -> None:
        """Returns when there is something to drain, or after a while."""
        await self._wait(lambda: bool(self._events or self._progress))

    async def drain(self) -> tuple[list[dict[str, Any]], dict[str, tuple[int, int, str]]]:
        """Events since the last call, in order, and the latest progress of running jobs."""
        events, self._events = self._events, []
        progress, self._progress = self._progress, {}
        return events, progress

    async def wrote(self, count: int) -> None:
        """The driver has this many more events on disk: whoever posted them may go on."""
        self._written += count
        await self._tell()

    async def stop(self, key: str, reason: str) -> None:
        """Asks one job to stop at its next report: it ends as pruned."""
        self._jobs[key].stop = reason

    async def pause(self) -> None:
        """Nothing new starts; running jobs leave at their next report, as paused. Groups without work go home."""
        self._leave = True
        for key in self._queue:
            self._end(self._jobs[key], "paused")
        self._queue.clear()
        await self._tell()

    async def abandon(self) -> None:
        """The driver can write no more. Whoever follows may go; what workers have posted stays unanswered, as if the
        driver had died.
        """
        self._leave = True
        for state in self._jobs.values():
            if state.outcome is None:
                self._end(state, "paused")
        self._queue.clear()
        await self._tell()

    async def lose(self, slot: int, reason: str) -> None:
        """A worker group is gone for good: another one gets its job."""
        for key in self._reclaim(self._groups.setdefault(slot, GroupState()), reason):
            self._queue.appendleft(key)
        await self._tell()

    # --- the Tune trial's side ---

    async def follow(self, key: str, seen: int) -> tuple[list[dict[str, Any]], JobOutcome | None, str]:
        """Starts a job that is not, waits for news of it: reports after the first `seen`, its outcome and
        the reason."""
        state = self._jobs[key]
        await self._start(key)
        await self._wait(lambda: len(state.reports) > seen or state.outcome is not None)
        return state.reports[seen:], state.outcome, state.reason

    async def judged(self, key: str, seen: int) -> None:
        """Tune's scheduler has judged the first `seen` reports; where it was against the run, `stop` came before."""
        state = self._jobs[key]
        state.judged = max(state.judged, seen)
        await self._tell()

    # --- the workers' side ---

    async def take(self, slot: int, incarnation: str, number: int, worker: Any = None) -> Job | Literal["leave"] | None:
        """The `number`-th job of this incarnation of a group: the same for every rank that asks. None: ask again.

        Args:
            worker: the actor that asks, which may have to be killed.
        """
        group = self._groups.setdefault(slot, GroupState())
        if incarnation != group.incarnation and incarnation not in group.retired:
            unfinished = self._reclaim(group, "its worker died")
            group.retired.add(group.incarnation)
            group.incarnation, group.given, group.workers, group.dead = incarnation, unfinished, [], 0
            await self._tell()
        if worker is not None and worker not in group.workers:
            group.workers.append(worker)
            if self._alive is not None:
                self._watching.add(asyncio.create_task(self._watch(group, worker, self._alive)))
        await self._wait(
            lambda: incarnation in group.retired or number < len(group.given) or bool(self._queue) or self._leave
        )
        if incarnation in group.retired:
            return "leave"
        if number == len(group.given) and self._queue:
            group.given.append(self._queue.popleft())
        if number < len(group.given):
            state = self._jobs[group.given[number]]
            if self._deadline is not None and (group.clock is None or group.clock.done()):
                group.clock = asyncio.create_task(self._limit_time(group, state, self._deadline))
            return state.job
        return "leave" if self._leave else None

    async def post(self, key: str, event: str, fields: dict[str, Any]) -> None:
        """An event of a running job; it is in the log when this returns."""
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
        await self._in_log()

    async def report(self, key: str, step: int, metrics: dict[str, float]) -> bool:
        """A rung's report, in the log when this returns; True asks all ranks to stop now."""
        state = self._jobs[key]
        state.reports.append({"step": step, **metrics})
        number = len(state.reports)
        self._log("reported", key, step=step, metrics=metrics)
        await self._in_log()
        if state.job.judged:
            while not await self._wait(lambda: state.judged >= number or state.outcome is not None or self._leave):
                pass
        return self._leave or state.stop is not None

    async def left(self, key: str, step: int) -> None:
        """A job stopped because it was asked to."""
        state = self._jobs[key]
        outcome: JobOutcome = "failed" if state.overdue else "pruned" if state.stop is not None else "paused"
        if outcome != "paused" and state.outcome is None:
            self._log(outcome, key, step=step, reason=state.stop)
        self._end(state, outcome, state.stop or "")
        await self._tell()

    async def halt(self, key: str, reason: str) -> None:
        """A job cannot go on, nor can any other: the driver ends the study, and a resumed one goes on with
        all of them."""
        self._log("halted", key, reason=reason)
        await self.abandon()

    async def progress(self, key: str, done: int, total: int, what: str) -> None:
        """How far a job is."""
        self._progress[key] = (done, total, what)
        await self._tell()

    async def raised(self, key: str, rank: int, reason: str) -> bool:
        """A rank's job raised: the run has failed. True once all ranks have raised, so that the group may go on.

        False after the grace period: the others hang in a collective, and only a restart of the group frees them.
        """
        state = self._jobs[key]
        state.settled.add(rank)
        if state.outcome is None:
            self._log("failed", key, reason=reason)
            self._end(state, "failed", reason)
        await self._tell()
        return await self._wait(lambda: len(state.settled) == self._workers, GRACE_SECONDS)

    # --- helpers ---

    async def _start(self, key: str) -> None:
        state = self._jobs[key]
        if not state.queued:
            state.queued = True
            if self._leave:
                self._end(state, "paused")
            else:
                self._queue.append(key)
            await self._tell()

    async def _limit_time(self, group: GroupState, state: JobState, seconds: float) -> None:
        """Ends a job that lasts too long: it is asked to stop at its next report, and after the grace period its
        workers are killed.
        """
        incarnation = group.incarnation
        reason = f"it did not end within resources.trial_deadline_seconds ({seconds:g})"

        def gone() -> bool:
            return state.outcome is not None or group.incarnation != incarnation

        if await self._wait(gone, seconds):
            return
        state.stop, state.overdue = reason, True
        if await self._wait(gone, min(GRACE_SECONDS, seconds)):
            return
        self._log("failed", state.job.key, reason=reason)
        self._end(state, "failed", reason)
        await self._tell()
        for worker in group.workers:
            self._kill(worker)

    async def _watch(self, group: GroupState, worker: Any, alive: Callable[[Any], Awaitable[bool]]) -> None:
        """Waits for the end of a worker. After the last of its group the job goes to whoever is free: a lost machine
        has no successor.
        """
        incarnation = group.incarnation
        while group.incarnation == incarnation and await alive(worker):
            await asyncio.sleep(ALIVE_SECONDS)
        if group.incarnation != incarnation:
            return
        group.dead += 1
        if group.dead == self._workers:
            self._queue.extendleft(self._reclaim(group, "its worker died"))
            await self._tell()

    def _reclaim(self, group: GroupState, reason: str) -> list[str]:
        """The unfinished job of a group whose workers are gone, ready for its next attempt; none where it failed too
        often.
        """
        unfinished = [key for key in group.given if self._jobs[key].outcome is None]
        for key in list(unfinished):
            state = self._jobs[key]
            if not state.began:  # given to a worker that never began: no attempt was used
                continue
            if self._leave:
                self._end(state, "paused")
                unfinished.remove(key)
            elif state.deaths >= self._max_failures:
                failure = f"{reason}, {state.deaths + 1} times in all"
                self._log("failed", key, reason=failure)
                self._end(state, "failed", failure)
                unfinished.remove(key)
            else:
                state.job = replace(state.job, attempt=state.job.attempt + 1)
                state.began, state.deaths = False, state.deaths + 1
                state.settled.clear()
                self._log("retried", key, attempt=state.job.attempt, reason=reason)
        group.given = []
        return unfinished

    def _end(self, state: JobState, outcome: JobOutcome, reason: str = "") -> None:
        state.outcome, state.reason = outcome, reason

    async def _in_log(self) -> None:
        """Waits until everything posted so far is on disk: a killed driver must not lose what a worker believes to be
        said.
        """
        posted = self._posted
        await self._tell()
        while not await self._wait(lambda: self._written >= posted):
            pass

    def _log(self, event: str, key: str, **fields: Any) -> None:
        self._posted += 1
        self._events.append({"event": event, "key": key, "kind": self._jobs[key].job.kind, **fields})

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _wait(self, ready: Any, seconds: float = POLL_SECONDS) -> bool:
        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait_for(ready), seconds)
            except TimeoutError:
                return bool(ready())
        return True
