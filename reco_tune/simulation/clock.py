"""Simulated time: an asyncio loop that never waits. When all tasks sleep, its clock jumps to the first that wakes.

Knows asyncio alone; what runs on it is the code that runs on real time.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class StandstillError(RuntimeError):
    """Everybody waits for somebody and nobody will ever wake."""


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds cost nothing."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the loop was made."""
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.SelectSelector):
    """Instead of waiting for a file it lets the clock jump; nobody outside has anything to say."""

    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise StandstillError("everything waits, and nothing is left that could end it")
        self._loop.now += max(0.0, timeout)
        return []
