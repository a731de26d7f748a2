"""Runs from elsewhere as rows of a report: a published table, or the runs.csv of another study. A number without a protocol is refused.

Their arms are marked, so that nobody takes them for runs of the study, and they are paired with nothing: their seeds are numbered below 0,
through all files. What two files call by one name may be two things, so each stands in a row of its own that names its file.
"""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import math
from collections import Counter
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
        ComparisonError: where a file cannot be read, lacks a column, holds a value that is none, or is given twice; it names the file and
            the line.
    """
    if not paths:
        return runs
    parts = {name: _read(Path(path), name, runs) for name, path in zip(file_names(paths), paths, strict=True)}
    files = Counter(arm for part in parts.values() for arm in set(part["arm"]))
    for name, part in parts.items():
        part["arm"] = [f"{arm.removesuffix(IMPORTED)} from {name}{IMPORTED}" if files[arm] > 1 else arm for arm in part["arm"]]
    together = pd.concat([part for part in (runs, *parts.values()) if len(part)] or [runs], ignore_index=True)
    together.loc[len(runs) :, "seed"] = -1 - np.arange(len(together) - len(runs))
    together.attrs = runs.attrs
    return together


def file_names(paths: Sequence[Path]) -> list[str]:
    """What files are called where all of them meet: by name, and by as many of their folders as it takes to tell them apart.

    Raises:
        ComparisonError: where one is given twice.
    """
    places = [Path(path).absolute().parts for path in paths]
    for place, times in Counter(places).items():
        if times > 1:
            raise ComparisonError(f"{Path(*place)} is given {times} times; import each file once")
    longer = (["/".join(place[-depth:]) for place in places] for depth in itertools.count(1))
    return next(names for names in longer if len(set(names)) == len(names))


def _read(path: Path, name: str, runs: pd.DataFrame) -> pd.DataFrame:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ComparisonError(f"{path} cannot be read as CSV ({error}); give a file with the columns {', '.join(NEEDED)}") from error
    columns = list(lines[0]) if lines else []
    _check_columns(path, columns, runs)
    finished = [(number, line) for number, line in enumerate(lines, 2) if (line.get("state") or "evaluated") == "evaluated"]
    rows = [_row(path, name, number, line, runs) for number, line in finished if line["arm"] != SEARCH]
    table = pd.DataFrame(rows, columns=list(runs.columns))
    for column in runs.columns:  # settings stay objects, numbers numbers, so that joining changes no column's bytes
        table[column] = pd.Series([row.get(column) for row in rows], dtype=object if runs[column].dtype == object else None)
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


def _row(path: Path, source: str, number: int, line: dict[str, Any], runs: pd.DataFrame) -> dict[str, Any]:
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
        "trial": f"{source.removesuffix(path.suffix)}:{number}" + (f" {row['trial']}" if row["trial"] else ""),
        "study": row["study"] or path.stem,
        "budget": row["budget"] or "equal_steps",
        "seed": 0,  # numbered when all files are read
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
