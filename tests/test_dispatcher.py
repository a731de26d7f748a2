from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from reco_tune.study import dispatcher as dispatcher_module
from reco_tune.study.dispatcher import Dispatcher, Job

T = TypeVar("T")


def job(key: str = "reco-equal_steps-s0") -> Job:
    return Job("trial", key, settings={}, settings_hash="", tokens="", folder="")


def run(story: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(story, 20))


async def begin(dispatcher: Dispatcher, *keys: str) -> list[asyncio.Task[Any]]:
    """Brings jobs and follows them, as Tune's trials do."""
    for key in keys:
        await dispatcher.submit(job(key))
    followers = [asyncio.create_task(dispatcher.follow(key, 0)) for key in keys]
    await asyncio.sleep(0)
    return followers


class Driven(Dispatcher):
    """A dispatcher whose driver has everything on disk at once."""

    def __init__(self, workers: int, max_failures: int, **more: Any) -> None:
        super().__init__(workers, max_failures, **more)
        self.told: list[dict[str, Any]] = []
        self.log: list[tuple[str, str]] = []
        self._driver = asyncio.create_task(self._drive())

    async def _drive(self) -> None:
        written = 0
        while True:
            events, _ = await self.news(written)
            written = len(events)
            self.told += events
            self.log += [(event["event"], event["key"]) for event in events]

    async def written(self) -> list[tuple[str, str]]:
        """The log, once it holds everything posted so far."""
        while len(self.log) < self._posted:
            await asyncio.sleep(0)
        return self.log


def test_every_rank_of_a_group_gets_the_same_jobs_in_the_same_order() -> None:
    async def story() -> None:
        dispatcher = Driven(workers=2, max_failures=2)
        await begin(dispatcher, "a", "b", "c")
        leader = [(await dispatcher.take(0, "x", number)).key for number in (0, 1)]  # type: ignore[union-attr]
        other = (await dispatcher.take(1, "y", 0)).key  # type: ignore[union-attr]
        follower = [(await dispatcher.take(0, "x", number)).key for number in (0, 1)]  # type: ignore[union-attr]
        assert leader == follower == ["a", "b"] and other == "c"

    run(story())


def test_a_restarted_group_gets_its_unfinished_job_again_as_the_next_attempt() -> None:
    async def story() -> None:
        dispatcher = Driven(workers=1, max_failures=2)
        await begin(dispatcher, "a", "b")
        await dispatcher.take(0, "first", 0)
        await dispatcher.post("a", "started", {"attempt": 1})
        again = await dispatcher.take(0, "second", 0)
        assert isinstance(again, Job) and (again.key, again.attempt) == ("a", 2)
        assert await dispatcher.written() == [("started", "a"), ("retried", "a")]
        assert await dispatcher.take(0, "first", 1) == "leave", "a worker of the old group, still alive, takes no work"

    run(story())


def test_a_job_that_no_worker_began_costs_no_attempt() -> None:
    async def story() -> None:
        dispatcher = Driven(workers=1, max_failures=0)
        await begin(dispatcher, "a")
        await dispatcher.take(0, "first", 0)
        again = await dispatcher.take(0, "second", 0)
        assert isinstance(again, Job) and again.attempt == 1
        assert await dispatcher.written() == []

    run(story())


