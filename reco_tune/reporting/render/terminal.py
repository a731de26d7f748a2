"""Tables as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from reco_tune.reporting.section import Table


def terminal(table: Table) -> str:
    """A table's columns for the terminal, those that nothing fills left out; a group of rows under its title."""
    lines = []
    columns = table.picked(table.terminal)
    for group in table.groups:
        cells = [[column.text(row) for column in columns] for row in group.rows]
        told = [place for place in range(len(columns)) if any(row[place] for row in cells)]
        title = ", ".join(part for part in (table.title, group.title.lower()) if part)
        lines += [title] if title else []
        headings = [columns[place].heading for place in told] if table.title else []
        rows = [headings, *([row[place] for place in told] for row in cells)] if headings else cells
        widths = [max(len(row[place]) for row in rows) for place in range(len(told))]
        left = [columns[place].kind == "text" for place in told]
        lines += [_line(row, widths, left) for row in rows]
        lines.append("")
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    parts = (
        cell.ljust(width) if text else cell.rjust(width) for cell, width, text in zip(cells, widths, left, strict=True)
    )
    return "  ".join(parts).rstrip()
