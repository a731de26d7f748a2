"""What processes of `data.processes` are asked to do in tests: it crashes, hangs and fails for real. Imported there, so
it stays small.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from reco_tune.data import reading
from reco_tune.errors import DataError


def square(number: int) -> int:
    return number * number


def process_id(_: int) -> int:
    return os.getpid()


def obey(what: str) -> str:
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        time.sleep(600)
    if what == "refuse":
        raise DataError("a sentence; a way out")
    if what == "break":
        raise ZeroDivisionError("by zero")
    if what.startswith("once:"):  # as the kernel does where memory is short
        if not Path(what[5:]).exists():
            Path(what[5:]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "second time"
    return what


def big(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.int64)


def facts_of(path: Path) -> reading.VideoFacts:
    _misbehave(path.name, "open")
    return reading.facts_of(path)


def read_frames(request: reading.FrameRequest) -> reading.RequestedFrames:
    if request.indices[0] > 0 or "always" in request.path.name:
        _misbehave(request.path.name, "read")
    return reading.read_frames(request)


def _misbehave(name: str, when: str) -> None:
    if f"crash-{when}" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if f"hang-{when}" in name:
        signal.setitimer(
            signal.ITIMER_REAL, 0.1
        )  # its deadline comes early, so that good files on a busy machine never meet theirs
        time.sleep(600)
