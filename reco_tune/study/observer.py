"""The events that a live view of a study receives. Imports nothing heavy, because `status` uses it."""

from __future__ import annotations

from typing import Any


class Observer:
    """Receives a study's events; called from several threads."""

    def on_phase(self, done: int, total: int, what: str) -> None:
        """Progress of preparation and start-up; the unit depends on the work."""

    def on_event(self, event: dict[str, Any]) -> None:
        """An event was written to the log."""

    def on_progress(self, trial: str, done: int, total: int, what: str) -> None:
        """Progress of a running job, about once a second."""
