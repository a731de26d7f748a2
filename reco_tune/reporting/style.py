"""One style for every figure: colours for colour-blind readers, sizes for print, axes in plain numbers. Has no global
state and opens no window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from reco_tune.reporting.budgets import WHOLE
from reco_tune.reporting.section import DPI
from reco_tune.settings import SEARCH

COLOURS = {  # Okabe and Ito's palette, tones of it for variants; names stand beside every line and point as well
    "full": "#000000",
    WHOLE: "#000000",
    "masked_full": "#7f7f7f",
    "full_continuity": "#4d4d4d",
    "fewer_frames": "#d55e00",
    "fewer_frames_tokens": "#b8860b",
    "local": "#56b4e9",
    "local_first": "#2a8fc4",
    "local_balanced": "#0072b2",
    "reco": "#009e73",
    "norm_penalty": "#b0559a",
    SEARCH: "#9a9a9a",
}
SPARE = ("#882255", "#44aa99", "#999933", "#332288", "#aa4499", "#117733")
LARGEST = 1e12
"""Largest value on an axis. Beyond it matplotlib cannot lay the axis out."""
MOST_NAME = 44
"""Characters."""
MARKERS = {"equal_steps": "o", "equal_compute": "^", "half_compute": "s", "quarter_compute": "D", "eighth_compute": "v"}


def colours(arms: Sequence[str]) -> dict[str, str]:
    """One colour for each arm. Arms of a user's own take the spare colours in order."""
    own = [arm for arm in arms if arm not in COLOURS]
    return {**COLOURS, **{arm: SPARE[number % len(SPARE)] for number, arm in enumerate(own)}}


def luminance(colour: Any) -> float:
    """Relative luminance of WCAG 2, 0 for black to 1 for white."""
    channels = np.array(to_rgb(colour))
    return float(
        np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    )


def text_tone(colour: str) -> str:
    """The colour for text on white: darkened until its contrast is 4.5 (WCAG AA)."""
    tones = (to_hex(share * np.array(to_rgb(colour))) for share in np.linspace(1, 0, 101))
    return next(tone for tone in tones if luminance(tone) <= 1.05 / 4.5 - 0.05)


def text_on(ground: Any) -> str:
    """Black or white, whichever has the higher contrast on a ground; it is 4.58 or more."""
    return "black" if luminance(ground) > math.sqrt(1.05 * 0.05) - 0.05 else "white"


def short(name: str) -> str:
    """A name on a figure: on one line, in characters that print, the middle of a long one left out."""
    name = "".join(character if character.isprintable() else "?" for character in " ".join(name.split()))
    return name if len(name) <= MOST_NAME else f"{name[: MOST_NAME // 2]}…{name[-MOST_NAME // 2 :]}"


def save(figure: Figure, path: Path) -> None:
    """PNG and PDF of a figure, without dates. Not by `savefig`, which draws everything twice."""
    FigureCanvasAgg(figure).print_png(path.with_suffix(".png"), metadata={"Software": "reco-tune"})
    figure.set_layout_engine("none")  # laid out once
    FigureCanvasPdf(figure).print_pdf(path.with_suffix(".pdf"), metadata={"CreationDate": None})


def new_figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # labels are placed by what the renderer measures
    return figure


def new_panels(
    count: int, width_in: float, height_in: float, spare_in: float, y_label: str
) -> tuple[Figure, list[Any]]:
    """A figure of panels that share y, at most three in a row, so that they can be read on a page.

    Args:
        width_in: of a panel.
        height_in: of a panel.
        spare_in: added to the width of the figure.
        y_label: of the first panel in each row.
    """
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = new_figure(width_in * columns + spare_in, height_in * rows)
    grid = [*figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()]
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel(y_label)
    return figure, grid[:count]


def lay_out(figure: Figure) -> None:
    """Gives the axes their positions, so that labels can be placed by pixels. Does not draw, which would take three
    times as long.
    """
    engine = figure.get_layout_engine()
    assert engine is not None  # `new_figure` gave it one
    engine.execute(figure)


def freeze(figure: Figure) -> None:
    """Fixes the layout of the figure. What is placed by pixels afterwards stays there, and later drawing does not
    repeat the layout. Do not add anything outside the axes afterwards: there would be no room for it.
    """
    lay_out(figure)
    figure.set_layout_engine("none")


@contextmanager
def style() -> Iterator[None]:
    """Dark grey on white with a faint grid, after seaborn's "ticks", which takes longer to import than a figure to
    draw.
    """
    grey = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ".15")
    own: dict[Any, Any] = grey | {
        "font.sans-serif": ["Arial", "DejaVu Sans", "Liberation Sans", "Bitstream Vera Sans", "sans-serif"],
        "lines.solid_capstyle": "round",
        "patch.edgecolor": "white",
        "patch.force_edgecolor": True,
        "font.size": 9,
        "axes.titlesize": 10.5,
        "axes.labelsize": 9.5,
        "legend.fontsize": 8.5,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
    }
    own |= {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.6,
    }
    own |= {"axes.axisbelow": True, "pdf.fonttype": 42}
    own |= {"text.parse_math": False}  # names of arms are no formulas
    with matplotlib.rc_context(own):
        yield


def plain_log(axes: Any, log: bool) -> None:
    """Ticks of a log axis at 1, 2, 5 in plain numbers."""
    if log:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def many_points(runs: int) -> dict[str, Any]:
    """Style of sampled runs. Thousands of them are drawn as a cloud, rasterised in the PDF."""
    many = runs > 500
    return {"s": 6 if many else 16, "alpha": 0.3 if many else 0.75, "linewidth": 0, "rasterized": many}


def half_widths(value: float, low: float, high: float) -> list[list[float]] | None:
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def drawable(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Rows in which none of these columns exceeds `LARGEST`."""
    return rows[~(rows[list(names)].astype(float).abs() > LARGEST).any(axis=1)]


def say_left_out(figure: Figure, count: int) -> None:
    """Notes in the figure how many values `drawable` left out."""
    if count:
        words = f"{count} value{'s' if count > 1 else ''} above {LARGEST:.0e} left out"
        figure.text(0.995, 0.995, words, ha="right", va="top", fontsize=7.5, color="#b22222")


def spread(values: pd.Series) -> float:
    positive = values[(values > 0) & np.isfinite(values)]
    return float(positive.max() / positive.min()) if len(positive) and len(positive) == len(values) else 1.0


def dot(colour: str, marker: str, label: str) -> Any:
    return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=6, label=short(label))


def line(colour: str, style: Any, marker: str, label: str) -> Any:
    face = "white" if marker == "s" else colour
    return Line2D([], [], color=colour, linestyle=style, marker=marker, markersize=4, markerfacecolor=face, label=label)
