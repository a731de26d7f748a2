"""How much training compute each arm needs to reach a quality.

The unit is the baseline's whole training: an arm's steps divided by its measured speed-up, over the baseline's steps.
So every arm is at 1 under equal compute, and at 1 / speed-up under equal steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from reco_tune import quantities
from reco_tune.reporting.aggregate import mean_interval
from reco_tune.reporting.budgets import BUDGETS, WHOLE
from reco_tune.reporting.curves import learning_curves
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import number
from reco_tune.reporting.quality import FVD, quality_of
from reco_tune.reporting.section import Column, Figure, Row, RowGroup, Section, Table, text_column
from reco_tune.settings import BASELINE

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Curves = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
"""budget -> arm -> (training compute, validation cross-entropy)."""
LOSS = quantities.VAL_CROSS_ENTROPY.name
QUALITY_COLUMNS = ("budget", "arm", "val_cross_entropy", "compute", "compute_ratio")
"""Columns of compute_to_quality.csv."""

NOTE = (
    "Each column is a validation cross-entropy (val CE, nats/token) that the baseline reached at a rung. The number is"
    " the baseline's training compute to reach it, divided by the arm's. Below 1x the arm needed more. If the arm's"
    " first rung is already below this level, the true factor may be larger."
)


def build(evidence: Evidence) -> Section:
    table, curves = compute_table(evidence), compute_curves(evidence)
    quality = compute_to_quality(curves)
    figure = Figure(
        "compute",
        "Training compute to reach a quality",
        "Compute is the number of steps divided by the measured speed-up, as a share of the baseline's whole training."
        f" Left: {evidence.quality.name} at the end. Right: validation cross-entropy during training. Dashed lines are"
        " levels that the baseline reached.",
        draw_compute,
        (table, curves),
    )
    words = [turn.words for turn in evidence.turns]
    tables = [Table("compute", data=table), Table("compute_to_quality", data=quality), *_tables(quality)]
    return Section("compute", "Compute to reach a quality", tables=tables, figures=[figure], words=words)


def compute_table(evidence: Evidence) -> pd.DataFrame:
    """Final quality of every arm and budget with its training compute and FLOPs, as means over seeds. Also the best
    validation cross-entropy at a rung, and the rung for arms that overfit.
    """
    whole = _whole_steps(evidence.own)
    bests = {(turn.budget, turn.arm): (turn.best, float(turn.step)) for turn in evidence.turns}
    rows = []
    for result in (one.result for one in evidence.own_comparisons):
        own = result.runs
        compute = [_compute(steps, speedup, whole) for steps, speedup in zip(own["steps"], own["speedup"], strict=True)]
        mean = mean_interval(list(result.values.values()))
        flops, loss = _mean(own["training_flops"]), result.means["val_cross_entropy"]
        best, step = bests.get((result.budget, result.arm), (loss, math.nan))
        rows.append([result.budget, result.arm, len(result.values), _mean(compute), flops, *mean, loss, best, step])
    named = ["budget", "arm", "seeds", "compute", "training_flops", *evidence.quality.ends]
    table = pd.DataFrame(rows, columns=[*named, "loss", "best_val_cross_entropy", "best_step"])
    return table.rename(columns={"loss": LOSS}) if evidence.quality is FVD else table.drop(columns="loss")


def compute_to_quality(curves: Curves) -> pd.DataFrame:
    """Training compute at which each arm first reached each validation cross-entropy of the baseline.

    Each new best of the baseline at a rung is a level; when its loss rises, it has reached the value before. Between
    rungs, curves are interpolated linearly. `compute` is empty if an arm never reaches the level. If the arm's first
    rung is already below the level, `compute` is that of the first rung, and the true value may be lower.
    `compute_ratio` is the baseline's compute over the arm's: above 1 the arm is cheaper.

    Args:
        curves: of `compute_curves`.
    """
    rows = []
    for budget, arms in curves.items():
        for spent, level in new_bests(arms.get(BASELINE, [])):
            for arm, curve in arms.items():
                compute = _reached(curve, level)
                rows.append([budget, arm, level, compute, spent / compute])
    return pd.DataFrame(rows, columns=list(QUALITY_COLUMNS))


def new_bests(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points of a curve that are lower than all points before them."""
    lowest = np.minimum.accumulate([math.inf, *(value for _, value in curve)])
    return [point for point, before in zip(curve, lowest, strict=False) if point[1] < before]


def compute_curves(evidence: Evidence) -> Curves:
    """budget -> arm -> (training compute, validation cross-entropy) at every rung, means over seeds."""
    whole = _whole_steps(evidence.own)
    speed = {place: result.means["speedup"] for place, result in evidence.results.items()}
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for budget, arms in learning_curves(evidence.study, evidence.budgets).items():
        for arm, points in arms.items():
            pace = speed.get((budget, arm), math.nan)
            if math.isfinite(pace) and math.isfinite(whole):
                found.setdefault(budget, {})[arm] = [(_compute(step, pace, whole), value) for step, value in points]
    return found


def _reached(curve: Sequence[tuple[float, float]], level: float) -> float:
    """The compute at which a curve first lies at or below a level; NaN where it never does."""
    before: tuple[float, float] | None = None
    for compute, value in curve:
        if value <= level:
            if before is None:
                return compute
            share = (before[1] - level) / (before[1] - value) if before[1] > value else 1.0
            return before[0] + share * (compute - before[0])
        before = (compute, value)
    return math.nan


