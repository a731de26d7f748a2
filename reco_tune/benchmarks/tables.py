"""Results of a benchmark as rows of named values, written as JSON for programs and as Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reco_tune.cost.timing import bootstrap_interval, speedup_of

Row = dict[str, str | float | int | None]


class Column(NamedTuple):
    """One value in every row."""

    key: str
    heading: str
    form: str = ""
    """Format of a number; empty for text. None is shown as an empty cell."""


class Table(NamedTuple):
    """One comparison."""

    name: str
    """Key of the table in the JSON."""
    title: str
    columns: Sequence[Column]
    """Columns that are shown, text columns first."""
    rows: list[Row]

    @property
    def headings(self) -> list[str]:
        return [column.heading for column in self.columns]

    @property
    def text_columns(self) -> int:
        return sum(not column.form for column in self.columns)

    def cells(self) -> list[list[str]]:
        """The rows as formatted text."""
        return [[_cell(row.get(column.key), column.form) for column in self.columns] for row in self.rows]


def ratio_to_ours(times_R: np.ndarray, ours_R: np.ndarray) -> Row:
    """The other side's time divided by ours: the median over rounds, with its 95% interval. Above 1, ours is
    faster.
    """
    pair = times_R[:, None], ours_R[:, None], np.ones(1)
    low, high = bootstrap_interval(*pair, seed=0)
    return {"seconds": float(np.median(times_R)), "ratio": speedup_of(*pair), "ratio_low": low, "ratio_high": high}


def as_json(tables: Sequence[Table], provenance: Mapping[str, Any]) -> str:
    """Every value of every row at full precision, with the provenance."""
    return (
        json.dumps({"provenance": dict(provenance), "tables": {table.name: table.rows for table in tables}}, indent=1)
        + "\n"
    )


def as_markdown(tables: Sequence[Table], provenance: Mapping[str, Any]) -> str:
    """The tables under their titles, with the command, commit, hardware and date."""
    told = ("command", "commit", "hardware", "gpu", "date", "threads", "torch", "transformers")
    lines = [f"{key}: `{provenance[key]}`  " for key in told if provenance.get(key)]
    for table in tables:
        rules = ["---" if not column.form else "---:" for column in table.columns]
        rows = [table.headings, rules, *table.cells()]
        lines += ["", f"**{table.title}**", "", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _cell(value: str | float | None, form: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return format(value, form)
