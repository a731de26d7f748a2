"""The figures of a report, drawn by processes of their own while this one computes: matplotlib takes longer than all
the numbers together.

Nothing here imports matplotlib but those processes, which are fresh interpreters: a forked copy would inherit threads
and locks.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, Self

from reco_tune.data.processes import interpreter
from reco_tune.errors import RunFailedError

DPI = 160
"""Of the PNG files."""
DRAWN_BY = {
    "frontier": "figures.draw_frontier",
    "compute": "effort_figures.draw_compute",
    "hypervolume": "effort_figures.draw_hypervolume",
    "importance": "effort_figures.draw_importance",
    "lambda": "figures.draw_lambda",
    "window_stride": "figures.draw_window_stride",
    "frame_accuracy": "figures.draw_frame_accuracy",
    "loss_by_frame": "figures.draw_loss_by_frame",
    "error_growth": "figures.draw_error_growth",
    "fvd_by_samples": "figures.draw_bias",
    "learning_curves": "figures.draw_learning",
}
"""Name of each figure, in the order of the page, and the function of this package that draws it."""
_SLOW = frozenset({"importance", "window_stride", "hypervolume", "fvd_by_samples"})
"""Figures of the second process. What the first two need (Optuna's importance, seaborn) takes as long to import as four
of the others to draw, and most of it is SciPy's distributions for both.
"""


class Drawn(NamedTuple):
    """What became of the figures."""

    files: dict[str, Path]
    """PNG file by name of all that were asked for, in the order of the page, those left out for which there was nothing
    to draw.
    """
    computed: dict[str, Any]
    """What `Painter.compute_and_draw` had computed, by name of the figure."""


class Painter:
    """The processes; they start with the block and end with it."""

    def __enter__(self) -> Self:
        self._processes = (_Process(), _Process())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.end()

    def draw(self, name: str, folder: Path, *given: Any) -> None:
        """Has the figure of that name drawn from what its function takes, as `folder/name.png` and `.pdf`; returns at
        once.
        """
        self._ask(name, folder, None, given)

    def compute_and_draw(self, name: str, folder: Path, function: Callable[..., Any], *given: Any) -> None:
        """The same of function(*given), computed there too; `finish` brings it back."""
        self._ask(name, folder, function, given)

    def finish(self) -> Drawn:
        """Waits for all that were asked for.

        Raises:
            RunFailedError: where a process was lost.
            Exception: what kept a figure from being drawn or written.
        """
        for process in self._processes:
            process.jobs.put(None)
        first, second = (process.answer() for process in self._processes)
        files = first.files | second.files
        return Drawn({name: files[name] for name in DRAWN_BY if name in files}, first.computed | second.computed)

    def _ask(self, name: str, folder: Path, function: Callable[..., Any] | None, given: tuple[Any, ...]) -> None:
        self._processes[name in _SLOW].jobs.put((name, folder.absolute(), function, given))


class _Process:
    """This side of one process."""

    def __init__(self) -> None:
        command = interpreter(
            "import gc; gc.disable(); from reco_tune.reporting.drawing import _serve; _serve()"
        )  # it lives for seconds
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.jobs: SimpleQueue[tuple[str, Path, Callable[..., Any] | None, tuple[Any, ...]] | None] = SimpleQueue()
        threading.Thread(
            target=self._send, daemon=True
        ).start()  # a process takes its next job when it has drawn the one before

    def _send(self) -> None:
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError), self.popen.stdin as stdin:  # `answer` says why the other end is gone
            for job in iter(self.jobs.get, None):
                pickle.dump(job, stdin, protocol=5)
                stdin.flush()

    def answer(self) -> Drawn:
        assert self.popen.stdout is not None
        output = self.popen.stdout.read()
        if not output:
            raise RunFailedError(
                f"a process that draws figures ended with status {self.popen.wait()}; "
                f"run `{sys.executable} -c 'import reco_tune.reporting.figures'` to see why"
            )
        answer = pickle.loads(output)
        if isinstance(answer, Exception):
            raise answer
        drawn: Drawn = answer
        return drawn

    def end(self) -> None:
        self.popen.kill()
        self.jobs.put(None)
        self.popen.wait()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


def _serve() -> None:
    """The life of a process: figures until the other end is closed, then what became of them."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    drawn = Drawn({}, {})
    result: Drawn | Exception = drawn
    try:
        from reco_tune.reporting import effort_figures, figures, style

        modules = {"figures": figures, "effort_figures": effort_figures}
        while True:
            try:
                name, folder, compute, given = pickle.load(sys.stdin.buffer)
            except EOFError:
                break
            if compute is not None:
                drawn.computed[name] = compute(*given)
                given = (drawn.computed[name],)
            module, function = DRAWN_BY[name].split(".")
            figure = getattr(modules[module], function)(*given)
            if figure is not None:
                style.save(figure, folder / name)
                drawn.files[name] = folder / f"{name}.png"
    except Exception as error:
        result = error
    pickle.dump(result, answer)
    answer.close()
