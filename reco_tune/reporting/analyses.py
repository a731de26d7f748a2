"""Tables behind the single questions that the scripts in analysis/ ask: λ, window and stride, curves by frame, several studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from reco_tune.reporting.ablation import ablation_table
from reco_tune.reporting.curves import arm_curves
from reco_tune.reporting.runs import BUDGETS, WHOLE, arm_order, budget_order, comparable
from reco_tune.study_log import StudyRecord


def lambda_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Windowed runs by λ: budget, arm, seed, reduction, FVD with interval, validation cross-entropy, raw continuity term, mean h²."""
    kept = comparable(runs)
    rows = kept[kept["window.scheme"] == "window"]
    keys = ["budget", "objective.continuity_weight", "objective.continuity_reduction", "arm", "trial", "seed"]
    values = ["fvd", "fvd_low", "fvd_high", "val_cross_entropy", "continuity", "hidden_norm"]
    order = rows["objective.continuity_weight"].astype(float).to_numpy().argsort(kind="stable")
    return rows.iloc[order].sort_values("budget", ascending=False, kind="stable")[[*keys, *values]].reset_index(drop=True)


def window_stride_table(runs: pd.DataFrame, budget: str) -> pd.DataFrame:
    """Mean FVD and speed-up of windowed runs by window length and stride in tokens, and how many runs each mean holds."""
    kept = comparable(runs)
    rows = kept[(kept["window.scheme"] == "window") & (kept["budget"] == budget)]
    keys = ["window.length_tokens", "window.stride_tokens"]
    means = (
        rows.astype(dict.fromkeys(keys, int))
        .groupby(keys, as_index=False)
        .agg(runs=("fvd", "size"), fvd=("fvd", "mean"), speedup=("speedup", "mean"))
    )
    return means.sort_values(keys, kind="stable").reset_index(drop=True)


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


def comparison_table(studies: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The ablation rows of several studies below each other by budget and arm, their runs under one protocol.

    Raises:
        ComparisonError: where the studies differ in protocol or data; it names the knob.
    """
    together = pd.concat(studies.values(), ignore_index=True)
    comparable(together)
    parts = []
    for name, runs in studies.items():
        table = ablation_table(runs)
        table.insert(0, "study", name)
        parts.append(table)
    table = pd.concat(parts, ignore_index=True)
    budgets = {budget: number for number, budget in enumerate(budget_order(together))}
    arms = {arm: number for number, arm in enumerate([WHOLE, *arm_order(next(iter(studies.values()))), *arm_order(together)])}
    order = sorted(range(len(table)), key=lambda row: (budgets[table["budget"][row]], arms[table["arm"][row]], row))
    return table.iloc[order].reset_index(drop=True)


def study_name(source: str) -> str:
    """What a study is called in a table: its folder's or experiment's name."""
    return source.removeprefix("mlflow:") if source.startswith("mlflow:") else Path(source).resolve().name
