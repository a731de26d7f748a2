"""What goes wrong in a simulated study, and when: drawn by a seed before anything runs, so that the same faults meet
every variant of a study.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class FaultRates:
    """How often what fails; rates of nothing leave it whole."""

    mtbf_days: float | None = None
    """Mean time between failures of one machine."""
    preemptible: float = 0.0
    """Share of the machines that may be taken away."""
    preemption_hours: float = 24.0
    """Mean time until a machine that may be taken away is."""
    notice_seconds: float = 120.0
    """Between the notice and the end of such a machine."""
    back_hours: float = 1.0
    """Mean time until a machine is back, repaired or given again."""
    hang_share: float = 0.0
    """Of attempts, that hang at some step for ever."""
    slow_disk_hours: float | None = None
    """Mean time between spells of a slow disk under the log."""
    slow_disk_spell: float = 600.0
    """Seconds of a spell."""
    slow_write_seconds: float = 0.5
    """Of one event in a spell."""
    tracking_hours: float | None = None
    """Mean time between outages of the tracking server, which last as long as a machine does."""
    driver_hours: float | None = None
    """Mean time between kills of the driver."""
    resume_seconds: float = 300.0
    """Until somebody resumes the study."""


Kind = Literal["lost", "notice", "slow disk", "no tracking", "driver killed"]


class Fault(NamedTuple):
    """Something that goes wrong."""

    at: float
    """Seconds of simulated time."""
    kind: Kind
    machine: int
    """-1 where it is no machine's."""
    until: float
    """When it is over; a noticed machine ends `notice_seconds` after `at`."""


def machine_faults(rates: FaultRates, machine: int, seed: int) -> Iterator[Fault]:
    """Of one machine for ever, in order, one after another."""
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
    """Those of the driver's machine, each kind for ever, in order."""
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
