"""What a live view of a study may listen to. Imports nothing heavy: `status` reads what one of them left."""

from __future__ import annotations

from typing import Any


class Observer:
    """What a live view may listen to; called from several threads."""

    def on_phase(self, done: int, total: int, what: str) -> None:
        """Preparation and start-up, in units of their own."""

    def on_event(self, event: dict[str, Any]) -> None:
        """An event was written to the log."""

    def on_progress(self, trial: str, done: int, total: int, what: str) -> None:
        """About once a second for every running job."""
