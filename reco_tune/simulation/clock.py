"""Simulated time: an asyncio loop that never waits. When all tasks sleep, its clock jumps to the first task that
wakes.

The tasks on it run the same code as in real time.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class StandstillError(RuntimeError):
    """All tasks wait for each other, and none will ever wake."""


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes without waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        """Simulated seconds since the loop was created."""
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.SelectSelector):
    """Advances the clock instead of waiting for files. No input ever comes from outside the simulation."""

    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise StandstillError("everything waits, and nothing is left that could end it")
        self._loop.now += max(0.0, timeout)
        return []
