"""Imported runs as rows of a report: a published table, or the runs.csv of another study. A number without a protocol
is refused.

Imported arms are marked, so that nobody takes them for runs of the study. They are paired with no other run: their
seeds are numbered from -1 down, over all files. In the figure of the frontier they are reference points and never
displace a run of the study. If two files use one name for an arm, each gets its own row with the file's name, because
the name may mean different things.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from reco_tune import quantities
from reco_tune.errors import ComparisonError
from reco_tune.reporting.budgets import BUDGETS
from reco_tune.reporting.numbers import FORMULA, quoted
from reco_tune.reporting.runs import IMPORTED, told_apart
from reco_tune.settings import SEARCH, TUNE
from reco_tune.study_log import State

NEEDED = ("arm", "fvd", "protocol")
"""Columns that a file must have; any other column of runs.csv may be there: budget (else equal_steps), speedup,
fvd_low, fvd_high, ...
"""


def with_imports(runs: pd.DataFrame, paths: Sequence[Path]) -> pd.DataFrame:
    """The runs of a study, then those of each file in the given order. From the runs.csv of another study, only the
    evaluated runs of its arms are taken.

    Raises:
        ComparisonError: if a file cannot be read, lacks a column, holds an invalid value, has no row to import, or is
            given twice. It names the file and the line.
    """
    if not paths:
        return runs
    parts = {name: _read(Path(path), name, runs) for name, path in zip(file_names(paths), paths, strict=True)}
    files = Counter(arm for part in parts.values() for arm in set(part["arm"]))
    for name, part in parts.items():
        part["arm"] = [
            f"{arm.removesuffix(IMPORTED)} from {name}{IMPORTED}" if files[arm] > 1 else arm for arm in part["arm"]
        ]
    together = pd.concat([part for part in (runs, *parts.values()) if len(part)] or [runs], ignore_index=True).copy()
    together.loc[len(runs) :, "seed"] = -1 - np.arange(len(together) - len(runs))
    together.attrs = runs.attrs
    return together


def file_names(paths: Sequence[Path]) -> list[str]:
    """Short names for files, each with as many of its folders as it takes to tell them apart.

    Raises:
        ComparisonError: if a file is given twice.
    """
    places = [Path(path).resolve().as_posix() for path in paths]
    for place in places:
        if places.count(place) > 1:
            raise ComparisonError(f"{place} is given {places.count(place)} times; import each file once")
    return told_apart(places)


def origin_note(names: Sequence[str]) -> str:
    """Note of a table about its imported rows, if it has any. Begins with a space."""
    files = ", ".join(map(quoted, names))
    told = (
        "this study did not run them, pairs them with no other row and keeps them off the frontier (hollow in its"
        " figure)"
    )
    return f" Rows marked (imported) come from {files}: {told}." if names else ""


def _read(path: Path, name: str, runs: pd.DataFrame) -> pd.DataFrame:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [_unescaped(cell.strip()) for cell in cells]) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ComparisonError(
            f"{path} cannot be read as CSV ({error}); give a file with the columns {', '.join(NEEDED)}"
        ) from error
    columns = lines.pop(0)[1] if lines else []
    _check_columns(path, columns, runs)
    named = {number: _line(f"{path}, line {number}", columns, cells) for number, cells in lines}
    finished = {number: line for number, line in named.items() if (line.get("state") or "evaluated") == "evaluated"}
    rows = [
        _row(path, name, number, line, runs)
        for number, line in finished.items()
        if line["arm"] != SEARCH and line.get("budget") != TUNE
    ]
    if not rows:
        raise ComparisonError(
            f"{path}: none of its {len(lines)} rows can be imported; a row needs `evaluated` or nothing as its state,"
            f" and an arm other than `{SEARCH}`"
        )
    table = pd.DataFrame(rows, columns=list(runs.columns))
    # Keep each column's type, so that joining does not change how the CSV writes the study's own rows.
    for column in runs.columns:
        table[column] = pd.Series(
            [row.get(column) for row in rows], dtype=object if runs[column].dtype == object else None
        )
    return table


def _unescaped(cell: str) -> str:
    """Without the apostrophe that `csv_text` puts before what looks like a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in FORMULA else cell


