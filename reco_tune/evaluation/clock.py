"""Device seconds per purpose, for the cost ledger of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from reco_tune import quantities as q
from reco_tune.training import Group


class Clock:
    """Adds up the time of generation and evaluation. On a GPU it waits for queued work before it reads the time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = {"generation": 0.0, "evaluation": 0.0}

    @contextmanager
    def measure(self, purpose: Literal["generation", "evaluation"]) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self._seconds[purpose] += self._now() - start

    def totals(self, group: Group) -> dict[str, float]:
        """Sums over ranks; each rank is one device."""
        sums = group.sum_(torch.tensor([self._seconds["generation"], self._seconds["evaluation"]], dtype=torch.float64))
        return {q.GENERATION_SECONDS.name: float(sums[0]), q.EVALUATION_SECONDS.name: float(sums[1])}

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
