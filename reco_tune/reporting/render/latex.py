"""Tables as LaTeX for a paper: booktabs rules, numbers aligned at their point by siunitx."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from reco_tune.reporting.section import Column, RowGroup, Table

PREAMBLE = "\\usepackage{booktabs,siunitx,etoolbox}"
"""Packages that a document needs for these tables."""
BOLD = "\\bfseries "
"""LaTeX before the best cell."""
_MISSING = "{--}"
_ALIGNED = {"text": "l", "count": "r", "interval": "c"}
_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "_%&#${}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "λ": r"$\lambda$",
    "Δ": r"$\Delta$",
    "−": "$-$",
    "–": "--",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "²": r"\textsuperscript{2}",
    "<": "$<$",
    ">": "$>$",
}
_SET = frozenset(map(chr, (*b"\t\n", *range(0x20, 0x7F), *range(0xA0, 0x180)))) - set("\xad«»ÐðÞþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ")
_SET |= set("‐‑‒—―‘’“”†‡•…‰€™")
"""Characters that pdflatex sets with this preamble alone: punctuation and Latin letters, except those that its default
font encoding lacks.
"""


def latex(table: Table) -> str:
    """A table environment with a block of rows under each title. Text is escaped; `names` in it become typewriter.
    Empty cells become a dash.
    """
    columns = table.picked(table.latex)
    blocks = [[_cells(group, columns, row) for row in range(len(group.rows))] for group in table.groups]
    everything = [cells for block in blocks for cells in block]
    formats = " ".join(
        _number_format([cells[place] for cells in everything]) if column.kind == "number" else _ALIGNED[column.kind]
        for place, column in enumerate(columns)
    )
    lines = [
        f"% Needs {PREAMBLE}. Made by `reco-tune report`.",
        "\\begin{table}",
        "  \\centering",
        "  \\robustify\\bfseries",
        "  \\sisetup{detect-weight=true, mode=text, table-align-text-post=false}",
        f"  \\begin{{tabular}}{{{formats}}}",
        "    \\toprule",
        f"    {' & '.join(map(_heading, columns))} \\\\",
    ]
    for group, block in zip(table.groups, blocks, strict=True):
        lines.append("    \\midrule")
        if group.title:
            lines.append(f"    \\multicolumn{{{len(columns)}}}{{l}}{{\\emph{{{escape(group.title)}}}}} \\\\")
        for cells in block:
            line = " & ".join(_cell(cell, column) for cell, column in zip(cells, columns, strict=True))
            guard = "{}" if line[:1] in ("[", "*") else ""  # the \\ before it would read [ or * as its option
            lines.append(f"    {guard}{line} \\\\")
    lines += ["    \\bottomrule", "  \\end{tabular}", f"  \\caption{{{escape(_said(table))}}}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Plain text as LaTeX; `names` between backquotes as typewriter, [U+6F22] for a character that would
    stop pdflatex."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))  # an empty line would end the cell
    parts = ["".join(map(_character, part)) for part in text.split("`")]
    return "".join(f"\\texttt{{{part}}}" if position % 2 else part for position, part in enumerate(parts))


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    return (
        character if character in _SET else f"{{[U+{ord(character):04X}]}}"
    )  # in braces: a bare \\[ is a space between rows


def _said(table: Table) -> str:
    """The caption, the remarks, and the notes on groups of rows."""
    groups = [f"{group.title}: {group.about}." for group in table.groups if group.about]
    left_out = "; ".join(f"{trial} ({why})" for trial, why in table.left_out)
    return " ".join([*groups, table.caption, *table.remarks, *([f"Left out: {left_out}."] if left_out else [])])


def _heading(column: Column) -> str:
    text = column.latex or escape(column.heading[:1].upper() + column.heading[1:]).replace("\\%", "\\,\\%")
    return f"{{{text}}}" if column.kind == "number" else text


def _cells(group: RowGroup, columns: Sequence[Column], row: int) -> list[str]:
    """Plain cells of a row; numbers as siunitx reads them."""
    cells = []
    for column in columns:
        text = column.text(group.rows[row])
        text = text.removeprefix("+").replace("−", "-") if column.kind == "number" else text
        cells.append(BOLD + text if row == group.best and column.best else text)
    return cells


def _cell(cell: str, column: Column) -> str:
    bold, text = (BOLD, cell.removeprefix(BOLD)) if cell.startswith(BOLD) else ("", cell)
    return bold + (text if column.kind == "number" and text else escape(text) or _MISSING)


def _number_format(cells: Sequence[str]) -> str:
    """siunitx's `S` with room for the widest number of the column."""
    parts = [re.fullmatch(r"(-?)(\d+)(?:\.(\d+))?(?:e(\d+))?", cell.removeprefix(BOLD)) for cell in cells]
    known = [part for part in parts if part]
    sign = "-" if any(part[1] for part in known) else ""
    whole = max((len(part[2]) for part in known), default=1)
    digits = max((len(part[3] or "") for part in known), default=0)
    power = max((len(part[4] or "") for part in known), default=0)
    return f"S[table-format={sign}{whole}.{digits}{f'e{power}' if power else ''}]"
