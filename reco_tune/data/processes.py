"""Runs calls in separate processes, so that a crash or a hang costs one call and not the run. Knows nothing of videos.

Each process is a fresh interpreter, for two reasons: decoders hang in forked copies, and `multiprocessing` would run
the caller's script again in every process. A call is a module-level function and one argument, pickled and sent over
a private socket.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Self, TypeVar

from reco_tune.errors import ReCoTuneError, RunFailedError

Job = TypeVar("Job")
Result = TypeVar("Result")

_ATTEMPTS = 2
"""A call whose process crashed is tried once more: the system may have killed the process to free memory."""
_READY = b"ready"


class FailedCall(NamedTuple):
    """Replaces the result of a call that failed."""

    reason: str
    fatal: bool
    """Whether its process crashed or had to be killed. Similar calls should then be avoided."""


class Processes:
    """A pool with one process per usable core. They start when there is work and end with the `with` block."""

    def __init__(self, seconds: float, limit: int | None = None) -> None:
        """`seconds` is the time limit of one call."""
        self.seconds = seconds
        self._limit = limit or usable_cores()
        self._idle: list[_Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._idle:
            process.end()
        self._idle.clear()

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job | None]
    ) -> Iterator[Result | FailedCall | None]:
        """Yields function(job) of every job, in the order of the jobs. A job that is None gives None.

        Jobs are read only a few ahead of the results. This bounds the memory, and lets a later job depend on an
        earlier result.

        Raises:
            RunFailedError: if no process can be started.
        """
        source, exhausted = iter(jobs), False
        calls: deque[_Call] = deque()
        busy: dict[Connection, tuple[_Process, _Call]] = {}
        try:
            while True:
                while not exhausted and len(calls) < 2 * self._limit:
                    job = next(source, _END)
                    exhausted = job is _END
                    if not exhausted:
                        calls.append(_Call(job))
                if not calls:
                    return
                for call in calls:
                    if not call.taken and len(busy) < self._limit:
                        process = self._idle.pop() if self._idle else _Process()
                        process.ask(function, call.job, self.seconds)
                        call.taken = True
                        busy[process.link] = (process, call)
                if calls[0].done:
                    yield calls.popleft().outcome
                    continue
                for link in wait(list(busy)):
                    process, call = busy[link]  # type: ignore[index]
                    if process.hear(call, self.seconds):
                        del busy[link]  # type: ignore[arg-type]
                        if process.alive:
                            self._idle.append(process)
        finally:
            for process, _ in busy.values():  # the caller stopped before the last result
                process.end()


def interpreter(statements: str) -> list[str]:
    """The command that starts a fresh interpreter with this one's module path and runs the statements."""
    return [
        sys.executable,
        "-c",
        f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); {statements}",
        json.dumps(sys.path),
    ]


def usable_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_END = object()


class _Call:
    """A job that waits for its result."""

    def __init__(self, job: Any) -> None:
        self.job = job
        self.outcome: Any = None
        self.taken = self.done = job is None
        self.attempts = 0


class _Process:
    """The parent's side of one process."""

    def __init__(self) -> None:
        self.link, theirs = Pipe()
        command = interpreter(f"from reco_tune.data.processes import _serve; _serve({theirs.fileno()})")
        alone = os.environ | {"OMP_NUM_THREADS": "1"}  # one thread: the other cores have their own processes
        self._popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=alone)
        theirs.close()
        self._started = False
        self.alive = True

    def ask(self, function: Callable[[Any], Any], job: Any, seconds: float) -> None:
        self.link.send_bytes(str(seconds).encode())
        self.link.send_bytes(pickle.dumps((function, job)))

    def hear(self, call: _Call, seconds: float) -> bool:
        """Takes the next message. Returns True once the process is done, because it answered or died."""
        try:
            if not self._started:
                self._started = self.link.recv_bytes() == _READY
                return False
            call.outcome, call.done = _receive(self.link), True
        except (EOFError, OSError):
            self._lose(call, seconds)
        return True

    def end(self) -> None:
        self.alive = False
        self.link.close()
        self._popen.kill()
        self._popen.wait()

    def _lose(self, call: _Call, seconds: float) -> None:
        status = self._popen.wait()
        self.end()
        if not self._started:
            raise RunFailedError(
                f"cannot start a decoder process ({_cause(status)}); run `{sys.executable} -c 'import"
                " reco_tune.data.processes'` to see why"
            )
        call.attempts += 1
        if status == -signal.SIGALRM:
            call.outcome, call.done = (
                FailedCall(
                    f"reading it takes longer than data.decode_seconds ({seconds:g}); raise the limit to wait longer",
                    fatal=True,
                ),
                True,
            )
        elif call.attempts == _ATTEMPTS:
            call.outcome, call.done = (
                FailedCall(f"it crashes the process that reads it ({_cause(status)})", fatal=True),
                True,
            )
        else:
            call.taken = False


def _cause(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _serve(handle: int) -> None:
    """Main loop of a process: it answers calls until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the signal and closes the connection
    link = Connection(handle)
    link.send_bytes(_READY)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print a line about every damaged frame
    while True:
        try:
            seconds, message = float(link.recv_bytes()), link.recv_bytes()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, seconds)  # also ends a process stuck in C code
        try:
            function, job = pickle.loads(message)
            outcome = function(job)
        except Exception as error:
            reason = str(error) if isinstance(error, ReCoTuneError) else f"{type(error).__name__}: {error}"
            outcome = FailedCall(reason, fatal=False)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            _send(link, outcome)
        except BrokenPipeError:
            return


def _send(link: Connection, outcome: Any) -> None:
    """Sends arrays directly from their memory. Pickled with the rest, each pixel would be copied five more times."""
    arrays: list[pickle.PickleBuffer] = []
    message = pickle.dumps(outcome, protocol=5, buffer_callback=arrays.append)
    link.send((message, [array.raw().nbytes for array in arrays]))
    for array in arrays:
        left = array.raw()
        while left:
            left = left[os.write(link.fileno(), left) :]


def _receive(link: Connection) -> Any:
    """Receives what `_send` sent; each array gets its own memory.

    Raises:
        EOFError, OSError: if the other end is gone.
    """
    message, sizes = link.recv()
    arrays = [bytearray(size) for size in sizes]
    for array in arrays:
        left = memoryview(array)
        while left:
            received = os.readv(link.fileno(), [left])
            if not received:
                raise EOFError
            left = left[received:]
    return pickle.loads(message, buffers=arrays)
