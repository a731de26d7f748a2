"""Windowed runs as rows of a table about some of their settings. Says what else the runs differ in, and whether a best
row may be marked.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from reco_tune.reporting.aggregate import Estimate, mean_interval
from reco_tune.reporting.budgets import BUDGETS
from reco_tune.reporting.comparisons import best_row
from reco_tune.reporting.quality import quality_of
from reco_tune.reporting.runs import differing, measured_with
from reco_tune.reporting.section import RowGroup, records

WEIGHT, REDUCTION, NORM_WEIGHT = (
    "objective.continuity_weight",
    "objective.continuity_reduction",
    "objective.norm_weight",
)
PLACE = ("window.length_tokens", "window.stride_tokens")
MOST_ROWS = 200
"""Longest group of rows in a table for people. The CSV holds every row."""
NOTE = (
    "Means over the runs of a row: training seeds of an arm, or sampled runs (`search`), which may differ in other"
    " settings. With one run, the 95% interval includes sampling noise only. With more, it is a t interval over the"
    " runs."
)


def windowed(kept: pd.DataFrame) -> pd.DataFrame:
    """Comparable runs of the windowed scheme. Adds empty columns if a study has no planned run and therefore no
    settings.
    """
    settings = ["window.scheme", *PLACE, WEIGHT, REDUCTION, NORM_WEIGHT]
    return (
        kept[kept["window.scheme"] == "window"]
        if "window.scheme" in kept
        else kept.iloc[:0].assign(**dict.fromkeys(settings, ""))
    )


def beside(rows: pd.DataFrame, asked: Sequence[str]) -> list[str]:
    """Settings that differ between runs of one budget, other than the seed and the settings that the table is about. At
    a compute budget, the steps follow from the speed and do not count.
    """
    given = ["training.steps"] if set(rows["budget"]) - {"equal_steps"} else []
    return [key for key in differing(rows) if key not in (*asked, "training.seed", *given)]


def caption(rows: pd.DataFrame, asked: Sequence[str]) -> str:
    """Note: what the rows of a table are, why no best row may be marked, and where they come from."""
    also = {key for budget in dict.fromkeys(rows["budget"]) for key in beside(rows[rows["budget"] == budget], asked)}
    names = ", ".join(f"`{key}`" for key in rows.columns if key in also)
    mixed = (
        f" No row is marked as best, because rows of a budget also differ in other settings: {names}." if also else ""
    )
    return f"{NOTE}{mixed} {measured_with(rows)}".rstrip()


def mean_quality(rows: pd.DataFrame) -> Estimate:
    columns = (rows[name] for name in quality_of(rows).ends)
    return mean_interval([Estimate(*map(float, one)) for one in zip(*columns, strict=True)])


def row_groups(table: pd.DataFrame) -> list[RowGroup]:
    """Rows under the title of their budget. The best quality stands out if the rows are comparable."""
    groups = []
    for budget, rows in table.groupby("budget", sort=False):
        best = best_row(rows) if rows["comparable"].all() else None
        shown = records(rows.head(MOST_ROWS))
        groups.append(RowGroup(BUDGETS[str(budget)].title, shown, best=best if best in range(len(shown)) else None))
    return groups
