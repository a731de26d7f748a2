"""Figures read in print: text stands out from its ground, tick labels keep apart, and nothing that is no data looks
like data.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from reco_tune.reporting.sections.continuity_weight import draw_lambda
from reco_tune.reporting.sections.curves import draw_error_growth
from reco_tune.reporting.sections.window_stride import draw_window_stride
from reco_tune.reporting.style import _SPARE, COLOURS, lay_out, luminance, text_on, text_tone


def contrast(text, ground):
    """WCAG's: 1 to 21, of either order."""
    high, low = sorted((luminance(text), luminance(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand():
    assert contrast("black", "white") == pytest.approx(21)
    assert contrast("#56b4e9", "white") == pytest.approx(2.3, abs=0.05)
    assert contrast("#767676", "white") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("colour", sorted({*COLOURS.values(), *_SPARE}))
def test_names_of_arms_read_on_white(colour):
    tone = text_tone(colour)
    assert contrast(tone, "white") >= 4.5
    assert (tone == colour) == (contrast(colour, "white") >= 4.5), "no darker than it must be"
    assert np.argsort(to_rgb(tone)).tolist() == np.argsort(to_rgb(colour)).tolist(), "of the same hue"


def test_numbers_in_cells_read_on_every_colour_of_the_map():
    assert min(contrast(text_on(ground), ground) for ground in colormaps["cividis_r"](np.linspace(0, 1, 101))) >= 4.5
    cells = [
        [length, stride, 1, 2.0 + number, 1.5, 1.0, 3.0]
        for number, (length, stride) in enumerate(itertools.product((9, 18), (4, 9, 18)))
    ]
    columns = ["window.length_tokens", "window.stride_tokens", "runs", "fvd", "speedup", "fvd_low", "fvd_high"]
    figure = draw_window_stride(pd.DataFrame(cells[:5], columns=columns), "equal_steps")  # one place stays empty
    axes = figure.axes[0]
    grounds = dict(zip((2.0, 3.0, 4.0, 5.0, 6.0), axes.collections[0].to_rgba(np.arange(2.0, 7.0)), strict=True))
    assert sorted(float(text.get_text().split("\n")[0]) for text in axes.texts) == sorted(grounds)
    assert all(contrast(text.get_color(), grounds[float(text.get_text().split("\n")[0])]) >= 4.5 for text in axes.texts)


@pytest.mark.parametrize(
    "weights", [(0.0043, 0.02, 0.11), (0.0099, 0.2), (0.2, 0.5), (0.1,), (0.001, 1.0), (3e-6, 0.5), (0.0, 0.0)]
)
def test_labels_of_lambda_keep_apart(weights):
    rows = pd.DataFrame(
        {"objective.continuity_weight": [0.0, *weights], "fvd": 2.0, "val_cross_entropy": 1.0, "arm": "search"}
    )
    figure = draw_lambda(rows.assign(budget="equal_steps", **{"objective.continuity_reduction": "mean"}), [])
    lay_out(figure)
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        axes.get_xaxis().get_tightbbox(renderer)
        low, high = axes.get_xlim()
        shown = [
            tick for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_text()
        ]
        boxes = sorted((tick.label1.get_window_extent(renderer) for tick in shown), key=lambda box: box.x0)
        assert len(boxes) > 1 and all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_what_leads_to_a_name_is_no_curve():
    curves = {arm: {"error_growth": [0.1, 0.1, level]} for arm, level in (("full", 0.1), ("local", 0.1), ("reco", 0.3))}
    axes = draw_error_growth(curves, "equal_steps").axes[0]
    leaders = [line for line in axes.lines if line.get_transform() != axes.transData]
    assert len(leaders) == len(axes.texts) == 3
    last = axes.transAxes.inverted().transform(axes.transData.transform((2, 0.1)))[0]
    assert all(
        line.is_dashed() and line.get_color() not in COLOURS.values() and line.get_xdata()[0] > last for line in leaders
    )
