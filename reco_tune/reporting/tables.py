"""Tables as bytes: CSV, Markdown and LaTeX by fixed rules, so that equal numbers give equal files on any machine."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

BUDGETS = {
    "equal_steps": "Equal steps: every arm takes the baseline's optimiser steps",
    "equal_compute": "Equal compute: every arm takes the steps that the baseline's cost buys at its measured speed",
    "half_compute": "Half the compute: every arm takes the steps that half of the baseline's cost buys at its measured speed",
}
"""Titles of the budgets."""
HEADINGS = ["arm", "seeds", "FVD", "95% interval", "Δ to baseline", "p", "speed-up", "95% interval", "limit", "of limit", "memory"]
HEADINGS += ["device h", "val CE"]


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV: UTF-8, LF; missing values are empty, whole numbers have no point, others their shortest exact digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(zip(*([_cell(value) for value in table[name].tolist()] for name in table.columns), strict=True))
    return buffer.getvalue()


def ablation_markdown(table: pd.DataFrame, caption: str, left_out: Sequence[tuple[str, str]] = ()) -> str:
    """The ablation table for people: one block a budget, the best FVD bold where its interval is clear of the next."""
    lines = []
    for budget, rows in table.groupby("budget", sort=False):
        lines += [f"### {BUDGETS.get(str(budget), budget)}", ""]
        lines += ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
        best = best_row(rows)
        for position, row in enumerate(rows.to_dict("records")):
            fvd = f"**{number(row['fvd'])}**" if position == best else number(row["fvd"])
            lines.append(
                f"| {row['arm']} | {row['seeds']} | {fvd} | {interval(row['fvd_low'], row['fvd_high'])} | {signed(row['fvd_delta'])} "
                f"| {p_value(row['fvd_p_value'])} | {number(row['speedup'])} | {interval(row['speedup_low'], row['speedup_high'])} "
                f"| {number(row['speedup_limit'])} | {number(row['limit_fraction'])} | {number(row['peak_memory_ratio'])} "
                f"| {hours(row['gpu_hours'])} | {number(row['val_cross_entropy'], 3)} |"
            )
        lines.append("")
    lines += [caption, ""]
    protocols = list(dict.fromkeys(table["protocol"]))
    lines += [f"Protocol: `{protocol}`" for protocol in protocols]
    if left_out:
        lines += ["", "Left out of the table:", "", *(f"- `{trial}`: {why}" for trial, why in left_out)]
    return "\n".join(lines).rstrip() + "\n"


def ablation_latex(table: pd.DataFrame, caption: str, left_out: Sequence[tuple[str, str]] = ()) -> str:
    """The ablation table for a paper: booktabs, numbers aligned by siunitx."""
    lines = [
        "% Needs \\usepackage{booktabs,siunitx,etoolbox}. Made by `reco-tune report`.",
        "\\begin{table}",
        "  \\centering",
        "  \\robustify\\bfseries",
        "  \\sisetup{detect-weight=true, mode=text, table-align-text-post=false}",
    ]
    columns = {
        name: [row[name] for row in table.to_dict("records")]
        for name in ("fvd", "fvd_delta", "speedup", "speedup_limit", "val_cross_entropy")
    }
    formats = "".join(_siunitx(values, 3 if name == "val_cross_entropy" else 2) for name, values in columns.items())
    lines += [
        f"  \\begin{{tabular}}{{l r {formats[: formats.index(']') + 1]} c {formats[formats.index(']') + 1 :]} r}}",
        "    \\toprule",
        "    Arm & Seeds & {FVD} & {95\\,\\% interval} & {$\\Delta$} & {Speed-up} & {Limit} & {Val.\\ CE} & {$p$} \\\\",
    ]
    for budget, rows in table.groupby("budget", sort=False):
        title = BUDGETS.get(str(budget), str(budget)).split(":")[0]
        lines += ["    \\midrule", f"    \\multicolumn{{9}}{{l}}{{\\emph{{{_latex(title)}}}}} \\\\"]
        best = best_row(rows)
        for position, row in enumerate(rows.to_dict("records")):
            bold = "\\bfseries " if position == best else ""
            cells = [
                _latex(row["arm"]),
                str(row["seeds"]),
                bold + (number(row["fvd"]) or "{--}"),
                _latex(interval(row["fvd_low"], row["fvd_high"])) or "{--}",
                number(row["fvd_delta"]) or "{--}",
                number(row["speedup"]) or "{--}",
                number(row["speedup_limit"]) or "{--}",
                number(row["val_cross_entropy"], 3) or "{--}",
                _latex(p_value(row["fvd_p_value"])).replace("<", "$<$") or "--",
            ]
            lines.append("    " + " & ".join(cells) + " \\\\")
    note = caption + "".join(f" Protocol: `{protocol}`." for protocol in dict.fromkeys(table["protocol"]))
    if left_out:
        note += " Left out: " + "; ".join(f"{trial} ({why})" for trial, why in left_out) + "."
    lines += ["    \\bottomrule", "  \\end{tabular}", f"  \\caption{{{_latex(note)}}}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def best_row(rows: pd.DataFrame) -> int | None:
    """Position of the lowest FVD where its interval is clear of every other arm's; None where the best is not resolved."""
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


def _cell(value: Any) -> str:
    if value is None or value is pd.NA:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):  # whole floats lose their point: MLflow returns every number as a float, the log does not
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)


def _siunitx(values: Sequence[float], digits: int) -> str:
    finite = [abs(value) for value in values if math.isfinite(value)]
    sign = "-" if any(value < 0 for value in values if math.isfinite(value)) else ""
    return f"S[table-format={sign}{len(str(int(max(finite, default=0))))}.{digits}]"


def _latex(text: str) -> str:
    parts = text.split("`")
    escaped = [_escape(part) for part in parts]
    return "".join(f"\\texttt{{{part}}}" if position % 2 else part for position, part in enumerate(escaped))


def _escape(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "_": r"\_",
        "%": r"\%",
        "&": r"\&",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
    }
    special |= {
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "·": r"$\cdot$",
        "λ": r"$\lambda$",
        "Δ": r"$\Delta$",
        "−": "$-$",
        "²": r"\textsuperscript{2}",
    }
    return "".join(special.get(character, character) for character in text)
