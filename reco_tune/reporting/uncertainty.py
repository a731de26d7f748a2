"""How sure the frontier is: the noise of FVD and of speed-up carried through to who stands on it.

A configuration is an arm or a sampled run, its training seeds together: a lucky seed alone is no configuration.
Computes, never draws. The run that made a configuration a finalist is one of its seeds: its luck still flatters their
mean, the less the more there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from reco_tune.pareto import knee, non_dominated
from reco_tune.reporting.aggregate import CONFIDENCE, Measured, mean_interval
from reco_tune.reporting.frontier import SETTINGS
from reco_tune.reporting.runs import at_budget, budget_order, comparable, configurations, own_runs

COLUMNS = (
    "budget",
    "arm",
    "trial",
    "runs",
    *SETTINGS,
    "speedup",
    "fvd",
    "fvd_low",
    "fvd_high",
    "on_frontier",
    "knee",
    "probability",
)
"""Columns of frontier_probability.csv."""
FVD = ("fvd", "fvd_low", "fvd_high")
SPEEDUP = ("speedup", "speedup_low", "speedup_high")
DRAWS = 1000
"""Of the parametric bootstrap: a probability is known to about 0.03."""
SPEEDS = 80
"""Speed-ups at which the band is computed."""
_FAR = 0.999
"""A point that could stand on the frontier only beyond this quantile of its own noise and of another's is not drawn."""
_Z = float(ndtri(0.5 + CONFIDENCE / 2))
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Uncertainty:
    """The frontier of the configurations of each budget, with its noise."""

    points: pd.DataFrame
    """One row a configuration with `COLUMNS`, in planned order within a budget; `on_frontier` and `knee` are of the
    means themselves.
    """
    bands: Mapping[str, pd.DataFrame]
    """By budget: at a `speedup`, the 95% interval (`low`, `high`) of the best FVD among what is at least as fast."""

    def at(self, budget: str) -> pd.DataFrame:
        """Configurations of one budget."""
        return self.points[self.points["budget"] == budget]


def frontier_uncertainty(runs: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> Uncertainty:
    """How probable it is that each configuration stands on the frontier of its budget, and where that frontier lies.

    Parametric bootstrap: each draw takes every FVD from its 95% interval (normal on either side of the value at one
    seed, Student's t over seeds from two on, never below 0) and every speed-up from its calibration's interval, which a
    configuration's seeds share. The probability is the share of draws in which nothing beats the configuration in both.
    Runs from elsewhere, whose speed and noise were not measured here, take no part.

    Raises:
        ComparisonError: where the runs were not evaluated under one protocol.
    """
    kept = own_runs(comparable(runs))
    parts, bands = [pd.DataFrame([], columns=list(COLUMNS))], {}
    for budget in budget_order(runs):
        own = _configurations(kept[at_budget(kept["budget"], budget)])
        if own.empty:
            continue
        costs = own[["speedup", "fvd"]].to_numpy() * (-1, 1)
        chances, bands[budget] = _draw(own, draws, np.random.default_rng(seed))
        bends = np.arange(len(own)) == knee(costs)
        parts.append(
            own.assign(budget=budget, on_frontier=non_dominated(costs), knee=bends, probability=chances)[list(COLUMNS)]
        )
    return Uncertainty(pd.concat(parts[1:] or parts, ignore_index=True), bands)


def _configurations(rows: pd.DataFrame) -> pd.DataFrame:
    """Identity, settings, means and intervals of every configuration."""
    members: dict[str, list[int]] = {}
    for place, key in enumerate(configurations(rows)):
        members.setdefault(key, []).append(place)
    known = {
        name: rows[name].to_numpy() if name in rows else np.full(len(rows), None)
        for name in ("arm", "trial", *SETTINGS)
    }
    known |= {name: rows[name].to_numpy(np.float64) for name in (*FVD, *SPEEDUP)}
    found = {name: values[[own[0] for own in members.values()]] for name, values in known.items()}
    for row, own in enumerate(members.values()):
        if len(own) > 1:
            fvd = mean_interval([Measured(*(known[name][place] for name in FVD)) for place in own])
            means = dict(zip(FVD, fvd, strict=True)) | {name: fmean(known[name][own]) for name in SPEEDUP}
            for name, value in means.items():
                found[name][row] = value
    return pd.DataFrame(found | {"runs": [len(own) for own in members.values()]})


def _draw(table: pd.DataFrame, draws: int, generator: np.random.Generator) -> tuple[Array, pd.DataFrame]:
    """Probability of each row, and the band of the frontier."""
    fvd, fvd_low, fvd_high, speed, speed_low, speed_high, count = table[[*FVD, *SPEEDUP, "runs"]].to_numpy(np.float64).T
    several, freedom = count > 1, np.maximum(count - 1, 1)
    quantile = np.where(several, stdtrit(freedom, 0.5 + CONFIDENCE / 2), _Z)
    # Over seeds the interval is symmetric about the mean, but its low end may have been cut off at 0: the high end
    # holds the spread.
    above, below = (
        _width(fvd_high - fvd) / quantile,
        _width(np.where(several, fvd_high - fvd, fvd - fvd_low)) / quantile,
    )
    faster, slower = _width(speed_high - speed) / _Z, _width(speed - speed_low) / _Z
    far = float(ndtri(_FAR))
    reach = np.where(several, stdtrit(freedom, _FAR), far)
    near = np.flatnonzero(
        _possible(speed + far * faster, fvd - reach * below, speed - far * slower, fvd + reach * above)
    )
    speeds = np.linspace(speed.min(), speed.max(), SPEEDS)
    wins, best_FVD = np.zeros(len(table)), np.full((draws, SPEEDS), np.inf)
    fvd, above, below, speed, faster, slower = (values[near] for values in (fvd, above, below, speed, faster, slower))
    seeded, freedom = np.flatnonzero(several[near]), freedom[near][several[near]]
    for draw in range(draws):
        noise = generator.standard_normal(len(near))
        noise[seeded] = generator.standard_t(freedom)
        drawn = np.maximum(fvd + noise * np.where(noise > 0, above, below), 0)
        noise = generator.standard_normal(len(near))
        pace = speed + noise * np.where(noise > 0, faster, slower)
        order = np.argsort(-pace)
        if not np.diff(pace[order]).all():  # equal speeds: the better FVD comes first
            order = np.lexsort((drawn, -pace))
        best = np.minimum.accumulate(drawn[order])
        wins[near[order[np.append(True, drawn[order][1:] < best[:-1])]]] += 1
        as_fast = np.searchsorted(-pace[order], -speeds, side="right")
        best_FVD[draw] = np.where(as_fast > 0, best[np.maximum(as_fast - 1, 0)], np.inf)
    # As ordered statistics, because the best FVD among nothing is infinite and must not be interpolated with.
    low, high = np.quantile(best_FVD, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], axis=0, method="nearest")
    return wins / draws, pd.DataFrame({"speedup": speeds, "low": low, "high": high})


def _possible(best_speed: Array, best_fvd: Array, worst_speed: Array, worst_fvd: Array) -> NDArray[np.bool_]:
    """Which points at their best no other point beats at its worst."""
    order = np.argsort(-worst_speed, kind="stable")
    least = np.append(np.inf, np.minimum.accumulate(worst_fvd[order]))
    faster = np.searchsorted(-worst_speed[order], -best_speed, side="right")
    possible: NDArray[np.bool_] = best_fvd <= least[faster]
    return possible


def _width(width: Array) -> Array:
    return np.where(np.isfinite(width), np.maximum(width, 0), 0)