def _check_columns(path: Path, columns: list[str], runs: pd.DataFrame) -> None:
    for name in NEEDED:
        if name not in columns:
            raise ComparisonError(f"{path} has no column `{name}`; it needs {', '.join(NEEDED)}, one row a run")
    for name, times in Counter(columns).items():
        if times > 1:
            raise ComparisonError(f"{path}, line 1 has the column `{name}` {times} times; keep one")
        if name not in runs.columns and "." not in name:
            near = difflib.get_close_matches(name, list(runs.columns), 1)
            hint = f", do you mean `{near[0]}`?" if near else ""
            raise ComparisonError(
                f"{path} has the column `{name}`, which runs.csv does not have{hint}; rename or remove it"
            )


def _line(where: str, columns: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(columns):
        raise ComparisonError(
            f"{where} has {len(cells)} cells under {len(columns)} columns; give it one each, in quotes where a cell"
            " holds a comma"
        )
    line = dict(zip(columns, cells, strict=True))
    if line.get("state", "") not in ("", *get_args(State)):
        raise ComparisonError(
            f"{where}: state is `{line['state']}`; take one of {', '.join(get_args(State))}, or leave it empty"
        )
    return line


def _row(path: Path, source: str, number: int, line: Mapping[str, str], runs: pd.DataFrame) -> dict[str, Any]:
    where = f"{path}, line {number}"
    row: dict[str, Any] = {
        name: math.nan if name in quantities.ALL else None if "." in name else "" for name in runs.columns
    }
    for name, text in line.items():
        if name in runs.columns and text:
            row[name] = _number(where, name, text) if name in quantities.ALL else _value(text) if "." in name else text
    arm = row["arm"].removesuffix(IMPORTED)
    if not arm:
        raise ComparisonError(f"{where} has no arm; give it one, or remove the row")
    if not row["protocol"]:
        raise ComparisonError(f"{where} has no protocol, so its FVD cannot be compared; give it as runs.csv does")
    if row["budget"] not in ("", "both", *BUDGETS):
        raise ComparisonError(f"{where}: budget is `{row['budget']}`; take one of {', '.join(BUDGETS)}")
    for name in (low.removesuffix("_low") for low in quantities.ALL if low.endswith("_low")):
        _check_interval(where, name, row[name], row[f"{name}_low"], row[f"{name}_high"])
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


def _check_interval(where: str, name: str, value: float, low: float, high: float) -> None:
    if math.isnan(low) and math.isnan(high):
        return
    if math.isnan(value + low + high):
        raise ComparisonError(
            f"{where}: an interval is `{name}`, `{name}_low` and `{name}_high` together; give all three, or empty its"
            " ends"
        )
    if not low <= value <= high:
        raise ComparisonError(
            f"{where}: {name} {value:g} lies outside its interval [{low:g}, {high:g}]; correct the row"
        )


def _number(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not np.isfinite(value):
        raise ComparisonError(f"{where}: {name} is `{text}`, which is not a number; correct it or leave it empty")
    positive, quantity = (
        name == quantities.SPEEDUP.name,
        quantities.ALL[name.removesuffix("_low").removesuffix("_high")],
    )
    if (value < 0 and quantity not in quantities.SIGNED) or (value == 0 and positive):
        raise ComparisonError(
            f"{where}: {name} is `{text}`, but must be {'above' if positive else 'at least'} 0; correct it or leave it"
            " empty"
        )
    return value


def _value(text: str) -> Any:
    """A setting as `runs_table` holds it: lists and mappings stay JSON text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, (dict, list)) else value
