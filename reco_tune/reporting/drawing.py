"""Draws the figures of a report in separate processes while this process computes, because matplotlib takes longer than
all numbers together.

Only these processes import matplotlib. They are fresh interpreters, because a forked copy would inherit threads and
locks.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, Self

from reco_tune.data.processes import interpreter
from reco_tune.errors import RunFailedError
from reco_tune.reporting.section import Figure

PROCESSES = 2


class _Job(NamedTuple):
    """A figure as its process needs it, with the folder to draw into."""

    name: str
    folder: Path
    draw: Any
    given: tuple[Any, ...]


class Painter:
    """The processes; they start with the block and end with it. Each takes the next figure when it has drawn one."""

    def __enter__(self) -> Self:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._answers: dict[str, bool | Exception] = {}
        self._processes = [_Process(self._jobs, self._answers) for _ in range(PROCESSES)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.popen.kill()
            self._jobs.put(None)
        for process in self._processes:
            process.end()

    def draw(self, figure: Figure, folder: Path) -> None:
        """Asks a process to draw a figure as `folder/name.png` and `.pdf`; returns at once."""
        self._jobs.put(_Job(figure.name, folder.absolute(), figure.draw, figure.given))

    def finish(self) -> set[str]:
        """Waits for all figures; returns the names of those that were drawn. A figure without data is not drawn.

        Raises:
            RunFailedError: if a process was lost.
            Exception: the error that a figure ended with.
        """
        for _ in self._processes:
            self._jobs.put(None)
        for process in self._processes:
            process.thread.join()
        for answer in self._answers.values():
            if isinstance(answer, Exception):
                raise answer
        return {name for name, drawn in self._answers.items() if drawn}


class _Process:
    """This side of one process: a thread that sends it jobs and reads its answers."""

    def __init__(self, jobs: SimpleQueue[_Job | None], answers: dict[str, bool | Exception]) -> None:
        command = interpreter(
            "import gc; gc.disable(); from reco_tune.reporting.drawing import _serve; _serve()"
        )  # it lives for seconds
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.thread = threading.Thread(target=self._hand_out, args=(jobs, answers), daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.thread.join()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # of what a lost process never read
                pipe.close()

    def _hand_out(self, jobs: SimpleQueue[_Job | None], answers: dict[str, bool | Exception]) -> None:
        for job in iter(jobs.get, None):
            try:
                answers[job.name] = self._drawn(job)
            except Exception as error:
                answers[job.name] = error

    def _drawn(self, job: _Job) -> bool | Exception:
        assert self.popen.stdin is not None and self.popen.stdout is not None
        try:
            pickle.dump(job, self.popen.stdin, protocol=5)
            self.popen.stdin.flush()
            answer: bool | Exception = pickle.load(self.popen.stdout)
        except (BrokenPipeError, EOFError) as error:
            raise RunFailedError(
                f"a process that draws figures ended with status {self.popen.wait()}; "
                f"run `{sys.executable} -c 'import reco_tune.reporting.style'` to see why"
            ) from error
        return answer


def _serve() -> None:
    """The loop of a process: draws figures until the other end is closed, and answers each."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps what a library prints out of the answers
    from reco_tune.reporting import style  # while the first figure is computed

    warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in another script is a row of boxes

    while True:
        try:
            job: _Job = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        answer: bool | Exception
        try:
            figure = job.draw(*job.given)
            if figure is not None:
                style.save(figure, job.folder / job.name)
            answer = figure is not None
        except Exception as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()
