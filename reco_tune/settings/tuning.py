"""Chooses settings for each arm before the table: the tuned ranges, and the points that every arm tries."""

from __future__ import annotations

import itertools
import math
from typing import Any

from pydantic import Field, model_validator

from reco_tune import quantities as q
from reco_tune.errors import SettingsError
from reco_tune.settings.ranges import Range
from reco_tune.settings.sections import Seed, SettingsSection

TUNE = "tune"
"""Budget name of tuning runs, which no table contains."""
METRICS = (q.FVD.name, q.VAL_CROSS_ENTROPY.name)
_BASES = (2, 3, 5, 7, 11, 13)
"""Bases of the van der Corput sequence, one per tuned setting (Halton 1960)."""


class Tune(SettingsSection):
    """Tunes each arm before the runs of the table, so that all arms are compared at their best. Every arm, the
    baseline included, tries the same points on the same seeds, at the longest of its budgets. All runs of an arm then
    use its point with the lowest mean.
    """

    per_arm: dict[str, Range]
    """The tuned settings: dotted key -> range. They must not change the cost of a step, because speed is measured
    before tuning.
    """
    trials: int | None = Field(None, ge=1)
    """Number of points that every arm tries. Over one range they are evenly spaced from end to end. Over several they
    fill the ranges evenly (Halton sequence). If all ranges are lists or have a step, you can leave it out: then every
    combination is tried.
    """
    metric: str = q.FVD.name
    """The metric that decides: `fvd` or `val_cross_entropy`. With the latter, tuning runs generate no clips. Arms
    that train on pieces of a clip do not have it.
    """
    seeds: tuple[Seed, ...] = (1000,)
    """Training seeds of the tuning runs. They must differ from the seeds of the table."""

    @model_validator(mode="after")
    def _check(self) -> Tune:
        if not self.per_arm:
            raise SettingsError("tune.per_arm is empty; give a setting with its range, or leave tune out")
        if len(self.per_arm) > len(_BASES):
            raise SettingsError(f"tune.per_arm has {len(self.per_arm)} settings; give at most {len(_BASES)}")
        if self.metric not in METRICS:
            raise SettingsError(f"tune.metric ({self.metric}) is not one of {' and '.join(METRICS)}; use one of them")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise SettingsError(f"tune.seeds {list(self.seeds)} must be at least one and all different")
        own = {key: range_.of(key, "tune.per_arm") for key, range_ in self.per_arm.items()}
        for key, range_ in own.items():
            if range_.when:
                raise SettingsError(
                    f"tune.per_arm: {key} has a condition (when), which is only allowed under search; leave it out"
                )
        object.__setattr__(self, "per_arm", own)
        levels = [_levels(range_) for range_ in own.values()]
        if all(levels):
            count = math.prod(map(len, levels))
            if self.trials not in (None, count):
                raise SettingsError(
                    f"tune.trials is {self.trials}, but the values of tune.per_arm make {count} combinations, which"
                    " every arm tries; leave trials out or change the values"
                )
            object.__setattr__(self, "trials", count)
        elif self.trials is None:
            raise SettingsError("tune.trials is missing: a range has infinitely many values; give the number of points")
        if (distinct := len({tuple(point.values()) for point in self.points})) < (self.trials or 0):
            raise SettingsError(
                f"tune.trials is {self.trials}, but the ranges of tune.per_arm hold only {distinct} of these points;"
                " lower it"
            )
        return self

    @property
    def points(self) -> list[dict[str, Any]]:
        """The points that every arm tries, in order."""
        keys, ranges = list(self.per_arm), list(self.per_arm.values())
        levels = [_levels(range_) for range_ in ranges]
        if all(levels):
            return [dict(zip(keys, point, strict=True)) for point in itertools.product(*levels)]
        count = self.trials or 0
        if len(keys) == 1:
            shares = [[index / (count - 1) if count > 1 else 0.5] for index in range(count)]
        else:
            shares = [[_halton(index, base) for base in _BASES[: len(keys)]] for index in range(1, count + 1)]
        return [
            {key: _at(range_, share) for key, range_, share in zip(keys, ranges, own, strict=True)} for own in shares
        ]


def _levels(range_: Range) -> list[Any]:
    """The values of a list, or of a range with a step. Empty for other ranges."""
    if range_.choice is not None:
        return list(range_.choice)
    bounds = range_.int or range_.float
    if not bounds or not range_.step:
        return []
    count = round((bounds[1] - bounds[0]) / range_.step)
    return [_number(range_, bounds[0] + index * range_.step) for index in range(count + 1)]


def _at(range_: Range, share: float) -> Any:
    """The value at a given share of a range."""
    if levels := _levels(range_):
        return levels[min(int(share * len(levels)), len(levels) - 1)]
    bounds = range_.int or range_.float
    assert bounds is not None
    low, high = bounds
    value = low * (high / low) ** share if range_.log else low + share * (high - low)
    return _number(range_, min(max(float(f"{value:.4g}"), low), high))


def _number(range_: Range, value: float) -> int | float:
    return round(value) if range_.int else float(round(value, 12))


def _halton(index: int, base: int) -> float:
    """The index-th number of the van der Corput sequence of a base, between 0 and 1."""
    share, digit = 0.0, 1.0
    while index:
        digit /= base
        index, rest = divmod(index, base)
        share += rest * digit
    return share
