"""The share of the baseline's cost at which each arm, and the baseline itself, reaches the baseline's final FVD (or
cross-entropy, `quality`). Reached means above it by at most the margin that counts as recovered.

A speed-up per step does not show whether the baseline could have stopped early. So every arm trains at 1/8, 1/4, 1/2
and 1 of the baseline's compute, each run with its own learning-rate schedule (`equal_cost_curve`). An arm's gain is the
share that the baseline needs over the share that the arm needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from reco_tune.reporting.aggregate import Ratio, paired_ratio
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import interval, number, quoted
from reco_tune.reporting.quality import Quality
from reco_tune.reporting.section import Column, Figure, Row, RowGroup, Section, Table, records, text_column
from reco_tune.settings import BASELINE, COMPUTE_SHARES

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

FEWEST_SHARES = 3
"""With fewer shares there is no curve."""
COLUMNS = (
    "arm",
    "seeds",
    "cost_share",
    "cost_share_low",
    "cost_share_high",
    "bound",
    "bound_seeds",
    "gain",
    "gain_low",
    "gain_high",
    "verdict",
)
"""Columns of cost_curve.csv.

`bound` is `more than` if `bound_seeds` of the seeds do not reach the level at the whole cost, and `at most` if they
reach it at the smallest share already. `cost_share` is then that share, without an interval.
"""
Points = Sequence[tuple[float, float]]
"""(share of the baseline's cost, quality), from the smallest share to the whole."""


class Reached(NamedTuple):
    """The place where a curve first lies at or below a level."""

    share: float
    """Share of the baseline's cost. If only a bound is known, the smallest or the largest share that was run."""
    bound: str = ""
    """`at most`, `more than`, or empty if the curve crosses the level between two points."""


def build(evidence: Evidence) -> Section:
    curves = cost_curves(evidence)
    if not curves:
        return Section("cost_curve", "")
    quality = evidence.quality
    table = cost_table(curves, quality.margin)
    columns = [
        text_column("arm", "arm"),
        text_column("seeds", "seeds", "count"),
        Column("cost_share", "share of the baseline's cost ↓", _share),
        Column("cost_interval", "95% interval", lambda row: interval(row["cost_share_low"], row["cost_share_high"])),
        Column("gain", "gain over the baseline (x) ↑", lambda row: _times(row["gain"])),
        Column("gain_interval", "95% interval", lambda row: interval(row["gain_low"], row["gain_high"])),
        text_column("verdict", "verdict"),
    ]
    caption = (
        f"An arm reaches the baseline's {quality.name} when its own is at most {quality.margin:.0%} above that of"
        f" `{BASELINE}` at the whole cost, with the same seed. Between two shares we interpolate on log scales. The"
        f" gain is the share that `{BASELINE}` needs divided by the share that the arm needs. It is what you save if"
        " you stop both in time. Means over seeds are geometric."
    )
    figure = Figure(
        "cost_curve",
        f"{quality.title} by training cost",
        "Every point has its own training runs with their own learning-rate schedule, and is a mean over seeds. Dashed"
        f" line: {quality.margin:.0%} above `{BASELINE}` at its whole cost.",
        draw_cost_curve,
        (mean_curves(curves), quality),
    )
    shown = Table(
        "cost_curve",
        f"Cost to reach the baseline's {quality.name}",
        columns,
        [RowGroup("All compute budgets together", records(table))],
        caption,
        data=table,
        files=("csv", "md", "tex"),
        mark=lambda row: "baseline" if row["arm"] == BASELINE else "",
    )
    return Section(
        "cost_curve",
        f"Cost to reach the baseline's {quality.name}",
        tables=[shown],
        figures=[figure],
        words=verdicts(table, quality),
    )


def cost_curves(evidence: Evidence) -> dict[str, dict[int, Points]]:
    """arm -> training seed -> points, for seeds that ran at every share of the study. Empty if the study has fewer than
    `FEWEST_SHARES` shares, or no baseline.
    """
    budgets = [budget for budget in reversed(COMPUTE_SHARES) if budget in evidence.budgets]
    if len(budgets) < FEWEST_SHARES or COMPUTE_SHARES[budgets[-1]] < 1:
        return {}
    found: dict[str, dict[int, Points]] = {}
    for arm in dict.fromkeys(arm for budget, arm in evidence.results if budget in budgets):
        results = [evidence.results[budget, arm] for budget in budgets if (budget, arm) in evidence.results]
        if len(results) < len(budgets):
            continue
        seeds = [seed for seed in results[0].values if all(seed in result.values for result in results)]
        shares = [COMPUTE_SHARES[budget] for budget in budgets]
        curves: dict[int, Points] = {
            seed: [(share, result.values[seed].value) for share, result in zip(shares, results, strict=True)]
            for seed in seeds
        }
        if curves:
            found[arm] = curves
    return found if BASELINE in found else {}


def reached(points: Points, level: float) -> Reached:
    """The share at which a curve first lies at or below a level, linear between its points on log scales."""
    before: tuple[float, float] | None = None
    for share, value in points:
        if value <= level:
            if before is None:
                return Reached(share, "at most")
            if min(level, value) <= 0:
                return Reached(share)
            part = math.log(before[1] / level) / math.log(before[1] / value)
            return Reached(before[0] * (share / before[0]) ** part)
        before = (share, value)
    return Reached(points[-1][0], "more than")


def cost_table(curves: Mapping[str, Mapping[int, Points]], margin: float) -> pd.DataFrame:
    """Rows by arm: its gain, and the share of the baseline's cost at which it reaches the baseline's quality."""
    levels = {seed: (1 + margin) * points[-1][1] for seed, points in curves[BASELINE].items()}
    own = {seed: reached(points, levels[seed]) for seed, points in curves[BASELINE].items()}
    rows = []
    for arm, seeds in curves.items():
        found = {seed: reached(points, levels[seed]) for seed, points in seeds.items() if seed in levels}
        if not found:
            continue
        bounds = [one.bound for one in found.values()]
        bound = next((kind for kind in ("more than", "at most") if kind in bounds), "")
        bounded = {seed: one.share for seed, one in found.items() if one.bound == bound}
        share = paired_ratio(bounded, dict.fromkeys(bounded, 1.0))
        gain = paired_ratio({seed: own[seed].share for seed in found}, {seed: one.share for seed, one in found.items()})
        assert share is not None and gain is not None  # shares are above 0
        known = not bound and not any(own[seed].bound for seed in found)
        rows.append(
            [
                arm,
                len(found),
                share.value,
                *(_ends(share) if not bound else (math.nan, math.nan)),
                bound,
                len(bounded) if bound else 0,
                *((gain.value, *_ends(gain)) if known and arm != BASELINE else (math.nan,) * 3),
                "" if arm == BASELINE else _verdict(gain, bound, {own[seed].bound for seed in found}),
            ]
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def verdicts(table: pd.DataFrame, quality: Quality) -> list[str]:
    """A sentence for each arm."""
    rows = {row["arm"]: row for row in records(table)}
    full = rows[BASELINE]
    told = [
        f"{quoted(BASELINE)} itself comes within {quality.margin:.0%} of its final {quality.name} at {_at(full)} of"
        " its cost."
    ]
    for arm, row in rows.items():
        if arm == BASELINE:
            continue
        if row["bound"] == "more than":
            some = f" in {row['bound_seeds']} of {row['seeds']} seeds" if row["bound_seeds"] < row["seeds"] else ""
            told.append(f"{quoted(arm)} does not reach the baseline's {quality.name} within the baseline's cost{some}.")
            continue
        ends = interval(row["gain_low"], row["gain_high"])
        gain = (
            f": a gain of {_times(row['gain'])}{f' {ends}' if ends else ''}, {row['verdict']}"
            if _times(row["gain"])
            else ""
        )
        told.append(f"{quoted(arm)} reaches it at {_at(row)} of the baseline's cost{gain}.")
    return told


def mean_curves(curves: Mapping[str, Mapping[int, Points]]) -> pd.DataFrame:
    """arm, share, quality: means over seeds."""
    rows = [
        [arm, share, sum(points[at][1] for points in seeds.values()) / len(seeds)]
        for arm, seeds in curves.items()
        for at, (share, _) in enumerate(next(iter(seeds.values())))
    ]
    return pd.DataFrame(rows, columns=["arm", "share", "quality"])


def draw_cost_curve(rows: pd.DataFrame, quality: Quality) -> Drawing | None:
    """Quality of every arm over the share of the baseline's cost, and the level that counts as reached."""
    from reco_tune.reporting.labels import label_line_ends
    from reco_tune.reporting.style import colours, drawable, lay_out, new_figure, plain_log, say_left_out, spread, style

    shown = drawable(rows, "quality")
    arms = {str(arm): own for arm, own in shown.groupby("arm", sort=False)}
    palette = colours(list(arms))
    with style():
        figure = new_figure(7.4, 4.3)
        axes = figure.subplots()
        log = spread(shown["quality"]) > 5
        for arm, own in arms.items():
            axes.plot(own["share"], own["quality"], color=palette[arm], marker="o", markersize=4.5)
        if BASELINE in arms:
            level = (1 + quality.margin) * float(arms[BASELINE]["quality"].iloc[-1])
            axes.axhline(level, color="#888888", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axes.set_xscale("log", base=2)
        shares = sorted(set(shown["share"]))
        axes.set_xticks(shares, [f"1/{round(1 / share)}" if share < 1 else "1" for share in shares])
        axes.minorticks_off()
        if log:
            axes.set_yscale("log")
        plain_log(axes, log)
        axes.set(xlabel="training compute (share of the baseline's)", ylabel=f"{quality.title} (lower is better)")
        lay_out(figure)
        ends = [
            (float(own["share"].iloc[-1]), float(own["quality"].iloc[-1]), arm, palette[arm])
            for arm, own in arms.items()
        ]
        label_line_ends(axes, ends)
        say_left_out(figure, len(rows) - len(shown))
    return figure


def _ends(ratio: Ratio) -> tuple[float, float]:
    return (ratio.low, ratio.high) if math.isfinite(ratio.high) else (math.nan, math.nan)


def _verdict(gain: Ratio, bound: str, baseline_bounds: set[str]) -> str:
    if bound == "more than":
        return "does not reach it"
    if bound or baseline_bounds - {""}:
        return "not resolved"
    if gain.seeds == 1:
        return "not resolved (1 seed)"
    return "cheaper" if gain.low > 1 else "dearer" if gain.high < 1 else "not resolved"


def _share(row: Row) -> str:
    share = number(row["cost_share"])
    some = f" ({row['bound_seeds']} of {row['seeds']} seeds)" if 0 < row["bound_seeds"] < row["seeds"] else ""
    return f"{row['bound']} {share}{some}".strip()


def _at(row: Row) -> str:
    """`_share` after "at"."""
    share = _share(row)
    return f"{share.removeprefix('at most ')} or less" if share.startswith("at most ") else share


def _times(value: float) -> str:
    return f"{number(value)}x" if math.isfinite(value) else ""
