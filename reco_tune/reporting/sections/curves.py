"""Curves of the arms: over training steps, by frame or block, and by the number of clips."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from reco_tune import quantities
from reco_tune.reporting.budgets import BUDGETS
from reco_tune.reporting.curves import arm_curves, bias_curves, learning_curves
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.section import Figure, Section
from reco_tune.settings import BASELINE
from reco_tune.study_log import StudyRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

TITLE_CHARACTERS = 22
"""Across a small panel."""
Curves = Mapping[str, Mapping[str, Sequence[float]]]
"""arm -> curve of `quantities.CURVES` -> values by frame or block."""


def build(evidence: Evidence) -> Section:
    budget = evidence.budgets[0]
    by_arm = arm_curves(evidence.study, budget)
    figures = [
        Figure(
            "learning_curves",
            "Learning curves",
            "Validation cross-entropy of whole held-out clips (teacher-forced) at every rung.",
            draw_learning,
            (learning_curves(evidence.study, evidence.budgets),),
        ),
        Figure(
            "loss_by_frame",
            "Loss by frame",
            "Cross-entropy by block on training clips and on the model's own samples. The difference in block 0 is the"
            " first-frame gap.",
            draw_loss_by_frame,
            (by_arm, budget),
        ),
        Figure(
            "error_growth",
            "Error growth",
            "Block 0 is disturbed. The curves show how much h changes in each block, relative to its size.",
            draw_error_growth,
            (by_arm, budget),
        ),
        Figure(
            "frame_accuracy",
            "Class accuracy by frame",
            "Share of generated clips for which a classifier recognises the requested class in a single frame.",
            draw_frame_accuracy,
            (by_arm, budget),
        ),
        Figure(
            "fvd_by_samples",
            "FVD by the number of clips",
            "FVD is too large by about a constant divided by the number of clips. So FVDs of different numbers of clips"
            " are not comparable.",
            draw_bias,
            (bias_curves(evidence.study, budget), budget),
        ),
    ]
    return Section("curves", "Curves", figures=figures)


def curve_table(study: StudyRecord, names: Sequence[str]) -> pd.DataFrame:
    """Curves as rows: budget, arm, position (frame or block) and one column a curve."""
    rows = []
    for budget in BUDGETS:
        for arm, curves in arm_curves(study, budget).items():
            own = [curves.get(name, []) for name in names]
            for position in range(max(map(len, own), default=0)):
                values = [curve[position] if position < len(curve) else None for curve in own]
                rows.append([budget, arm, position, *values])
    return pd.DataFrame(rows, columns=["budget", "arm", "position", *names])


def draw_learning(curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Drawing | None:
    """Validation cross-entropy over steps: budget -> arm -> (step, value)."""
    from reco_tune.reporting.line_figure import LOSS_LABEL, line_figure

    lines = {
        f"{budget}/{arm}": list(points) for budget, arms in curves.items() for arm, points in arms.items() if points
    }
    panels = {
        BUDGETS[budget].title: [f"{budget}/{arm}" for arm in arms if arms[arm]] for budget, arms in curves.items()
    }
    return line_figure(
        lines,
        "optimiser steps",
        LOSS_LABEL,
        {title: names for title, names in panels.items() if names},
    )


def draw_error_growth(curves: Curves, budget: str) -> Drawing | None:
    """Relative divergence of h by block, block 0 being the one that was perturbed."""
    from reco_tune.reporting.line_figure import line_figure

    lines = _by_position(curves, quantities.ERROR_GROWTH)
    panels = {BUDGETS[budget].title: list(lines)}
    return line_figure(lines, "block (0 is disturbed)", "relative change of h (lower is better)", panels, log=True)


def draw_frame_accuracy(curves: Curves, budget: str) -> Drawing | None:
    """Share of generated clips that are recognised as the requested class, by frame."""
    from reco_tune.reporting.line_figure import line_figure

    lines = _by_position(curves, quantities.FRAME_ACCURACY)
    return line_figure(lines, "frame", "class accuracy (higher is better)", {BUDGETS[budget].title: list(lines)})


def draw_bias(curves: Mapping[str, Sequence[tuple[int, float]]], budget: str) -> Drawing | None:
    """FVD by the number of generated clips; `curves.bias_curves` collects them."""
    from reco_tune.reporting.line_figure import line_figure
    from reco_tune.reporting.style import spread

    log = bool(curves) and spread(pd.Series([value for points in curves.values() for _, value in points])) > 10
    panels = {BUDGETS[budget].title: list(curves)}
    return line_figure(curves, "generated clips", "FVD (lower is better)", panels, log=log)


def draw_loss_by_frame(curves: Curves, budget: str) -> Drawing | None:
    """Cross-entropy by block on training clips and on the model's own samples, one small panel an arm, the baseline's
    in grey behind.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    from reco_tune.reporting.style import colours, line, new_figure, short, style, text_tone

    train, generated = quantities.LOSS_BY_FRAME_TRAIN, quantities.LOSS_BY_FRAME_GENERATED
    arms = [arm for arm, found in curves.items() if train in found and generated in found]
    if not arms:
        return None
    palette, columns = colours(arms), min(5, len(arms))
    lines = math.ceil(len(arms) / columns)
    with style():
        figure = new_figure(2.1 * columns + 0.6, 1.9 * lines + 0.9)
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, arm in zip(panels, arms, strict=False):
            if BASELINE in arms and arm != BASELINE:
                axes.plot(curves[BASELINE][train], color="#bbbbbb", linewidth=2.5, zorder=1)
            axes.plot(curves[arm][train], color=palette[arm], marker="o", markersize=3.5)
            axes.plot(
                curves[arm][generated],
                color=palette[arm],
                marker="s",
                markersize=3.5,
                linestyle=(0, (3, 1.5)),
                markerfacecolor="white",
            )
            axes.set_title(_wrapped(short(arm)), fontsize=9, color=text_tone(palette[arm]))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in panels[len(arms) :]:
            axes.set_visible(False)
        figure.supxlabel("block (0 is the first frame)", fontsize=9.5)
        figure.supylabel("cross-entropy\n(nats/token, lower is better)", fontsize=9.5)
        handles = [line("#444444", "-", "o", "training clips"), line("#444444", (0, (3, 1.5)), "s", "own samples")]
        if BASELINE in arms and len(arms) > 1:
            handles.append(Line2D([], [], color="#bbbbbb", linewidth=2.5, label=f"{BASELINE}, training clips"))
        figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, title=BUDGETS[budget].title)
    return figure


def _by_position(curves: Curves, name: str) -> dict[str, list[tuple[float, float]]]:
    """arm -> (frame or block, value) of one curve."""
    return {arm: list(enumerate(found[name])) for arm, found in curves.items() if len(found.get(name, ()))}


def _wrapped(arm: str) -> str:
    """A long name on several lines, broken after underscores, because often only its end differs from other names."""
    return "\n".join(textwrap.wrap(arm.replace("_", "_ "), TITLE_CHARACTERS)).replace("_ ", "_")
