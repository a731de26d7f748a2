"""Speed against quality: the configurations that no other one beats in both, and how certain that is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from reco_tune import quantities
from reco_tune.reporting.budgets import BUDGETS, WHOLE, reference
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.frontier import Frontier, columns, probability_columns
from reco_tune.reporting.numbers import number
from reco_tune.reporting.paper import SOURCE, Reference
from reco_tune.reporting.quality import Quality, quality_of
from reco_tune.reporting.runs import IMPORTED, bounds
from reco_tune.reporting.section import (
    Figure,
    Section,
    Table,
)
from reco_tune.settings import BASELINE, SEARCH, Bound

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing
    from matplotlib.lines import Line2D

FEWER_FRAMES = "fewer_frames"
"""Prefix of the names of fewer-frames baselines, which have their own marker."""


def build(evidence: Evidence) -> Section:
    points, quality = evidence.frontier.points, evidence.quality
    return Section(
        "frontier",
        "Frontier",
        tables=[
            Table("frontier", data=points.loc[points["infeasible"] == "", columns(quality)]),
            Table("frontier_probability", data=points[probability_columns(quality)]),
        ],
        figures=[_figure(evidence)],
    )


def _figure(evidence: Evidence) -> Figure:
    rows, quality = evidence.ablation.to_dict("records"), evidence.quality
    words = "; ".join(
        f"{row['arm']} at {row['budget']}: {number(row['speedup'])}x, {quality.name}"
        f" {number(row[quality.key], quality.digits)}"
        for row in rows
    )
    return Figure(
        "frontier",
        "Speed against quality",
        "Arms are means over seeds with 95% intervals. Sampled runs are grey. The line is the frontier: it joins the"
        f" points that no other point beats in both speed and {evidence.quality.name}. The band contains this line in"
        " 95% of random draws from the intervals. The ring marks the knee of the frontier.",
        draw_frontier,
        (evidence.frontier, evidence.ablation, evidence.arms, bounds(evidence.runs), evidence.paper),
        f"{words}.",
    )


def draw_frontier(
    found: Frontier,
    table: pd.DataFrame,
    order: Sequence[str],
    constraints: Mapping[str, Bound] | None = None,
    paper: Mapping[str, Reference] | None = None,
) -> Drawing | None:
    """Speed-up against quality, one panel for each budget: arms with intervals (hollow if imported), sampled runs, the
    frontier with its band and knee, and the constraints.

    Args:
        found: the configurations and their noise.
        table: of `comparisons.ablation_rows`, for the arms' means.
        order: of the study's arms.
        constraints: metric -> allowed range. Those on quality and speed-up are lines; others are listed in the legend.
        paper: the paper's values by arm (`paper.paper_reference`). They are stars at equal steps. If the paper gives
            only one of the two values, the star is on that axis.
    """
    from reco_tune.reporting.labels import label_points
    from reco_tune.reporting.style import colours, drawable, freeze, new_panels, plain_log, say_left_out, spread, style

    whole, quality = len(found.points), quality_of(found.points)
    found = replace(found, points=drawable(found.points, quality.key, quality.high))
    table = drawable(table, quality.key, quality.high)
    if len(found.points) < 2:
        return None
    budgets = [budget for budget in dict.fromkeys(found.points["budget"]) if len(found.at(budget))]
    palette = colours(order)
    with style():
        figure, panels = new_panels(len(budgets), 5.6, 4.9, 0.4, f"{quality.name} (lower is better)")
        table = table[np.isfinite(table["speedup"])]
        log = spread(pd.concat([found.points[quality.key], table[quality.key]])) > 10
        shared: dict[str, Line2D] = {}
        for axes, budget in zip(panels, budgets, strict=True):
            arms = table[table["budget"] == budget]
            _frontier_panel(axes, found, budget, arms, palette, log)
            shared |= _draw_constraints(axes, constraints or {}, quality)
            if paper and budget == "equal_steps":
                shared |= _draw_paper(axes, paper, palette)
            axes.set_title(
                f"{'Speed' if budget == 'equal_steps' else 'Compute'} frontier: {BUDGETS[budget].title.lower()}"
            )
        plain_log(panels[0], log)
        for axes, budget in zip(panels, budgets, strict=True):
            _draw_band(axes, found.bands.get(budget))
        if shared:
            figure.legend(
                handles=list(shared.values()), loc="outside lower center", ncols=min(len(budgets), 3), frameon=False
            )
        say_left_out(figure, whole - len(found.points))
        freeze(figure)
        for axes, budget in zip(panels, budgets, strict=True):
            points, arms = found.at(budget), table[table["budget"] == budget]
            named = [
                (row["speedup"], row[quality.key], row["arm"], palette[row["arm"]]) for row in arms.to_dict("records")
            ]
            named += _paper_names(axes, paper, palette) if paper and budget == "equal_steps" else []
            searched = points[points["arm"] == SEARCH].head(300)
            label_points(
                axes,
                named,
                list(zip(searched["speedup"], searched[quality.key], strict=True)),
                _bars(axes, arms, _front(points)),
            )
    return figure


def _draw_band(axes: Any, band: pd.DataFrame | None) -> None:
    """The 95% band, behind everything else. Draw it after all panels have their points, because it must not change the
    limits that they share.
    """
    if band is None:
        return
    from reco_tune.reporting.style import drawable

    limits = axes.get_xlim(), axes.get_ylim()
    known = drawable(band[np.isfinite(band["high"])], "high")  # no upper end if some draws have nothing as fast
    axes.fill_between(known["speedup"], known["low"], known["high"], color="#444444", alpha=0.1, lw=0)
    axes.set(xlim=limits[0], ylim=limits[1])


def _frontier_panel(
    axes: Any, found: Frontier, budget: str, arms: pd.DataFrame, palette: dict[str, str], log: bool
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from reco_tune.reporting.style import dot, half_widths, many_points

    points, compared = found.at(budget), reference(budget)
    key, low, high = quality_of(points).ends
    searched, front = points[points["arm"] == SEARCH], _front(points)
    axes.scatter(searched["speedup"], searched[key], color=palette[SEARCH], zorder=2, **many_points(len(searched)))
    axes.step(front["speedup"], front[key], where="pre", color="#444444", linewidth=1.2, alpha=0.8, zorder=1)
    for row in arms.to_dict("records"):
        x, y = row["speedup"], row[key]
        across = half_widths(x, row["speedup_low"], row["speedup_high"])
        along = half_widths(y, row[low], row[high])
        bars = {
            "fmt": "none",
            "ecolor": palette[row["arm"]],
            "elinewidth": 1.1,
            "capsize": 2,
            "zorder": 3,
            "alpha": 0.8,
        }
        axes.errorbar(x, y, xerr=across, yerr=along, **bars)
        face = "white" if row["arm"].endswith(IMPORTED) else palette[row["arm"]]
        edge = palette[row["arm"]] if row["arm"].endswith(IMPORTED) else "white"
        axes.scatter(
            x, y, s=44, marker=_marker(row["arm"], compared), color=face, edgecolor=edge, linewidth=0.9, zorder=4
        )
    refused = points[points["infeasible"] != ""]
    axes.scatter(refused["speedup"], refused[key], s=46, marker="x", color="#b22222", linewidth=1.1, zorder=5)
    bend = points[points["knee"].astype(bool)]
    axes.scatter(bend["speedup"], bend[key], s=150, facecolor="none", edgecolor="#444444", linewidth=1.1, zorder=3)
    baseline = arms[arms["arm"] == compared]
    if len(baseline):
        axes.axhline(float(baseline[key].iloc[0]), color="#888888", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.axvline(1.0, color="#888888", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    if log:
        axes.set_yscale("log")
    axes.margins(x=0.14, y=0.1)
    axes.set_xlabel("speed-up per step (x, higher is better)")
    handles: list[Any] = [Line2D([], [], color="#444444", linewidth=1.2, label="frontier of the means")]
    handles.append(Patch(color="#444444", alpha=0.1, label="its 95% band"))
    if len(bend):
        handles.append(
            Line2D([], [], color="#444444", marker="o", markersize=10, fillstyle="none", linestyle="none", label="knee")
        )
    if len(searched):
        handles.append(dot(palette[SEARCH], "o", "sampled runs"))
    if len(refused):
        handles.append(dot("#b22222", "x", "breaks a constraint"))
    if any(arm.startswith(FEWER_FRAMES) for arm in arms["arm"]):
        handles.append(dot(palette["fewer_frames"], "s", "fewer-frames baselines"))
    if any(arm.endswith(IMPORTED) for arm in arms["arm"]):
        handles.append(
            Line2D([], [], color="#444444", marker="o", fillstyle="none", linestyle="none", label="imported")
        )
    if len(baseline):
        label = f"baseline's {quality_of(points).title}"
        handles.append(Line2D([], [], color="#888888", linewidth=0.8, linestyle=(0, (4, 3)), label=label))
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)


def _draw_constraints(axes: Any, constraints: Mapping[str, Bound], quality: Quality) -> dict[str, Line2D]:
    """Draws the constraints that are lines in this plane; returns the meaning of each with its handle in the legend."""
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"color": "#b22222", "linewidth": 1.0, "linestyle": (0, (6, 2))}
    draw = {quality.key: axes.axhline, quantities.SPEEDUP.name: axes.axvline}
    handles = {}
    for metric, bound in constraints.items():
        if metric in draw:
            for end in (bound.min, bound.max):
                if end is not None:
                    draw[metric](end, zorder=1, **look)
        label = f"constraint: {metric} {bound}"
        handles[label] = Line2D([], [], **(look if metric in draw else {"linestyle": "none"}), label=label)
    return handles


def _draw_paper(axes: Any, paper: Mapping[str, Reference], palette: Mapping[str, str]) -> dict[str, Line2D]:
    """Draws a star for each arm; returns the meaning of the stars with its handle in the legend."""
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {
        "marker": "*",
        "markersize": 10,
        "markeredgewidth": 0.9,
        "fillstyle": "none",
        "linestyle": "none",
    }
    for arm, known in paper.items():
        x, y, where = known.speedup, known.fvd, axes.transData
        if math.isnan(y):
            y, where = 0.0, axes.get_xaxis_transform()
        elif math.isnan(x):
            x, where = 0.0, axes.get_yaxis_transform()
        axes.plot(x, y, color=palette[arm], transform=where, clip_on=False, zorder=5, **look)
    label = f"the paper's own ({SOURCE})"
    return {label: Line2D([], [], color="#444444", label=label, **look)}


def _paper_names(
    axes: Any, paper: Mapping[str, Reference], palette: Mapping[str, str]
) -> list[tuple[float, float, str, str]]:
    """Positions of the stars, for labels. Axis limits must be final."""
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    places = {arm: (left if math.isnan(x) else x, bottom if math.isnan(y) else y) for arm, (y, x) in paper.items()}
    return [(x, y, f"{arm}, paper", palette[arm]) for arm, (x, y) in places.items()]


def _front(points: pd.DataFrame) -> pd.DataFrame:
    """The frontier of the means from slow to fast."""
    order = ["speedup", quality_of(points).key, "trial"]
    return points[points["on_frontier"].astype(bool)].sort_values(order, kind="stable")


def _marker(arm: str, compared: str) -> str:
    return "D" if arm == compared else "s" if arm.startswith(FEWER_FRAMES) else "o"


def _bars(axes: Any, arms: pd.DataFrame, front: pd.DataFrame) -> list[tuple[float, float, float, float]]:
    """Error bars, the steps of the frontier and the baseline's line as rectangles, for labels to keep clear of."""
    key, low, high = quality_of(front).ends
    rows = [
        {name: float(row[name]) for name in ("speedup", "speedup_low", "speedup_high", key, low, high)}
        for row in arms.to_dict("records")
    ]
    across = [(row["speedup_low"], row[key], row["speedup_high"], row[key]) for row in rows]
    along = [(row["speedup"], row[low], row["speedup"], row[high]) for row in rows]
    corners = list(zip(front["speedup"].tolist(), front[key].tolist(), strict=True))
    steps = [bar for (x0, y0), (x1, y1) in itertools.pairwise(corners) for bar in ((x0, y0, x0, y1), (x0, y1, x1, y1))]
    level = [
        (axes.get_xlim()[0], row[key], axes.get_xlim()[1], row[key])
        for row in arms.to_dict("records")
        if row["arm"] in (BASELINE, WHOLE)
    ]
    return [bar for bar in [*across, *along, *steps, *level] if all(map(math.isfinite, bar))]
