"""Figures in one style, for print and for colour-blind eyes. Draws what the other modules computed and computes nothing of its own.

Every function returns a matplotlib Figure (no global state, no window) or None where there is nothing to draw.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from reco_tune import quantities
from reco_tune.reporting import tables
from reco_tune.reporting.ablation import ablation_table
from reco_tune.reporting.frontier import Frontier
from reco_tune.reporting.labels import label_line_ends, label_points
from reco_tune.reporting.runs import SEARCH, WHOLE, arm_order, reference
from reco_tune.settings import BASELINE

TITLES = {"equal_steps": "Equal steps", "equal_compute": "Equal compute", "half_compute": "Half the compute"}
COLOURS = {  # Okabe and Ito's palette, tones of it for variants; names stand beside every line and point as well
    "full": "#000000",
    WHOLE: "#000000",
    "masked_full": "#7f7f7f",
    "full_continuity": "#4d4d4d",
    "fewer_frames": "#d55e00",
    "fewer_frames_tokens": "#b8860b",
    "local": "#56b4e9",
    "local_first": "#2a8fc4",
    "local_balanced": "#0072b2",
    "reco": "#009e73",
    "norm_penalty": "#b0559a",
    SEARCH: "#9a9a9a",
}
_SPARE = ("#882255", "#44aa99", "#999933", "#332288", "#aa4499", "#117733")
_MARKERS = {"equal_steps": "o", "equal_compute": "^", "half_compute": "s"}
DPI = 160


def colours(arms: Sequence[str]) -> dict[str, str]:
    """One colour an arm; arms of a space's own take the spare ones in order."""
    own = [arm for arm in arms if arm not in COLOURS]
    return {**COLOURS, **{arm: _SPARE[number % len(_SPARE)] for number, arm in enumerate(own)}}


def draw_frontier(found: Frontier, runs: pd.DataFrame) -> Figure | None:
    """Speed-up against FVD, one panel a budget: arms with intervals, sampled runs, the non-dominated steps, the baseline as reference."""
    if found.points.empty:
        return None
    table = ablation_table(runs)
    budgets = [budget for budget in dict.fromkeys(found.points["budget"]) if len(found.at(budget))]
    palette = colours(arm_order(runs))
    with _style():
        figure = _figure(5.6 * len(budgets) + 0.4, 4.8)
        panels = np.atleast_1d(figure.subplots(1, len(budgets), sharey=True))
        log = _spread(found.points["fvd"]) > 10
        for axes, budget in zip(panels, budgets, strict=True):
            points, arms = found.at(budget), table[table["budget"] == budget]
            _frontier_panel(axes, points, found.non_dominated(budget), arms, palette, log, reference(budget))
            axes.set_title(f"{'Speed' if budget == 'equal_steps' else 'Compute'} frontier: {TITLES[budget].lower()}")
        panels[0].set_ylabel("FVD (lower is better)")
        _plain_log(panels[0], log)
        figure.canvas.draw()
        for axes, budget in zip(panels, budgets, strict=True):
            points, arms = found.at(budget), table[table["budget"] == budget]
            named = [(row["speedup"], row["fvd"], row["arm"], palette[row["arm"]]) for row in arms.to_dict("records")]
            searched = points[points["arm"] == SEARCH].head(300)
            label_points(
                axes, named, list(zip(searched["speedup"], searched["fvd"], strict=True)), _bars(axes, arms, found.non_dominated(budget))
            )
    return figure


def draw_lambda(runs: pd.DataFrame, kept: pd.DataFrame) -> Figure | None:
    """FVD and validation cross-entropy against λ: sampled runs and the windowed arms, λ = 0 at the left end."""
    rows = kept[(kept["window.scheme"] == "window")] if "window.scheme" in kept else kept.iloc[:0]
    if rows.empty:
        return None
    palette = colours(arm_order(runs))
    weights = rows["objective.continuity_weight"].astype(float).to_numpy()
    smallest = min((weight for weight in weights if weight > 0), default=0.01)
    with _style():
        figure = _figure(9.6, 4.0)
        panels = figure.subplots(1, 2)
        for axes, name in zip(panels, ("fvd", "val_cross_entropy"), strict=True):
            quantity = quantities.ALL[name]
            log = name == "fvd" and _spread(rows[name]) > 10
            for budget, marker in _MARKERS.items():
                for arm, group in rows[rows["budget"] == budget].groupby("arm", sort=False):
                    x, y = group["objective.continuity_weight"].astype(float), group[name]
                    small = {"s": 26, "alpha": 0.75} if arm == SEARCH else {"s": 52}
                    axes.scatter(x, y, marker=marker, color=palette[str(arm)], edgecolor="white", linewidth=0.5, zorder=3, **small)
            axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
            axes.set_xlim(-0.35 * smallest, max(1.5 * weights.max(), 2 * smallest))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_xlabel(f"continuity weight λ (reduction: {_reductions(rows)})")
            axes.set_ylabel(f"{quantity.label}{f' ({quantity.unit})' if quantity.unit else ''}")
            if log:
                axes.set_yscale("log")
            _plain_log(axes, log)
        handles = [_dot(palette[arm], "o", arm) for arm in [*arm_order(runs), SEARCH] if arm in set(rows["arm"])]
        shown = ["equal_steps", "equal_compute", *(["half_compute"] if "half_compute" in set(rows["budget"]) else [])]
        handles += [_dot("#666666", _MARKERS[budget], TITLES[budget].lower()) for budget in shown]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=len(handles) if len(handles) <= 8 else math.ceil(len(handles) / 2),
            frameon=False,
        )
    return figure


