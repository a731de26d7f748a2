"""Figures of what quality costs and of what decides it. Draws what `effort` and `importance` computed and computes
nothing of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reco_tune import quantities
from reco_tune.reporting.effort import Curves
from reco_tune.reporting.labels import label_line_ends
from reco_tune.reporting.runs import TITLES, WHOLE
from reco_tune.reporting.style import MARKERS, colours, dot, half_widths, lay_out, new_figure, plain_log, spread, style
from reco_tune.settings import BASELINE

_BUDGET_COLOURS = {"equal_steps": "#0072b2", "equal_compute": "#d55e00", "half_compute": "#009e73"}


def draw_compute(table: pd.DataFrame, curves: Curves) -> Figure | None:
    """Left: FVD of every arm and budget against its training compute. Right: validation cross-entropy along the way,
    equal compute first.

    Args:
        table: of `effort.compute_table`.
        curves: of `effort.compute_curves`; one budget is drawn.
    """
    rows = table[np.isfinite(table["compute"].astype(float)) & (table["arm"] != WHOLE)]
    rows = rows.drop_duplicates(["arm", "compute", "fvd"])  # the baseline stands under several budgets
    if rows.empty:
        return None
    palette = colours(list(dict.fromkeys(rows["arm"])))
    budget = next((name for name in ("equal_compute", "equal_steps", "half_compute") if name in curves), "")
    with style():
        figure = new_figure(11.4, 4.3)
        left, right = figure.subplots(1, 2)
        log = spread(rows["fvd"]) > 10
        for arm, own in rows.sort_values("compute", kind="stable").groupby("arm", sort=False):
            colour = palette[str(arm)]
            left.plot(own["compute"], own["fvd"], color=colour, linewidth=0.9, alpha=0.7, zorder=1)
            for row in own.to_dict("records"):
                along = half_widths(row["fvd"], row["fvd_low"], row["fvd_high"])
                left.errorbar(
                    row["compute"],
                    row["fvd"],
                    yerr=along,
                    fmt="none",
                    ecolor=colour,
                    elinewidth=1.0,
                    zorder=2,
                    alpha=0.6,
                )
                left.scatter(
                    row["compute"],
                    row["fvd"],
                    s=46,
                    marker=MARKERS[row["budget"]],
                    color=colour,
                    edgecolor="white",
                    zorder=3,
                )
        if log:
            left.set_yscale("log")
        left.margins(x=0.08, y=0.06)
        left.set(
            xlabel="training compute (share of the baseline's)",
            ylabel="FVD (lower is better)",
            title="Quality at the end",
        )
        plain_log(left, log)
        shown = [dot("#666666", MARKERS[name], TITLES[name].lower()) for name in dict.fromkeys(rows["budget"])]
        left.legend(handles=shown, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
        _learning_panel(right, curves.get(budget, {}), budget)
        lay_out(figure)
        last = rows.sort_values("compute", kind="stable").drop_duplicates("arm", keep="last")
        label_line_ends(
            left, [(row["compute"], row["fvd"], row["arm"], palette[row["arm"]]) for row in last.to_dict("records")]
        )
        ends = [(*points[-1], arm, palette.get(arm, "#444444")) for arm, points in curves.get(budget, {}).items()]
        label_line_ends(right, ends)
    return figure


def draw_hypervolume(history: pd.DataFrame) -> Figure | None:
    """Hypervolume of each budget's frontier over device hours, as a share of its last value."""
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
            colour = _BUDGET_COLOURS.get(str(budget), "#444444")
            axes.step(
                [0, *hours], [0, *share], where="post", color=colour, label=TITLES.get(str(budget), str(budget)).lower()
            )
            axes.plot(
                hours[:-1],
                share[:-1],
                linestyle="none",
                marker=MARKERS.get(str(budget), "o"),
                markersize=3.5,
                color=colour,
            )
        axes.set(xlabel="device hours spent by the study", ylabel="hypervolume (share of the last)", ylim=(0, 1.04))
        axes.set_xlim(left=0)
        axes.legend(loc="lower right", frameon=False)
    return figure


def draw_importance(table: pd.DataFrame) -> Figure | None:
    """Importance of every searched setting, a panel an objective."""
    if table.empty:
        return None
    objectives = list(dict.fromkeys(table["objective"]))
    settings = list(table.groupby("setting")["importance"].mean().sort_values(kind="stable").index)
    with style():
        figure = new_figure(2.6 + 2.5 * len(objectives), 0.9 + 0.34 * max(3, len(settings)))
        panels = np.atleast_1d(figure.subplots(1, len(objectives), sharey=True))
        for axes, objective in zip(panels, objectives, strict=True):
            shares = (
                table[table["objective"] == objective].set_index("setting")["importance"].reindex(settings).fillna(0)
            )
            axes.barh(settings, shares, color="#0072b2", height=0.62)
            for place, share in enumerate(shares):
                axes.annotate(
                    f"{share:.0%}", (share, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
                )
            axes.set_title(quantities.ALL[objective].label)
            axes.set_xlim(0, 1.18)
            axes.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        figure.supxlabel("importance (PED-ANOVA)", fontsize=9.5)
    return figure


def _learning_panel(axes: Any, arms: Mapping[str, Sequence[tuple[float, float]]], budget: str) -> None:
    palette = colours(list(arms))
    for arm, points in arms.items():
        compute, values = zip(*points, strict=True)
        axes.plot(compute, values, color=palette[arm], marker="o", markersize=3.5)
    if BASELINE in arms:
        for _, level in arms[BASELINE]:
            axes.axhline(level, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        handles = [
            Line2D(
                [], [], color="#888888", linewidth=0.8, linestyle=(0, (4, 3)), label="levels that the baseline reached"
            )
        ]
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    axes.set(xlabel="training compute (share of the baseline's)", ylabel="validation cross-entropy (nats/token)")
    axes.set_title(f"Compute to reach a quality{f', {TITLES[budget].lower()}' if budget else ''}")
