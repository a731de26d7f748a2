"""Every configuration of a study with its settings: a list of those on the frontier, and a plot of all."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from markupsafe import Markup

from reco_tune.reporting.budgets import BUDGETS, at_budget, searched_steps
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.frontier import SETTINGS
from reco_tune.reporting.numbers import number, quoted, setting
from reco_tune.reporting.render.scatter import scatter
from reco_tune.reporting.runs import configurations, differing
from reco_tune.reporting.section import (
    Column,
    Row,
    RowGroup,
    Section,
    Table,
    interval_column,
    number_column,
    quality_column,
    records,
    text_column,
)
from reco_tune.settings import SEARCH

WEIGHT, REDUCTION = "objective.continuity_weight", "objective.continuity_reduction"
MOST_SETTINGS = 16
"""Settings that are shown when the pointer is over a point."""
MOST_ROWS = 200
MOST_INFEASIBLE = 6
"""Number of configurations that are named because they break a constraint."""
LEAST_CHANCE = 0.05
"""Configurations with at least this probability of being on the frontier are listed with it."""


def build(evidence: Evidence) -> Section:
    settings = _Settings(evidence.runs)
    drawn = [
        _scatter(evidence, budget, settings) for budget in evidence.budgets if len(evidence.frontier.at(budget)) > 1
    ]
    return Section(
        "configurations",
        "Every configuration",
        tables=[_table(evidence, settings)],
        markup=Markup("").join(drawn) or None,
    )


def _table(evidence: Evidence, settings: _Settings) -> Table:
    """Configurations that are on the frontier, or are likely enough to be, from slow to fast."""
    quality = evidence.quality
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
        number_column("probability", "probability of being on it"),
        text_column("runs", "runs", "count"),
        number_column("speedup", "speed-up (x) ↑"),
        quality_column(quality),
        interval_column(quality.key, digits=quality.digits),
        *(
            Column(key, heading, lambda row, key=key: setting(row[key]), "count")  # type: ignore[misc]
            for key, heading in zip(
                SETTINGS, ("window (tokens)", "stride (tokens)", "first-frame probability", "λ"), strict=True
            )
        ),
    )
    groups = []
    for budget in evidence.budgets:
        points = evidence.frontier.at(budget)
        shown = points[points["on_frontier"].astype(bool) | (points["probability"] >= LEAST_CHANCE)]
        shown = shown.sort_values(["speedup", quality.key, "trial"], kind="stable").head(MOST_ROWS)
        rows = records(shown.assign(**{WEIGHT: shown["trial"].map(settings.weight)}))
        if rows:
            groups.append(RowGroup(BUDGETS[budget].title, rows))
    return Table(
        "frontier",
        "Frontier",
        columns,
        groups,
        "Arms and finalists of the search are means over their seeds. Other sampled runs are single runs. The"
        f" probability is from 1,000 random draws from the intervals of {quality.name} and speed-up: the share of"
        " draws in which no other row is at least as fast and as good. Rows in grey are not on the frontier of the"
        " means, but have a probability of at least 5%." + searched_steps(evidence.own_comparable),
        infeasible(evidence.frontier.points),
        files=(),
        terminal=("trial", "speedup", quality.key, f"{quality.key}_interval", "probability", *SETTINGS),
        mark=lambda row: "" if row["on_frontier"] else "near",
    )


def _name(row: Row) -> str:
    """Name of a configuration."""
    return str(row["trial"] if row["arm"] == SEARCH else row["arm"])


def infeasible(points: pd.DataFrame) -> list[str]:
    """Configurations that break a constraint of the search, in a sentence; empty if there are none."""
    rows = records(points[points["infeasible"] != ""])
    named = [
        f"{quoted(_name(row))} {BUDGETS[row['budget']].words} ({row['infeasible']})" for row in rows[:MOST_INFEASIBLE]
    ]
    more = len(rows) - MOST_INFEASIBLE
    named += [f"{more} more, in `frontier_probability.csv`"] if more > 0 else []
    return (
        [f"Kept off the frontier, because they break a constraint of the search: {'; '.join(named)}."] if rows else []
    )


def _scatter(evidence: Evidence, budget: str, settings: _Settings) -> Markup:
    """Configurations as points with their settings. The runs behind a mean over seeds are small points."""
    points, kept = evidence.frontier.at(budget), evidence.own_comparable
    several = set(configurations(points[points["runs"] > 1]))
    singles = kept[at_budget(kept["budget"], budget) & np.isin(configurations(kept), list(several))]
    volume = number(evidence.frontier.hypervolume.get(budget, math.nan))
    covers = f" Its hypervolume is {volume} (speed-up × {evidence.quality.title})." if volume and float(volume) else ""
    return Markup(
        '<h3>{}</h3><p class="note">Filled points are on the frontier.{} The smallest points are single'
        ' seeds.</p><div class="plot"><div>{}</div>'
        '<p class="readout" aria-live="polite">Point at a configuration to see its settings. Tab and the arrow keys'
        " move between points.</p></div>"
    ).format(
        BUDGETS[budget].title,
        covers,
        scatter(points, singles, settings.hover(points)),
    )


class _Settings:
    """The settings in which runs differ, as text, for the few runs whose text is needed."""

    def __init__(self, runs: pd.DataFrame) -> None:
        self._row = {trial: row for row, trial in enumerate(runs["trial"])}
        self._configurations = configurations(runs)
        keys = [
            key for key in dict.fromkeys([*SETTINGS, *differing(runs)]) if key in runs and key != REDUCTION
        ]  # shown with λ
        self._columns = {key: runs[key].to_numpy() for key in keys}
        self._reductions = runs[REDUCTION].to_numpy() if REDUCTION in runs else None

    def hover(self, points: pd.DataFrame) -> Callable[[str], str]:
        """Text for each trial: its settings, and the probability that its configuration is on this frontier."""
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
        """λ with its reduction. Without the reduction, λ has no meaning."""
        row = self._row[trial]
        if self._reductions is None or pd.isna(weight := self._columns[WEIGHT][row]):
            return None
        return f"{setting(weight)} ({self._reductions[row] or 'reduction unknown'})"
