"""Whether an arm's clips are new: FVD against training and against held-out clips, and the share of copies. Measured if
`evaluation.reference_split` is `both`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from reco_tune import quantities as q
from reco_tune.reporting.aggregate import Estimate, mean_interval
from reco_tune.reporting.budgets import BUDGETS
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import number, quoted
from reco_tune.reporting.section import (
    Column,
    Row,
    Section,
    Table,
    budget_groups,
    interval_column,
    number_column,
    records,
    text_column,
)

NEW_SHARE = 0.05
"""Share of new clips that count as copies by definition."""
_VALUES = (q.FVD.name, q.FVD_HELDOUT.name, q.COPY_RATE.name)
COLUMNS = ("budget", "arm", "seeds", *(f"{name}{end}" for name in _VALUES for end in ("", "_low", "_high")))


def build(evidence: Evidence) -> Section:
    table = memorising_table(evidence)
    if table.empty:
        return Section("memorising", "Memorising")
    columns = (
        text_column("arm", "arm"),
        number_column("fvd", "FVD, training clips ↓"),
        interval_column("fvd"),
        number_column("fvd_heldout", "FVD, held-out clips ↓"),
        interval_column("fvd_heldout"),
        Column("copy_rate", "copy rate ↓", lambda row: _percent(row["copy_rate"])),
        Column("copy_rate_interval", "95% interval", _copy_interval, "interval"),
    )
    groups = budget_groups(table)
    caption = (
        "Means over seeds. Both FVDs use the same number of real clips. A generated clip counts as a copy if it is"
        " nearer to a training clip than 95% of held-out clips are. A model that copies nothing has a copy rate of"
        " about 5%. Copies lower the FVD against training clips, not the FVD against held-out clips."
    )
    return Section(
        "memorising",
        "Memorising",
        tables=[Table("memorising", "Training and held-out clips", columns, groups, caption, data=table)],
        words=[words for row in records(table) if (words := _words(row))],
    )


def memorising_table(evidence: Evidence) -> pd.DataFrame:
    """One row for each arm and budget with both references."""
    rows = []
    for result in (one.result for one in evidence.own_comparisons):
        runs = result.runs
        if q.COPY_RATE.name not in runs or runs[q.COPY_RATE.name].isna().any():
            continue
        told: list[Any] = [result.budget, result.arm, len(runs)]
        for name in _VALUES:
            ends = (runs[f"{name}{end}"].astype(float) for end in ("", "_low", "_high"))
            ceiling = 1.0 if name == q.COPY_RATE.name else math.inf
            told += mean_interval([Estimate(*values) for values in zip(*ends, strict=True)], ceiling=ceiling)
        rows.append(told)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _words(row: Mapping[str, Any]) -> str:
    if row["copy_rate_low"] <= NEW_SHARE:
        return ""
    train, heldout = number(row["fvd"]), number(row["fvd_heldout"])
    return (
        f"{quoted(row['arm'])} {BUDGETS[row['budget']].words} copies: {_percent(row['copy_rate'])}"
        f" {_copy_interval(row)} of its clips are nearer to a training clip than 95% of new clips are. Its FVD is"
        f" {train} against training clips and {heldout} against held-out clips."
    )


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def _copy_interval(row: Row) -> str:
    return f"[{_percent(row['copy_rate_low'])}, {_percent(row['copy_rate_high'])}]"