@pytest.mark.parametrize(
    ("deaths", "moved"),
    [
        ("-", [True]),
        ("- -", [True, False]),
        ("- - -", [True, False, "failed"]),
        ("- checkpoint - -", [True, True, False]),
        ("- report - report - checkpoint - report -", [True, True, True, True, True]),
        ("- - checkpoint - -", [True, False, True, False]),
        ("- machine machine -", [True, True, True, False]),
        ("machine " * 21, [True] * 20 + ["failed"]),
    ],
    ids=[
        "the first is nobody's fault",
        "the second at the same checkpoint is the run's own",
        "more of its own than max_failures",
        "a checkpoint between",
        "any number while it gets on",
        "a checkpoint clears the count",
        "lost machines are not its own",
        "a run that takes its machines down",
    ],
)
def test_being_moved_is_not_failing(deaths: str, moved: list[Any]) -> None:
    """max_failures counts deaths without a new checkpoint between, on machines that are still there."""

    async def story() -> None:
        dispatcher = Driven(workers=1, max_failures=1)
        await begin(dispatcher, "a", "b")
        step, found, incarnation = 0, [], 0
        for happening in deaths.split():
            if happening in ("checkpoint", "report"):
                step += 10
                await (dispatcher.saved("a", step) if happening == "checkpoint" else dispatcher.report("a", step, {}))
                continue
            if not incarnation:
                await dispatcher.take(0, "0", 0, "worker 0", "machine 0")
            await dispatcher.post("a", "started", {"attempt": 1})
            if happening == "machine":
                await dispatcher.machines([f"machine {incarnation}"], [])
            incarnation += 1
            name = str(incarnation)
            following = await dispatcher.take(0, name, 0, f"worker {name}", f"machine {name}")
            assert isinstance(following, Job)
            await dispatcher.written()
            last = dispatcher.told[-1]
            found.append(last["moved"] if last["event"] == "retried" else last["event"])
            assert following.key == ("b" if found[-1] == "failed" else "a")
        assert found == moved

    run(story())


def test_a_machine_that_is_about_to_go_gives_its_job_back() -> None:
    """A preemption notice: the job leaves with a checkpoint, and its group gets no more work."""

    async def story() -> None:
        dispatcher = Driven(workers=1, max_failures=0)
        await begin(dispatcher, "a", "b")
        await dispatcher.take(0, "x", 0, "worker", "spot")
        await dispatcher.post("a", "started", {"attempt": 1})
        assert not await dispatcher.progress("a", 1, 10, "")
        await dispatcher.machines([], ["spot"])
        assert await dispatcher.progress("a", 2, 10, "")
        await dispatcher.left("a", 2)
        ours = asyncio.create_task(dispatcher.take(0, "x", 1, "worker", "spot"))
        theirs = [await dispatcher.take(1, "y", number, "other", "safe") for number in (0, 1)]
        assert [(job.key, job.attempt) for job in theirs if isinstance(job, Job)] == [("a", 2), ("b", 1)]
        assert not ours.done() and await dispatcher.written() == [("started", "a"), ("retried", "a")]
        assert dispatcher.told[-1]["moved"] and not await dispatcher.progress("a", 3, 10, "")
        await begin(dispatcher, "c")
        await dispatcher.machines([], [])
        again = await dispatcher.take(0, "x", 1, "worker", "spot")
        assert isinstance(again, Job) and again.key == "c", "the notice was taken back"

    run(story())


def test_another_group_gets_the_job_of_one_that_is_lost() -> None:
    async def story() -> None:
        dispatcher = Driven(workers=1, max_failures=2)
        await begin(dispatcher, "a")
        await dispatcher.take(0, "x", 0)
        await dispatcher.post("a", "started", {"attempt": 1})
        await dispatcher.lose(0, "its worker group was lost")
        taken = await dispatcher.take(1, "y", 0)
        assert isinstance(taken, Job) and (taken.key, taken.attempt) == ("a", 2)

    run(story())


def test_pausing_asks_running_jobs_to_leave_and_ends_the_others() -> None:
    async def story() -> None:
        dispatcher = Driven(workers=1, max_failures=2)
        running, waiting = await begin(dispatcher, "a", "b")
        await dispatcher.take(0, "x", 0)
        assert not await dispatcher.report("a", 10, {"val_cross_entropy": 1.0})
        await running
        await dispatcher.pause()
        assert (await waiting)[1] == "paused"
        assert await dispatcher.report("a", 20, {"val_cross_entropy": 0.9})
        await dispatcher.left("a", 20)
        assert (await dispatcher.follow("a", 2))[1] == "paused"
        assert await dispatcher.written() == [
            ("reported", "a"),
            ("reported", "a"),
        ], "a paused run is not done: nothing ends it in the log"
        assert await dispatcher.take(0, "x", 1) == "leave"

    run(story())


