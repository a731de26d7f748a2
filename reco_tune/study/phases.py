"""The phase of a study before its runs begin (preparing, starting Ray, calibrating), in a small file in the study
folder that other processes can read. It is written at most once a second. The log holds no progress.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from reco_tune.files import write_json
from reco_tune.study.observer import Observer
from reco_tune.study_log import StudyFolder

SECONDS = 1.0
"""Shortest time between two writes about one piece of work."""


@dataclass(frozen=True)
class Phase:
    """One piece of work in progress."""

    what: str
    done: int
    total: int
    since: float
    """Unix seconds."""

    def words(self, now: float) -> str:
        """`encoding train clips 3/64, for 12 s`."""
        count = f" {self.done:,}/{self.total:,}" if self.total > 2 else ""
        return f"{self.what}{count}, for {max(0.0, now - self.since):.0f} s"


def current_phase(folder: StudyFolder) -> Phase | None:
    """The current phase of a running study; None if its runs have begun, or it is not running."""
    if not folder.live:
        return None
    try:
        return Phase(**json.loads(folder.phase.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Phases(Observer):
    """An observer that passes events on and keeps the file."""

    def __init__(self, folder: StudyFolder, observer: Observer, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._observer, self._clock = folder, observer, clock
        self._lock = threading.RLock()  # a handler of Ctrl-C may interrupt the thread that holds it
        self._phase: Phase | None = None
        self._written = 0.0

    def on_phase(self, done: int, total: int, what: str) -> None:
        self._observer.on_phase(done, total, what)
        with self._lock:
            now, before = self._clock(), self._phase
            same = before is not None and before.what == what
            since = before.since if same and before is not None else now
            self._phase = Phase(what, done, total, since)
            if not same or now - self._written >= SECONDS:
                self._write(now)

    def on_event(self, event: dict[str, Any]) -> None:
        self._observer.on_event(event)
        if event["event"] == "started":
            self.close()

    def on_progress(self, trial: str, done: int, total: int, what: str) -> None:
        self._observer.on_progress(trial, done, total, what)

    def close(self) -> None:
        """Removes the file: the runs have begun, or the driver ends."""
        with self._lock:
            self._phase = None
            with suppress(OSError):
                self._folder.phase.unlink(missing_ok=True)

    def _write(self, now: float) -> None:
        assert self._phase is not None
        with suppress(OSError):  # nothing depends on it
            write_json(self._folder.phase, asdict(self._phase))
            self._written = now
