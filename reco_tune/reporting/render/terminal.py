"""Tables as plain text for a terminal."""

from __future__ import annotations

from textwrap import wrap

from reco_tune.reporting.section import Table
from reco_tune.text_tables import text_table


def terminal(table: Table, width: int) -> list[str]:
    """Lines of a table for the terminal, without empty columns. Each group of rows has its title and notes."""
    lines: list[str] = []
    for group in table.groups:
        columns = [column for column in table.picked(table.terminal) if any(map(column.text, group.rows))]
        title = ", ".join(part for part in (table.title, group.title.lower()) if part)
        headings = [column.heading for column in columns] if table.title else []
        left = [place for place, column in enumerate(columns) if column.kind == "text"]
        cells = [[column.text(row) for column in columns] for row in group.rows]
        about = wrap(f"{group.about}.", width) if group.about else []
        lines += ["", *([title] if title else []), *about, *text_table(headings, cells, left, width)]
    return lines
