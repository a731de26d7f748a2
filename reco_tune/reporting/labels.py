"""Places names beside points and lines so that they do not overlap. Works in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from reco_tune.reporting.style import short, text_tone

_ANGLES = [math.radians(angle) for angle in (30, -30, 150, -150, 90, -90, 0, 180, 60, -60, 120, -120)]
_RADII_PX = (12, 20, 30, 44, 62, 84)
_HALO = withStroke(linewidth=2, foreground="white")
_LEADER: dict[str, Any] = {"color": "#8c8c8c", "linewidth": 0.8, "linestyle": (0, (0.1, 2.5)), "dash_capstyle": "round"}
_LEADER |= {"scalex": False, "scaley": False}
"""Line from a label to its point: grey dots, so that nobody takes it for part of a curve."""


def label_points(
    axes: Any,
    points: Sequence[tuple[float, float, str, str]],
    obstacles: Sequence[tuple[float, float]] = (),
    bars: Sequence[tuple[float, float, float, float]] = (),
    size: float = 8,
) -> None:
    """Writes each (x, y, text, colour) beside its point, clear of labels, points, bars (x0, y0, x1, y1) and the frame.
    A line joins a distant label to its point.

    Greedy: each label takes the free place nearest to its point. Axis limits must be final.
    """
    figure = axes.figure
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    scale = figure.dpi / 100
    taken = [
        _square(axes.transData.transform(point), 5 * scale)
        for point in [*obstacles, *((x, y) for x, y, _, _ in points)]
    ]
    for x0, y0, x1, y1 in bars:
        low, high = axes.transData.transform([(x0, y0), (x1, y1)])
        taken.append((low[0] - 2 * scale, low[1] - 2 * scale, high[0] + 2 * scale, high[1] + 2 * scale))
    for x, y, text, colour in sorted(points, key=lambda point: (-point[1], point[0])):
        at = axes.transData.transform((x, y))
        drawn = axes.text(
            x,
            y,
            short(text),
            fontsize=size,
            color=text_tone(colour),
            ha="center",
            va="center",
            zorder=6,
            path_effects=[_HALO],
        )
        extent = drawn.get_window_extent(renderer)
        centre = _free_place(at, extent.width + 4 * scale, extent.height + 2 * scale, taken, frame, scale)
        taken.append(_box(centre, extent.width + 4 * scale, extent.height + 2 * scale))
        drawn.set_position(axes.transData.inverted().transform(centre))
        edge = np.clip(at, [taken[-1][0], taken[-1][1]], [taken[-1][2], taken[-1][3]])
        if np.hypot(*(edge - at)) > 12 * scale:
            ends = axes.transData.inverted().transform([at, edge])
            axes.plot(ends[:, 0], ends[:, 1], zorder=2, **_LEADER)


def label_line_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]], size: float = 8) -> None:
    """Writes each (x, y, text, colour) to the right of the axes at its line's end, pushed apart where ends
    are close."""
    if not ends:
        return
    figure = axes.figure
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    order = sorted(ends, key=lambda end: end[1])
    height = size * figure.dpi / 72 * 1.25
    wanted = [float(axes.transData.transform((x, y))[1]) for x, y, _, _ in order]
    placed = push_apart(wanted, height, frame.y0, frame.y1)
    for (x, y, text, colour), pixel in zip(order, placed, strict=True):
        fraction = (pixel - frame.y0) / frame.height
        axes.text(
            1.04, fraction, short(text), transform=axes.transAxes, fontsize=size, color=text_tone(colour), va="center"
        )
        end = axes.transAxes.inverted().transform(
            axes.transData.transform((x, y))
        )  # in shares of the axes: stays right when they shrink
        axes.plot(
            [end[0] + 0.02, 1.03], [end[1], fraction], transform=axes.transAxes, clip_on=False, zorder=0, **_LEADER
        )


def push_apart(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions in order, at least `gap` apart, near to what was wanted and inside where there is room."""
    placed = list(wanted)
    for _ in range(200):
        moved = False
        for first in range(len(placed) - 1):
            lack = gap - (placed[first + 1] - placed[first])
            if lack > 0.01:
                placed[first] -= lack / 2
                placed[first + 1] += lack / 2
                moved = True
        shift = max(0.0, low - placed[0]) - max(0.0, placed[-1] - high)
        if len(placed) * gap <= high - low and shift:
            placed = [position + shift for position in placed]
        if not moved:
            break
    return placed


def _free_place(at: Any, width: float, height: float, taken: list[tuple[float, ...]], frame: Any, scale: float) -> Any:
    best, least = np.asarray(at), math.inf
    others = np.array(taken)
    for radius in _RADII_PX:
        for angle in _ANGLES:
            reach = np.array(
                [
                    math.cos(angle) * (width / 2 + radius * scale / 2),
                    math.sin(angle) * (height / 2 + radius * scale / 2),
                ]
            )
            centre = np.asarray(at) + reach
            box = _box(centre, width, height)
            outside = (
                max(0.0, frame.x0 - box[0])
                + max(0.0, box[2] - frame.x1)
                + max(0.0, frame.y0 - box[1])
                + max(0.0, box[3] - frame.y1)
            )
            cost = 1e3 * outside + overlap(box, others) + 0.01 * radius
            if cost < least:
                best, least = centre, cost
        if least < 1:
            return best
    return best


def _box(centre: Any, width: float, height: float) -> tuple[float, ...]:
    return (centre[0] - width / 2, centre[1] - height / 2, centre[0] + width / 2, centre[1] + height / 2)


def _square(centre: Any, half: float) -> tuple[float, ...]:
    return _box(centre, 2 * half, 2 * half)


def overlap(box: tuple[float, ...], others: ArrayLike) -> float:
    """Area that a box shares with others [N, 4], each x0, y0, x1, y1."""
    x0, y0, x1, y1 = np.reshape(others, (-1, 4)).T
    width, height = np.minimum(box[2], x1) - np.maximum(box[0], x0), np.minimum(box[3], y1) - np.maximum(box[1], y0)
    return float((width.clip(0) * height.clip(0)).sum())
