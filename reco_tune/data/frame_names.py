"""The order of frames in time, from their file names alone.

Names that differ only in their numbers are of one kind. They are ordered by these numbers, from left to right and by
value: `frame (2)` before `frame (10)`, `-3` before `2`, `0.16` before `0.2`. Ambiguous folders are refused: several
kinds of names in one folder, several cameras, names without numbers, numbers that can be read in two ways.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from itertools import chain, compress, pairwise
from pathlib import PurePath
from typing import NamedTuple

from reco_tune.errors import DataError

_NUMBER = re.compile(r"(?:(?<![^_=(\[])[+-])?\d+(?:[.,]\d+)*")
"""A sign counts at the beginning and after `_`, `=` or an opening bracket. Elsewhere it separates numbers, as in
dates.
"""
_ONE_EXTENSION = {".jpeg": ".jpg", ".tiff": ".tif"}
_MOST_CAMERAS = 9
_CLOCKS = {0: {24, 60, 100, 1000, 1_000_000}, 1: {12, 28, 29, 30, 31}}
"""Counts after which a clock starts again. From 0: hours, minutes, seconds and parts of a second. From 1: months,
days.
"""

Counts = tuple[Decimal, ...]
"""The numbers in one name, from left to right."""


class Order(NamedTuple):
    """The frames of one film."""

    names: list[str]
    """In time order."""
    suspicion: str
    """A warning if the numbers suggest lost frames or several films, else empty."""


def order_frames(names: Sequence[str], folder: PurePath) -> Order:
    """Sorts the names of a folder's images by time.

    Raises:
        DataError: if they are not the frames of one film, or their order is ambiguous.
    """
    names = sorted(names)  # sorted, so that messages are the same on every file system
    if len(names) == 1:
        return Order(names, "")
    found = [_split(name) for name in names]
    _check_kinds(names, [texts for texts, _ in found], folder)
    columns = [_values(column, folder) for column in zip(*(numbers for _, numbers in found), strict=True)]
    if not columns:
        raise DataError(f"{folder} has images without a number in their names ({names[0]}); number them in time order")
    rows = sorted((tuple(chain(*row)), name) for row, name in zip(zip(*columns, strict=True), names, strict=True))
    for (counts, name), (next_counts, next_name) in pairwise(rows):
        if counts == next_counts:
            raise DataError(f"{folder} has two images with the same number, {name} and {next_name}; remove one")
    ordered = [name for _, name in rows]
    moving = _moving([counts for counts, _ in rows])
    _check_cameras(moving, ordered, folder)
    return Order(ordered, _suspicion(moving, ordered))


def order_is_new(names: Sequence[str], folder: PurePath) -> bool:
    """Whether earlier versions, which used only the number at the end of a name, ordered these frames differently or
    refused them.
    """
    ends = [re.search(r"\d+$", PurePath(name).stem) for name in names]
    numbers = [int(end.group()) for end in ends if end is not None]
    earlier = [name for _, name in sorted(zip(numbers, names, strict=True))] if all(ends) else sorted(names)
    try:
        return order_frames(names, folder).names != earlier
    except DataError:
        return True


class _Number(NamedTuple):
    """A number as it is written in a name."""

    sign: str
    parts: tuple[str, ...]
    """Runs of digits, separated by dots or commas. Two of them may form a decimal."""


def _split(name: str) -> tuple[tuple[str, ...], tuple[_Number, ...]]:
    """The text around the numbers, which identifies the kind of name, and the numbers."""
    path = PurePath(name)
    stem, extension = path.stem.casefold(), path.suffix.lower()
    numbers = tuple(
        _Number(text[0] if text[0] in "+-" else "", tuple(re.findall(r"\d+", text))) for text in _NUMBER.findall(stem)
    )
    lengths = (str(max(2, len(number.parts))) for number in numbers)
    return (*_NUMBER.split(stem), *lengths, _ONE_EXTENSION.get(extension, extension)), numbers


def _check_kinds(names: Sequence[str], kinds: Sequence[tuple[str, ...]], folder: PurePath) -> None:
    counted = Counter(kinds).most_common()
    if len(counted) > 1:
        some = ", ".join(f"{count} like {names[kinds.index(kind)]}" for kind, count in counted[:3])
        raise DataError(
            f"{folder} holds images of {len(counted)} kinds ({some}); keep one film in it, with frames numbered in time"
            " order"
        )


def _values(column: Sequence[_Number], folder: PurePath) -> list[Counts]:
    """The numbers at one position of the names: decimals, or the parts between the dots, each by itself."""
    if len(set(column)) > 1:
        if all(number.sign == "-" for number in column):
            raise DataError(
                f"{folder} has a hyphen before every number, as in -{'.'.join(column[0].parts)}; if it is a minus,"
                " time runs the other way; remove the hyphen from the names"
            )
        if max(len(number.parts) for number in column) == 2 and _are_decimals(column, folder):
            return [(_decimal(number),) for number in column]
    return [(Decimal(sign + first), *map(Decimal, others)) for sign, (first, *others) in column]


def _are_decimals(column: Sequence[_Number], folder: PurePath) -> bool:
    """Whether the numbers are decimals (1.10 comes before 1.9) or counters (1.9 comes before 1.10).

    Programs that write decimals of various lengths drop trailing zeros. Programs that count pad with leading zeros up
    to a minimum width, or do not pad. Where both readings are possible, the numbers are decimals if this makes them
    evenly spaced in time.

    Raises:
        DataError: if neither reading can be confirmed.
    """
    after = {"".join(number.parts[1:]): ".".join(number.parts) for number in column}
    lengths = {len(digits) for digits in after}
    if len(lengths) == 1:
        return True  # both readings give the same order
    decimals = len(lengths - {0}) == 1 or not any(len(digits) > 1 and digits.endswith("0") for digits in after)
    counters = not any(len(digits) > min(lengths) and digits.startswith("0") for digits in after)
    if decimals and (not counters or _are_even([_decimal(number) for number in column])):
        return True
    if decimals or not counters or 0 in lengths:
        one, other = min(after, key=len), max(after, key=len)
        raise DataError(
            f"{folder} has numbers such as {after[one]} and {after[other]}, which can be decimals or counters; write"
            " the same number of digits after the dot in every name"
        )
    return False


def _are_even(values: Sequence[Decimal]) -> bool:
    """Whether no step is more than a tenth shorter than the usual one. Longer steps are allowed: a lost frame widens
    a step.
    """
    steps = sorted(after - before for before, after in pairwise(sorted(set(values))))
    return 10 * steps[0] >= 9 * steps[len(steps) // 2]


def _decimal(number: _Number) -> Decimal:
    return Decimal(number.sign + ".".join(number.parts))


def _moving(rows: Sequence[Counts]) -> list[Counts]:
    """The rows without the numbers that never change."""
    changes = [len(set(column)) > 1 for column in zip(*rows, strict=True)]
    return [tuple(compress(row, changes)) for row in rows]


def _check_cameras(moving: Sequence[Counts], ordered: Sequence[str], folder: PurePath) -> None:
    """Refuses several images per time step, numbered 0, 1, 0, 1, ...: no clock counts like that."""
    taken: dict[Counts, list[Decimal]] = {}
    for counts in moving:
        taken.setdefault(counts[:-1], []).append(counts[-1])
    first, *others = taken.values()
    counted = 1 < len(first) <= _MOST_CAMERAS and first[-1] - first[0] == len(first) - 1
    if counted and others and others.count(first) == len(others):
        raise DataError(
            f"{folder} holds {len(first)} images per time step ({ordered[0]}, {ordered[1]}, ...), as if from several"
            " cameras; give each camera its own folder"
        )


def _suspicion(moving: Sequence[Counts], ordered: Sequence[str]) -> str:
    if len(moving[0]) == 1:
        lost = _lost([number for (number,) in moving])
        return f"{lost} of the numbers between its first and last frame are missing" if lost else ""
    anew = [place for place, (before, after) in enumerate(pairwise(moving)) if before[:-1] != after[:-1]]
    start, step = moving[0][-1], moving[1][-1] - moving[0][-1]
    same_start = all(moving[place + 1][-1] == start for place in anew)  # else times are uneven
    for place in anew if same_start else []:
        if moving[place][-1] + step - start not in _CLOCKS.get(int(start), ()):
            return f"its numbers restart after {ordered[place]}; give every film its own folder"
    return ""


def _lost(numbers: Sequence[Decimal]) -> int:
    """How many numbers are missing from an otherwise even sequence. Time stamps may be uneven by a twentieth."""
    steps = sorted(after - before for before, after in pairwise(numbers))
    usual = steps[len(steps) // 2]
    return sum(int(step / usual + Decimal("0.05")) - 1 for step in steps if step > usual) if len(steps) > 1 else 0
