"""Runs from elsewhere as rows of a report: a published table, or the runs.csv of another study. A number without a protocol is refused.

Their arms are marked, so that nobody takes them for runs of the study, and they are paired with nothing: their seeds are numbered below 0.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reco_tune import quantities
from reco_tune.errors import ComparisonError
from reco_tune.reporting.runs import BUDGETS, IMPORTED, SEARCH

NEEDED = ("arm", "fvd", "protocol")
"""Columns that a file must have; any other column of runs.csv may be there: budget (else equal_steps), speedup, fvd_low, fvd_high, ..."""


def with_imports(runs: pd.DataFrame, paths: Sequence[Path]) -> pd.DataFrame:
    """The runs of a study, then those of each file in its order; of another study's runs.csv the evaluated runs of its arms.

    Raises:
        ComparisonError: where a file cannot be read, lacks a column, or holds a value that is none; it names the file and the line.
    """
    parts = [runs, *(_read(Path(path), runs) for path in paths)]
    together = pd.concat([part for part in parts if len(part)] or [runs], ignore_index=True) if len(parts) > 1 else runs
    together.attrs = runs.attrs
    return together


def _read(path: Path, runs: pd.DataFrame) -> pd.DataFrame:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ComparisonError(f"{path} cannot be read as CSV ({error}); give a file with the columns {', '.join(NEEDED)}") from error
    columns = list(lines[0]) if lines else []
    _check_columns(path, columns, runs)
    finished = [(number, line) for number, line in enumerate(lines, 2) if (line.get("state") or "evaluated") == "evaluated"]
    rows = [_row(path, number, line, runs) for number, line in finished if line["arm"] != SEARCH]
    table = pd.DataFrame(rows, columns=list(runs.columns))
    for name in runs.columns:  # settings stay objects, numbers numbers, so that joining changes no column's bytes
        table[name] = pd.Series([row.get(name) for row in rows], dtype=object if runs[name].dtype == object else None)
    return table


def _check_columns(path: Path, columns: list[str], runs: pd.DataFrame) -> None:
    for name in NEEDED:
        if name not in columns:
            raise ComparisonError(f"{path} has no column `{name}`; it needs {', '.join(NEEDED)}, one row a run")
    for name in columns:
        if name not in runs.columns and "." not in (name or ""):
            near = difflib.get_close_matches(str(name), list(runs.columns), 1)
            hint = f", do you mean `{near[0]}`?" if near else ""
            raise ComparisonError(f"{path} has the column `{name}`, which runs.csv does not have{hint}; rename it or take it out")


def _row(path: Path, number: int, line: dict[str, Any], runs: pd.DataFrame) -> dict[str, Any]:
    where = f"{path}, line {number}"
    row: dict[str, Any] = {name: math.nan if name in quantities.ALL else None if "." in name else "" for name in runs.columns}
    for name, text in line.items():
        if name in runs.columns and text not in (None, ""):
            row[name] = _number(where, name, text) if name in quantities.ALL else _value(text) if "." in name else text.strip()
    if not row["protocol"]:
        raise ComparisonError(f"{where} has no protocol; an FVD without its protocol compares with nothing, write it as runs.csv does")
    if row["budget"] not in ("", "both", *BUDGETS):
        raise ComparisonError(f"{where}: budget is `{row['budget']}`; take one of {', '.join(BUDGETS)}")
    low, value, high = row["fvd_low"], row["fvd"], row["fvd_high"]
    if low > value or high < value:
        raise ComparisonError(f"{where}: fvd {value:g} lies outside its interval [{low:g}, {high:g}]; correct the row")
    arm = row["arm"].removesuffix(IMPORTED)
    row |= {
        "arm": arm + IMPORTED,
        "trial": f"{path.stem}:{number}" + (f" {row['trial']}" if row["trial"] else ""),
        "study": row["study"] or path.stem,
        "budget": row["budget"] or "equal_steps",
        "seed": -number,
        "attempt": 0,
        "state": "evaluated",
        "rank_deficient": row["rank_deficient"] == "true",
    }
    return row


def _number(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not np.isfinite(value):
        raise ComparisonError(f"{where}: {name} is `{text}`, which is no number; correct it or leave it empty")
    return value


def _value(text: str) -> Any:
    """A setting as `runs_table` holds it: lists and mappings stay JSON text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, (dict, list)) else value
