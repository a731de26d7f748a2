"""What is measured beside FVD, by arm: means over training seeds with their intervals, and how they differ from the
baseline's.

FVD hardly sees damaged motion and says nothing of why a model fails: no claim rests on it alone. Computes, never draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pandas as pd

from reco_tune import quantities as q
from reco_tune.reporting.ablation import ONE_SEED, arm_runs, standing
from reco_tune.reporting.aggregate import Measured, holm, mean_interval, paired_difference
from reco_tune.reporting.runs import reference

BESIDE_FVD = (
    q.KERNEL_DISTANCE,
    q.MOTION_DISTANCE,
    q.FLOW_UNEXPLAINED,
    q.CLASS_ACCURACY,
    q.LAST_FRAME_ACCURACY,
    q.VAL_CROSS_ENTROPY,
)
"""Of the generated clips, and of the model on real ones."""
ANALYSES = (
    q.FIRST_FRAME_GAP,
    q.ERROR_GROWTH_RATE,
    q.ERROR_GROWTH_SLOPE,
    q.ERROR_GROWTH_AIC,
    *q.STEPS_OF_H,
)
"""Of where it goes wrong: the first-frame gap, the growth of errors, the steps of h."""
COLUMNS = ("budget", "arm", "measure", "seeds", "value", "low", "high", "delta", "delta_low", "delta_high", "verdict")
"""Columns of measures.csv."""
SIGNED = {q.KERNEL_DISTANCE, q.FIRST_FRAME_GAP, q.ERROR_GROWTH_RATE, q.ERROR_GROWTH_SLOPE, q.ERROR_GROWTH_AIC}
"""May lie below 0."""
_SHARES = {q.CLASS_ACCURACY, q.LAST_FRAME_ACCURACY}
"""Never above 1."""
NOTE = (
    "Means over training seeds with 95% t intervals (at one seed only the kernel distance has one, of its sampling"
    " noise). Words compare with the baseline, paired by seed, by t tests with Holm's correction over the arms of a"
    " budget, measure by measure; without a word nothing is resolved."
)
LAW_NOTE = (
    "The law of error growth is the one whose AIC is lower by 2 or more, from two seeds on with an interval that"
    " excludes 0. Steps of h are root mean squares of the differences between neighbouring tokens, or the same site of"
    " adjacent frames, raw and relative to |h|: scale alone shrinks the raw ones."
)


def measures_table(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a budget, measure and arm that was measured; `delta` is to the baseline of the budget, `verdict` what it
    says in words.

    Raises:
        ComparisonError: where the runs were not evaluated under one protocol.
    """
    rows: list[list[object]] = []
    for budget, groups in groupby(arm_runs(runs), key=lambda found: found[0]):
        arms = {arm: own for _, arm, own in groups}
        for quantity in (*BESIDE_FVD, *ANALYSES):
            known = {arm: values for arm, own in arms.items() if (values := _by_seed(own, quantity))}
            rows += [[budget, arm, quantity.name, *row] for arm, row in _rows(known, reference(budget), quantity)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


class Block(NamedTuple):
    """Measures of one kind at one budget, arms below each other."""

    budget: str
    measures: list[q.Quantity]
    """Those that any arm has, a column each."""
    rows: dict[str, list[Mapping[Any, Any] | None]]
    """Arm -> row of the table for each measure, None where it was not measured."""
    laws: dict[str, str]
    """Arm -> law by which errors grow; empty where that is no matter of these measures."""


def blocks(table: pd.DataFrame, kind: Sequence[q.Quantity]) -> list[Block]:
    """The rows of `measures_table` as tables for people, by budget."""
    found = []
    for budget, own in table[table["measure"].isin([quantity.name for quantity in kind])].groupby("budget", sort=False):
        cells = {(row["arm"], row["measure"]): row for row in own.to_dict("records")}
        measures = [
            quantity
            for quantity in kind
            if (own["measure"] == quantity.name).any() and quantity is not q.ERROR_GROWTH_AIC
        ]
        arms = list(dict.fromkeys(own["arm"]))
        aic = {arm: cells.get((arm, q.ERROR_GROWTH_AIC.name)) for arm in arms}
        laws = {arm: growth_law(row["value"], row["low"], row["high"]) for arm, row in aic.items() if row}
        found.append(
            Block(str(budget), measures, {arm: [cells.get((arm, one.name)) for one in measures] for arm in arms}, laws)
        )
    return found


def growth_law(value: float, low: float, high: float) -> str:
    """Which law errors grow by, from the mean difference of AIC (`quantities.ERROR_GROWTH_AIC`) and its interval over
    seeds, if any.
    """
    if abs(value) < q.RESOLVED_AIC or low <= 0 <= high:
        return "not resolved"
    return ("exponential" if value > 0 else "linear") + ("" if math.isfinite(low) else ONE_SEED)


def _rows(
    arms: Mapping[str, Mapping[int, Measured]], baseline: str, quantity: q.Quantity
) -> Iterator[tuple[str, list[object]]]:
    differences = {
        arm: None if arm == baseline else paired_difference(values, arms.get(baseline, {}))
        for arm, values in arms.items()
    }
    p_values = holm([one.p_value if one else math.nan for one in differences.values()])
    words = {"lower": ("better", "worse"), "higher": ("worse", "better"), "neither": ("lower", "higher")}[
        quantity.better
    ]
    for (arm, difference), p_value in zip(differences.items(), p_values, strict=True):
        mean = mean_interval(
            list(arms[arm].values()), -math.inf if quantity in SIGNED else 0.0, 1.0 if quantity in _SHARES else math.inf
        )
        ends = (difference.delta, difference.low, difference.high) if difference else (math.nan,) * 3
        told = [end if math.isfinite(end) else math.nan for end in ends]
        yield arm, [len(arms[arm]), *mean, *told, standing(difference, p_value, *words)]


def _by_seed(runs: pd.DataFrame, quantity: q.Quantity) -> dict[int, Measured]:
    """Values that were measured, with their sampling interval where the quantity has one."""
    names = [
        quantity.name,
        *(f"{quantity.name}_{end}" if f"{quantity.name}_{end}" in runs else None for end in ("low", "high")),
    ]
    columns = [runs[name].astype(float) if name else [math.nan] * len(runs) for name in names]
    return {
        int(seed): Measured(*values)
        for seed, *values in zip(runs["seed"], *columns, strict=True)
        if math.isfinite(values[0])
    }