def draw_loss_by_frame(curves: Mapping[str, Mapping[str, Sequence[float]]], budget: str) -> Figure | None:
    """Cross-entropy by block on training clips and on the model's own samples, one small panel an arm, the baseline's in grey behind."""
    train, generated = quantities.LOSS_BY_FRAME_TRAIN, quantities.LOSS_BY_FRAME_GENERATED
    arms = [arm for arm, found in curves.items() if train in found and generated in found]
    if not arms:
        return None
    palette, columns = colours(arms), min(5, len(arms))
    lines = math.ceil(len(arms) / columns)
    with _style():
        figure = _figure(2.1 * columns + 0.6, 1.9 * lines + 0.9)
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, arm in zip(panels, arms, strict=False):
            if BASELINE in arms and arm != BASELINE:
                axes.plot(curves[BASELINE][train], color="#bbbbbb", linewidth=2.5, zorder=1)
            axes.plot(curves[arm][train], color=palette[arm], marker="o", markersize=3.5)
            axes.plot(
                curves[arm][generated], color=palette[arm], marker="s", markersize=3.5, linestyle=(0, (3, 1.5)), markerfacecolor="white"
            )
            axes.set_title(arm, fontsize=9, color=palette[arm])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels[len(arms) :]:
            axes.set_visible(False)
        figure.supxlabel("block (0 is the first frame)", fontsize=9.5)
        figure.supylabel("cross-entropy (nats/token)", fontsize=9.5)
        handles = [_line("#444444", "-", "o", "training clips"), _line("#444444", (0, (3, 1.5)), "s", "own samples")]
        if BASELINE in arms and len(arms) > 1:
            handles.append(Line2D([], [], color="#bbbbbb", linewidth=2.5, label=f"{BASELINE}, training clips"))
        figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, title=TITLES.get(budget, budget))
    return figure


def draw_error_growth(curves: Mapping[str, Mapping[str, Sequence[float]]], budget: str) -> Figure | None:
    """Relative divergence of h by block, block 0 being the one that was perturbed."""
    named = {arm: found[quantities.ERROR_GROWTH] for arm, found in curves.items() if len(found.get(quantities.ERROR_GROWTH, ()))}
    lines = {arm: list(enumerate(values)) for arm, values in named.items()}
    return _lines(lines, "block (0 was perturbed)", "relative divergence of h", {TITLES.get(budget, budget): list(lines)}, log=True)


def draw_learning(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Figure | None:
    """Validation cross-entropy over steps: budget -> arm -> (step, value)."""
    lines = {f"{budget}/{arm}": list(points) for budget, arms in curves.items() for arm, points in arms.items() if points}
    panels = {TITLES[budget]: [f"{budget}/{arm}" for arm in arms if arms[arm]] for budget, arms in curves.items()}
    return _lines(
        lines, "optimiser steps", "validation cross-entropy (nats/token)", {title: names for title, names in panels.items() if names}
    )


def draw_window_stride(table: pd.DataFrame) -> Figure | None:
    """FVD (colour and number) and speed-up (below it) by window length and stride; `analyses.window_stride_table` computes them."""
    if table.empty:
        return None
    fvd, speed = (table.pivot(index="window.stride_tokens", columns="window.length_tokens", values=name) for name in ("fvd", "speedup"))
    written = fvd.map(tables.number) + speed.map(lambda value: f"\n{value:.2f}x" if math.isfinite(value) else "")
    with _style():
        figure = _figure(1.4 + 1.0 * max(3, fvd.shape[1]), 1.3 + 0.62 * max(2, fvd.shape[0]))
        axes = figure.subplots()
        scale = matplotlib.colors.LogNorm() if _spread(table["fvd"]) > 10 else None
        bar = {"label": "FVD (lower is better)"}
        sns.heatmap(fvd, ax=axes, annot=written, fmt="", cmap="cividis_r", norm=scale, cbar_kws=bar, linewidths=1, annot_kws={"size": 8.5})
        axes.set_xlabel("window length (tokens)")
        axes.set_ylabel("stride (tokens)")
        axes.invert_yaxis()
        axes.tick_params(length=0, rotation=0)
        axes.grid(False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """PNG and PDF of a figure, without dates."""
    figure.savefig(path.with_suffix(".png"), metadata={"Software": "reco-tune"})
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})


