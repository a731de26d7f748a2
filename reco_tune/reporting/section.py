"""What a report is made of: a section is one result with its tables, its figures and its words.

A table carries its columns and rows; how it looks in a file, on the terminal or on the page is known to `render` alone.
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
"""Of the PNG files."""
STUDY_DIR = "STUDY_DIR"
"""Stands in commands for the study's folder, which whoever shows them may know."""


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
    """The heading as LaTeX, where it is more than the heading with a capital."""
    markup: Callable[[Row], Markup] | None = None
    """A cell of the page, where that shows more than the text."""
    value: Callable[[Row], float] | None = None
    """What the page sorts by, where the text has a unit."""
    optional: bool = False
    """Whether a group of rows that leaves it empty goes without it."""
    best: bool = False
    """Whether the cell of the best row of a group stands out (`RowGroup.best`)."""


class RowGroup(NamedTuple):
    """Rows under one title, that of a budget."""

    title: str
    rows: list[dict[str, Any]]
    about: str = ""
    best: int | None = None
    """The row whose quality stands out: lowest, its interval clear of every other's."""


@dataclass(frozen=True)
class Table:
    """Rows for files, the terminal and the page."""

    name: str
    """Of its files; tables of one name stand below each other in its .md."""
    title: str = ""
    columns: Sequence[Column] = ()
    """For people; a table without any is a file for machines."""
    groups: Sequence[RowGroup] = ()
    caption: str = ""
    """What a reader must know of the rows; `names` in backquotes."""
    remarks: Sequence[str] = ()
    """Paragraphs after the caption."""
    left_out: Sequence[tuple[str, str]] = ()
    """(run, why) of what could have been a row."""
    data: pd.DataFrame | None = None
    """What the CSV holds."""
    files: Sequence[str] = ("csv",)
    """Of csv, md and tex, those that the report folder holds."""
    latex: Sequence[str] = ()
    """Keys of the columns that a paper has room for; all where none is named."""
    terminal: Sequence[str] = ()
    """Keys of the columns that the terminal shows; where none is named it does not show the table."""
    shown: bool = True
    """Whether the page has it."""
    folded: bool = False
    """Whether the page shows it when asked."""
    mark: Callable[[Row], str] | None = None
    """Class of a row on the page: `baseline`, `total` or `near`."""

    def picked(self, keys: Sequence[str]) -> list[Column]:
        """Columns by key, in the order of the keys; all where there is none."""
        by_key = {column.key: column for column in self.columns}
        return [by_key[key] for key in keys if key in by_key] if keys else list(self.columns)

    def columns_of(self, group: RowGroup) -> list[Column]:
        """Those that a group of rows is shown with."""
        return [column for column in self.columns if not column.optional or any(map(column.text, group.rows))]


@dataclass(frozen=True)
class Figure:
    """A figure that a process of its own draws (`drawing`)."""

    name: str
    """Of its files."""
    title: str
    about: str
    draw: Callable[..., Any]
    """A function of a module, which imports matplotlib when it is called; returns a matplotlib figure, or None where
    there is nothing to draw.
    """
    given: tuple[Any, ...]
    """Its arguments."""
    words: str = "The numbers are in runs.csv and in the tables of this page."
    """The main numbers for those who cannot see it."""


@dataclass(frozen=True)
class Section:
    """One result."""

    key: str
    """Of the page's link to it."""
    title: str
    about: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    words: Sequence[str] = ()
    """What it says in sentences, for the terminal and, where it has no markup of its own, for the page."""
    commands: Sequence[str] = ()
    """Commands that follow from the words; `STUDY_DIR` is the study's folder."""
    markup: Markup | None = None
    """What the page alone can show."""
    write: Callable[[Path], None] | None = None
    """Writes files that are neither table nor figure into the report's folder."""


def number_column(key: str, heading: str, digits: int = 2, latex: str = "") -> Column:
    return Column(key, heading, lambda row: number(row[key], digits), latex=latex)


def interval_column(key: str, heading: str = "95% interval", digits: int = 2) -> Column:
    """Of a value with `_low` and `_high`."""

    def text(row: Row) -> str:
        return interval(row[f"{key}_low"], row[f"{key}_high"], digits)

    return Column(f"{key}_interval", heading, text, "interval")


def quality_column(quality: Quality) -> Column:
    """What a row is compared by: its best stands out."""
    unit = f" ({quantities.ALL[quality.key].unit})" if quantities.ALL[quality.key].unit else ""
    heading = f"{quality.title}{unit} ↓"
    return Column(quality.key, heading, lambda row: number(row[quality.key], quality.digits), best=True)


def text_column(key: str, heading: str, kind: Literal["text", "count"] = "text", latex: str = "") -> Column:
    return Column(key, heading, lambda row: "" if row[key] is None else str(row[key]), kind, latex)


def setting_column(key: str) -> Column:
    """Of a setting that arms have values of their own for."""

    def text(row: Row) -> str:
        value = row.get(key)
        return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    return Column(key, key.split(".")[-1].replace("_", " "), text, "count", optional=True)


def budget_groups(table: pd.DataFrame) -> list[RowGroup]:
    """The rows of each budget under its title."""
    return [RowGroup(BUDGETS[str(budget)].title, records(rows)) for budget, rows in table.groupby("budget", sort=False)]


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a frame as rows of a table."""
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def file_stem(arm: str) -> str:
    """Of a file that belongs to an arm: what no file may be called by is an underscore."""
    return re.sub(r"[^\w.() -]", "_", arm)
