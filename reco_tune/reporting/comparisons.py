"""Compares every arm with the baseline of its budget: means over training seeds, paired differences, and a verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from reco_tune import quantities
from reco_tune.errors import ComparisonError
from reco_tune.reporting.aggregate import (
    LEVEL,
    Difference,
    Estimate,
    holm,
    mean_interval,
    needed_seeds,
    paired_difference,
)
from reco_tune.reporting.budgets import WHOLE, at_budget, reference
from reco_tune.reporting.quality import FVD, Quality, quality_of
from reco_tune.reporting.runs import IMPORTED, arm_order
from reco_tune.settings import BASELINE, SEARCH

CLIP = tuple(one.name for one in (quantities.CLIP_SCORE, quantities.CLIP_SCORE_LOW, quantities.CLIP_SCORE_HIGH))
"""Columns of ablation.csv where CLIP scores were measured."""
DETAILS = ("pairs", "verdict")
"""Columns for people only: the number of seeds that a row shares with the baseline, and the `standing`."""
ONE_SEED = " (1 seed)"
"""Suffix of a verdict that rests on one training seed. Another seed may reverse it."""
MOST_SEEDS = 12
"""If more seeds than this are needed, the arms are reported as too close to tell apart."""
_MEANS = (
    "speedup",
    "speedup_low",
    "speedup_high",
    "speedup_limit",
    "limit_fraction",
    "peak_memory_ratio",
    "gpu_hours",
    "val_cross_entropy",
)


def columns(quality: Quality, clip: bool = False) -> list[str]:
    """Columns of ablation.csv.

    Args:
        clip: whether CLIP scores were measured.
    """
    means = [name for name in _MEANS if name != quality.key]
    words = CLIP if clip else ()
    return ["budget", "arm", "seeds", *quality.ends, quality.delta, quality.p_value, *words, *means, "protocol"]


def estimates(runs: pd.DataFrame, quantity: quantities.Quantity) -> dict[int, Estimate]:
    """Measured values by training seed, with their sampling intervals where the quantity has one."""
    names = [
        quantity.name,
        *(f"{quantity.name}_{end}" if f"{quantity.name}_{end}" in runs else None for end in ("low", "high")),
    ]
    found = [runs[name].astype(float) if name else [math.nan] * len(runs) for name in names]
    return {
        int(seed): Estimate(*values)
        for seed, *values in zip(runs["seed"], *found, strict=True)
        if math.isfinite(values[0])
    }


@dataclass(frozen=True)
class ArmResult:
    """One arm at one budget."""

    budget: str
    arm: str
    runs: pd.DataFrame
    values: dict[int, Estimate]
    """Quality (`quality`) by training seed."""
    means: dict[str, float]
    """Means over the runs of values without an interval of their own."""

    @property
    def protocol(self) -> str:
        return str(self.runs["protocol"].iloc[0])

    def mean(self, seeds: Set[int] | None = None) -> float:
        """Mean quality over training seeds, all of them or these."""
        values = [run.value for seed, run in self.values.items() if seeds is None or seed in seeds]
        return sum(values) / len(values)


Results = Mapping[tuple[str, str], ArmResult]
"""By (budget, arm)."""


class Comparison(NamedTuple):
    """One arm at one budget, compared with the baseline."""

    result: ArmResult
    difference: Difference | None
    """Difference to the baseline. None for the baseline itself, and if the two share no seed."""
    p_value: float
    """P-value of the difference, with Holm's correction over the arms of the budget; NaN at one seed."""
    baseline: str

    @property
    def pairs(self) -> int:
        """Seeds that both have."""
        return self.difference.seeds if self.difference else 0

    @property
    def imported(self) -> bool:
        return self.result.arm.endswith(IMPORTED)

    @property
    def standing(self) -> str:
        return standing(self.difference, self.p_value)


def arm_results(kept: pd.DataFrame, budgets: Sequence[str]) -> dict[tuple[str, str], ArmResult]:
    """Results by (budget, arm), with budgets in the given order and arms in the order of the space file. Sampled runs
    are not arms.

    Args:
        kept: the comparable runs (`runs.comparable`).
        budgets: of the study.
    """
    results = {}
    fixed = kept[kept["arm"] != SEARCH]
    for budget in budgets:
        rows = fixed[at_budget(fixed["budget"], budget)]
        groups = {arm: rows[rows["arm"] == arm] for arm in arm_order(kept)}
        if reference(budget) == WHOLE:
            groups = {WHOLE: fixed[(fixed["arm"] == BASELINE) & (fixed["budget"] == "both")], **groups}
        for arm, runs in groups.items():
            if len(runs):
                results[budget, arm] = _result(budget, arm, runs)
    return results


