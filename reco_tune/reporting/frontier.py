"""The speed/FVD frontier: which runs no other run beats in both. Computes, never draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reco_tune.pareto import hypervolume, non_dominated, speed_fvd
from reco_tune.reporting.runs import at_budget, budget_order, comparable, own_runs

SETTINGS = (
    "window.length_tokens",
    "window.stride_tokens",
    "window.first_frame_probability",
    "objective.continuity_weight",
)
COLUMNS = (
    "trial",
    "arm",
    "budget",
    "seed",
    *SETTINGS,
    "speedup",
    "fvd",
    "fvd_low",
    "fvd_high",
    "on_frontier",
    "protocol",
)
"""Columns of frontier.csv."""


@dataclass(frozen=True)
class Frontier:
    """Every run of the study that may be compared, and whether it is non-dominated within its budget."""

    points: pd.DataFrame
    """One row a run with `COLUMNS`; the baseline stands under every whole budget. The speed frontier is the rows at
    `equal_steps`, the compute frontiers those at `equal_compute` and `half_compute`. A point is a run, not a mean over
    seeds.
    """
    hypervolume: dict[str, float]
    """By budget: area in speed-up x FVD units between the frontier, speed-up 0 and the largest FVD of that budget."""

    def at(self, budget: str) -> pd.DataFrame:
        """Points of one budget, in planned order."""
        return self.points[self.points["budget"] == budget]

    def non_dominated(self, budget: str) -> pd.DataFrame:
        """The frontier of one budget from slow to fast."""
        points = self.at(budget)
        return points[points["on_frontier"].astype(bool)].sort_values(["speedup", "fvd", "trial"], kind="stable")


def frontier(runs: pd.DataFrame) -> Frontier:
    """The non-dominated runs: no other run of the budget is at least as fast and as good, and better in one.

    Pruned, failed and unfinished runs are never points, nor are runs from elsewhere.

    Raises:
        ComparisonError: where the runs were not evaluated under one protocol.
    """
    kept = own_runs(comparable(runs))
    parts, volumes = [], {}
    for budget in budget_order(runs):
        rows = kept[at_budget(kept["budget"], budget)]
        points, reference = speed_fvd(rows["speedup"].to_numpy(float), rows["fvd"].to_numpy(float))
        columns: dict[str, Any] = {
            name: _column(rows, name) for name in COLUMNS if name not in ("budget", "on_frontier")
        }
        columns |= {"budget": [budget] * len(rows), "on_frontier": non_dominated(points)}
        parts.append(pd.DataFrame({name: columns[name] for name in COLUMNS}))
        volumes[budget] = hypervolume(points, reference)
    return Frontier(pd.concat(parts, ignore_index=True), volumes)


def _column(rows: pd.DataFrame, name: str) -> Any:
    return rows[name].to_numpy() if name in rows else np.full(len(rows), None, dtype=object)