def _frontier_panel(
    axes: Any, points: pd.DataFrame, front: pd.DataFrame, arms: pd.DataFrame, palette: dict[str, str], log: bool, compared: str
) -> None:
    searched = points[points["arm"] == SEARCH]
    many = len(searched) > 500
    look = {"s": 6, "alpha": 0.3} if many else {"s": 16, "alpha": 0.75}
    axes.scatter(searched["speedup"], searched["fvd"], color=palette[SEARCH], linewidth=0, zorder=2, rasterized=many, **look)
    if len(front):
        axes.step(front["speedup"], front["fvd"], where="pre", color="#444444", linewidth=1.2, alpha=0.8, zorder=1)
    for row in arms.to_dict("records"):
        x, y = row["speedup"], row["fvd"]
        across = _half_widths(x, row["speedup_low"], row["speedup_high"])
        along = _half_widths(y, row["fvd_low"], row["fvd_high"])
        style = {"fmt": "none", "ecolor": palette[row["arm"]], "elinewidth": 1.1, "capsize": 2, "zorder": 3, "alpha": 0.8}
        axes.errorbar(x, y, xerr=across, yerr=along, **style)
        axes.scatter(
            x, y, s=44, marker="D" if row["arm"] == compared else "o", color=palette[row["arm"]], edgecolor="white", linewidth=0.7, zorder=4
        )
    baseline = arms[arms["arm"] == compared]
    if len(baseline):
        axes.axhline(float(baseline["fvd"].iloc[0]), color="#888888", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.axvline(1.0, color="#888888", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    if log:
        axes.set_yscale("log")
    axes.margins(x=0.14, y=0.1)
    axes.set_xlabel("speed-up per step (higher is better)")
    handles = [Line2D([], [], color="#444444", linewidth=1.2, label="non-dominated runs")]
    if len(searched):
        handles.append(_dot(palette[SEARCH], "o", "sampled runs"))
    if len(baseline):
        handles.append(Line2D([], [], color="#888888", linewidth=0.8, linestyle=(0, (4, 3)), label="baseline's FVD"))
    axes.figure.canvas.draw_idle()
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)


def _lines(
    lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, panels: Mapping[str, Sequence[str]], log: bool = False
) -> Figure | None:
    if not lines:
        return None
    palette = colours([name.split("/")[-1] for name in lines])
    with _style():
        figure = _figure(5.2 * len(panels) + 1.0, 4.2)
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
        _plain_log(grid[0], log)
        figure.canvas.draw()
        for axes, names in zip(grid, panels.values(), strict=True):
            ends = [(*lines[name][-1], name.split("/")[-1], palette[name.split("/")[-1]]) for name in names]
            label_line_ends(axes, ends)
    return figure


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # labels are placed by what the renderer measures
    return figure


@contextmanager
def _style() -> Iterator[None]:
    own: dict[Any, Any] = {
        "font.size": 9,
        "axes.titlesize": 10.5,
        "axes.labelsize": 9.5,
        "legend.fontsize": 8.5,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
    }
    own |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6}
    own |= {"axes.axisbelow": True, "pdf.fonttype": 42}
    with matplotlib.rc_context(), sns.axes_style("ticks"), matplotlib.rc_context(own):
        yield


def _plain_log(axes: Any, log: bool) -> None:
    """Ticks of a log axis at 1, 2, 5 in plain numbers."""
    if log:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _half_widths(value: float, low: float, high: float) -> list[list[float]] | None:
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


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


def _spread(values: pd.Series) -> float:
    positive = values[(values > 0) & np.isfinite(values)]
    return float(positive.max() / positive.min()) if len(positive) and len(positive) == len(values) else 1.0


def _reductions(rows: pd.DataFrame) -> str:
    return " and ".join(dict.fromkeys(map(str, rows["objective.continuity_reduction"])))


def _dot(colour: str, marker: str, label: str) -> Any:
    return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=6, label=label)


def _line(colour: str, style: Any, marker: str, label: str) -> Any:
    face = "white" if marker == "s" else colour
    return Line2D([], [], color=colour, linestyle=style, marker=marker, markersize=4, markerfacecolor=face, label=label)
