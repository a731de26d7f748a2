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
from toy_study import record_study

from reco_tune.reporting import Evidence, load_study
from reco_tune.reporting.render.latex import latex
from reco_tune.reporting.render.markdown import markdown
from reco_tune.reporting.sections import SECTIONS, build
from reco_tune.reporting.sections.continuity_weight import draw_lambda
from reco_tune.reporting.sections.curves import draw_error_growth
from reco_tune.reporting.sections.window_stride import draw_window_stride
from reco_tune.reporting.style import COLOURS, SPARE, lay_out, luminance, text_on, text_tone


def contrast(text, ground):
    """WCAG's: 1 to 21, of either order."""
    high, low = sorted((luminance(text), luminance(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand():
    assert contrast("black", "white") == pytest.approx(21)
    assert contrast("#56b4e9", "white") == pytest.approx(2.3, abs=0.05)
    assert contrast("#767676", "white") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("colour", sorted({*COLOURS.values(), *SPARE}))
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


def test_one_weight_is_no_curve():
    rows = pd.DataFrame(
        {"objective.continuity_weight": [0.0, 0.0], "fvd": 2.0, "val_cross_entropy": 1.0, "arm": "search"}
    )
    assert draw_lambda(rows.assign(budget="equal_steps", **{"objective.continuity_reduction": "mean"}), []) is None


@pytest.mark.parametrize(
    "weights", [(0.0043, 0.02, 0.11), (0.0099, 0.2), (0.2, 0.5), (0.1,), (0.001, 1.0), (3e-6, 0.5)]
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


def test_a_value_that_leaves_no_room_for_others_is_left_out_and_said(tmp_path):
    """Axes up to 1e300 cannot be laid out, and a figure that lost a point in silence would be wrong."""
    record = load_study(
        record_study(tmp_path / "toy", arms=("full", "local_balanced", "reco"), seeds=(0, 1), files=False)
    )
    for name, run in record.runs.items():
        if run.arm == "reco" or name == "search-0001":
            run.metrics |= {"fvd": 1e300, "fvd_low": 9e299, "fvd_high": 1.1e300}
            run.curves["fvd_by_samples"] = [1e300, 1e300]
    evidence = Evidence.read(record)
    told = {}
    for name in SECTIONS:
        for figure in build(name, evidence).figures:
            if drawn := figure.draw(*figure.given):
                drawn.canvas.draw()
                told[figure.name] = [text.get_text() for text in drawn.texts if "left out" in text.get_text()]
    assert {name for name, words in told.items() if words} == {
        "frontier",
        "compute",
        "lambda",
        "window_stride",
        "fvd_by_samples",
    }
    assert told["frontier"] == ["3 values above 1e+12 left out"], "reco under two budgets, and the run"
    assert "| 1.00e300 |" in markdown(build("ablation", evidence).tables)
    assert "S[table-format=1.2e3]" in latex(build("ablation", evidence).tables[0])
