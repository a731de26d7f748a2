"""Tables as CSV by fixed rules, so that equal numbers give equal files on any machine."""

from __future__ import annotations

import csv
import io
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from reco_tune.reporting.numbers import FORMULA, formula_safe


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV: UTF-8, LF. Missing values are empty, whole numbers have no decimal point, other numbers have
    their shortest exact digits. An apostrophe comes before text that a spreadsheet would take for a formula; `imported`
    removes it.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(zip(*(_cells(table[name]) for name in table.columns), strict=True))
    return buffer.getvalue()


def _cells(column: pd.Series) -> list[str]:
    """Formats a column at a time: ten thousand runs are two million cells."""
    if column.dtype == np.float64:
        return [_float_cell(value) for value in column.tolist()]
    return [_word(value) if type(value) is str else _cell(value) for value in column.to_numpy(dtype=object)]


@lru_cache(maxsize=4096, typed=True)  # settings have few distinct values; typed, because True == 1
def _cell(value: Any) -> str:
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _float_cell(value) if isinstance(value, float) else str(value)


def _word(text: str) -> str:
    return formula_safe(text.replace("\r\n", "\n").replace("\r", "\n")) if text[:1] in FORMULA or "\r" in text else text


def _float_cell(value: float) -> str:
    """Whole floats lose their point: MLflow returns every number as a float, the log does not."""
    if value != value:
        return ""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
