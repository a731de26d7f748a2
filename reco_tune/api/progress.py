"""Shows the progress of a study: a bar in a notebook, lines on stderr anywhere else."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from reco_tune.study import Observer
from reco_tune.study_log import ENDED

SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_BARS = 10.0, 0.5

Show = Callable[[int, int, str, bool], None]
"""(done, total, what, whether to print a line)."""


class Watching(Observer):
    """Counts finished runs from a study's events."""

    def __init__(self, trials: int, show: Show) -> None:
        self._trials, self._show = trials, show
        self._planned: set[str] = set()
        self._ended: set[str] = set()
        self._lock = threading.Lock()

    def on_phase(self, done: int, total: int, what: str) -> None:
        self._show(done, total, what, done >= total)

    def on_event(self, event: dict[str, Any]) -> None:
        with self._lock:
            name, trial = event["event"], event.get("trial")
            if name in ("planned", "asked") and trial:
                self._planned.add(trial)
            elif name in ENDED and trial:
                self._ended.add(trial)
                fvd = event.get("metrics", {}).get("fvd")
                self._tell(f"{trial} {name}{f', FVD {fvd:.2f}' if fvd is not None else ''}", line=True)

    def on_progress(self, trial: str, done: int, total: int, what: str) -> None:
        self._tell(f"{trial}: {what} {done}/{total}")

    def _tell(self, what: str, line: bool = False) -> None:
        sampled = sum(trial.startswith("search") for trial in self._planned)
        total = len(self._planned) + max(0, self._trials - sampled)
        self._show(len(self._ended), total, f"{len(self._ended)} of {total} runs ended; {what}", line)


@contextmanager
def observer(trials: int, wanted: bool) -> Iterator[Observer]:
    """An observer that shows progress until the block ends.

    Args:
        trials: number of sampled runs in the study.
    """
    if not wanted:
        yield Observer()
        return
    yield Watching(trials, _bar() if _in_notebook() else _lines())


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


def _bar() -> Show:
    from IPython.display import HTML, display

    handle: Any = display(HTML("starting"), display_id=True)
    said = 0.0

    def show(done: int, total: int, what: str, line: bool) -> None:
        nonlocal said
        if line or time.monotonic() - said > SECONDS_BETWEEN_BARS:
            said = time.monotonic()
            handle.update(HTML(f'<progress value="{done}" max="{max(1, total)}"></progress> {escape(what)}'))

    return show


def _lines() -> Show:
    said = 0.0

    def show(done: int, total: int, what: str, line: bool) -> None:
        nonlocal said
        if line or time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(what, file=sys.stderr, flush=True)

    return show
