"""Small drawings inside the page as inline SVG: the runs with their settings on hover, and an interval in a
table cell."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from reco_tune.reporting.numbers import number
from reco_tune.reporting.quality import quality_of
from reco_tune.settings import BASELINE, SEARCH

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 44
X_LABEL = "speed-up per step (x, higher is better)"
MOST_POINTS = 600
"""Largest number of configurations drawn. Those on the frontier and arms come first."""
MOST_TICKS = 8


def scatter(points: pd.DataFrame, singles: pd.DataFrame, settings: Callable[[str], str]) -> Markup:
    """Speed-up against quality, with a point for each configuration. Pointing at it or focusing it shows its settings.
    Points on the frontier are filled and joined; those that break a constraint are crossed out.

    The Tab key stops once for all points. The arrow keys then move from slow to fast (the page's script).

    Args:
        points: of `frontier.Frontier`.
        singles: runs (`trial`, `speedup`, quality) of configurations that are means over seeds, drawn small.
        settings: returns the text on a trial's settings.
    """
    quality = quality_of(points)
    key, title = quality.key, quality.title
    points, singles = points[points[key] > 0], singles[singles[key] > 0]
    if points.empty:
        return Markup("<p>No run has been evaluated yet.</p>")
    first = np.lexsort((points["arm"] == SEARCH, ~points["on_frontier"].astype(bool)))
    rows, dropped = points.iloc[first[:MOST_POINTS]].to_dict("records"), max(0, len(points) - MOST_POINTS)
    behind = singles.head(MOST_POINTS).to_dict("records")
    levels = [row[key] for row in rows + behind]
    across = _Axis([row["speedup"] for row in rows + behind], LEFT, WIDTH - RIGHT, False)
    along = _Axis(levels, HEIGHT - BOTTOM, TOP, max(levels) / 10 > min(levels))
    words = f"Speed-up against {title}, {len(rows)} configurations, arrow keys go from one to the next"
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="scatter" role="group" aria-label="{words}">']
    for value in along.ticks():
        y = along(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in across.ticks():
        x = across(value)
        parts.append(f'<line class="grid" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="{x:.1f}" x2="{x:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}x</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{X_LABEL}</text>')
    middle, y_label = (TOP + HEIGHT - BOTTOM) / 2, f"{title} (lower is better)"
    parts.append(f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">{y_label}</text>')
    front = sorted((row for row in rows if row["on_frontier"]), key=lambda row: (row["speedup"], row[key]))
    if front:
        path = f"M{across(front[0]['speedup']):.1f} {along(front[0][key]):.1f}"
        path += "".join(f"V{along(row[key]):.1f}H{across(row['speedup']):.1f}" for row in front[1:])
        parts.append(f'<path class="front" d="{path}"/>')
    for row in behind:
        words = escape(f"{row['trial']}, one seed: {row['speedup']:.2f}x, {title} {number(row[key], quality.digits)}")
        centre = f'cx="{across(row["speedup"]):.1f}" cy="{along(row[key]):.1f}"'
        parts.append(f'<circle class="single" {centre} r="2"><title>{words}</title></circle>')
    for place, row in enumerate(sorted(rows, key=lambda row: (row["speedup"], row[key]))):
        kind = "search" if row["arm"] == SEARCH else "baseline" if row["arm"] == BASELINE else "arm"
        name = row["trial"] if row["arm"] == SEARCH else row["arm"]
        words = f"{name}, mean of {row['runs']} seeds" if row["runs"] > 1 else name
        words += f": {row['speedup']:.2f}x, {title} {number(row[key], quality.digits)}"
        words += ", on the frontier" if row["on_frontier"] else ""
        words += f", infeasible: {row['infeasible']}" if row["infeasible"] else ""
        label, more = escape(words), escape(settings(row["trial"]))
        x, y, reach = across(row["speedup"]), along(row[key]), 4 if kind == "search" else 5.5
        centre, on = f'cx="{x:.1f}" cy="{y:.1f}"', " on" if row["on_frontier"] else ""
        dot = f'<circle class="dot" {centre} r="{reach}"/>'
        if row["infeasible"]:
            low, high = (
                f"{x - reach:.1f} {y - reach:.1f}L{x + reach:.1f}",
                f"{x - reach:.1f} {y + reach:.1f}L{x + reach:.1f}",
            )
            dot += f'<path class="cross" d="M{low} {y + reach:.1f}M{high} {y - reach:.1f}"/>'
        parts.append(f'<g tabindex="{-1 if place else 0}" role="img" aria-label="{label}" class="point {kind}{on}">')
        parts.append(f'<title>{label}\n{more}</title><circle class="halo" {centre} r="9"/>{dot}</g>')
    parts.append("</svg>")
    if dropped:
        parts.append(f"<p class='note'>{dropped} further ones are in frontier_probability.csv.</p>")
    return Markup("".join(parts))


def interval_bar(value: float, low: float, high: float, least: float, most: float) -> Markup:
    """An interval with its point, on a log scale from the least to the largest value of a column."""
    if not (value > 0 and math.isfinite(value)):
        return Markup("")
    axis = _Axis([max(least, most * 1e-3, 1e-9), most], 4, 116, True, margin=0)
    ends = (
        [axis(min(max(end, least, most * 1e-3, 1e-9), most)) for end in (low, high)]
        if math.isfinite(low) and math.isfinite(high)
        else []
    )
    line = f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="8" y2="8"/>' if ends else ""
    dot = f'<circle cx="{axis(value):.1f}" cy="8" r="2.6"/>'
    return Markup(f'<svg class="bar" viewBox="0 0 120 16" width="64" height="16" aria-hidden="true">{line}{dot}</svg>')


class _Axis:
    """Values to pixels, linear or logarithmic."""

    def __init__(self, values: list[float], start: float, end: float, log: bool, margin: float = 0.06) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = self._scale(min(values)), self._scale(max(values))
        room = (high - low) * margin or (0.0 if margin == 0 and high > low else 0.5)
        self.low, self.high = low - room, high + room

    def __call__(self, value: float) -> float:
        return self.start + (self._scale(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the axis: 1, 2, 5 times powers of ten, or about six equal steps."""
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            if len(powers) > MOST_TICKS:  # enough decades for a log axis
                return [10.0**power for power in powers[1 :: len(powers) // MOST_TICKS + 1]]
            values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
            return [value for value in values if self.low <= math.log10(value) <= self.high]
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        return [
            round(number * step, 10) for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        ]

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value
