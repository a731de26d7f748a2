"""Tables as bytes: CSV, Markdown and LaTeX by fixed rules, so that equal numbers give equal files on any machine."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from reco_tune.reporting import measures
from reco_tune.reporting.latex import BOLD, Column, latex_table
from reco_tune.reporting.paper import SOURCE, Reference
from reco_tune.reporting.runs import TITLES

BUDGET_NOTES = {
    "equal_steps": "every arm takes the baseline's optimiser steps",
    "equal_compute": "every arm takes the steps that the baseline's cost buys at its measured speed",
    "half_compute": "every arm takes the steps that half of the baseline's cost buys at its measured speed",
}
"""What the budgets give an arm."""
HEADINGS = [
    "arm",
    "seeds",
    "FVD",
    "95% interval",
    "Δ to baseline",
    "p",
    "verdict",
    "speed-up",
    "95% interval",
    "limit",
    "of limit",
]
HEADINGS += ["memory", "device h", "val CE"]
LAMBDA_HEADINGS = ["arm", "λ", "reduction", "runs", "FVD", "95% interval", "val CE", "continuity term", "mean h²"]
WINDOW_HEADINGS = ["arm", "window (tokens)", "stride (tokens)", "runs", "FVD", "95% interval", "speed-up"]
MOST_ROWS = 200
"""Longest block of a table for people; the CSV holds every row."""
GROUP_NOTE = (
    "Means over the runs of a row: training seeds of an arm, or sampled runs (`search`), which may differ in other"
    " settings; 95% intervals hold sampling noise at one run and are t intervals over the runs from two on."
)
"""Begins the captions of the λ and the window x stride table (`analyses`)."""


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV: UTF-8, LF; missing values are empty, whole numbers have no point, others their shortest exact
    digits.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(zip(*(_cells(table[name]) for name in table.columns), strict=True))
    return buffer.getvalue()


def ablation_markdown(
    table: pd.DataFrame,
    caption: str,
    left_out: Sequence[tuple[str, str]] = (),
    paper: Mapping[str, Reference] | None = None,
) -> str:
    """The ablation table for people: one block a budget, the best FVD bold where its interval is clear of the next.

    Args:
        table: of `ablation.ablation_rows`.
        paper: the paper's own values by arm (`paper.paper_reference`); two columns more where there are any.
    """
    lines, paper = [], paper or {}
    headings = [*HEADINGS, "FVD, paper", "speed-up, paper"] if paper else HEADINGS
    for budget, rows in table.groupby("budget", sort=False):
        lines += [f"### {TITLES[str(budget)]}: {BUDGET_NOTES[str(budget)]}", ""]
        lines += ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
        best = best_row(rows)
        for position, row in enumerate(rows.to_dict("records")):
            fvd = f"**{number(row['fvd'])}**" if position == best else number(row["fvd"])
            lines.append(
                f"| {row['arm']} | {row['seeds']} | {fvd} | {interval(row['fvd_low'], row['fvd_high'])} |"
                f" {signed(row['fvd_delta'])} | {p_value(row['fvd_p_value'])} | {row['verdict']} |"
                f" {number(row['speedup'])} | {interval(row['speedup_low'], row['speedup_high'])} |"
                f" {number(row['speedup_limit'])} | {number(row['limit_fraction'])} |"
                f" {number(row['peak_memory_ratio'])} | {hours(row['gpu_hours'])} |"
                f" {number(row['val_cross_entropy'], 3)} |"
                + "".join(f" {cell} |" for cell in _paper_cells(paper, str(budget), row["arm"]))
            )
        lines.append("")
    lines.append(caption)
    if paper:
        lines += ["", f"Columns of the paper: {SOURCE}, same data set and protocol."]
    if left_out:
        lines += ["", "Left out of the table:", "", *(f"- `{trial}`: {why}" for trial, why in left_out)]
    return "\n".join(lines).rstrip() + "\n"


def ablation_latex(
    table: pd.DataFrame,
    caption: str,
    left_out: Sequence[tuple[str, str]] = (),
    paper: Mapping[str, Reference] | None = None,
) -> str:
    """The ablation table for a paper: booktabs, numbers aligned by siunitx. Arguments as `ablation_markdown`'s."""
    paper = paper or {}
    columns = [Column("Arm", "l"), Column("Seeds", "r"), Column("FVD", "number"), Column("95\\,\\% interval", "c")]
    columns += [Column(heading, "number") for heading in ("$\\Delta$", "Speed-up", "Limit", "Val.\\ CE")]
    columns += [Column("$p$", "r"), Column("Verdict", "l")]
    columns += [Column(heading, "number") for heading in ("FVD, paper", "Speed-up, paper")] if paper else []
    blocks: dict[str, list[list[str]]] = {}
    for budget, rows in table.groupby("budget", sort=False):
        best = best_row(rows)
        lines = blocks[TITLES[str(budget)]] = []
        for position, row in enumerate(rows.to_dict("records")):
            line = [row["arm"], str(row["seeds"]), (BOLD if position == best else "") + number(row["fvd"])]
            line += [interval(row["fvd_low"], row["fvd_high"]), number(row["fvd_delta"]), number(row["speedup"])]
            line += [
                number(row["speedup_limit"]),
                number(row["val_cross_entropy"], 3),
                p_value(row["fvd_p_value"]),
                row["verdict"],
            ]
            lines.append(line + _paper_cells(paper, str(budget), row["arm"]))
    note = caption
    if paper:
        note += f" Columns of the paper: {SOURCE}, same data set and protocol."
    if left_out:
        note += " Left out: " + "; ".join(f"{trial} ({why})" for trial, why in left_out) + "."
    return latex_table(columns, blocks, note)


