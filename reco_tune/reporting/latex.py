"""LaTeX tables for a paper: booktabs rules, numbers aligned at their point by siunitx. Knows cells and captions, not
what they mean.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

PREAMBLE = "\\usepackage{booktabs,siunitx,etoolbox}"
"""What a document needs for these tables."""
BOLD = "\\bfseries "
"""Before a cell that stands out."""
_MISSING = "{--}"
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
    "²": r"\textsuperscript{2}",
    "<": "$<$",
    ">": "$>$",
}
_SET = frozenset(map(chr, (*b"\t\n", *range(0x20, 0x7F), *range(0xA0, 0x180)))) - set("\xad«»ÐðÞþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ")
_SET |= set("‐‑‒—―‘’“”†‡•…‰€™")
"""What pdflatex sets by itself, with the preamble alone: Latin letters but those that its first font encoding lacks,
and punctuation.
"""


class Column(NamedTuple):
    """One column."""

    heading: str
    """As LaTeX."""
    kind: str
    """`number`, aligned at its point, or how text is aligned: `l`, `c` or `r`."""


def latex_table(columns: Sequence[Column], blocks: Mapping[str, Sequence[Sequence[str]]], caption: str) -> str:
    """A table environment: one block of rows under each title; text is escaped, `names` in it become typewriter.

    Args:
        columns: one for each cell of a row.
        blocks: title -> rows; an empty title is not written. Empty cells become a dash; `BOLD` may stand before a cell.
        caption: plain text.
    """
    cells = [row for rows in blocks.values() for row in rows]
    formats = " ".join(
        _number_format([row[place] for row in cells]) if column.kind == "number" else column.kind
        for place, column in enumerate(columns)
    )
    headings = [f"{{{column.heading}}}" if column.kind == "number" else column.heading for column in columns]
    lines = [
        f"% Needs {PREAMBLE}. Made by `reco-tune report`.",
        "\\begin{table}",
        "  \\centering",
        "  \\robustify\\bfseries",
        "  \\sisetup{detect-weight=true, mode=text, table-align-text-post=false}",
        f"  \\begin{{tabular}}{{{formats}}}",
        "    \\toprule",
        f"    {' & '.join(headings)} \\\\",
    ]
    for title, rows in blocks.items():
        lines.append("    \\midrule")
        if title:
            lines.append(f"    \\multicolumn{{{len(columns)}}}{{l}}{{\\emph{{{escape(title)}}}}} \\\\")
        lines += [
            "    " + " & ".join(_cell(cell, column) for cell, column in zip(row, columns, strict=True)) + " \\\\"
            for row in rows
        ]
    lines += ["    \\bottomrule", "  \\end{tabular}", f"  \\caption{{{escape(caption)}}}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Plain text as LaTeX; `names` between backquotes as typewriter, [U+6F22] for a character that would
    stop pdflatex."""
    parts = ["".join(map(_character, part)) for part in unicodedata.normalize("NFC", text).split("`")]
    return "".join(f"\\texttt{{{part}}}" if position % 2 else part for position, part in enumerate(parts))


def _character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    return (
        character if character in _SET else f"{{[U+{ord(character):04X}]}}"
    )  # in braces: a bare \\[ is a space between rows


def _cell(cell: str, column: Column) -> str:
    bold, text = (BOLD, cell.removeprefix(BOLD)) if cell.startswith(BOLD) else ("", cell)
    return bold + (text if column.kind == "number" and text else escape(text) or _MISSING)


def _number_format(cells: Sequence[str]) -> str:
    """siunitx's `S` with room for the widest number of the column."""
    parts = [re.fullmatch(r"(-?)(\d+)(?:\.(\d+))?", cell.removeprefix(BOLD)) for cell in cells]
    known = [part for part in parts if part]
    sign = "-" if any(part[1] for part in known) else ""
    whole = max((len(part[2]) for part in known), default=1)
    return f"S[table-format={sign}{whole}.{max((len(part[3] or '') for part in known), default=0)}]"