def comparisons(results: Results, runs: pd.DataFrame, baseline: str = BASELINE) -> list[Comparison]:
    """The comparison of every arm with the baseline of its budget, in the order of the results.

    Raises:
        ComparisonError: if no run is of the requested baseline.
    """
    if baseline != BASELINE and baseline not in set(runs["arm"]):
        raise ComparisonError(
            f"no run is of the arm `{baseline}`, so it cannot be the baseline; take one of {', '.join(arm_order(runs))}"
        )
    found: list[Comparison] = []
    for budget in dict.fromkeys(budget for budget, _ in results):
        group = [result for result in results.values() if result.budget == budget]
        compared = reference(budget, baseline)
        against = results[budget, compared].values if (budget, compared) in results else {}
        differences = [
            None if result.arm == compared else paired_difference(result.values, against) for result in group
        ]
        p_values = holm([difference.p_value if difference else math.nan for difference in differences])
        found += [Comparison(*one, compared) for one in zip(group, differences, p_values, strict=True)]
    return found


class Unresolved(NamedTuple):
    """An arm that is not resolved against the baseline at one budget."""

    budget: str
    arm: str
    needed: int | None
    """Training seeds of both arms that find a difference of the measured size with 80% power, with Holm's correction
    over the arms of the budget. None for more than `MOST_SEEDS`.
    """
    difference: Difference


def unresolved(compared: Sequence[Comparison]) -> list[Unresolved]:
    """Arms of the study that cannot be told from their baseline, in order. Empty if everything is resolved."""
    compared = [one for one in compared if one.difference]
    beside = Counter(one.result.budget for one in compared)
    return [
        Unresolved(
            one.result.budget,
            one.result.arm,
            needed_seeds(one.difference, MOST_SEEDS, beside[one.result.budget]),
            one.difference,
        )
        for one in compared
        if one.difference and one.standing == "not resolved" and not one.imported
    ]


def standing(difference: Difference | None, p_value: float, better: str = "better", worse: str = "worse") -> str:
    """Verdict on a difference to the baseline: `worse` above zero, `better` below, or not resolved. Empty without a
    difference.

    Args:
        p_value: with Holm's correction. If there is none (one seed), the interval decides, and the verdict says so.
    """
    if difference is None:
        return ""
    known = math.isfinite(p_value)
    if not (p_value < LEVEL if known else difference.resolved):
        return "not resolved"
    return (worse if difference.delta > 0 else better) + ("" if known else ONE_SEED)


def ablation_rows(compared: Sequence[Comparison], quality: Quality = FVD) -> pd.DataFrame:
    """One row for each arm and budget, with `columns` and `DETAILS`. The baseline has a row under every budget.

    Under a share of its compute, the baseline has two rows: its run at that share, and its whole run (`budgets.WHOLE`).
    Differences at that budget are to the whole run.

    `fvd` (or the metric of `quality`) is the mean over training seeds. Its interval is the run's own sampling interval
    with one seed, and a t interval over seeds with more (`aggregate.mean_interval`). `fvd_delta` is paired with the
    baseline by seed. `fvd_p_value` is from its t test, with Holm's correction over the arms of the budget; it is empty
    with one seed. `verdict` (better, worse, not resolved) follows from that p-value, or from the interval with one
    seed. `clip_score` and its interval are there if it was measured. All other columns are means over the runs.
    """
    rows = [_row(one, quality) for one in compared]
    clip = any(CLIP[0] in row for row in rows)
    table = pd.DataFrame(rows, columns=[*columns(quality, clip), *DETAILS])
    return table.astype({"seeds": int, "pairs": int})


def best_row(rows: pd.DataFrame) -> int | None:
    """Position of the lowest quality (`quality_of`) if its interval overlaps no other row's; None if the best is not
    resolved.
    """
    if len(rows) < 2:
        return None
    values, lows, highs = (rows[name].to_numpy() for name in quality_of(rows).ends)
    order = values.argsort(kind="stable")
    return int(order[0]) if bool((highs[order[0]] < lows[order[1:]]).all()) else None


def _result(budget: str, arm: str, runs: pd.DataFrame) -> ArmResult:
    own = (runs[name] for name in ("seed", *quality_of(runs).ends))
    values = {
        int(seed): Estimate(float(value), float(low), float(high)) for seed, value, low, high in zip(*own, strict=True)
    }
    return ArmResult(budget, arm, runs, values, {name: float(runs[name].mean()) for name in _MEANS})


def _row(one: Comparison, quality: Quality) -> dict[str, object]:
    result, difference = one.result, one.difference
    mean = mean_interval(list(result.values.values()))
    scores = list(estimates(result.runs, quantities.CLIP_SCORE).values())
    told = dict(zip(CLIP, mean_interval(scores, -math.inf), strict=True)) if scores else {}
    own = 0.0 if result.arm == one.baseline else math.nan
    return {
        "budget": result.budget,
        "arm": result.arm,
        "seeds": len(result.values),
        **result.means,
        **dict(zip(quality.ends, mean, strict=True)),
        quality.delta: difference.delta if difference else own,
        quality.p_value: one.p_value,
        **told,
        "protocol": result.protocol,
        "pairs": one.pairs,
        "verdict": one.standing,
    }