def _whole_steps(runs: pd.DataFrame) -> float:
    own = runs[(runs["arm"] == BASELINE) & (runs["budget"] == "both") & (runs["state"] == "evaluated")]
    return _mean(own["steps"])


def _compute(steps: float, speedup: float, whole_steps: float) -> float:
    return float(steps / speedup / whole_steps) if speedup > 0 and whole_steps > 0 else math.nan


def draw_compute(table: pd.DataFrame, curves: Curves) -> Drawing | None:
    """Left: quality of every arm and budget against its training compute. Right: validation cross-entropy along the
    way, equal compute first.

    Args:
        table: of `compute_table`.
        curves: of `compute_curves`; one budget is drawn.
    """
    from reco_tune.reporting.labels import label_line_ends
    from reco_tune.reporting.style import (
        MARKERS,
        colours,
        dot,
        drawable,
        half_widths,
        lay_out,
        new_figure,
        plain_log,
        say_left_out,
        spread,
        style,
    )

    quality = quality_of(table)
    key, low, high = quality.ends
    shown = drawable(table, key, high)
    rows = shown[np.isfinite(shown["compute"].astype(float)) & (shown["arm"] != WHOLE)]
    rows = rows.drop_duplicates(["arm", "compute", key])  # the baseline stands under several budgets
    if rows.empty:
        return None
    palette = colours(list(dict.fromkeys(rows["arm"])))
    budget = next((name for name in ("equal_compute", "equal_steps", *curves) if name in curves), "")
    with style():
        figure = new_figure(11.4, 4.3)
        left, right = figure.subplots(1, 2)
        log = spread(rows[key]) > 10
        for arm, own in rows.sort_values("compute", kind="stable").groupby("arm", sort=False):
            colour = palette[str(arm)]
            left.plot(own["compute"], own[key], color=colour, linewidth=0.9, alpha=0.7, zorder=1)
            for row in own.to_dict("records"):
                along = half_widths(row[key], row[low], row[high])
                left.errorbar(
                    row["compute"],
                    row[key],
                    yerr=along,
                    fmt="none",
                    ecolor=colour,
                    elinewidth=1.0,
                    zorder=2,
                    alpha=0.6,
                )
                left.scatter(
                    row["compute"],
                    row[key],
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
            ylabel=f"{quality.name} (lower is better)",
            title="Quality at the end",
        )
        plain_log(left, log)
        handles = [dot("#666666", MARKERS[name], BUDGETS[name].title.lower()) for name in dict.fromkeys(rows["budget"])]
        left.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
        _learning_panel(right, curves.get(budget, {}), budget)
        lay_out(figure)
        last = rows.sort_values("compute", kind="stable").drop_duplicates("arm", keep="last")
        label_line_ends(
            left, [(row["compute"], row[key], row["arm"], palette[row["arm"]]) for row in last.to_dict("records")]
        )
        ends = [(*points[-1], arm, palette.get(arm, "#444444")) for arm, points in curves.get(budget, {}).items()]
        label_line_ends(right, ends)
        say_left_out(figure, len(table) - len(shown))
    return figure


def _learning_panel(axes: Any, arms: Mapping[str, Sequence[tuple[float, float]]], budget: str) -> None:
    from matplotlib.lines import Line2D

    from reco_tune.reporting.line_figure import LOSS_LABEL
    from reco_tune.reporting.style import colours

    palette = colours(list(arms))
    for arm, points in arms.items():
        compute, values = zip(*points, strict=True)
        axes.plot(compute, values, color=palette[arm], marker="o", markersize=3.5)
    if BASELINE in arms:
        for _, level in new_bests(arms[BASELINE]):
            axes.axhline(level, color="#888888", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        handles = [
            Line2D(
                [], [], color="#888888", linewidth=0.8, linestyle=(0, (4, 3)), label="levels that the baseline reached"
            )
        ]
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    axes.set(
        xlabel="training compute (share of the baseline's)",
        ylabel=LOSS_LABEL,
    )
    axes.set_title(f"Compute to reach a quality{f', {BUDGETS[budget].title.lower()}' if budget else ''}")


def _tables(quality: pd.DataFrame) -> list[Table]:
    """One table for each budget, for people: how much cheaper each arm reached each level of the baseline."""
    found: list[Table] = []
    for budget, own in quality.groupby("budget", sort=False):
        levels = list(dict.fromkeys(own["val_cross_entropy"]))
        rows: list[dict[str, Any]] = [
            {"arm": arm, **dict(zip(map(str, part["val_cross_entropy"]), part["compute_ratio"], strict=True))}
            for arm, part in own.groupby("arm", sort=False)
        ]
        columns = [text_column("arm", "arm"), *map(_level_column, levels)]
        if len(rows) > 1:
            found.append(
                Table("compute_to_quality", "", columns, [RowGroup(BUDGETS[str(budget)].title, rows)], files=())
            )
    if found:
        found[-1] = replace(found[-1], caption=NOTE)
    return found


def _level_column(level: float) -> Column:
    def text(row: Row) -> str:
        ratio = row[str(level)]
        return f"{number(ratio)}x" if math.isfinite(ratio) else "never"

    return Column(str(level), f"gain to val CE {number(level, 3)} ↑", text)


def _mean(values: Sequence[float] | pd.Series) -> float:
    known = [float(value) for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan
