"""How the frontier grew with the device hours that the study spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from reco_tune import quantities
from reco_tune.pareto import hypervolume, speed_fvd
from reco_tune.reporting.budgets import BUDGETS, at_budget
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.runs import configurations
from reco_tune.reporting.section import Figure, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

COLUMNS = ("budget", "runs", "device_hours", "hypervolume", "trial")
"""Columns of hypervolume.csv."""
_BUDGET_COLOURS = {"equal_steps": "#0072b2", "equal_compute": "#d55e00", "half_compute": "#009e73"}


def build(evidence: Evidence) -> Section:
    history = hypervolume_history(evidence)
    figure = Figure(
        "hypervolume",
        "How the frontier grew",
        "Hypervolume of the non-dominated runs against the device hours of all runs that had ended, pruned and failed"
        " ones included.",
        draw_hypervolume,
        (history,),
    )
    return Section("growth", "How the frontier grew", tables=[Table("hypervolume", data=history)], figures=[figure])


def hypervolume_history(evidence: Evidence) -> pd.DataFrame:
    """The hypervolume of each budget's frontier after so many device hours; a row where it grew, and one at the end.

    Runs count in the order in which they ended, what they cost whether or not they gave a point; a calibration that
    runs share counts with the first of them. The reference point is the frontier's own: speed-up 0 and the largest FVD
    of the budget.
    """
    kept = evidence.own_comparable
    ended = sorted(
        (run for run in evidence.study.runs.values() if run.ended is not None), key=lambda run: (run.ended, run.index)
    )
    spent = np.cumsum(_device_hours(evidence.own, [run.trial for run in ended]))
    rows = []
    for budget in evidence.budgets:
        own = kept[at_budget(kept["budget"], budget)]
        own_points, reference = speed_fvd(own["speedup"], own["fvd"])
        points = dict(zip(own["trial"], map(tuple, own_points.tolist()), strict=True))
        front: list[tuple[float, float]] = []
        volume = 0.0
        for number, (run, hours) in enumerate(zip(ended, spent, strict=True), 1):
            point = points.get(run.trial, (math.nan, math.nan))
            if math.isfinite(point[0]) and not any(other[0] <= point[0] and other[1] <= point[1] for other in front):
                front = [other for other in front if not (point[0] <= other[0] and point[1] <= other[1])] + [point]
                grown = hypervolume(front, reference)
                if grown > volume:
                    rows.append((budget, number, float(hours), grown, run.trial))
                    volume = grown
        if len(ended) and volume:
            rows.append((budget, len(ended), float(spent[-1]), volume, ""))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def draw_hypervolume(history: pd.DataFrame) -> Drawing | None:
    """Hypervolume of each budget's frontier over device hours, as a share of its last value."""
    from reco_tune.reporting.style import MARKERS, new_figure, style

    if len(history) < 3:
        return None
    with style():
        figure = new_figure(6.2, 3.6)
        axes = figure.subplots()
        for budget, rows in history.groupby("budget", sort=False):
            hours, share = (
                rows["device_hours"].to_numpy(),
                rows["hypervolume"].to_numpy() / rows["hypervolume"].iloc[-1],
            )
            colour = _BUDGET_COLOURS[str(budget)]
            axes.step([0, *hours], [0, *share], where="post", color=colour, label=BUDGETS[str(budget)].title.lower())
            axes.plot(
                hours[:-1],
                share[:-1],
                linestyle="none",
                marker=MARKERS[str(budget)],
                markersize=3.5,
                color=colour,
            )
        axes.set(xlabel="device hours spent by the study", ylabel="hypervolume (share of the last)", ylim=(0, 1.04))
        axes.set_xlim(left=0)
        axes.legend(loc="lower right", frameon=False)
    return figure


def _device_hours(runs: pd.DataFrame, order: Sequence[str]) -> list[float]:
    """Hours of each run in that order, calibrations included: those that several runs share with the first of them."""
    stages = [stage.name for stage in quantities.STAGE_SECONDS]
    calibration, *others = stages
    table = runs.assign(key=configurations(runs)).set_index("trial")[["key", *stages]].reindex(list(order))
    seconds = table[others].sum(axis=1) + table[calibration].where(~table["key"].duplicated()).fillna(0)
    return [float(spent) / 3600 for spent in seconds]
