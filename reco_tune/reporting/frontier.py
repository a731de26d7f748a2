"""The frontier of speed and quality: the configurations that no other one beats in both, and how certain that is.
Computes, never draws.

A configuration is an arm or a sampled run with all its training seeds. A single lucky seed is not a configuration. The
run that made a configuration a finalist is one of its seeds. That run was chosen because it was good, so it biases the
mean; more seeds make the bias smaller. A configuration that breaks a constraint of the search is listed, but it is not
on the frontier and beats nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from reco_tune.pareto import hypervolume, knee, non_dominated, speed_fvd
from reco_tune.reporting.aggregate import CONFIDENCE, Estimate, mean_interval
from reco_tune.reporting.budgets import at_budget
from reco_tune.reporting.quality import Quality, quality_of
from reco_tune.reporting.runs import broken_constraints, configurations
from reco_tune.settings import Bound

SETTINGS = (
    "window.length_tokens",
    "window.stride_tokens",
    "window.first_frame_probability",
    "objective.continuity_weight",
)
SPEEDUP = ("speedup", "speedup_low", "speedup_high")
DRAWS = 1000
"""Draws of the parametric bootstrap. With this many, a probability is known to about 0.03."""
SPEEDS = 80
"""Speed-ups at which the band is computed."""
_FAR = 0.999
"""Points that reach the frontier only beyond this quantile of their own noise and of another point's are left out of
the draws.
"""
_Z = float(ndtri(0.5 + CONFIDENCE / 2))
Array = NDArray[np.float64]


def columns(quality: Quality) -> list[str]:
    """Of frontier.csv."""
    return ["trial", "arm", "budget", "seed", *SETTINGS, "speedup", *quality.ends, "on_frontier", "protocol"]


def probability_columns(quality: Quality) -> list[str]:
    """Of frontier_probability.csv."""
    found = ["budget", "arm", "trial", "runs", *SETTINGS, "speedup", *quality.ends]
    return [*found, "on_frontier", "knee", "probability", "infeasible"]


@dataclass(frozen=True)
class Frontier:
    """The comparable configurations of a study, and those that no other one beats within their budget.

    `equal_steps` gives the speed frontier, the compute budgets give the compute frontiers. The baseline is in every
    whole budget.
    """

    points: pd.DataFrame
    """One row for each configuration, in planned order within a budget, with the columns of both files.

    `trial` is its first run and `seed` lists its training seeds. Quality and `speedup` are means over the seeds, and
    `on_frontier` and `knee` follow from these means. `probability` is the share of draws in which it is on the
    frontier. `infeasible` names the constraint that it breaks.
    """
    hypervolume: Mapping[str, float]
    """By budget: area in speed-up x quality units between the frontier, speed-up 0 and the worst quality of that
    budget.
    """
    bands: Mapping[str, pd.DataFrame]
    """By budget: for each `speedup`, the 95% interval (`low`, `high`) of the best quality among configurations that are
    at least as fast.
    """

    def at(self, budget: str) -> pd.DataFrame:
        """Configurations of one budget."""
        return self.points[self.points["budget"] == budget]

    def non_dominated(self, budget: str) -> pd.DataFrame:
        """The frontier of one budget from slow to fast."""
        points = self.at(budget)
        order = ["speedup", quality_of(points).key, "trial"]
        return points[points["on_frontier"].astype(bool)].sort_values(order, kind="stable")


def find_frontier(
    kept: pd.DataFrame,
    budgets: Sequence[str],
    constraints: Mapping[str, Bound],
    draws: int = DRAWS,
    seed: int = 0,
) -> Frontier:
    """The non-dominated configurations of each budget, the probability of each, and the band of the frontier. A
    configuration is non-dominated if no other one is at least as fast and as good, and better in one of the two.

    Parametric bootstrap: each draw takes every quality and every speed-up from its 95% interval. Qualities with one
    seed are normal on either side of the value; with two or more, Student's t over seeds. No quality is below 0. Seeds
    of a configuration share a calibration, so they share its speed-up interval. The probability is the share of draws
    in which no other configuration beats this one in both.

    Args:
        kept: the study's own comparable runs. Imported runs take no part, because their speed and noise were not
            measured here.
        budgets: of the study.
        constraints: metric -> allowed range of the means.
    """
    quality = quality_of(kept)
    named = list(dict.fromkeys(columns(quality) + probability_columns(quality)))
    parts, volumes, bands = [pd.DataFrame([], columns=named)], {}, {}
    for budget in budgets:
        own = _configurations(kept[at_budget(kept["budget"], budget)], constraints).assign(budget=budget)
        costs = own[["speedup", quality.key]].to_numpy(np.float64) * (-1, 1)
        costs[(own["infeasible"] != "").to_numpy(dtype=bool)] = np.nan  # no point: it beats nothing
        feasible = np.flatnonzero(np.isfinite(costs).all(axis=1))
        volumes[budget] = hypervolume(*speed_fvd(-costs[feasible, 0], costs[feasible, 1]))
        chances = np.zeros(len(own))
        if len(feasible):
            chances[feasible], bands[budget] = _draw(own.iloc[feasible], draws, np.random.default_rng(seed))
        own = own.assign(on_frontier=non_dominated(costs), knee=np.arange(len(own)) == knee(costs), probability=chances)
        parts.append(own[list(parts[0])])
    return Frontier(pd.concat(parts[1:] if any(map(len, parts)) else parts, ignore_index=True), volumes, bands)


def _configurations(rows: pd.DataFrame, constraints: Mapping[str, Bound]) -> pd.DataFrame:
    """Identity, settings, means and intervals of every configuration."""
    members: dict[str, list[int]] = {}
    for place, key in enumerate(configurations(rows)):
        members.setdefault(key, []).append(place)
    groups, first = list(members.values()), [own[0] for own in members.values()]
    words = ("arm", "trial", "protocol", *SETTINGS)
    found: dict[str, Any] = {
        name: (rows[name].to_numpy() if name in rows else np.full(len(rows), None))[first] for name in words
    }
    ends = quality_of(rows).ends
    values = {name: rows[name].to_numpy(np.float64) for name in dict.fromkeys((*ends, *SPEEDUP, *constraints))}
    means = {name: column[first] for name, column in values.items()}
    for row, own in enumerate(groups):
        if len(own) > 1:
            mean = mean_interval([Estimate(*(values[name][place] for name in ends)) for place in own])
            for name in means:
                means[name][row] = dict(zip(ends, mean, strict=True)).get(name, fmean(values[name][own]))
    seeds = [[int(seed) for seed in rows["seed"].to_numpy()[own]] for own in groups]
    found |= means | {
        "runs": [len(own) for own in groups],
        "seed": pd.Series([own[0] if len(own) == 1 else " ".join(map(str, own)) for own in seeds], dtype=object),
        "infeasible": pd.Series(
            [
                broken_constraints({name: float(means[name][row]) for name in constraints}, constraints)
                for row in range(len(groups))
            ],
            dtype=object,
        ),
    }
    return pd.DataFrame(found)


def _draw(table: pd.DataFrame, draws: int, generator: np.random.Generator) -> tuple[Array, pd.DataFrame]:
    """Probability of each row, and the band of the frontier."""
    named = [*quality_of(table).ends, *SPEEDUP, "runs"]
    value, low, high, speed, speed_low, speed_high, count = table[named].to_numpy(np.float64).T
    several, freedom = count > 1, np.maximum(count - 1, 1)
    quantile = np.where(several, stdtrit(freedom, 0.5 + CONFIDENCE / 2), _Z)
    # Over seeds the interval is symmetric about the mean, but its low end may have been cut off at 0: the high end
    # holds the spread.
    above, below = (
        _width(high - value) / quantile,
        _width(np.where(several, high - value, value - low)) / quantile,
    )
    faster, slower = _width(speed_high - speed) / _Z, _width(speed - speed_low) / _Z
    far = float(ndtri(_FAR))
    reach = np.where(several, stdtrit(freedom, _FAR), far)
    near = np.flatnonzero(
        _possible(speed + far * faster, value - reach * below, speed - far * slower, value + reach * above)
    )
    speeds = np.linspace(speed.min(), speed.max(), SPEEDS)
    wins, best_value = np.zeros(len(table)), np.full((draws, SPEEDS), np.inf)
    value, above, below, speed, faster, slower = (
        values[near] for values in (value, above, below, speed, faster, slower)
    )
    seeded, freedom = np.flatnonzero(several[near]), freedom[near][several[near]]
    for draw in range(draws):
        noise = generator.standard_normal(len(near))
        noise[seeded] = generator.standard_t(freedom)
        drawn = np.maximum(value + noise * np.where(noise > 0, above, below), 0)
        noise = generator.standard_normal(len(near))
        pace = speed + noise * np.where(noise > 0, faster, slower)
        order = np.argsort(-pace)
        if not np.diff(pace[order]).all():  # equal speeds: the better one comes first
            order = np.lexsort((drawn, -pace))
        best = np.minimum.accumulate(drawn[order])
        wins[near[order[np.append(True, drawn[order][1:] < best[:-1])]]] += 1
        as_fast = np.searchsorted(-pace[order], -speeds, side="right")
        best_value[draw] = np.where(as_fast > 0, best[np.maximum(as_fast - 1, 0)], np.inf)
    # Order statistics without interpolation: where no configuration is as fast, the best value is infinite.
    low, high = np.quantile(best_value, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], axis=0, method="nearest")
    return wins / draws, pd.DataFrame({"speedup": speeds, "low": low, "high": high})


def _possible(best_speed: Array, best_value: Array, worst_speed: Array, worst_value: Array) -> NDArray[np.bool_]:
    """Whether each point at its best is not beaten by any other point at its worst."""
    order = np.argsort(-worst_speed, kind="stable")
    least = np.append(np.inf, np.minimum.accumulate(worst_value[order]))
    faster = np.searchsorted(-worst_speed[order], -best_speed, side="right")
    possible: NDArray[np.bool_] = best_value <= least[faster]
    return possible


def _width(width: Array) -> Array:
    return np.where(np.isfinite(width), np.maximum(width, 0), 0)
