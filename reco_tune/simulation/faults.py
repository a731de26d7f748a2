"""The faults of a simulated study and their times. They are drawn from a seed before anything runs, so that every
variant of a study meets the same faults.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class FaultRates:
    """Rates of all kinds of faults. None, or a share of 0, turns a kind off."""

    mtbf_days: float | None = None
    """Mean time between failures of one machine."""
    preemptible: float = 0.0
    """Share of the machines that are preemptible."""
    preemption_hours: float = 24.0
    """Mean time until a preemptible machine is taken away."""
    notice_seconds: float = 120.0
    """Seconds between the preemption notice and the loss of the machine."""
    back_hours: float = 1.0
    """Mean time until a lost machine returns."""
    hang_share: float = 0.0
    """Share of attempts that hang forever at some step."""
    slow_disk_hours: float | None = None
    """Mean time between periods in which the log's disk is slow."""
    slow_disk_spell: float = 600.0
    """Seconds that a slow period lasts."""
    slow_write_seconds: float = 0.5
    """Seconds to write one event while the disk is slow."""
    tracking_hours: float | None = None
    """Mean time between outages of the tracking server. An outage lasts as long as that of a machine."""
    driver_hours: float | None = None
    """Mean time between kills of the driver."""
    resume_seconds: float = 300.0
    """Seconds until a user resumes the study."""


Kind = Literal["lost", "notice", "slow disk", "no tracking", "driver killed"]


class Fault(NamedTuple):
    """One fault."""

    at: float
    """Seconds of simulated time."""
    kind: Kind
    machine: int
    """-1 for faults that concern no machine."""
    until: float
    """When the fault ends. After a notice, the machine is lost `notice_seconds` after `at`."""


def machine_faults(rates: FaultRates, machine: int, seed: int) -> Iterator[Fault]:
    """Endless faults of one machine, in order and without overlap."""
    draws = random.Random(f"{seed}-machine-{machine}")
    may_be_taken = draws.random() < rates.preemptible
    at = 0.0
    while True:
        lost = draws.expovariate(1 / (rates.mtbf_days * DAY)) if rates.mtbf_days else float("inf")
        taken = draws.expovariate(1 / (rates.preemption_hours * HOUR)) if may_be_taken else float("inf")
        if min(lost, taken) == float("inf"):
            return
        at += min(lost, taken)
        gone = at + (rates.notice_seconds if taken < lost else 0.0)
        back = gone + draws.expovariate(1 / (rates.back_hours * HOUR))
        yield Fault(at, "notice" if taken < lost else "lost", machine, back)
        at = back


def study_faults(rates: FaultRates, seed: int) -> Iterator[Iterator[Fault]]:
    """Endless faults of the driver's machine, in order, one iterator per kind."""
    kinds: list[tuple[Kind, float | None, float]] = [
        ("slow disk", rates.slow_disk_hours, rates.slow_disk_spell),
        ("no tracking", rates.tracking_hours, rates.back_hours * HOUR),
        ("driver killed", rates.driver_hours, rates.resume_seconds),
    ]
    for kind, every_hours, seconds in kinds:
        if every_hours is not None:
            yield _recurring(kind, every_hours, seconds, random.Random(f"{seed}-{kind}"))


def _recurring(kind: Kind, every_hours: float, seconds: float, draws: random.Random) -> Iterator[Fault]:
    at = 0.0
    while True:
        at += draws.expovariate(1 / (every_hours * HOUR))
        yield Fault(at, kind, -1, at + seconds)
        at += seconds