def measures_markdown(table: pd.DataFrame, origin: str) -> str:
    """What was measured beside FVD, for people; `measures.measures_table` computes it.

    Args:
        origin: for the end (`runs.measured_with`).
    """
    text = []
    for kind, note in ((measures.BESIDE_FVD, measures.NOTE), (measures.ANALYSES, measures.LAW_NOTE)):
        blocks = measures.blocks(table, kind)
        for block in blocks:
            headings = [
                "arm",
                *(quantity.label for quantity in block.measures),
                *(["law of error growth"] if block.laws else []),
            ]
            rows = [
                [arm, *map(measure_cell, cells), *([block.laws.get(arm, "")] if block.laws else [])]
                for arm, cells in block.rows.items()
            ]
            text.append(_markdown(headings, {TITLES[block.budget]: rows}, ""))
        text += [note + "\n"] if blocks else []
    return "\n".join([*text, origin]).rstrip() + "\n"


def measure_cell(row: Mapping[Any, Any] | None) -> str:
    """A value, its interval and its word in one line."""
    return " ".join(part for part in measure_parts(row) if part) if row else ""


def measure_parts(row: Mapping[Any, Any]) -> tuple[str, str, str]:
    """A value with three digits, its interval, and the word that compares it with the baseline's; empty where there is
    none.
    """
    value, low, high = (f"{row[name]:.3g}" for name in ("value", "low", "high"))
    return (
        value,
        f"[{low}, {high}]" if math.isfinite(row["low"]) else "",
        "" if row["verdict"] == "not resolved" else row["verdict"],
    )


def lambda_markdown(groups: pd.DataFrame, caption: str) -> str:
    """What λ does, for people; `analyses.lambda_groups` computes it."""
    return _markdown(LAMBDA_HEADINGS, _lambda_blocks(groups, bold="**"), caption)


def lambda_latex(groups: pd.DataFrame, caption: str) -> str:
    """What λ does, for a paper."""
    kinds = ["l", "l", "l", "r", "number", "c", "number", "number", "number"]
    headings = [
        "Arm",
        "$\\lambda$",
        "Reduction",
        "Runs",
        "FVD",
        "95\\,\\% interval",
        "Val.\\ CE",
        "Continuity",
        "$h^2$",
    ]
    columns = [Column(heading, kind) for heading, kind in zip(headings, kinds, strict=True)]
    return latex_table(columns, _lambda_blocks(groups, bold=BOLD), caption)


def window_stride_markdown(table: pd.DataFrame, caption: str) -> str:
    """Window x stride, for people; `analyses.window_stride_tables` computes it."""
    return _markdown(WINDOW_HEADINGS, _window_blocks(table, bold="**"), caption)


def window_stride_latex(table: pd.DataFrame, caption: str) -> str:
    """Window x stride, for a paper."""
    kinds = ["l", "r", "r", "r", "number", "c", "number"]
    columns = [
        Column(heading.capitalize().replace("Fvd", "FVD").replace("95%", "95\\,\\%"), kind)
        for heading, kind in zip(WINDOW_HEADINGS, kinds, strict=True)
    ]
    return latex_table(columns, _window_blocks(table, bold=BOLD), caption)


def _lambda_blocks(groups: pd.DataFrame, bold: str) -> dict[str, list[list[str]]]:
    def cells(row: dict[Any, Any]) -> list[str]:
        measured = [number(row["val_cross_entropy"], 3), number(row["continuity"], 3), number(row["hidden_norm"])]
        return [row["arm"], weight_span(row), row["reduction"], str(row["runs"]), *_fvd_cells(row), *measured]

    return _blocks(groups, cells, 4, bold)


