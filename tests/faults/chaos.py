"""One study under many faults, drawn by a seed: `make chaos`. Goes on where it was stopped. Not a test.

An undisturbed study is run first; then the same study with a fault at about every third event, its driver started again
whenever it died, until it is finished. Then both are compared: every run evaluated once, the fixed arms bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_study import deterministic, run_small_study, small_space
from struck import ray_processes

from reco_tune.errors import ReCoTuneError
from reco_tune.study import Observer, Options, resume, run
from reco_tune.study_log import StudyFolder, read_events, read_study

OVERRIDES = ("seeds=[0, 1, 2, 3]", "trials=4", "resources.max_failures=1000")
"""Twelve runs of fixed arms and four sampled ones, of six rungs each; no run is given up for the deaths of its workers.
"""
KINDS = {"worker": 4, "light trial": 2, "dispatcher": 1, "driver": 1, "hang-up of a worker": 1, "interrupt": 1}
"""Faults and their weights. Half of them end the driver, which is what takes time."""
SHARE = 0.3
"""Probability of a fault at an event."""


class Chaos(Observer):
    """Strikes at events, drawn by a generator that remembers how many faults there were."""

    def __init__(self, notes: Path, seed: int, most: int) -> None:
        self._notes, self._seed, self._most = notes, seed, most
        self._workers: dict[str, int] = {}

    def on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "started":
            self._workers[event["trial"]] = event["provenance"]["pid"]
        done = faults(self._notes)
        if event["event"] not in ("started", "reported", "completed", "evaluated") or len(done) >= self._most:
            return
        seen = sum(1 for _ in read_events(self._notes.parent / "study" / "events.jsonl"))
        draw = random.Random(f"{self._seed} {len(done)} {seen}")
        if draw.random() >= SHARE:
            return
        kind = draw.choices(list(KINDS), weights=list(KINDS.values()))[0]
        with self._notes.open("a") as notes:
            notes.write(json.dumps({"fault": kind, "event": event["event"], "trial": event["trial"]}) + "\n")
            notes.flush()
            os.fsync(notes.fileno())
        self._strike(kind, event["trial"])

    def _strike(self, kind: str, trial: str) -> None:
        if kind == "driver":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if kind in ("worker", "hang-up of a worker") and trial in self._workers:
            _send(self._workers[trial], signal.SIGKILL if kind == "worker" else signal.SIGHUP)
        names = {"light trial": ("ImplicitFunc", "::follow"), "dispatcher": ("Dispatcher",)}.get(kind, ())
        for pid in ray_processes(*names)[:1]:
            _send(pid, signal.SIGKILL)


def faults(notes: Path) -> list[dict[str, str]]:
    """What has struck so far."""
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it died of an earlier one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("studies/chaos"))
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--driver", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    notes, study = given.folder / "faults.jsonl", StudyFolder(given.folder / "study")
    if given.driver:
        options, chaos = Options(name="small", track=False), Chaos(notes, given.seed, given.faults)
        try:
            if study.settings.exists():
                resume(study.path, options, chaos)
            else:
                run(
                    small_space(given.folder / "calm", *OVERRIDES), study.path, options, chaos
                )  # the same data, in the same place
        except ReCoTuneError as error:
            sys.exit(str(error))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    calm = given.folder / "calm"
    if not (calm / "study" / "events.jsonl").exists() or not read_study(calm / "study").finished:
        calm.mkdir(exist_ok=True)
        run_small_study(calm, *OVERRIDES)
    end, drivers, said = time.monotonic() + 60 * given.minutes, 0, []
    while not (study.events.exists() and read_study(study.path).finished) and time.monotonic() < end:
        drivers += 1
        done = subprocess.run([sys.executable, __file__, "--driver", *sys.argv[1:]], stderr=subprocess.PIPE, text=True)
        said += done.stderr.splitlines()
        print(
            f"driver {drivers}: exit {done.returncode}, {len(faults(notes))} faults so far;"
            f" {done.stderr.strip()[-160:]}",
            flush=True,
        )
    report(study, StudyFolder(calm / "study"), notes)


def report(study: StudyFolder, calm: StudyFolder, notes: Path) -> None:
    """Prints what struck and what it cost; fails where anything was lost."""
    struck, told, undisturbed = (
        Counter(fault["fault"] for fault in faults(notes)),
        read_study(study.path),
        read_study(calm.path),
    )
    if not told.finished:
        print(f"not finished, {sum(struck.values())} faults so far; the same command goes on")
        return
    evaluated = Counter(event["trial"] for event in read_events(study.events) if event["event"] == "evaluated")
    assert evaluated == Counter(dict.fromkeys(told.runs, 1)), evaluated
    fixed = [
        trial for trial, record in undisturbed.runs.items() if record.arm != "search" and "compute" not in record.budget
    ]
    assert all(deterministic(told.runs[trial]) == deterministic(undisturbed.runs[trial]) for trial in fixed)
    print(f"{sum(struck.values())} faults: " + ", ".join(f"{count} x {kind}" for kind, count in struck.most_common()))
    print(
        f"{len(told.runs)} runs, {sum(record.attempt for record in told.runs.values())} attempts, each evaluated once"
    )
    print(f"{len(fixed)} fixed runs at equal steps: bit for bit those of the undisturbed study")


if __name__ == "__main__":
    main()
