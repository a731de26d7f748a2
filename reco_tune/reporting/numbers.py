"""Numbers and names as people read them, spelled the same way in every table."""

from __future__ import annotations

import math
from typing import Any

FORMULA = ("=", "+", "-", "@")
"""Begin a formula in a spreadsheet."""
MINUS = "\N{MINUS SIGN}"


def formula_safe(text: str) -> str:
    """Puts an apostrophe before text that begins like a formula and is not a number."""
    if text[:1] not in FORMULA or len(text) < 2:
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def quoted(name: str) -> str:
    """A name between backquotes, which every format sets as code. Backquotes within the name would end it early."""
    return f"`{' '.join(name.split()).replace('`', chr(39))}`"


def number(value: float, digits: int = 2) -> str:
    """A number with fixed digits; in powers of ten from 1e9 on; empty if there is no number. Negative numbers get a
    minus sign, not a hyphen. A zero has no sign.
    """
    if value is None or not math.isfinite(value):
        return ""
    if abs(value) >= 1e9:
        return with_minus(f"{value:.{digits}e}".replace("e+", "e"))
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else with_minus(text)


def significant(value: float, digits: int = 3) -> str:
    """A number with that many significant digits; in powers of ten if it has many zeros."""
    return with_minus(f"{value:.{digits}g}")


def with_minus(text: str) -> str:
    """A number's hyphens as minus signs, which are as wide as a plus and never break a line."""
    return text.replace("-", MINUS)


def signed(value: float, digits: int = 2) -> str:
    """As `number`, with a plus sign for values above zero."""
    text = number(value, digits)
    return f"+{text}" if text and value > 0 and float(text) else text


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


def thousands(value: float) -> str:
    """1.3e12 as 1.3 T; whole numbers below a thousand."""
    if value is None or not math.isfinite(value) or value == 0:
        return ""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def setting(value: Any) -> str:
    """A setting's value in four digits, or nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
