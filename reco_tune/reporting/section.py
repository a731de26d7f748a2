"""The parts of a report. A section is one result with its tables, figures and text. A table has columns and rows; only
`render` decides how it looks in a file, on the terminal or on the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from markupsafe import Markup

from reco_tune import quantities
from reco_tune.reporting.budgets import BUDGETS
from reco_tune.reporting.numbers import interval, number
from reco_tune.reporting.quality import Quality

Row = Mapping[str, Any]
DPI = 160
"""Resolution of the PNG files."""
STUDY_DIR = "STUDY_DIR"
"""Placeholder in commands for the study's folder. Whoever shows the commands may know it."""


@dataclass(frozen=True)
class Column:
    """One column of a table for people."""

    key: str
    heading: str
    text: Callable[[Row], str]
    """A row's cell."""
    kind: Literal["text", "count", "number", "interval"] = "number"
    """How cells are aligned: `number` at its point, where a format can."""
    latex: str = ""
    """The heading in LaTeX, if it is not just the capitalised heading."""
    markup: Callable[[Row], Markup] | None = None
    """The cell on the page, if the page shows more than the text."""
    value: Callable[[Row], float] | None = None
    """Value by which the page sorts, if the text has a unit."""
    optional: bool = False
    """Whether the column is dropped if a group of rows leaves it empty."""
    best: bool = False
    """Whether the cell of the best row of a group stands out (`RowGroup.best`)."""


class RowGroup(NamedTuple):
    """Rows under one title, that of a budget."""

    title: str
    rows: list[dict[str, Any]]
    about: str = ""
    best: int | None = None
    """Position of the best (lowest) row; None if its interval overlaps another row's."""


@dataclass(frozen=True)
class Table:
    """Rows for files, the terminal and the page."""

    name: str
    """Name of its files. Tables of one name are joined in one .md file."""
    title: str = ""
    columns: Sequence[Column] = ()
    """Columns for people. A table without any is only a file for machines."""
    groups: Sequence[RowGroup] = ()
    caption: str = ""
    """Note about the rows; `names` in backquotes."""
    remarks: Sequence[str] = ()
    """Paragraphs after the caption."""
    left_out: Sequence[tuple[str, str]] = ()
    """(run, reason) of runs that were left out."""
    data: pd.DataFrame | None = None
    """What the CSV holds."""
    files: Sequence[str] = ("csv",)
    """Formats in the report folder: csv, md, tex."""
    latex: Sequence[str] = ()
    """Keys of the columns that fit on paper; empty for all."""
    terminal: Sequence[str] = ()
    """Keys of the columns on the terminal. If empty, the terminal does not show the table."""
    shown: bool = True
    """Whether the page has it."""
    folded: bool = False
    """Whether the page shows it only on request."""
    mark: Callable[[Row], str] | None = None
    """Class of a row on the page: `baseline`, `total` or `near`."""

    def picked(self, keys: Sequence[str]) -> list[Column]:
        """Columns by key, in the order of the keys; all where there is none."""
        by_key = {column.key: column for column in self.columns}
        return [by_key[key] for key in keys if key in by_key] if keys else list(self.columns)

    def columns_of(self, group: RowGroup) -> list[Column]:
        """Columns to show for a group of rows."""
        return [column for column in self.columns if not column.optional or any(map(column.text, group.rows))]


@dataclass(frozen=True)
class Figure:
    """A figure that a process of its own draws (`drawing`)."""

    name: str
    """Of its files."""
    title: str
    about: str
    draw: Callable[..., Any]
    """Function that draws. It must be at module level, and imports matplotlib when it is called. Returns a matplotlib
    figure, or None if there is nothing to draw.
    """
    given: tuple[Any, ...]
    """Its arguments."""
    words: str = "The numbers are in runs.csv and in the tables of this page."
    """The main numbers for those who cannot see it."""


@dataclass(frozen=True)
class Section:
    """One result."""

    key: str
    """Anchor of the section on the page."""
    title: str
    about: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    words: Sequence[str] = ()
    """Text in sentences, for the terminal, and for the page if it has no markup of its own."""
    commands: Sequence[str] = ()
    """Commands that the text suggests; `STUDY_DIR` is the study's folder."""
    markup: Markup | None = None
    """Content that only the page can show."""
    write: Callable[[Path], None] | None = None
    """Writes files that are neither table nor figure into the report's folder."""


def number_column(key: str, heading: str, digits: int = 2, latex: str = "") -> Column:
    return Column(key, heading, lambda row: number(row[key], digits), latex=latex)


def interval_column(key: str, heading: str = "95% interval", digits: int = 2) -> Column:
    """Column for the interval of a value with `_low` and `_high`."""

    def text(row: Row) -> str:
        return interval(row[f"{key}_low"], row[f"{key}_high"], digits)

    return Column(f"{key}_interval", heading, text, "interval")


def quality_column(quality: Quality) -> Column:
    """Column of the metric that ranks rows. The best value stands out."""
    unit = f" ({quantities.ALL[quality.key].unit})" if quantities.ALL[quality.key].unit else ""
    heading = f"{quality.title}{unit} ↓"
    return Column(quality.key, heading, lambda row: number(row[quality.key], quality.digits), best=True)


def text_column(key: str, heading: str, kind: Literal["text", "count"] = "text", latex: str = "") -> Column:
    return Column(key, heading, lambda row: "" if row[key] is None else str(row[key]), kind, latex)


def setting_column(key: str) -> Column:
    """Column of a setting in which arms differ."""

    def text(row: Row) -> str:
        value = row.get(key)
        return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    return Column(key, key.split(".")[-1].replace("_", " "), text, "count", optional=True)


def budget_groups(table: pd.DataFrame) -> list[RowGroup]:
    """The rows of each budget under its title."""
    return [RowGroup(BUDGETS[str(budget)].title, records(rows)) for budget, rows in table.groupby("budget", sort=False)]


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a frame as a list of dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def file_stem(arm: str) -> str:
    """File name for an arm. Characters that are not allowed in file names become underscores."""
    return re.sub(r"[^\w.() -]", "_", arm)
