"""Speed against quality: which configurations nothing else beats in both, how sure that is, and every run behind it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from reco_tune import quantities
from reco_tune.reporting.budgets import BUDGETS, WHOLE, at_budget, reference, searched_steps
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.frontier import COLUMNS, PROBABILITY_COLUMNS, SETTINGS, Frontier
from reco_tune.reporting.numbers import number, quoted, setting
from reco_tune.reporting.paper import SOURCE, Reference
from reco_tune.reporting.render.scatter import scatter
from reco_tune.reporting.runs import IMPORTED, bounds, configurations, differing
from reco_tune.reporting.section import (
    Column,
    Figure,
    Row,
    RowGroup,
    Section,
    Table,
    interval_column,
    number_column,
    records,
    text_column,
)
from reco_tune.settings import BASELINE, SEARCH, Bound

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing
    from matplotlib.lines import Line2D

WEIGHT, REDUCTION = "objective.continuity_weight", "objective.continuity_reduction"
MOST_SETTINGS = 16
"""Settings that a point tells when it is hovered."""
MOST_ROWS = 200
MOST_INFEASIBLE = 6
"""Configurations that break a constraint and are named."""
LEAST_CHANCE = 0.05
"""Configurations that stand on the frontier with at least this probability are listed with it."""
FEWER_FRAMES = "fewer_frames"
"""Begins the names of the fewer-frames baselines, which have a marker of their own."""


def build(evidence: Evidence) -> Section:
    found, settings = evidence.frontier, _Settings(evidence.runs)
    return Section(
        "frontier",
        "Frontier",
        tables=[
            Table("frontier", data=found.points.loc[found.points["infeasible"] == "", list(COLUMNS)]),
            Table("frontier_probability", data=found.points[list(PROBABILITY_COLUMNS)]),
            _table(evidence, settings),
        ],
        figures=[_figure(evidence)],
        markup=Markup("").join(_scatter(evidence, budget, settings) for budget in evidence.budgets),
    )


def _table(evidence: Evidence, settings: _Settings) -> Table:
    """Configurations that stand on the frontier, or may well do, from slow to fast."""
    columns = (
        Column(
            "trial",
            "on the frontier",
            _name,
            "text",
            markup=lambda row: Markup("{}{}").format(
                _name(row),
                Markup(' <span class="when">knee</span>') if row["knee"] else "",
            ),
        ),
        number_column("probability", "probability"),
        text_column("runs", "runs", "count"),
        number_column("speedup", "speed-up"),
        number_column("fvd", "FVD"),
        interval_column("fvd"),
        *(
            Column(key, heading, lambda row, key=key: setting(row[key]), "count")  # type: ignore[misc]
            for key, heading in zip(SETTINGS, ("window tokens", "stride tokens", "first-frame p", "λ"), strict=True)
        ),
    )
    groups = []
    for budget in evidence.budgets:
        points = evidence.frontier.at(budget)
        shown = points[points["on_frontier"].astype(bool) | (points["probability"] >= LEAST_CHANCE)]
        shown = shown.sort_values(["speedup", "fvd", "trial"], kind="stable").head(MOST_ROWS)
        rows = records(shown.assign(**{WEIGHT: shown["trial"].map(settings.weight)}))
        if rows:
            groups.append(RowGroup(BUDGETS[budget].title, rows))
    return Table(
        "frontier",
        "Frontier",
        columns,
        groups,
        "Arms and finalists of the search as means over their seeds, other sampled runs one by one. The probability is"
        " the share of 1,000 draws from the intervals of FVD and speed-up in which nothing is both as fast and as good;"
        " rows in grey are not on the frontier of the means but in at least one draw of twenty."
        + searched_steps(evidence.own_comparable),
        infeasible(evidence.frontier.points),
        files=(),
        terminal=("trial", "speedup", "fvd", "fvd_interval", "probability", *SETTINGS),
        mark=lambda row: "" if row["on_frontier"] else "near",
    )


def _name(row: Row) -> str:
    """What a configuration is called."""
    return str(row["trial"] if row["arm"] == SEARCH else row["arm"])


def infeasible(points: pd.DataFrame) -> list[str]:
    """What breaks a constraint of the search, in a sentence; no sentence where nothing does."""
    rows = records(points[points["infeasible"] != ""])
    named = [
        f"{quoted(_name(row))} {BUDGETS[row['budget']].words} ({row['infeasible']})" for row in rows[:MOST_INFEASIBLE]
    ]
    more = len(rows) - MOST_INFEASIBLE
    named += [f"{more} more, in `frontier_probability.csv`"] if more > 0 else []
    return [f"On no frontier, because a constraint of the search is broken: {'; '.join(named)}."] if rows else []


def _scatter(evidence: Evidence, budget: str, settings: _Settings) -> Markup:
    """Configurations as points with their settings, the runs of those at several seeds small behind them."""
    points, kept = evidence.frontier.at(budget), evidence.own_comparable
    several = set(configurations(points[points["runs"] > 1]))
    singles = kept[at_budget(kept["budget"], budget) & np.isin(configurations(kept), list(several))]
    volume = number(evidence.frontier.hypervolume.get(budget, math.nan))
    covers = f", which covers {volume} speed-up × FVD units" if volume and float(volume) else ""
    return Markup(
        '<h3>Every configuration, {}</h3><p class="note">Filled points are on the frontier{}; the smallest are single'
        ' seeds.</p><div class="plot"><div>{}</div>'
        '<p class="readout" aria-live="polite">Hover or focus a point for its settings; the arrow keys go from one to'
        " the next.</p></div>"
    ).format(
        BUDGETS[budget].title.lower(),
        covers,
        scatter(points, singles, settings.hover(points)),
    )


class _Settings:
    """What tells runs apart, in words, of the few whose words are wanted."""

    def __init__(self, runs: pd.DataFrame) -> None:
        self._row = {trial: row for row, trial in enumerate(runs["trial"])}
        self._configurations = configurations(runs)
        keys = [
            key for key in dict.fromkeys([*SETTINGS, *differing(runs)]) if key in runs and key != REDUCTION
        ]  # λ tells its reduction
        self._columns = {key: runs[key].to_numpy() for key in keys}
        self._reductions = runs[REDUCTION].to_numpy() if REDUCTION in runs else None

    def hover(self, points: pd.DataFrame) -> Callable[[str], str]:
        """Of a trial: its settings, and how probably its configuration stands on the frontier that these
        points are of."""
        chances = dict(zip(configurations(points), points["probability"], strict=True))

        def words(trial: str) -> str:
            row = self._row[trial]
            values = {
                key: self.weight(trial) if key == WEIGHT else column[row] for key, column in self._columns.items()
            }
            told = [f"{key} = {value}" for key, value in values.items() if not pd.isna(value)]
            more = [f"and {len(told) - MOST_SETTINGS} more, in runs.csv"] if len(told) > MOST_SETTINGS else []
            chance = chances.get(self._configurations[row])
            return "\n".join(
                told[:MOST_SETTINGS]
                + more
                + ([] if chance is None else [f"on the frontier with probability {chance:.2f}"])
            )

        return words

    def weight(self, trial: str) -> str | None:
        """λ with its reduction: without it the number says nothing."""
        row = self._row[trial]
        if self._reductions is None or pd.isna(weight := self._columns[WEIGHT][row]):
            return None
        return f"{setting(weight)} ({self._reductions[row] or 'reduction unknown'})"


def _figure(evidence: Evidence) -> Figure:
    rows = evidence.ablation.to_dict("records")
    words = "; ".join(
        f"{row['arm']} at {row['budget']}: {number(row['speedup'])}x, FVD {number(row['fvd'])}" for row in rows
    )
    return Figure(
        "frontier",
        "Speed against quality",
        "Arms as means over seeds with 95% intervals, sampled runs in grey. The line joins what nothing else beats in"
        " both, the band holds where that line lies in 95% of draws from the intervals, the ring marks its knee.",
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
    """Speed-up against FVD, one panel a budget: arms with intervals (hollow where from elsewhere), sampled runs, the
    frontier with its band and knee, what it must beat.

    Args:
        found: the configurations and their noise.
        table: of `comparisons.ablation_rows`, for the arms' means.
        order: of the study's arms.
        constraints: metric -> what is allowed; on FVD and speed-up they are lines, others stand in the legend.
        paper: the paper's own values by arm (`paper.paper_reference`): stars at equal steps, on an axis where it gives
            that value alone.
    """
    from reco_tune.reporting.labels import label_points
    from reco_tune.reporting.style import colours, drawable, freeze, new_figure, plain_log, say_left_out, spread, style

    whole = len(found.points)
    found = replace(found, points=drawable(found.points, "fvd", "fvd_high"))
    table = drawable(table, "fvd", "fvd_high")
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
            axes.set_title(
                f"{'Speed' if budget == 'equal_steps' else 'Compute'} frontier: {BUDGETS[budget].title.lower()}"
            )
        panels[0].set_ylabel("FVD (lower is better)")
        plain_log(panels[0], log)
        for axes, budget in zip(panels, budgets, strict=True):
            _draw_band(axes, found.bands.get(budget))
        if shared:
            figure.legend(handles=list(shared.values()), loc="outside lower center", ncols=len(budgets), frameon=False)
        say_left_out(figure, whole - len(found.points))
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


def _draw_band(axes: Any, band: pd.DataFrame | None) -> None:
    """The 95% band behind everything; only once all panels hold their points, because it must not move the limits that
    they share.
    """
    if band is None:
        return
    from reco_tune.reporting.style import drawable

    limits = axes.get_xlim(), axes.get_ylim()
    known = drawable(
        band[np.isfinite(band["high"])], "high"
    )  # where nothing may be as fast, the best FVD has no upper end
    axes.fill_between(known["speedup"], known["low"], known["high"], color="#444444", alpha=0.1, lw=0)
    axes.set(xlim=limits[0], ylim=limits[1])


def _frontier_panel(
    axes: Any, found: Frontier, budget: str, arms: pd.DataFrame, palette: dict[str, str], log: bool
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from reco_tune.reporting.style import dot, half_widths, many_points

    points, compared = found.at(budget), reference(budget)
    searched, front = points[points["arm"] == SEARCH], _front(points)
    axes.scatter(searched["speedup"], searched["fvd"], color=palette[SEARCH], zorder=2, **many_points(len(searched)))
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
    refused = points[points["infeasible"] != ""]
    axes.scatter(refused["speedup"], refused["fvd"], s=46, marker="x", color="#b22222", linewidth=1.1, zorder=5)
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
    if len(refused):
        handles.append(dot("#b22222", "x", "breaks a constraint"))
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
    from matplotlib.lines import Line2D

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
    """Where the stars stand, for labels; axis limits must be final."""
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    places = {arm: (left if math.isnan(x) else x, bottom if math.isnan(y) else y) for arm, (y, x) in paper.items()}
    return [(x, y, f"{arm}, paper", palette[arm]) for arm, (x, y) in places.items()]


def _front(points: pd.DataFrame) -> pd.DataFrame:
    """The frontier of the means from slow to fast."""
    return points[points["on_frontier"].astype(bool)].sort_values(["speedup", "fvd", "trial"], kind="stable")


def _marker(arm: str, compared: str) -> str:
    return "D" if arm == compared else "s" if arm.startswith(FEWER_FRAMES) else "o"


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
