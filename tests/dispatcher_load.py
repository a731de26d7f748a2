"""What the dispatcher costs on a large cluster: `python tests/dispatcher_load.py`. Not a test.

First in this process, with fake workers: their first jobs. Then as the real Ray actor, with runs that report once a
minute, say how far they are, and are followed, as a driver drains it that writes each event to a disk of 2 ms. CPU
seconds are those of the actor's process, whatever else runs on the machine; what a report waits is wall-clock.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from test_dispatcher import Driven, begin

from reco_tune.settings import Resources
from reco_tune.study.cluster import cluster
from reco_tune.study.dispatcher import ACTOR, Dispatcher, Job
from reco_tune.study.runner import GATHER_SECONDS
from reco_tune.study.worker_pool import PROGRESS_PER_SECOND

WRITE_SECONDS = 0.002
"""Of one event, fsynced."""


async def first_jobs(workers: int) -> None:
    dispatcher = Driven(workers=1, max_failures=0)
    takes = [asyncio.create_task(dispatcher.take(slot, "x", 0)) for slot in range(workers)]
    await asyncio.sleep(0)
    followers = await begin(dispatcher, *(f"job {number}" for number in range(workers)))
    taken = await asyncio.gather(*takes)
    assert len({job.key for job in taken if isinstance(job, Job)}) == workers
    for follower in followers:
        follower.cancel()


def cpu_seconds(pid: int) -> float:
    """Used so far by a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def drive(dispatcher: Any, done: threading.Event, runs: int) -> None:
    """The driver's thread."""
    written = 0
    while not done.is_set():
        events, _ = ray.get(dispatcher.news.remote(written))
        for _ in events:
            time.sleep(WRITE_SECONDS)
        written = len(events)
        time.sleep(runs * GATHER_SECONDS)


class MeasuredDispatcher(Dispatcher):
    """Says which process it is."""

    async def process(self) -> int:
        return os.getpid()


def reports(runs: int, every_seconds: float, seconds: float) -> tuple[float, list[float]]:
    """CPU share of one core that the actor takes, and how long each report waited for its answer."""
    dispatcher: Any = ray.remote(MeasuredDispatcher).options(**ACTOR).remote(1, 2)
    keys = [f"run-{number}" for number in range(runs)]
    ray.get([dispatcher.submit.remote(Job("trial", key, {}, "", "", folder="")) for key in keys])
    takes = [dispatcher.take.remote(slot, "x", 0) for slot in range(runs)]
    followed = {dispatcher.follow.remote(key, 0): (key, 0) for key in keys}
    ray.get(takes)
    done, draws = threading.Event(), random.Random(0)
    driver = threading.Thread(target=drive, args=(dispatcher, done, runs), daemon=True)
    driver.start()
    due = sorted((draws.random() * every_seconds, key) for key in keys)
    began, cpu, asked, waits, said = time.monotonic(), cpu_seconds(ray.get(dispatcher.process.remote())), {}, [], 0
    while (now := time.monotonic() - began) < seconds:
        while due and due[0][0] <= now:
            at, key = due.pop(0)
            asked[dispatcher.report.remote(key, int(at) + 1, {"val_cross_entropy": 1.0})] = time.monotonic()
            due.append((at + every_seconds, key))
        while said < now * min(PROGRESS_PER_SECOND, runs):
            dispatcher.progress.remote(draws.choice(keys), 1, 2, "cross-entropy 1.000")
            said += 1
        for answer in ray.wait(list(asked), num_returns=len(asked), timeout=0.002)[0] if asked else ():
            waits.append(time.monotonic() - asked.pop(answer))
        for news in ray.wait(list(followed), num_returns=len(followed), timeout=0)[0]:
            key, seen = followed.pop(news)
            seen += len(ray.get(news)[0])
            followed[dispatcher.follow.remote(key, seen)] = (key, seen)
    share = (cpu_seconds(ray.get(dispatcher.process.remote())) - cpu) / seconds
    done.set()
    dispatcher.report.remote(keys[0], 0, {})  # wakes the driver
    driver.join(60)
    return share, waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1000, 4000, 8000])
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--every", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=90)
    given = parser.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for workers in given.workers:
        began = time.process_time()
        asyncio.run(first_jobs(workers))
        print(f"{workers} workers take their first job: {time.process_time() - began:.2f} CPU-seconds")
    with tempfile.TemporaryDirectory() as temp, cluster(None, Resources(), Path(temp) / "temp"):
        for runs in given.runs:
            share, waits = reports(runs, given.every, given.seconds)
            middle, late = np.quantile(waits, (0.5, 0.99))
            print(
                f"{runs} runs that report every {given.every:g} s: {share:.1%} of a core; a report waits"
                f" {1000 * middle:.0f} ms (median), {1000 * late:.0f} ms (p99), {len(waits)} reports"
            )
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
