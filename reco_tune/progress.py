"""How long functions say how far they are: a plain callable, drawn by whoever wants to."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""


def quiet(done: int, total: int, what: str) -> None:
    """Ignores progress."""
