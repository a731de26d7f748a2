"""Progress of long functions: they call a plain function, which the caller can use to show it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""


def quiet(done: int, total: int, what: str) -> None:
    """Ignores progress."""