def test_at_a_limit_jobs_end_at_their_next_rung_and_what_has_none_before_it_ends() -> None:
    async def story() -> None:
        dispatcher = Driven(workers=1, max_failures=2)
        trains, evaluated, waits = await begin(dispatcher, "trains", "evaluated", "waits")
        for slot, key in enumerate(("trains", "evaluated")):
            await dispatcher.take(slot, f"group-{slot}", 0)
            await dispatcher.post(key, "started", {"attempt": 1})
        await dispatcher.pause(at_rung=True)
        assert (await waits)[1] == "paused", "nothing new begins"
        assert not await dispatcher.progress("trains", 5, 60, "training"), "between rungs nobody has to leave"
        await dispatcher.post("evaluated", "evaluated", {"metrics": {}})
        assert (await evaluated)[1] == "evaluated" and await dispatcher.take(1, "group-1", 1) == "leave"
        assert await dispatcher.report("trains", 10, {}), "its next rung is its last for now"
        assert (await trains)[1] is None  # news of the rung
        again = asyncio.create_task(dispatcher.follow("trains", 1))
        await dispatcher.left("trains", 10)
        assert (await again)[1] == "paused" and await dispatcher.take(0, "group-0", 1) == "leave"
        assert not any(event == "pruned" for event, _ in await dispatcher.written())

    run(story())


def test_one_job_can_be_stopped() -> None:
    async def story() -> None:
        dispatcher = Driven(workers=1, max_failures=2)
        await begin(dispatcher, "a")
        await dispatcher.take(0, "x", 0)
        await dispatcher.stop("a", "dominated at step 10")
        assert await dispatcher.report("a", 10, {})
        await dispatcher.left("a", 10)
        assert await dispatcher.written() == [("reported", "a"), ("pruned", "a")]

    run(story())


def test_a_raising_job_fails_alone_once_all_ranks_have_raised() -> None:
    async def story() -> None:
        dispatcher = Driven(workers=2, max_failures=2)
        await begin(dispatcher, "a", "b")
        await dispatcher.take(0, "x", 0)
        assert await asyncio.gather(
            dispatcher.raised("a", 0, "ValueError: no"), dispatcher.raised("a", 1, "ValueError: no")
        ) == [
            True,
            True,
        ]
        assert await dispatcher.written() == [("failed", "a")]
        following = await dispatcher.take(0, "x", 1)
        assert isinstance(following, Job) and following.key == "b"

    run(story())


def test_a_rank_that_raises_alone_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank hangs in a collective: only a restart of the group frees it."""
    monkeypatch.setattr(dispatcher_module, "GRACE_SECONDS", 0.05)

    async def story() -> None:
        dispatcher = Driven(workers=2, max_failures=2)
        await begin(dispatcher, "a")
        await dispatcher.take(0, "x", 0)
        assert not await dispatcher.raised("a", 1, "MemoryError: too much")
        assert await dispatcher.written() == [("failed", "a")]

    run(story())


def test_nothing_is_heard_of_a_job_after_its_end() -> None:
    async def story() -> None:
        dispatcher = Driven(workers=1, max_failures=2)
        await begin(dispatcher, "a")
        await dispatcher.take(0, "x", 0)
        await dispatcher.post("a", "evaluated", {"metrics": {}})
        await dispatcher.post("a", "evaluated", {"metrics": {}})
        assert await dispatcher.written() == [("evaluated", "a")]

    run(story())


def test_a_report_returns_when_it_is_in_the_log() -> None:
    """Reports that a killed driver had not written yet were lost, though the worker's checkpoint was beyond them."""

    async def story() -> None:
        dispatcher = Dispatcher(workers=1, max_failures=2)
        await begin(dispatcher, "a")
        await dispatcher.take(0, "x", 0)
        report = asyncio.create_task(dispatcher.report("a", 10, {}))
        events, _ = await dispatcher.news()
        assert [event["event"] for event in events] == ["reported"]
        await asyncio.sleep(0.05)
        assert not report.done()
        await dispatcher.news(written=1, seconds=0)
        assert not await report

    run(story())


def test_a_job_that_lasts_too_long_is_asked_to_leave_and_has_failed() -> None:
    async def story() -> None:
        dispatcher = Driven(workers=1, max_failures=2, deadline_seconds=0.05, kill=lambda worker: killed.append(worker))
        await begin(dispatcher, "a", "b")
        await dispatcher.take(0, "x", 0, "worker")
        while not await dispatcher.report("a", 10, {}):
            await asyncio.sleep(0.01)
        await dispatcher.left("a", 20)
        assert (await dispatcher.written())[-1] == ("failed", "a")
        following = await dispatcher.take(0, "x", 1, "worker")
        assert isinstance(following, Job) and following.key == "b" and not killed

    killed: list[str] = []
    run(story())


