"""Tables as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reco_tune.reporting.numbers import quoted
from reco_tune.reporting.section import Table


def markdown(tables: Sequence[Table]) -> str:
    """Tables in one file: each group of rows under its title, then the notes. The best value is bold."""
    paragraphs = []
    for table in tables:
        for group in table.groups:
            columns = table.columns_of(group)
            cells = [[_cell(column.text(row), column.kind) for column in columns] for row in group.rows]
            if group.best is not None:
                at = next(place for place, column in enumerate(columns) if column.best)
                cells[group.best][at] = f"**{cells[group.best][at]}**"
            headings = [_plain(column.heading) for column in columns]
            paragraphs.append(f"### {group.title}{f': {group.about}' if group.about else ''}")
            lines = [_line(headings), "|---|" + "---:|" * (len(headings) - 1), *map(_line, cells)]
            paragraphs.append("\n".join(lines))
        paragraphs += map(_prose, [table.caption, *table.remarks])
        if table.left_out:
            listed = (f"- {_prose(quoted(trial))}: {_plain(why)}" for trial, why in table.left_out)
            paragraphs += ["Left out of the table:", "\n".join(listed)]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str, kind: str) -> str:
    return _plain(text) if kind == "text" else text.replace("|", "\\|")


def _prose(text: str) -> str:
    """A sentence with `names` in it: outside of them nothing becomes a tag."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def _plain(text: str) -> str:
    """Text with escaped markup. An underscore within a word is not markup."""
    return re.sub(r"[\\`*<>\[\]|~$&]|(?<![^\W_])_|_(?![^\W_])", lambda found: f"\\{found[0]}", " ".join(text.split()))
