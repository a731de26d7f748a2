"""Passes of each arm over the training clips, the pass with the lowest validation loss, and the final quality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from reco_tune.reporting.aggregate import mean_interval
from reco_tune.reporting.budgets import BUDGETS
from reco_tune.reporting.curves import passes_curves
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.quality import FVD
from reco_tune.reporting.section import (
    Figure,
    Section,
    Table,
    budget_groups,
    interval_column,
    number_column,
    quality_column,
    text_column,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Curves = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
"""budget -> arm -> (passes, validation cross-entropy)."""
COLUMNS = ("budget", "arm", "seeds", "passes", "best_val_cross_entropy", "best_pass", "last_val_cross_entropy")


def build(evidence: Evidence) -> Section:
    curves = passes_curves(evidence.study, evidence.budgets)
    table, quality = passes_table(evidence, curves), evidence.quality
    columns = (
        text_column("arm", "arm"),
        number_column("passes", "passes", 1),
        number_column("best_val_cross_entropy", "best val CE (nats/token) ↓", 3),
        number_column("best_pass", "at pass", 1),
        number_column("last_val_cross_entropy", "last val CE (nats/token) ↓", 3),
        *([quality_column(FVD), interval_column(FVD.key)] if quality is FVD else []),
    )
    groups = budget_groups(table)
    figure = Figure(
        "passes",
        "Quality over passes",
        "Validation cross-entropy at every rung. Where it rises, an arm memorises. One pass draws every training clip"
        " once, even if an arm sees only a part of each clip.",
        draw_passes,
        (curves,),
    )
    caption = (
        "Means over seeds. Validation cross-entropy (val CE) is measured at every rung. If the best one comes before"
        " the last pass, the passes after it made the arm worse on held-out clips."
    )
    shown = Table("passes", "Passes over the training clips", columns, groups, caption if groups else "", data=table)
    return Section("passes", "Passes over the data", tables=[shown], figures=[figure])


def passes_table(evidence: Evidence, curves: Curves) -> pd.DataFrame:
    """One row for each arm and budget with known passes: how many, the best and the last validation cross-entropy (none
    for arms that cannot score a whole clip), and the final quality.
    """
    rows = []
    for result in (one.result for one in evidence.own_comparisons):
        passes = [_passes(row) for row in result.runs.to_dict("records")]
        points = curves.get(result.budget, {}).get(result.arm, [])
        best = min(points, key=lambda point: point[1], default=(math.nan, math.nan))
        last = points[-1][1] if points else math.nan
        if passes and all(map(math.isfinite, passes)):
            mean = mean_interval(list(result.values.values()))
            told = [result.budget, result.arm, len(passes), sum(passes) / len(passes), best[1], best[0], last]
            rows.append([*told, *(mean if evidence.quality is FVD else ())])
    return pd.DataFrame(rows, columns=[*COLUMNS, *(FVD.ends if evidence.quality is FVD else ())])


def _passes(row: Mapping[object, object]) -> float:
    """Passes of a run. For a run of an earlier version, they follow from its settings."""
    told, steps, batch, clips = (
        float(value) if isinstance(value := row.get(key), int | float) else math.nan
        for key in ("passes", "steps", "training.batch_size", "data.train_clips")
    )
    return told if math.isfinite(told) else steps * batch / clips


def draw_passes(curves: Curves) -> Drawing | None:
    """Validation cross-entropy over passes, a panel a budget."""
    from reco_tune.reporting.line_figure import LOSS_LABEL, line_figure

    lines = {f"{budget}/{arm}": list(points) for budget, arms in curves.items() for arm, points in arms.items()}
    panels = {BUDGETS[budget].title: [f"{budget}/{arm}" for arm in arms] for budget, arms in curves.items()}
    return line_figure(lines, "passes over the training clips", LOSS_LABEL, panels)
