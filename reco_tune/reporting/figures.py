"""Figures in one style, for print and for colour-blind eyes. Draws what the other modules computed and computes nothing
of its own.

Every function returns a matplotlib Figure (no global state, no window) or None where there is nothing to draw.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reco_tune import quantities
from reco_tune.reporting import tables
from reco_tune.reporting.labels import label_line_ends, label_points
from reco_tune.reporting.paper import SOURCE, Reference
from reco_tune.reporting.runs import IMPORTED, SEARCH, TITLES, WHOLE, reference
from reco_tune.reporting.style import (
    MARKERS,
    colours,
    dot,
    freeze,
    half_widths,
    lay_out,
    line,
    new_figure,
    plain_log,
    save,
    spread,
    style,
    text_on,
    text_tone,
)
from reco_tune.reporting.uncertainty import Uncertainty
from reco_tune.settings import BASELINE, Bound

__all__ = [
    "draw_bias",
    "draw_error_growth",
    "draw_frame_accuracy",
    "draw_frontier",
    "draw_lambda",
    "draw_learning",
    "draw_loss_by_frame",
    "draw_window_stride",
    "save",
]
TITLE_CHARACTERS = 22
"""Across a small panel."""
FEWER_FRAMES = "fewer_frames"
"""Begins the names of the fewer-frames baselines, which have a marker of their own."""


def draw_frontier(
    found: Uncertainty,
    table: pd.DataFrame,
    order: Sequence[str],
    constraints: Mapping[str, Bound] | None = None,
    paper: Mapping[str, Reference] | None = None,
) -> Figure | None:
    """Speed-up against FVD, one panel a budget: arms with intervals (hollow where from elsewhere), sampled runs, the
    frontier with its band and knee, what it must beat.

    Args:
        found: the configurations and their noise.
        table: of `ablation.ablation_table`, for the arms' means.
        order: of the study's arms.
        constraints: metric -> what is allowed; on FVD and speed-up they are lines, others stand in the legend.
        paper: the paper's own values by arm (`paper.paper_reference`): stars at equal steps, on an axis where it gives
            that value alone.
    """
    if found.points.empty:
        return None
    budgets = [budget for budget in dict.fromkeys(found.points["budget"]) if len(found.at(budget))]
    palette = colours(order)
    with style():
        figure = new_figure(5.6 * len(budgets) + 0.4, 4.9)
        panels = np.atleast_1d(figure.subplots(1, len(budgets), sharey=True))
        table = table[np.isfinite(table["speedup"])]
        log = spread(pd.concat([found.points["fvd"], table["fvd"]])) > 10
        shared: dict[str, Line2D] = {}
        for axes, budget in zip(panels, budgets, strict=True):
            arms = table[table["budget"] == budget]
            _frontier_panel(axes, found, budget, arms, palette, log)
            shared |= _draw_constraints(axes, constraints or {})
            if paper and budget == "equal_steps":
                shared |= _draw_paper(axes, paper, palette)
            axes.set_title(f"{'Speed' if budget == 'equal_steps' else 'Compute'} frontier: {TITLES[budget].lower()}")
        panels[0].set_ylabel("FVD (lower is better)")
        plain_log(panels[0], log)
        for axes, budget in zip(panels, budgets, strict=True):
            _draw_band(axes, found.bands.get(budget))
        if shared:
            figure.legend(handles=list(shared.values()), loc="outside lower center", ncols=len(budgets), frameon=False)
        freeze(figure)
        for axes, budget in zip(panels, budgets, strict=True):
            points, arms = found.at(budget), table[table["budget"] == budget]
            named = [(row["speedup"], row["fvd"], row["arm"], palette[row["arm"]]) for row in arms.to_dict("records")]
            named += _paper_names(axes, paper, palette) if paper and budget == "equal_steps" else []
            searched = points[points["arm"] == SEARCH].head(300)
            label_points(
                axes,
                named,
                list(zip(searched["speedup"], searched["fvd"], strict=True)),
                _bars(axes, arms, _front(points)),
            )
    return figure


def draw_lambda(rows: pd.DataFrame, order: Sequence[str]) -> Figure | None:
    """FVD and validation cross-entropy against λ: sampled runs and the windowed arms, λ = 0 at the left end.

    Args:
        rows: of `analyses.lambda_table`.
        order: of the study's arms.
    """
    if rows.empty:
        return None
    palette = colours(order)
    weights = rows["objective.continuity_weight"].astype(float).to_numpy()
    reductions = list(dict.fromkeys(map(str, rows["objective.continuity_reduction"])))  # points of the first are filled
    smallest = min((weight for weight in weights if weight > 0), default=0.01)
    linear = 10.0 ** math.floor(math.log10(smallest))  # a decade: the ticks begin there, none stands between it and 0
    with style():
        figure = new_figure(9.6, 4.0)
        panels = figure.subplots(1, 2)
        for axes, name in zip(panels, ("fvd", "val_cross_entropy"), strict=True):
            quantity = quantities.ALL[name]
            log = name == "fvd" and spread(rows[name]) > 10
            for (budget, arm, reduction), own in rows.groupby(
                ["budget", "arm", "objective.continuity_reduction"], sort=False
            ):
                x, y, colour = own["objective.continuity_weight"].astype(float), own[name], palette[str(arm)]
                look = _sampled(len(x)) if arm == SEARCH else {"s": 52, "edgecolor": "white", "linewidth": 0.5}
                if reduction != reductions[0]:
                    look |= {"facecolor": "none", "edgecolor": colour, "linewidth": 1.0}
                marker, depth = MARKERS[str(budget)], 2 if arm == SEARCH else 3
                axes.scatter(x, y, marker=marker, zorder=depth, **({"facecolor": colour} | look))
            axes.set_xscale("symlog", linthresh=linear, linscale=0.5)
            axes.set_xlim(-0.35 * linear, max(1.5 * weights.max(), 2 * linear))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_xlabel(f"continuity weight λ (reduction: {' and '.join(reductions)})")
            axes.set_ylabel(f"{quantity.label}{f' ({quantity.unit})' if quantity.unit else ''}")
            if log:
                axes.set_yscale("log")
            plain_log(axes, log)
        handles = [dot(palette[arm], "o", arm) for arm in [*order, SEARCH] if arm in set(rows["arm"])]
        shown = ["equal_steps", "equal_compute", *(["half_compute"] if "half_compute" in set(rows["budget"]) else [])]
        handles += [dot("#666666", MARKERS[budget], TITLES[budget].lower()) for budget in shown]
        if len(reductions) > 1:
            hollow = Line2D(
                [],
                [],
                color="#666666",
                marker="o",
                linestyle="none",
                fillstyle="none",
                label=f"reduction: {reductions[1]}",
            )
            handles += [dot("#666666", "o", f"reduction: {reductions[0]}"), hollow]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=len(handles) if len(handles) <= 8 else math.ceil(len(handles) / 2),
            frameon=False,
        )
    return figure


def draw_loss_by_frame(curves: Mapping[str, Mapping[str, Sequence[float]]], budget: str) -> Figure | None:
    """Cross-entropy by block on training clips and on the model's own samples, one small panel an arm, the baseline's
    in grey behind.
    """
    train, generated = quantities.LOSS_BY_FRAME_TRAIN, quantities.LOSS_BY_FRAME_GENERATED
    arms = [arm for arm, found in curves.items() if train in found and generated in found]
    if not arms:
        return None
    palette, columns = colours(arms), min(5, len(arms))
    lines = math.ceil(len(arms) / columns)
    with style():
        figure = new_figure(2.1 * columns + 0.6, 1.9 * lines + 0.9)
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, arm in zip(panels, arms, strict=False):
            if BASELINE in arms and arm != BASELINE:
                axes.plot(curves[BASELINE][train], color="#bbbbbb", linewidth=2.5, zorder=1)
            axes.plot(curves[arm][train], color=palette[arm], marker="o", markersize=3.5)
            axes.plot(
                curves[arm][generated],
                color=palette[arm],
                marker="s",
                markersize=3.5,
                linestyle=(0, (3, 1.5)),
                markerfacecolor="white",
            )
            axes.set_title(_wrapped(arm), fontsize=9, color=text_tone(palette[arm]))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels[len(arms) :]:
            axes.set_visible(False)
        figure.supxlabel("block (0 is the first frame)", fontsize=9.5)
        figure.supylabel("cross-entropy (nats/token)", fontsize=9.5)
        handles = [line("#444444", "-", "o", "training clips"), line("#444444", (0, (3, 1.5)), "s", "own samples")]
        if BASELINE in arms and len(arms) > 1:
            handles.append(Line2D([], [], color="#bbbbbb", linewidth=2.5, label=f"{BASELINE}, training clips"))
        figure.legend(
            handles=handles, loc="outside upper center", ncols=3, frameon=False, title=TITLES.get(budget, budget)
        )
    return figure


def draw_error_growth(curves: Mapping[str, Mapping[str, Sequence[float]]], budget: str) -> Figure | None:
    """Relative divergence of h by block, block 0 being the one that was perturbed."""
    named = {
        arm: found[quantities.ERROR_GROWTH]
        for arm, found in curves.items()
        if len(found.get(quantities.ERROR_GROWTH, ()))
    }
    lines = {arm: list(enumerate(values)) for arm, values in named.items()}
    return _lines(
        lines,
        "block (0 was perturbed)",
        "relative divergence of h",
        {TITLES.get(budget, budget): list(lines)},
        log=True,
    )


def draw_frame_accuracy(curves: Mapping[str, Mapping[str, Sequence[float]]], budget: str) -> Figure | None:
    """Share of generated clips whose frame is taken for the class that was asked for, by frame."""
    lines = {
        arm: list(enumerate(found[quantities.FRAME_ACCURACY]))
        for arm, found in curves.items()
        if quantities.FRAME_ACCURACY in found
    }
    return _lines(lines, "frame", "class accuracy", {TITLES.get(budget, budget): list(lines)})


def draw_bias(curves: Mapping[str, Sequence[tuple[int, float]]], budget: str) -> Figure | None:
    """FVD by the number of generated clips; `curves.bias_curves` collects them."""
    log = bool(curves) and spread(pd.Series([value for points in curves.values() for _, value in points])) > 10
    return _lines(curves, "generated clips", "FVD of that many", {TITLES.get(budget, budget): list(curves)}, log=log)


def draw_learning(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Figure | None:
    """Validation cross-entropy over steps: budget -> arm -> (step, value)."""
    lines = {
        f"{budget}/{arm}": list(points) for budget, arms in curves.items() for arm, points in arms.items() if points
    }
    panels = {TITLES[budget]: [f"{budget}/{arm}" for arm in arms if arms[arm]] for budget, arms in curves.items()}
    return _lines(
        lines,
        "optimiser steps",
        "validation cross-entropy (nats/token)",
        {title: names for title, names in panels.items() if names},
    )


def draw_window_stride(table: pd.DataFrame, budget: str) -> Figure | None:
    """FVD (colour and number) and speed-up (below it) by window length and stride; `analyses.window_stride_cells`
    chooses them.
    """
    if table.empty:
        return None
    import seaborn as sns  # here: with SciPy's distributions it takes longer to import than all the figures to draw

    fvd, speed = (
        table.pivot(index="window.stride_tokens", columns="window.length_tokens", values=name)
        for name in ("fvd", "speedup")
    )
    written = fvd.map(tables.number) + speed.map(lambda value: f"\n{value:.2f}x" if math.isfinite(value) else "")
    with style():
        figure = new_figure(1.4 + 1.0 * max(3, fvd.shape[1]), 1.3 + 0.62 * max(2, fvd.shape[0]))
        axes = figure.subplots()
        scale = matplotlib.colors.LogNorm() if spread(table["fvd"]) > 10 else None
        bar = {"label": "FVD (lower is better)"}
        sns.heatmap(
            fvd,
            ax=axes,
            annot=written,
            fmt="",
            cmap="cividis_r",
            norm=scale,
            cbar_kws=bar,
            linewidths=1,
            annot_kws={"size": 8.5},
        )
        cells = axes.collections[0]
        for text in axes.texts:  # seaborn keeps to white where black has up to twice the contrast
            column, row = map(int, text.get_position())
            text.set_color(text_on(cells.to_rgba(fvd.to_numpy()[row, column])))
        axes.set_title(TITLES[budget])
        axes.set_xlabel("window length (tokens)")
        axes.set_ylabel("stride (tokens)")
        axes.invert_yaxis()
        axes.tick_params(length=0, rotation=0)
        axes.grid(False)
    return figure


def _draw_band(axes: Any, band: pd.DataFrame | None) -> None:
    """The 95% band behind everything; only once all panels hold their points, because it must not move the limits that
    they share.
    """
    if band is None:
        return
    limits = axes.get_xlim(), axes.get_ylim()
    known = band[np.isfinite(band["high"])]  # where nothing may be as fast, the best FVD has no upper end
    axes.fill_between(known["speedup"], known["low"], known["high"], color="#444444", alpha=0.1, lw=0)
    axes.set(xlim=limits[0], ylim=limits[1])


def _frontier_panel(
    axes: Any, found: Uncertainty, budget: str, arms: pd.DataFrame, palette: dict[str, str], log: bool
) -> None:
    points, compared = found.at(budget), reference(budget)
    searched, front = points[points["arm"] == SEARCH], _front(points)
    axes.scatter(searched["speedup"], searched["fvd"], color=palette[SEARCH], zorder=2, **_sampled(len(searched)))
    axes.step(front["speedup"], front["fvd"], where="pre", color="#444444", linewidth=1.2, alpha=0.8, zorder=1)
    for row in arms.to_dict("records"):
        x, y = row["speedup"], row["fvd"]
        across = half_widths(x, row["speedup_low"], row["speedup_high"])
        along = half_widths(y, row["fvd_low"], row["fvd_high"])
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
    bend = points[points["knee"].astype(bool)]
    axes.scatter(bend["speedup"], bend["fvd"], s=150, facecolor="none", edgecolor="#444444", linewidth=1.1, zorder=3)
    baseline = arms[arms["arm"] == compared]
    if len(baseline):
        axes.axhline(float(baseline["fvd"].iloc[0]), color="#888888", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.axvline(1.0, color="#888888", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    if log:
        axes.set_yscale("log")
    axes.margins(x=0.14, y=0.1)
    axes.set_xlabel("speed-up per step (higher is better)")
    handles: list[Any] = [Line2D([], [], color="#444444", linewidth=1.2, label="frontier of the means")]
    handles.append(Patch(color="#444444", alpha=0.1, label="its 95% band"))
    if len(bend):
        handles.append(
            Line2D([], [], color="#444444", marker="o", markersize=10, fillstyle="none", linestyle="none", label="knee")
        )
    if len(searched):
        handles.append(dot(palette[SEARCH], "o", "sampled runs"))
    if any(arm.startswith(FEWER_FRAMES) for arm in arms["arm"]):
        handles.append(dot(palette["fewer_frames"], "s", "fewer-frames baselines"))
    if any(arm.endswith(IMPORTED) for arm in arms["arm"]):
        handles.append(
            Line2D([], [], color="#444444", marker="o", fillstyle="none", linestyle="none", label="imported")
        )
    if len(baseline):
        handles.append(Line2D([], [], color="#888888", linewidth=0.8, linestyle=(0, (4, 3)), label="baseline's FVD"))
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)


def _draw_constraints(axes: Any, constraints: Mapping[str, Bound]) -> dict[str, Line2D]:
    """Lines where they lie in this plane, and for each what it means, with its handle in the legend."""
    look: dict[str, Any] = {"color": "#b22222", "linewidth": 1.0, "linestyle": (0, (6, 2))}
    draw = {quantities.FVD.name: axes.axhline, quantities.SPEEDUP.name: axes.axvline}
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
    """A star an arm, and what it means, with its handle in the legend."""
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
    """Where the stars stand, for labels; axis limits must be final."""
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    places = {arm: (left if math.isnan(x) else x, bottom if math.isnan(y) else y) for arm, (y, x) in paper.items()}
    return [(x, y, f"{arm}, paper", palette[arm]) for arm, (x, y) in places.items()]


def _sampled(runs: int) -> dict[str, Any]:
    """Look of sampled runs: thousands are a cloud, in print as pixels."""
    many = runs > 500
    return {"s": 6 if many else 16, "alpha": 0.3 if many else 0.75, "linewidth": 0, "rasterized": many}


def _front(points: pd.DataFrame) -> pd.DataFrame:
    """The frontier of the means from slow to fast."""
    return points[points["on_frontier"].astype(bool)].sort_values(["speedup", "fvd", "trial"], kind="stable")


def _marker(arm: str, compared: str) -> str:
    return "D" if arm == compared else "s" if arm.startswith(FEWER_FRAMES) else "o"


def _lines(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    panels: Mapping[str, Sequence[str]],
    log: bool = False,
) -> Figure | None:
    if not lines:
        return None
    palette = colours([name.split("/")[-1] for name in lines])
    with style():
        figure = new_figure(5.2 * len(panels) + 1.0, 4.2)
        grid = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
        for axes, (title, names) in zip(grid, panels.items(), strict=True):
            for name in names:
                x, y = zip(*lines[name], strict=True)
                axes.plot(x, y, color=palette[name.split("/")[-1]], marker="o", markersize=3.5)
            axes.set_title(title)
            axes.set_xlabel(x_label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[0].set_ylabel(y_label)
        if log:
            grid[0].set_yscale("log")
        plain_log(grid[0], log)
        lay_out(figure)
        for axes, names in zip(grid, panels.values(), strict=True):
            ends = [(*lines[name][-1], name.split("/")[-1], palette[name.split("/")[-1]]) for name in names]
            label_line_ends(axes, ends)
    return figure


def _bars(axes: Any, arms: pd.DataFrame, front: pd.DataFrame) -> list[tuple[float, float, float, float]]:
    """Error bars, the steps of the frontier and the baseline's line as rectangles, for labels to keep clear of."""
    rows = [
        {name: float(row[name]) for name in ("speedup", "speedup_low", "speedup_high", "fvd", "fvd_low", "fvd_high")}
        for row in arms.to_dict("records")
    ]
    across = [(row["speedup_low"], row["fvd"], row["speedup_high"], row["fvd"]) for row in rows]
    along = [(row["speedup"], row["fvd_low"], row["speedup"], row["fvd_high"]) for row in rows]
    corners = list(zip(front["speedup"].tolist(), front["fvd"].tolist(), strict=True))
    steps = [bar for (x0, y0), (x1, y1) in itertools.pairwise(corners) for bar in ((x0, y0, x0, y1), (x0, y1, x1, y1))]
    level = [
        (axes.get_xlim()[0], row["fvd"], axes.get_xlim()[1], row["fvd"])
        for row in arms.to_dict("records")
        if row["arm"] in (BASELINE, WHOLE)
    ]
    return [bar for bar in [*across, *along, *steps, *level] if all(map(math.isfinite, bar))]


def _wrapped(arm: str) -> str:
    """A long name on several lines, broken after underscores: its end tells it from others."""
    return "\n".join(textwrap.wrap(arm.replace("_", "_ "), TITLE_CHARACTERS)).replace("_ ", "_")
