"""The figures of a report, drawn by processes of their own while this one computes: matplotlib takes longer than all the numbers together.

Nothing here imports matplotlib but those processes, which are fresh interpreters: a forked copy would inherit threads and locks.
"""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reco_tune.data.processes import interpreter
from reco_tune.errors import RunFailedError

DPI = 160
"""Of the PNG files."""
PROCESSES = 2
"""That draw. Each imports for two seconds, so more would not be sooner done with ten figures."""
DRAWN_BY = {
    "frontier": "figures.draw_frontier",
    "compute": "effort_figures.draw_compute",
    "hypervolume": "effort_figures.draw_hypervolume",
    "importance": "effort_figures.draw_importance",
    "lambda": "figures.draw_lambda",
    "window_stride": "figures.draw_window_stride",
    "loss_by_frame": "figures.draw_loss_by_frame",
    "error_growth": "figures.draw_error_growth",
    "fvd_by_samples": "figures.draw_bias",
    "learning_curves": "figures.draw_learning",
}
"""Name of each figure, in the order of the page, and the function of this package that draws it."""


class Painter:
    """The processes; they start with the block and end with it."""

    def __enter__(self) -> Self:
        command = interpreter("from reco_tune.reporting.drawing import _serve; _serve()")
        self._processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(PROCESSES)]
        self._turn = itertools.cycle(self._processes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._processes:
            process.kill()
            with suppress(BrokenPipeError), process:  # closes its pipes and waits
                pass

    def draw(self, name: str, folder: Path, *given: Any) -> None:
        """Has the figure of that name drawn from what its function takes, as `folder/name.png` and `.pdf`; returns at once."""
        stdin = next(self._turn).stdin
        assert stdin is not None
        try:
            pickle.dump((name, folder.absolute(), given), stdin, protocol=5)
            stdin.flush()
        except BrokenPipeError:
            return  # `finish` says why

    def finish(self) -> Mapping[str, Path]:
        """PNG file by name of all that were asked for, in the order of the page, those left out for which there was nothing to draw.

        Raises:
            RunFailedError: where a process was lost.
            Exception: what kept a figure from being drawn or written.
        """
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        drawn: dict[str, Path] = {}
        for process in self._processes:
            assert process.stdout is not None
            output = process.stdout.read()
            if not output:
                raise RunFailedError(
                    f"a process that draws figures ended with status {process.wait()}; "
                    f"run `{sys.executable} -c 'import reco_tune.reporting.figures'` to see why"
                )
            answer = pickle.loads(output)
            if isinstance(answer, Exception):
                raise answer
            drawn |= answer
        return {name: drawn[name] for name in DRAWN_BY if name in drawn}


def _serve() -> None:
    """The life of a process: figures until the other end is closed, then what became of them."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    drawn: dict[str, Path] = {}
    result: dict[str, Path] | Exception = drawn
    try:
        from reco_tune.reporting import effort_figures, figures, style

        modules = {"figures": figures, "effort_figures": effort_figures}
        while True:
            try:
                name, folder, given = pickle.load(sys.stdin.buffer)
            except EOFError:
                break
            module, function = DRAWN_BY[name].split(".")
            figure = getattr(modules[module], function)(*given)
            if figure is not None:
                style.save(figure, folder / name)
                drawn[name] = folder / f"{name}.png"
    except Exception as error:
        result = error
    pickle.dump(result, answer)
    answer.close()