def _window_blocks(table: pd.DataFrame, bold: str) -> dict[str, list[list[str]]]:
    def cells(row: dict[Any, Any]) -> list[str]:
        place = [str(row[name]) for name in ("window.length_tokens", "window.stride_tokens", "runs")]
        return [row["arm"], *place, *_fvd_cells(row), number(row["speedup"])]

    return _blocks(table, cells, 4, bold)


def weight_span(row: Mapping[Any, Any]) -> str:
    """λ of a row of `analyses.lambda_groups`, or from its lowest to its highest."""
    low, high = (f"{row[end]:.3g}" for end in ("lowest", "highest"))
    return low if low == high else f"{low}–{high}"


def _fvd_cells(row: Mapping[Any, Any]) -> list[str]:
    return [number(row["fvd"]), interval(row["fvd_low"], row["fvd_high"])]


def _blocks(
    table: pd.DataFrame, cells: Callable[[dict[Any, Any]], list[str]], fvd_at: int, bold: str
) -> dict[str, list[list[str]]]:
    """Rows of cells under the title of their budget; the best FVD is bold as in the ablation table, where rows are
    comparable.
    """
    blocks = {}
    for budget, rows in table.groupby("budget", sort=False):
        lines = [cells(row) for row in rows.head(MOST_ROWS).to_dict("records")]
        best = best_row(rows) if rows["comparable"].all() else None
        if best is not None and best < len(lines):
            lines[best][fvd_at] = bold + lines[best][fvd_at] + ("**" if bold == "**" else "")
        blocks[TITLES[str(budget)]] = lines
    return blocks


def _markdown(headings: Sequence[str], blocks: Mapping[str, Sequence[Sequence[str]]], caption: str) -> str:
    lines = []
    for title, rows in blocks.items():
        told = " | ".join(heading.replace("|", "\\|") for heading in headings)
        lines += [f"### {title}", "", f"| {told} |", "|---|" + "---:|" * (len(headings) - 1)]
        lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join([*lines, caption]).rstrip() + "\n"


def _paper_cells(paper: Mapping[str, Reference], budget: str, arm: str) -> list[str]:
    """The reference columns of a row; none where the study has no counterpart in the paper. The paper has one budget:
    equal steps.
    """
    if not paper:
        return []
    known = paper.get(arm) if budget == "equal_steps" else None
    return [number(known.fvd, 1), number(known.speedup, 1)] if known else ["", ""]


def best_row(rows: pd.DataFrame) -> int | None:
    """Position of the lowest FVD where its interval is clear of every other arm's; None where the best is
    not resolved."""
    if len(rows) < 2:
        return None
    order = rows["fvd"].to_numpy().argsort(kind="stable")
    others = rows["fvd_low"].to_numpy()[order[1:]]
    return int(order[0]) if bool((rows["fvd_high"].to_numpy()[order[0]] < others).all()) else None


def number(value: float, digits: int = 2) -> str:
    """Fixed digits; empty where there is no number; no minus before a zero."""
    if value is None or not math.isfinite(value):
        return ""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def signed(value: float, digits: int = 2) -> str:
    """As `number`, with a plus before what is above zero."""
    text = number(value, digits)
    return f"+{text}" if text and float(text) > 0 else text.replace("-", "−")


def interval(low: float, high: float, digits: int = 2) -> str:
    """[low, high], or nothing."""
    return f"[{number(low, digits)}, {number(high, digits)}]" if number(low) and number(high) else ""


def p_value(value: float) -> str:
    """Three digits, or `<0.001`."""
    return "" if not math.isfinite(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def hours(value: float) -> str:
    """Device hours: more digits where runs are short."""
    if 0 < value < 1e-3:
        return f"{value:.1g}"
    return number(value, 4 if math.isfinite(value) and value < 1 else 1)


def _cells(column: pd.Series) -> list[str]:
    """A column at a time: ten thousand runs are two million cells."""
    if column.dtype == np.float64:
        return [_float_cell(value) for value in column.tolist()]
    return [value if type(value) is str else _cell(value) for value in column.to_numpy(dtype=object)]


@lru_cache(maxsize=4096, typed=True)  # a setting has few values, one a run; typed, because True equals 1
def _cell(value: Any) -> str:
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _float_cell(value) if isinstance(value, float) else str(value)


def _float_cell(value: float) -> str:
    """Whole floats lose their point: MLflow returns every number as a float, the log does not."""
    if value != value:
        return ""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
