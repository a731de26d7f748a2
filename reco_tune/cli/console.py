"""Progress on the terminal: bars with rate and time left, or plain lines if the output is not a terminal (a pipe, a CI
log).
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reco_tune.cli.estimate import duration
from reco_tune.text_tables import text_table

if TYPE_CHECKING:
    from reco_tune.progress import Progress

SECONDS_BETWEEN_LINES = 10.0
"""Seconds between plain lines about one piece of work."""


def watched() -> bool:
    """Whether both output streams are terminals."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def size(count: float) -> str:
    """Bytes in a readable unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A progress callable that draws a bar for each piece of work, or prints plain lines."""
    if not watched():
        yield Lines().tell
        return
    bars = Bars()
    with bars.drawing:
        yield bars.tell


class Bars:
    """Progress as bars with rate and time left. `drawing` is the display of rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TaskID,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:,.1f}/s" if speed else "", style="progress.data.speed")

        shape = (
            TextColumn("{task.description}"),
            BarColumn(30),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
        )
        self.drawing = Progress(*shape, TimeRemainingColumn(), console=Console(stderr=True))
        self._tasks: dict[str, TaskID] = {}

    def tell(self, done: int, total: int, what: str) -> None:
        """A `Progress`."""
        if what not in self._tasks:
            for begun in self.drawing.tasks:  # pieces follow each other: those before are done, whatever they reported
                self.drawing.update(begun.id, completed=begun.total)
            self._tasks[what] = self.drawing.add_task(what, total=total)
        self.drawing.update(self._tasks[what], completed=done, total=total)


class Lines:
    """Progress as plain lines on stderr: the start of each piece of work, every ten seconds, and its end."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._said = 0.0
        self._ended: set[str] = set()

    def tell(self, done: int, total: int, what: str) -> None:
        """A `Progress`."""
        now = time.monotonic()
        first = what not in self._began
        began = self._began.setdefault(what, now)
        if what in self._ended or not (first or done >= total or now - self._said >= SECONDS_BETWEEN_LINES):
            return
        self._said = now
        spent = now - began
        if done >= total:
            self._ended.add(what)
            note = f"in {duration(spent)}"
        elif done and spent > 1:
            note = f"{done / spent:,.1f}/s, about {duration(spent * (total - done) / done)} left"
        else:
            note = ""
        print(f"{what}: {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)


def terminal_width() -> int:
    """Columns of the terminal, or the value of COLUMNS; 200 if neither is known (a pipe)."""
    return shutil.get_terminal_size((200, 24)).columns


def print_table(title: str, header: list[str], rows: list[list[str]], left: int = 1) -> None:
    """Prints a table on stdout; the first `left` columns are text, the others numbers."""
    print(title)
    print("\n".join(text_table(header, rows, range(left), terminal_width())))