def test_a_job_that_hangs_is_killed_after_the_grace_period_and_its_group_goes_on() -> None:
    async def story() -> None:
        dispatcher = Driven(workers=2, max_failures=2, deadline_seconds=0.05, kill=lambda worker: killed.append(worker))
        hanging, _ = await begin(dispatcher, "a", "b")
        for rank in ("rank 0", "rank 1"):
            await dispatcher.take(0, "first", 0, rank)
        await dispatcher.post("a", "started", {"attempt": 1})
        assert (await hanging)[1] == "failed"
        while len(killed) < 2:
            await asyncio.sleep(0.01)
        assert sorted(killed) == ["rank 0", "rank 1"]
        following = await dispatcher.take(0, "second", 0, "a new worker")
        assert isinstance(following, Job) and following.key == "b"
        assert await dispatcher.written() == [("started", "a"), ("failed", "a")], "and no further attempt"
        assert dispatcher.told[-1]["reason"] == "it did not end within resources.trial_deadline_seconds (0.05)"

    killed: list[str] = []
    run(story())


def test_a_driver_that_can_write_no_more_leaves_everything_unfinished() -> None:
    """Whoever follows may go; the worker is not told that its report was written."""

    async def story() -> None:
        dispatcher = Dispatcher(workers=1, max_failures=2)
        running, waiting = await begin(dispatcher, "a", "b")
        await dispatcher.take(0, "x", 0)
        report = asyncio.create_task(dispatcher.report("a", 10, {}))
        await asyncio.sleep(0.05)
        assert not running.done(), "whoever judges the report would not find it in the log"
        await dispatcher.abandon()
        await running
        assert (await dispatcher.follow("a", 1))[1] == (await waiting)[1] == "paused"
        assert await dispatcher.take(0, "x", 1) == "leave"
        await asyncio.sleep(0.05)
        assert not report.done()
        report.cancel()

    run(story())


def test_a_job_that_finds_the_disk_full_ends_the_study_and_not_itself() -> None:
    async def story() -> None:
        dispatcher = Driven(workers=1, max_failures=2)
        running, waiting = await begin(dispatcher, "a", "b")
        await dispatcher.take(0, "x", 0)
        await dispatcher.halt("a", "the disk is full")
        assert (await running)[1] == (await waiting)[1] == "paused"
        assert await dispatcher.written() == [("halted", "a")]
        assert await dispatcher.take(0, "x", 1) == "leave"

    run(story())


async def judged_job() -> tuple[Driven, asyncio.Task[Any], asyncio.Task[bool]]:
    """A judged job that has reported once: who drives it, its trial that follows, and the report that waits."""
    dispatcher = Driven(workers=1, max_failures=0)
    await dispatcher.submit(replace(job("a"), judged=True))
    starting = asyncio.create_task(dispatcher.follow("a", 0))
    await dispatcher.take(0, "x", 0)
    return dispatcher, starting, asyncio.create_task(dispatcher.report("a", 10, {}))


def test_a_judged_job_waits_until_it_is_judged_and_no_longer_than_the_study() -> None:
    async def story() -> None:
        dispatcher, starting, first = await judged_job()
        await starting
        await asyncio.sleep(0.05)
        assert not first.done(), "nobody has judged it yet"
        following = asyncio.create_task(dispatcher.follow("a", 1))
        assert await first is False
        second = asyncio.create_task(dispatcher.report("a", 20, {}))
        await following
        await dispatcher.stop("a", "dominated")
        following = asyncio.create_task(dispatcher.follow("a", 2))
        assert await second is True
        third = asyncio.create_task(dispatcher.report("a", 30, {}))
        await following
        await dispatcher.pause()
        assert await third is True, "a study that ends judges nobody"

    run(story())


