"""A study into which a fault strikes, with everything that a person would see of it. Not a test.

Nothing here waits for a moment: a worker goes on only when its event is in the log and every observer has heard of it,
so whoever strikes inside `on_event` finds the run exactly at that event.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from small_study import WatchedStudy, descendants, deterministic

from reco_tune.cli.watch import PlainLines
from reco_tune.study_log import StudyFolder, StudyRecord, read_events

MEGABYTE = 2**20
RAYS_WORDS = ("Traceback", "ray::", "(raylet", "ActorDiedError", "WARNING", "ERROR", "\tat ", "Last result")
"""What must not reach a person."""


class Struck(PlainLines):
    """The lines of a study that nobody watches, and a fault that strikes once: at the first event that `strike` says
    True to.
    """

    def __init__(self, folder: StudyFolder, strike: Callable[[dict[str, Any], dict[str, int]], bool]) -> None:
        super().__init__(folder.path, trials=0)
        self._strike = strike
        self.workers: dict[str, int] = {}
        """Process of each run's worker, rank 0."""
        self.event: dict[str, Any] = {}
        """At which it struck."""

    def on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "started":
            self.workers[event["trial"]] = event["provenance"]["pid"]
        if not self.event and self._strike(event, self.workers):
            self.event = event
        super().on_event(event)


def fill(disk: Path, leave: int = 0) -> Path:
    """A file that takes all the room there is on a small disk, but for so many bytes."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    with ballast.open("wb", buffering=0) as file:
        for size in (MEGABYTE, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        file.truncate(max(0, file.tell() - leave))
    return ballast


def kill_worker(event: dict[str, Any], workers: dict[str, int]) -> bool:
    """At the first report of any run."""
    if event["event"] != "reported":
        return False
    os.kill(workers[event["trial"]], signal.SIGKILL)
    return True


def kill_process(*names: str) -> Callable[[dict[str, Any], dict[str, int]], bool]:
    """Of this process's Ray processes one that has named itself so, at the first report of any run."""

    def strike(event: dict[str, Any], workers: dict[str, int]) -> bool:
        if event["event"] != "reported":
            return False
        os.kill(ray_processes(*names)[0], signal.SIGKILL)
        return True

    return strike


def ray_processes(*names: str) -> list[int]:
    """This process's Ray processes whose title (`ray::Class.method`, `ray::actor's name:Class.method`) holds one of the
    names.
    """
    titles = {pid: command.split(" ")[0] for pid, command in descendants().items() if command.startswith("ray::")}
    return [pid for pid, title in titles.items() if any(name in title for name in names)]


def assert_nothing_lost(study: StudyRecord, folder: StudyFolder, undisturbed: WatchedStudy) -> None:
    """Every run planned once and evaluated once, the fixed arms with the undisturbed study's bits and rungs."""
    events = list(read_events(folder.events))
    assert study.finished
    for name in ("planned", "evaluated"):
        counted = Counter(
            event["trial"] for event in events if event["event"] in (name, "asked" if name == "planned" else name)
        )
        assert counted == Counter(dict.fromkeys(study.runs, 1)), name
    for trial, told in undisturbed.study.runs.items():
        if told.arm != "search":
            assert deterministic(study.runs[trial]) == deterministic(told), trial
            assert [report["step"] for report in study.runs[trial].reports] == [
                report["step"] for report in told.reports
            ], trial


def lines_about(output: Iterable[str], word: str) -> list[str]:
    """What a person was told of a fault; nothing of Ray's own words reached them.

    Args:
        output: what went to standard output and to standard error.
    """
    said = "".join(output)
    assert not any(word in said for word in RAYS_WORDS), said
    return [line for line in said.splitlines() if word in line]
