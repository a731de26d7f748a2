"""Tables as plain text within a width. Numbers are never broken, words wrap, and a note names the columns that do not
fit.

Knows cells and widths, not terminals, colours or the meaning of a cell.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

LEAST_SHARE = 2 / 3
"""If a smaller share of the columns fits, the table becomes a list: one line per cell, each under its row's name."""
MOST_WORD = 24
"""Longest word, in characters, that is kept on one line where a column wraps."""
_GAP = "  "


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int], width: int) -> list[str]:
    """Lines of at most `width` characters, provided that the widest number fits.

    First headings wrap, then the words of text columns, the widest column first. Then columns are dropped from the
    end, and the last line names them.

    Args:
        headings: one per column; empty for a table without headings.
        rows: cells. Line breaks and control characters are replaced by spaces or their codes.
        left: indices of text columns, which are left-aligned. The others are numbers.
    """
    cells = [[_clean(cell) for cell in row] for row in rows]
    names = [_clean(name) for name in headings] or [""] * max(map(len, rows), default=0)
    columns = [[name, *(row[place] for row in cells)] for place, name in enumerate(names)]
    for count in range(len(names), 0, -1):
        widths = _fitted(columns[:count], left, width)
        if widths is not None:
            break
    else:
        count, widths = 0, []
    if count < LEAST_SHARE * len(names):
        return _list(names, cells, width)
    text = [place in left for place in range(count)]
    lines: list[str] = []
    for row in [names, *cells] if any(names) else cells:
        lines += _folded(row[:count], widths, text)
    dropped = ", ".join(names[count:])
    return lines + ([f"(no room for {dropped})"] if dropped else [])


def _fitted(columns: Sequence[Sequence[str]], left: Collection[int], width: int) -> list[int] | None:
    """Widths of the columns for headings and cells, wrapped as little as possible. None if they do not fit."""
    room = width - len(_GAP) * (len(columns) - 1)
    widths = [max(map(wide, column)) for column in columns]
    if sum(widths) <= room:
        return widths
    widths = [max(map(wide, [*name.split(), *column, ""])) for name, *column in columns]
    least = [max(wide(piece) for text in column for piece in [*_pieces(text), ""]) for column in columns]
    while sum(widths) > room:
        folding = [place for place in range(len(columns)) if place in left and widths[place] > least[place]]
        if not folding:
            return None
        widths[max(folding, key=lambda place: widths[place])] -= 1
    return _with_lower_headings([name for name, *_ in columns], widths, room - sum(widths))


def _with_lower_headings(names: Sequence[str], widths: list[int], spare: int) -> list[int]:
    """Widths that use the spare room for the headings with the most lines."""
    heights = [len(_wrap(name, width)) for name, width in zip(names, widths, strict=True)]
    for place, name in enumerate(names):
        if heights[place] == max(heights) > 1:
            lower = (more for more in range(1, spare + 1) if len(_wrap(name, widths[place] + more)) < heights[place])
            more = next(lower, 0)
            widths[place] += more
            spare -= more
    return widths


def wide(text: str) -> int:
    """Width of a text on a terminal, in character cells."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _folded(cells: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> list[str]:
    """The lines of one row."""
    parts = [_wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for number in range(max(map(len, parts), default=0)):
        line = []
        for part, width, text in zip(parts, widths, left, strict=True):
            piece = part[number] if number < len(part) else ""
            space = " " * (width - wide(piece))
            line.append(piece + space if text else space + piece)
        lines.append(_GAP.join(line).rstrip())
    return lines


def _wrap(text: str, width: int) -> list[str]:
    """Lines of a cell: pieces joined while they fit."""
    if wide(text) <= width:
        return [text]
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and wide(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece if lines[-1] else piece.lstrip()
    return [line.rstrip() for line in lines]


def _pieces(text: str) -> list[str]:
    """Splits a text where it may wrap: after a blank, or after an underscore, hyphen or slash between letters. Long
    words split anywhere.
    """
    found = re.findall(r"\S+?(?:[_/](?=\w)|-(?=[^\W\d])|(?:\s+|$))", text)
    return [piece[at : at + MOST_WORD] for piece in found for at in range(0, len(piece), MOST_WORD)]


def _list(names: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> list[str]:
    """A row as a list: its first cell, then the others with their headings."""
    lines = []
    for first, *others in cells:
        lines += _wrap(first, width)
        for name, cell in zip(names[1:], others, strict=True):
            if cell:
                head, *tail = _wrap(f"{name}: {cell}" if name else cell, width - len(_GAP))
                lines += [_GAP + head, *(2 * _GAP + line for line in tail)]
    return lines


def _clean(text: str) -> str:
    """Line breaks and tabs become blanks; other unprintable characters become their code."""
    text = re.sub(r"\s+", " ", text).strip()
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)
