"""Window length and stride: quality and speed-up of windowed runs by both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from reco_tune.reporting.budgets import BUDGETS
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import number
from reco_tune.reporting.quality import quality_of
from reco_tune.reporting.section import (
    Figure,
    Section,
    Table,
    interval_column,
    number_column,
    quality_column,
    records,
    text_column,
)
from reco_tune.reporting.windowed import PLACE, beside, caption, mean_quality, row_groups, windowed
from reco_tune.settings import SEARCH

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def build(evidence: Evidence) -> Section:
    rows, budget, quality = window_stride_tables(evidence), evidence.budgets[0], evidence.quality
    cells = window_stride_cells(rows[rows["budget"] == budget])
    columns = (
        text_column("arm", "arm"),
        text_column("window.length_tokens", "window (tokens)", "count"),
        text_column("window.stride_tokens", "stride (tokens)", "count"),
        text_column("runs", "runs", "count"),
        quality_column(quality),
        interval_column(quality.key, digits=quality.digits),
        number_column("speedup", "speed-up (x) ↑"),
    )
    table = Table(
        "window_stride",
        "Table by window and stride",
        columns,
        row_groups(rows),
        caption(windowed(evidence.own_comparable), PLACE),
        data=rows,
        files=("csv", "md", "tex"),
        folded=True,
        shown=len(rows.drop_duplicates(list(PLACE))) > 1,
    )
    figure = Figure(
        "window_stride",
        "Window and stride",
        f"Mean {quality.name} (colour and first number) and speed-up (second number) by window length and stride. The"
        " runs are sampled runs, which may also differ in other settings. In a study without a search, they are arms"
        " that differ in nothing else.",
        draw_window_stride,
        (cells, budget),
        _lowest(cells, budget),
    )
    return Section("window-stride", "Window and stride", tables=[table], figures=[figure])


def window_stride_table(evidence: Evidence, budget: str) -> pd.DataFrame:
    """Windowed runs by arm, window length and stride in tokens: number of runs, mean quality with its 95% interval, and
    mean speed-up.

    The interval is that of `aggregate.mean_interval` over the runs of the row: seeds of an arm, or sampled runs, which
    may differ in other settings. `comparable` says whether all runs of the budget differ only in window, stride and
    training seed.
    """
    rows = windowed(evidence.own_comparable)
    rows = rows[rows["budget"] == budget]
    rows, alike = rows.astype(dict.fromkeys(PLACE, int)), not beside(rows, PLACE)
    cells = []
    for arm in dict.fromkeys(rows["arm"]):
        for place, group in rows[rows["arm"] == arm].groupby(list(PLACE), sort=True):
            mean, speed = mean_quality(group), float(group["speedup"].mean())
            cells.append([arm, *place, len(group), mean.value, speed, mean.low, mean.high, alike])
    value, low, high = evidence.quality.ends
    return pd.DataFrame(cells, columns=["arm", *PLACE, "runs", value, "speedup", low, high, "comparable"])


def window_stride_tables(evidence: Evidence) -> pd.DataFrame:
    """`window_stride_table` of all budgets in one table, with the budget in the first column."""
    parts = [window_stride_table(evidence, budget) for budget in evidence.budgets]
    for budget, part in zip(evidence.budgets, parts, strict=True):
        part.insert(0, "budget", budget)
    return pd.concat(parts, ignore_index=True)


def window_stride_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a `window_stride_table` for one map, each place once: sampled runs, or comparable arms if there are
    none.
    """
    sampled = table[table["arm"] == SEARCH]
    return sampled if len(sampled) else table[table["comparable"].astype(bool)].drop_duplicates(list(PLACE))


def draw_window_stride(table: pd.DataFrame, budget: str) -> Drawing | None:
    """Quality (colour and number) and speed-up (below it) by window length and stride; `window_stride_cells`
    chooses them.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter

    from reco_tune.reporting.style import drawable, new_figure, say_left_out, spread, style, text_on

    whole, quality = len(table), quality_of(table)
    table = drawable(table, quality.key)
    if len(table) < 2:
        return None
    import seaborn as sns  # with SciPy's distributions, it takes longer to import than all figures to draw

    values, speed = (
        table.pivot(index="window.stride_tokens", columns="window.length_tokens", values=name)
        for name in (quality.key, "speedup")
    )
    written = values.map(lambda value: number(value, quality.digits))
    written += speed.map(lambda value: f"\n{value:.2f}x" if math.isfinite(value) else "")
    with style():
        figure = new_figure(1.4 + 1.0 * max(3, values.shape[1]), 1.3 + 0.62 * max(2, values.shape[0]))
        axes = figure.subplots()
        scale = LogNorm() if spread(table[quality.key]) > 10 else None
        bar = {"label": f"{quality.name} (lower is better)", "format": FuncFormatter(lambda value, _: f"{value:g}")}
        sns.heatmap(
            values,
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
        for text in axes.texts:  # seaborn uses white even where black has up to twice the contrast
            column, row = map(int, text.get_position())
            text.set_color(text_on(cells.to_rgba(values.to_numpy()[row, column])))
        axes.set_title(BUDGETS[budget].title)
        axes.set_xlabel("window length (tokens)")
        axes.set_ylabel("stride (tokens)")
        axes.invert_yaxis()
        axes.tick_params(length=0, rotation=0)
        axes.grid(False)
        say_left_out(figure, whole - len(table))
    return figure


def _lowest(cells: pd.DataFrame, budget: str) -> str:
    """Text for readers who cannot see the map."""
    if cells.empty:
        return ""
    quality = quality_of(cells)
    best = min(records(cells), key=lambda row: float(row[quality.key]))
    place = f"a window of {best['window.length_tokens']} and a stride of {best['window.stride_tokens']} tokens"
    lowest = number(best[quality.key], quality.digits)
    return f"{BUDGETS[budget].words.capitalize()} the lowest mean {quality.name} is {lowest}, at {place}."
