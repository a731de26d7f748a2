"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from reco_tune.reporting.section import Table


def markdown(tables: Sequence[Table]) -> str:
    """Tables below each other: each group of rows under its title, then what is said of them; the best FVD is bold."""
    paragraphs = []
    for table in tables:
        for group in table.groups:
            columns = table.columns_of(group)
            cells = [[column.text(row) for column in columns] for row in group.rows]
            if group.best is not None:
                at = next(place for place, column in enumerate(columns) if column.key == "fvd")
                cells[group.best][at] = f"**{cells[group.best][at]}**"
            headings = [column.heading.replace("|", "\\|") for column in columns]
            paragraphs.append(f"### {group.title}{f': {group.about}' if group.about else ''}")
            lines = [_line(headings), "|---|" + "---:|" * (len(headings) - 1), *map(_line, cells)]
            paragraphs.append("\n".join(lines))
        paragraphs += [table.caption, *table.remarks]
        if table.left_out:
            paragraphs += ["Left out of the table:", "\n".join(f"- `{trial}`: {why}" for trial, why in table.left_out)]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
