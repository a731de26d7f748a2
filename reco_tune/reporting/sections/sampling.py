"""How other settings of `sampling` change each arm: quality and speed of the study's models, scored again, beside their
own.
"""

from __future__ import annotations

import math

import pandas as pd

from reco_tune import quantities as q
from reco_tune.reporting.aggregate import Estimate, mean_interval
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.section import (
    Section,
    Table,
    budget_groups,
    interval_column,
    number_column,
    text_column,
)
from reco_tune.study_log import SAMPLED, SAMPLING_SPEEDUP, RunRecord

COLUMNS = (
    *("budget", "arm", "sampling", "seeds", "fvd_own", "fvd", "fvd_low", "fvd_high"),
    *("fvd_delta", "fvd_delta_low", "fvd_delta_high", "sampling_speedup"),
)


def build(evidence: Evidence) -> Section:
    table = sampling_table(evidence)
    if table.empty:
        return Section("sampling", "Cheaper sampling")
    columns = (
        text_column("arm", "arm"),
        text_column("sampling", "sampled with"),
        text_column("seeds", "seeds", "count"),
        number_column("fvd_own", "FVD as trained for ↓"),
        number_column("fvd", "FVD ↓"),
        interval_column("fvd"),
        number_column("fvd_delta", "Δ"),
        interval_column("fvd_delta"),
        number_column("sampling_speedup", "speed-up of sampling (x) ↑"),
    )
    groups = budget_groups(table)
    caption = (
        "The same models under the same protocol, sampled as the study did and with other settings. Differences are"
        " paired by seed; their 95% intervals are over seeds and are never taken to be smaller than the sampling noise"
        " of both sides. Speeds are of both ways of sampling, in turn, in one process."
    )
    return Section(
        "sampling",
        "Cheaper sampling",
        tables=[Table("sampling", "Arms and ways of sampling", columns, groups, caption, data=table)],
    )


def sampling_table(evidence: Evidence) -> pd.DataFrame:
    """One row for each arm, budget and way of sampling. The protocol differs from the study's only in sampling."""
    pairs: dict[tuple[str, str, str], list[tuple[RunRecord, dict[str, float], float]]] = {}
    for run in evidence.study.runs.values():
        own = str(run.provenance.get("protocol", ""))
        for protocol, score in run.rescored.items():
            judged, _, sampling = protocol.partition(SAMPLED)
            if (
                sampling
                and judged == own
                and not run.tunes
                and run.arm in evidence.study.arms
                and q.FVD.name in score["metrics"]
            ):
                speed = float(score["provenance"].get(SAMPLING_SPEEDUP, math.nan))
                budget = "equal_steps" if run.budget == "both" else run.budget
                pairs.setdefault((budget, run.arm, sampling), []).append((run, score["metrics"], speed))
    rows = []
    for (budget, arm, sampling), found in pairs.items():
        own_N, other_N = [_fvd(run.metrics) for run, *_ in found], [_fvd(metrics) for _, metrics, _ in found]
        deltas = [_difference(one, other) for one, other in zip(own_N, other_N, strict=True)]
        speed = sum(speed for *_, speed in found) / len(found)
        means = mean_interval(own_N).value, *mean_interval(other_N), *mean_interval(deltas, floor=-math.inf)
        rows.append((budget, arm, sampling, len(found), *means, speed))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _fvd(metrics: dict[str, float]) -> Estimate:
    low, high = (metrics.get(f"{q.FVD.name}{end}", math.nan) for end in ("_low", "_high"))
    return Estimate(metrics[q.FVD.name], low, high)


def _difference(own: Estimate, other: Estimate) -> Estimate:
    value = other.value - own.value
    half = math.hypot(own.high - own.value, other.high - other.value)
    return Estimate(value, value - half, value + half)
