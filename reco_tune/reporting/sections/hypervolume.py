"""How the frontier grew with the device hours that the study spent."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reco_tune import quantities
from reco_tune.pareto import hypervolume, non_dominated, speed_fvd
from reco_tune.reporting.budgets import BUDGETS, at_budget
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.runs import configurations
from reco_tune.reporting.section import Figure, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

COLUMNS = ("budget", "runs", "device_hours", "hypervolume", "trial")
"""Columns of hypervolume.csv."""
_BUDGET_COLOURS = {
    "equal_steps": "#0072b2",
    "equal_compute": "#d55e00",
    "half_compute": "#009e73",
    "quarter_compute": "#b0559a",
    "eighth_compute": "#b8860b",
}


def build(evidence: Evidence) -> Section:
    history = hypervolume_history(evidence)
    figure = Figure(
        "hypervolume",
        "How the frontier grew",
        "Hypervolume of the frontier against the device hours of all runs that had ended, including pruned and failed"
        " runs. Arms and finalists count as means over the seeds that had ended.",
        draw_hypervolume,
        (history,),
    )
    return Section("growth", "How the frontier grew", tables=[Table("hypervolume", data=history)], figures=[figure])


def hypervolume_history(evidence: Evidence) -> pd.DataFrame:
    """The hypervolume of each budget's frontier after so many device hours: a row for each change, and one at the end.

    Runs count in the order in which they ended, with their cost even if they gave no point. A calibration that runs
    share counts with the first of them. As on the frontier, a point is a configuration: the mean of its runs so far.
    The reference point is speed-up 0 and the worst quality of the budget. A further seed may make the hypervolume
    smaller.
    """
    runs = evidence.study.runs.values()
    ended = sorted((run for run in runs if run.ended is not None), key=lambda run: (run.ended, run.index))
    spent = np.cumsum(_device_hours(evidence.own, [run.trial for run in ended]))
    rows = []
    for budget in evidence.budgets:
        allowed = evidence.frontier.at(budget)
        allowed = allowed[allowed["infeasible"] == ""]
        reference = speed_fvd(allowed["speedup"], allowed[evidence.quality.key]).reference
        points, names = _points(evidence, budget, set(configurations(allowed)))
        sums: dict[str, NDArray[np.float64]] = {}
        front, volume = np.zeros((0, 2)), 0.0
        for number, (run, hours) in enumerate(zip(ended, spent, strict=True), 1):
            if run.trial not in points:
                continue
            new, name = points[run.trial], names[run.trial]
            again = name in sums
            sums[name] = sums.get(name, np.zeros(3)) + np.array([*new, 1])
            if not again and (front <= new).all(axis=1).any():
                continue
            front = (
                np.array([(x / count, y / count) for x, y, count in sums.values()])
                if again
                else np.vstack([front, new])
            )
            front = front[non_dominated(front)]
            if (grown := hypervolume(front, reference)) != volume:
                rows.append((budget, number, float(hours), grown, run.trial))
                volume = grown
        if len(ended) and volume:
            rows.append((budget, len(ended), float(spent[-1]), volume, ""))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _points(
    evidence: Evidence, budget: str, allowed: Set[str]
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """(-speed-up, quality) by run for configurations that break no constraint, and the configuration of each."""
    own = evidence.own_comparable[at_budget(evidence.own_comparable["budget"], budget)]
    names = dict(zip(own["trial"], configurations(own), strict=True))
    points = zip(own["trial"], (-own["speedup"]).tolist(), own[evidence.quality.key].tolist(), strict=True)
    return {trial: (x, y) for trial, x, y in points if names[trial] in allowed}, names


def draw_hypervolume(history: pd.DataFrame) -> Drawing | None:
    """Hypervolume of each budget's frontier over device hours, as a share of its last value."""
    from reco_tune.reporting.style import MARKERS, new_figure, style

    history = history[history.groupby("budget")["hypervolume"].transform("last") > 0]  # else the share is undefined
    if len(history) < 3:
        return None
    with style():
        figure = new_figure(6.2, 3.6)
        axes = figure.subplots()
        top = 1.0
        for budget, rows in history.groupby("budget", sort=False):
            hours, share = (
                rows["device_hours"].to_numpy(),
                rows["hypervolume"].to_numpy() / rows["hypervolume"].iloc[-1],
            )
            top = max(top, *share)
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
        axes.set(
            xlabel="device hours spent by the study",
            ylabel="hypervolume\n(share of the last, higher is better)",
            ylim=(0, 1.04 * top),
        )
        axes.set_xlim(left=0)
        axes.legend(loc="lower right", frameon=False)
    return figure


def _device_hours(runs: pd.DataFrame, order: Sequence[str]) -> list[float]:
    """Device hours of each run in the order in which runs ended. A calibration that several runs share counts with the
    first of them.
    """
    stages = [stage.name for stage in quantities.STAGE_SECONDS]
    calibration, *others = stages
    table = runs.assign(key=configurations(runs)).set_index("trial")[["key", *stages]].reindex(list(order))
    seconds = table[others].sum(axis=1) + table[calibration].where(~table["key"].duplicated()).fillna(0)
    return [float(spent) / 3600 for spent in seconds]