def test_a_trial_that_begins_again_is_not_told_of_what_was_judged() -> None:
    """Its process dies with its machine. A rung that let the run pass must not speak against it because others have
    reported since.
    """

    async def story() -> None:
        dispatcher, starting, first = await judged_job()
        assert await starting == ([{"step": 10}], None, 0)
        dies = asyncio.create_task(dispatcher.follow("a", 1))
        assert await first is False
        second = asyncio.create_task(dispatcher.report("a", 20, {}))
        await dies
        assert await dispatcher.follow("a", 0) == ([{"step": 20}], None, 1)
        assert not second.done(), "the rung that nobody has judged still waits"
        following = asyncio.create_task(dispatcher.follow("a", 2))
        assert await second is False
        following.cancel()

    run(story())


def test_the_job_of_a_lost_machine_goes_to_whoever_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train starts a lost group again only where there is room for it, which may be never."""
    monkeypatch.setattr(dispatcher_module, "ALIVE_SECONDS", 0.01)
    living = {"first", "second", "third"}

    async def alive(worker: str) -> bool:
        return worker in living

    async def story() -> None:
        dispatcher = Driven(workers=2, max_failures=2, alive=alive)
        await begin(dispatcher, "a")
        for worker, machine in {"first": "lost", "second": "safe"}.items():
            await dispatcher.take(0, "x", 0, worker, machine)
        await dispatcher.post("a", "started", {"attempt": 1})
        waiting = asyncio.create_task(dispatcher.take(1, "y", 0, "third", "safe"))
        living.remove("first")
        await dispatcher.machines(["lost"], [])
        await asyncio.sleep(0.1)
        assert not waiting.done(), "the other rank may still speak for this attempt"
        living.remove("second")
        taken = await waiting
        assert isinstance(taken, Job) and (taken.key, taken.attempt) == ("a", 2)
        assert (await dispatcher.written())[-1] == ("retried", "a")

    run(story())


def test_a_lost_group_gets_no_job_though_its_last_question_still_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated study found it: the next machine that came or went made the dead group idle, and the job that it was
    given waited until its own machine was back."""
    monkeypatch.setattr(dispatcher_module, "ALIVE_SECONDS", 0.01)

    async def alive(worker: str) -> bool:
        return worker == "living"

    async def story() -> None:
        dispatcher = Driven(workers=1, max_failures=2, alive=alive)
        asked = asyncio.create_task(dispatcher.take(0, "x", 0, "dead", "lost"))
        await asyncio.sleep(0)
        await dispatcher.machines(["lost"], [])
        await asyncio.sleep(0.05)
        await dispatcher.machines(["lost", "another"], [])
        await begin(dispatcher, "a")
        taken = await dispatcher.take(1, "y", 0, "living", "safe")
        assert isinstance(taken, Job) and taken.key == "a" and not asked.done()
        asked.cancel()

    run(story())


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts what it does: every wake-up of a task and every step of one is a callback."""

    callbacks = 0

    def call_soon(self, *args: Any, **more: Any) -> asyncio.Handle:
        self.callbacks += 1
        return super().call_soon(*args, **more)


def callbacks_per_event(workers: int) -> dict[str, float]:
    """Of the first job that each of so many workers takes, and of a report while all others wait."""

    async def story(loop: CountingLoop) -> dict[str, float]:
        dispatcher = Driven(workers=1, max_failures=0)
        takes = [asyncio.create_task(dispatcher.take(slot, "x", 0)) for slot in range(workers)]
        await asyncio.sleep(0)
        before = loop.callbacks
        followers = await begin(dispatcher, *(f"job {number}" for number in range(workers)))
        taken = [job.key for job in await asyncio.gather(*takes) if isinstance(job, Job)]
        assert sorted(taken) == sorted(f"job {number}" for number in range(workers))
        costs = {"take": (loop.callbacks - before) / workers}
        before = loop.callbacks
        for key in taken[:10]:
            assert not await dispatcher.report(key, 10, {})
        costs["report"] = (loop.callbacks - before) / 10
        for follower in followers:
            follower.cancel()
        return costs

    loop = CountingLoop()
    try:
        return loop.run_until_complete(story(loop))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_an_event_costs_the_same_however_many_wait() -> None:
    """Each event once woke everybody: 1,000 workers took their first jobs in 7 seconds, 4,000 in more than a minute."""
    few, many = callbacks_per_event(250), callbacks_per_event(1000)
    assert all(many[event] <= 1.5 * few[event] for event in few), (few, many)
