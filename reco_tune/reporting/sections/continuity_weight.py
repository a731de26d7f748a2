"""The continuity weight λ: quality and cross-entropy of windowed runs against it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from reco_tune import quantities
from reco_tune.reporting.budgets import BUDGETS
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import interval, number
from reco_tune.reporting.quality import FVD, Quality, quality_of
from reco_tune.reporting.section import (
    Column,
    Figure,
    Section,
    Table,
    interval_column,
    number_column,
    quality_column,
    records,
    text_column,
)
from reco_tune.reporting.windowed import (
    NORM_WEIGHT,
    REDUCTION,
    WEIGHT,
    beside,
    caption,
    mean_quality,
    row_groups,
    windowed,
)
from reco_tune.settings import SEARCH

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

ASKED = (WEIGHT, REDUCTION)
MOST_WEIGHTS = 24
"""Largest number of values of λ with a row each in the table for people."""
LOSS = quantities.VAL_CROSS_ENTROPY.name


def build(evidence: Evidence) -> Section:
    runs = lambda_table(evidence)
    groups, quality = lambda_groups(runs), evidence.quality
    loss = number_column(LOSS, "val CE (nats/token) ↓", 3, latex="Val.\\ CE (nats/token) $\\downarrow$")
    columns = (
        text_column("arm", "arm"),
        Column("weight", "λ", weight_span, "text", latex="$\\lambda$"),
        text_column("reduction", "reduction"),
        text_column("runs", "runs", "count"),
        quality_column(quality),
        interval_column(quality.key, digits=quality.digits),
        *([loss] if quality is FVD else []),
        number_column("continuity", "continuity term", 3, latex="Continuity"),
        number_column("hidden_norm", "mean h²", latex="$h^2$"),
    )
    table = Table(
        "lambda",
        "Table by λ",
        columns,
        row_groups(groups),
        caption(_weighted(evidence), ASKED),
        data=runs,
        files=("csv", "md", "tex"),
        folded=True,
        shown=runs[WEIGHT].nunique() > 1,
    )
    figure = Figure(
        "lambda",
        "The continuity weight",
        f"{' and '.join(_drawn_names(quality))} of windowed runs, by λ. The left end is λ = 0. Runs with a penalty on"
        " h² are not shown.",
        draw_lambda,
        (runs, evidence.arms),
        " ".join(f"At {words}." for words in lowest_by_weight(groups)),
    )
    return Section("lambda", "The continuity weight", tables=[table], figures=[figure])


def lambda_table(evidence: Evidence) -> pd.DataFrame:
    """Windowed runs by λ, without those that have a penalty on h².

    Columns: budget, λ, reduction, arm, quality with interval, validation cross-entropy, raw continuity term, mean h²,
    and whether the runs of that budget differ only in λ, its reduction and the training seed.
    """
    rows = _weighted(evidence)
    keys = ["budget", *ASKED, "arm", "trial", "seed"]
    values = [*dict.fromkeys([*evidence.quality.ends, LOSS]), "continuity", "hidden_norm", "comparable"]
    rows = rows.iloc[rows[WEIGHT].astype(float).to_numpy().argsort(kind="stable")]
    parts = [
        own.assign(comparable=not beside(own, ASKED))
        for own in (rows[rows["budget"] == budget] for budget in evidence.budgets)
    ]
    return pd.concat(parts)[[*keys, *values]].reset_index(drop=True)


def lambda_groups(table: pd.DataFrame) -> pd.DataFrame:
    """`lambda_table` grouped by budget, arm, reduction and λ, for people: number of runs, mean quality with its
    interval, means of the other values.

    If an arm (or the search) has more than `MOST_WEIGHTS` values of λ, they are grouped by half decades from `lowest`
    to `highest`.
    """
    ends = quality_of(table).ends
    averaged = [name for name in (LOSS, "continuity", "hidden_norm") if name not in ends]
    columns = ["budget", "arm", "reduction", "lowest", "highest", "runs", *ends, *averaged, "comparable"]
    rows: list[list[object]] = []
    for (budget, arm, reduction), own in table.groupby(["budget", "arm", REDUCTION], sort=False):
        weights = own[WEIGHT].astype(float)
        few = weights.nunique() <= MOST_WEIGHTS
        group = weights if few else np.floor(2 * np.log10(weights.where(weights > 0, 1e-99)))
        for _, members in own.groupby(group, sort=True):
            mean, inside = mean_quality(members), weights[members.index]
            means = [float(members[name].mean()) for name in averaged]
            rows.append(
                [
                    budget,
                    arm,
                    reduction,
                    inside.min(),
                    inside.max(),
                    len(members),
                    *mean,
                    *means,
                    own["comparable"].iloc[0],
                ]
            )
    return pd.DataFrame(rows, columns=columns)


def lowest_by_weight(groups: pd.DataFrame) -> list[str]:
    """A line for each budget of `lambda_groups`: the lowest mean quality, the number of its runs, their arm, and λ with
    its reduction.
    """
    lines, quality = [], quality_of(groups)
    for budget, rows in groups.groupby("budget", sort=False):
        best = records(rows.iloc[[int(rows[quality.key].argmin())]])[0]
        runs = f"{best['runs']} run{'s' if best['runs'] > 1 else ''} of {best['arm']}"
        place = f"at λ = {weight_span(best)} ({best['reduction']})"
        ends = interval(best[quality.low], best[quality.high], quality.digits)
        title, lowest = BUDGETS[str(budget)].title.lower(), f"{number(best[quality.key], quality.digits)} {ends}"
        mixed = "" if best["comparable"] else "; rows differ in other settings too"
        lines.append(f"{title}: lowest mean {quality.name} {lowest.strip()} {place}, {runs}{mixed}")
    return lines


def weight_span(row: Mapping[str, Any]) -> str:
    """λ of a row of `lambda_groups`, or the range from its lowest to its highest."""
    low, high = (f"{row[end]:.3g}" for end in ("lowest", "highest"))
    return low if low == high else f"{low}–{high}"


def draw_lambda(rows: pd.DataFrame, order: Sequence[str]) -> Drawing | None:
    """Quality and validation cross-entropy against λ: sampled runs and the windowed arms, λ = 0 at the left end.

    Args:
        rows: of `lambda_table`.
        order: of the study's arms.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    from reco_tune.reporting.style import (
        MARKERS,
        colours,
        dot,
        drawable,
        many_points,
        new_figure,
        plain_log,
        say_left_out,
        spread,
        style,
    )

    whole, quality = len(rows), quality_of(rows)
    drawn = list(dict.fromkeys([quality.key, LOSS]))
    rows = drawable(rows, *drawn)
    if rows[WEIGHT].nunique() < 2:
        return None
    palette = colours(order)
    weights = rows[WEIGHT].astype(float).to_numpy()
    reductions = list(dict.fromkeys(map(str, rows[REDUCTION])))  # points of the first are filled
    smallest = min((weight for weight in weights if weight > 0), default=0.01)
    linear = 10.0 ** math.floor(math.log10(smallest))  # a whole decade: ticks start there, with none between it and 0
    with style():
        figure = new_figure(4.8 * len(drawn), 4.0)
        panels = np.atleast_1d(figure.subplots(1, len(drawn)))
        for axes, name in zip(panels, drawn, strict=True):
            quantity = quantities.ALL[name]
            log = name == quantities.FVD.name and spread(rows[name]) > 10
            for (budget, arm, reduction), own in rows.groupby(["budget", "arm", REDUCTION], sort=False):
                x, y, colour = own[WEIGHT].astype(float), own[name], palette[str(arm)]
                look = many_points(len(x)) if arm == SEARCH else {"s": 52, "edgecolor": "white", "linewidth": 0.5}
                if reduction != reductions[0]:
                    look |= {"facecolor": "none", "edgecolor": colour, "linewidth": 1.0}
                marker, depth = MARKERS[str(budget)], 2 if arm == SEARCH else 3
                axes.scatter(x, y, marker=marker, zorder=depth, **({"facecolor": colour} | look))
            axes.set_xscale("symlog", linthresh=linear, linscale=0.5)
            axes.set_xlim(-0.35 * linear, max(1.5 * weights.max(), 2 * linear))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_xlabel(f"continuity weight λ (reduction: {' and '.join(reductions)})")
            unit = f"\n({quantity.unit}, " if quantity.unit else " ("
            axes.set_ylabel(f"{quantity.label}{unit}{quantity.better} is better)")
            if log:
                axes.set_yscale("log")
            plain_log(axes, log)
        handles = [dot(palette[arm], "o", arm) for arm in [*order, SEARCH] if arm in set(rows["arm"])]
        shown = [budget for budget in BUDGETS if budget in set(rows["budget"])]
        handles += [dot("#666666", MARKERS[budget], BUDGETS[budget].title.lower()) for budget in shown]
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
        say_left_out(figure, whole - len(rows))
    return figure


def _drawn_names(quality: Quality) -> list[str]:
    return ["FVD", "validation cross-entropy"] if quality is FVD else ["Validation cross-entropy"]


def _weighted(evidence: Evidence) -> pd.DataFrame:
    """Windowed runs without a penalty on h². That control has its own weight; it is not the case λ = 0."""
    rows = windowed(evidence.own_comparable)
    return rows[rows[NORM_WEIGHT].astype(float).fillna(0) == 0]
