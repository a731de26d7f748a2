"""Shows a running study: preparation with rate and time left, then a live table of its runs; plain lines if the output
is not a terminal.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reco_tune.cli.console import Bars, Lines, watched
from reco_tune.cli.estimate import EVALUATION_SHARE, header, headline, row, standing
from reco_tune.settings import BASELINE
from reco_tune.study import Observer
from reco_tune.study_log import ENDED, Follower, RunRecord, StudyFolder, StudyRecord
from reco_tune.tuning import in_words

if TYPE_CHECKING:
    from rich.console import Group

ROWS = 16
"""Number of runs shown at once: those that are running, the last that ended, the next."""


@contextmanager
def watching(path: Path, trials: int) -> Iterator[Observer]:
    """An observer that shows the study in a folder until the block ends.

    Args:
        trials: sampled runs of the space.
    """
    if not watched():
        yield PlainLines(path, trials)
        return
    from rich.console import Console
    from rich.live import Live

    table = LiveTable(path, trials)
    with Live(console=Console(stderr=True), get_renderable=table.draw, refresh_per_second=4):
        yield table


class PlainLines(Observer):
    """One line per calibration and per run that ended."""

    def __init__(self, path: Path, trials: int) -> None:
        self._follower, self._trials = Follower(StudyFolder(path).events), trials
        self._follower.poll()  # already printed by an earlier call
        self._lines = Lines()
        self._lock = threading.Lock()

    def on_phase(self, done: int, total: int, what: str) -> None:
        self._lines.tell(done, total, what)

    def on_event(self, event: dict[str, Any]) -> None:
        with self._lock:
            for new in self._follower.poll():
                line = self._line(new)
                if line:
                    print(line, file=sys.stderr, flush=True)

    def _line(self, event: dict[str, Any]) -> str:
        name, study = event["event"], self._follower.study
        if name == "extended":
            return f"added to the study: {', '.join(event['what'])}"
        if name == "study":
            return f"study {study.name}: {study.question}"
        if name == "calibrated" and "trial" not in event and event["key"] != BASELINE:
            speed = event["metrics"]
            return (
                f"calibrated {event['key']}: {speed['speedup']:.2f}x as fast as full, limit"
                f" {speed['speedup_limit']:.2f}x"
            )
        if name == "tuned":
            return f"chosen for {event['arm']}: {in_words(event['settings'])} ({event['metric']} {event['value']:.4g})"
        if name not in (*ENDED, "retried"):
            return ""
        found = standing(study, asked_trials(study, self._trials), time.time())
        trial, _, steps, loss, speedup, *fvd, _ = row(study.runs[event["trial"]], time.time())
        told = [
            f"step {steps}",
            loss and f"val CE {loss}",
            speedup and f"speed-up {speedup}",
            *(f"FVD {value}" for value in fvd if value),
            event.get("reason", ""),
        ]
        return f"[{found.ended}/{found.total}] {trial} {name}: {', '.join(filter(None, told))} ({headline(found)})"


class LiveTable(Observer):
    """Bars of preparation, then the runs and a bar over all of them."""

    def __init__(self, path: Path, trials: int) -> None:
        self._follower, self._trials = Follower(StudyFolder(path).events), trials
        self._bars = Bars()
        self._running: dict[str, tuple[int, int, str]] = {}

    def on_phase(self, done: int, total: int, what: str) -> None:
        self._bars.tell(done, total, what)

    def on_progress(self, trial: str, done: int, total: int, what: str) -> None:
        self._running[trial] = (done, total, what)

    def draw(self) -> Group:
        """What the terminal shows now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        self._follower.poll()
        study, now = self._follower.study, time.time()
        if not study.runs:
            at_work = [f"{name}: {what} {done}/{total}" for name, (done, total, what) in list(self._running.items())]
            return Group(self._bars.drawing, Text("\n".join(at_work)))
        table = Table(box=None, pad_edge=False, header_style="bold")
        names = header(list(study.runs.values()))
        for number, name in enumerate([*names, "now"]):
            table.add_column(name, justify="left" if number in (0, 1, len(names)) else "right", no_wrap=True)
        styles = {"running": "bold", "completed": "bold", "failed": "red", "planned": "dim"}
        for run in shown(list(study.runs.values())):
            done, total, what = self._running.get(run.trial, (0, 0, ""))
            doing = f"{what} {done}/{total}" if run.state in ("running", "completed") and total else ""
            table.add_row(*row(run, now), doing, style=styles.get(run.state, ""))
        found = standing(study, asked_trials(study, self._trials), now, self._trained())
        return Group(table, ProgressBar(total=1.0, completed=found.done_share, width=60), Text(headline(found)))

    def _trained(self) -> dict[str, float]:
        """Newer progress than in the log, for runs in training whose progress counts up to their number of steps."""
        shares = {}
        for trial, (done, total, _) in list(self._running.items()):
            run = self._follower.study.runs.get(trial)
            if run is not None and total == run.settings.get("training.steps"):
                shares[trial] = (1 - EVALUATION_SHARE) * done / total
        return shares


def asked_trials(study: StudyRecord, begun: int) -> int:
    """Number of sampled runs of a study, which may have been extended since it began."""
    return int(study.settings.get("trials", begun))


def shown(runs: list[RunRecord]) -> list[RunRecord]:
    """The running runs, the last ones that ended and the next ones, at most about `ROWS`, in the order of the log."""
    working = [run for run in runs if run.state in ("running", "completed")]
    ended = sorted((run for run in runs if run.state in ENDED), key=lambda run: run.ended or 0)
    planned = [run for run in runs if run.state == "planned"]
    room = max(0, ROWS - len(working))
    following = planned[: max(room // 3, room - len(ended))]
    latest = ended[max(0, len(ended) - room + len(following)) :]
    chosen = {run.trial for run in [*working, *following, *latest]}
    return [run for run in runs if run.trial in chosen]
