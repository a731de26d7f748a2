"""The ablation table: arms in the order of the space file, means over training seeds, differences to the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from reco_tune.errors import ComparisonError
from reco_tune.reporting.aggregate import (
    LEVEL,
    Difference,
    Measured,
    holm,
    mean_interval,
    paired_difference,
    sign_flip_floor,
)
from reco_tune.reporting.runs import (
    SEARCH,
    WHOLE,
    arm_order,
    at_budget,
    budget_order,
    comparable,
    exclusions,
    measured_with,
    own_runs,
    reference,
)
from reco_tune.settings import BASELINE

COLUMNS = (
    "budget",
    "arm",
    "seeds",
    "fvd",
    "fvd_low",
    "fvd_high",
    "fvd_delta",
    "fvd_p_value",
    "speedup",
    "speedup_low",
    "speedup_high",
    "speedup_limit",
    "limit_fraction",
    "peak_memory_ratio",
    "gpu_hours",
    "val_cross_entropy",
    "protocol",
)
"""Columns of ablation.csv."""
DETAILS = ("pairs", "verdict")
"""What tables for people say beside them: seeds that a row shares with the baseline, and in words what became of the
comparison.
"""
ONE_SEED = " (1 seed)"
"""Ends a word that holds for one training seed: another may turn it round."""
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


@dataclass(frozen=True)
class ArmResult:
    """One arm at one budget: its runs by training seed."""

    budget: str
    arm: str
    fvd: dict[int, Measured]
    means: dict[str, float]
    """Means over the runs of what needs no interval of its own."""
    protocol: str


class Comparison(NamedTuple):
    """One arm at one budget beside what it is compared with."""

    result: ArmResult
    difference: Difference | None
    """To the baseline; None for the baseline itself, and where the two share no seed."""
    p_value: float
    """Of it, with Holm's correction over the arms of the budget; NaN at one seed."""
    baseline: str

    @property
    def pairs(self) -> int:
        """Seeds that both have."""
        return self.difference.seeds if self.difference else 0

    @property
    def verdict(self) -> str:
        return standing(self.difference, self.p_value)


def ablation_table(runs: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """`ablation_rows` without `DETAILS`: what ablation.csv holds."""
    return ablation_rows(runs, baseline)[list(COLUMNS)]


def ablation_rows(runs: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """One row an arm and budget with `COLUMNS` and `DETAILS`; the baseline stands under every budget, under
    `half_compute` with its run at half and its whole run (`runs.WHOLE`), which the differences of that budget are taken
    to.

    `fvd` is the mean over training seeds; its interval is the run's own sampling interval at one seed, a t interval
    over seeds at more (`aggregate.mean_interval`). `fvd_delta` is paired with the baseline by seed; `fvd_p_value` is
    its t test with Holm's correction over the arms of the budget, empty at one seed; `verdict` (better, worse, not
    resolved) is what that p-value says, at one seed the interval. The other columns are means over the runs.
    `caption(runs)` says the same in words.

    Raises:
        ComparisonError: where the runs were not evaluated under one protocol, or none is of the baseline that was asked
            for.
    """
    table = pd.DataFrame([_row(one) for one in comparisons(runs, baseline)], columns=[*COLUMNS, *DETAILS])
    return table.astype({"seeds": int, "pairs": int})


def comparisons(runs: pd.DataFrame, baseline: str = BASELINE) -> list[Comparison]:
    """Every arm beside the baseline of its budget, in the order of `arm_results`.

    Raises:
        ComparisonError: as `ablation_rows`.
    """
    if baseline != BASELINE and baseline not in set(runs["arm"]):
        raise ComparisonError(
            f"no run is of the arm `{baseline}`, so it cannot be the baseline; take one of {', '.join(arm_order(runs))}"
        )
    results = arm_results(runs)
    found: list[Comparison] = []
    for budget in budget_order(runs):
        group = [result for result in results.values() if result.budget == budget]
        compared = reference(budget, baseline)
        against = results[budget, compared].fvd if (budget, compared) in results else {}
        differences = [None if result.arm == compared else paired_difference(result.fvd, against) for result in group]
        p_values = holm([difference.p_value if difference else math.nan for difference in differences])
        found += [Comparison(*one, compared) for one in zip(group, differences, p_values, strict=True)]
    return found


def standing(difference: Difference | None, p_value: float, better: str = "better", worse: str = "worse") -> str:
    """In words what a difference to the baseline says: `worse` above zero, `better` below, or not resolved; empty
    without a difference.

    Args:
        p_value: corrected for the comparisons beside it; where there is none (one seed), the interval decides, and the
            word says so.
    """
    if difference is None:
        return ""
    known = math.isfinite(p_value)
    if not (p_value < LEVEL if known else difference.resolved):
        return "not resolved"
    return (worse if difference.delta > 0 else better) + ("" if known else ONE_SEED)


def arm_results(runs: pd.DataFrame) -> dict[tuple[str, str], ArmResult]:
    """What may be compared, by (budget, arm): budgets in their order, arms in the space file's; sampled runs are no
    arm.
    """
    results = {}
    for budget, arm, group in arm_runs(runs):
        fvd = {
            int(seed): Measured(float(value), float(low), float(high))
            for seed, value, low, high in zip(
                group["seed"], group["fvd"], group["fvd_low"], group["fvd_high"], strict=True
            )
        }
        means = {name: float(group[name].mean()) for name in _MEANS}
        results[budget, arm] = ArmResult(budget, arm, fvd, means, str(group["protocol"].iloc[0]))
    return results


def arm_runs(runs: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(budget, arm, its runs) of what may be compared, in the order of `arm_results`."""
    kept = comparable(runs)
    kept = kept[kept["arm"] != SEARCH]
    for budget in budget_order(runs):
        rows = kept[at_budget(kept["budget"], budget)]
        groups = {arm: rows[rows["arm"] == arm] for arm in arm_order(runs)}
        if reference(budget) == WHOLE:
            groups = {WHOLE: kept[(kept["arm"] == BASELINE) & (kept["budget"] == "both")], **groups}
        yield from ((budget, arm, group) for arm, group in groups.items() if len(group))


def left_out(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """(trial, why) of every fixed-arm run that the table leaves out; it is listed below the table, never dropped in
    silence.
    """
    reasons = exclusions(runs)
    return [
        (trial, why)
        for trial, arm, why in zip(runs["trial"], runs["arm"], reasons, strict=True)
        if why and arm != SEARCH
    ]


def caption(runs: pd.DataFrame, baseline: str = BASELINE) -> str:
    """Which variance the intervals hold, how the p-values are made, the smallest effect that could have been detected,
    and the origin.
    """
    own = own_runs(runs)
    found = comparisons(own, baseline)
    if not found:
        return "No arm has been evaluated yet."
    seeds, pairs = max(len(one.result.fvd) for one in found), max(one.pairs for one in found)
    if seeds <= 1:
        text = (
            "One training seed: intervals hold sampling noise only (which clips were generated), not the noise of the"
            " training seed, and there is no p-value."
        )
    else:
        text = (
            f"Means over up to {seeds} training seeds; 95% t intervals over seeds, whose spread already contains"
            " sampling noise (and is taken to be no less than it; an arm at one seed has its sampling interval)."
            f" Differences are paired with `{baseline}` by seed"
        )
        text += (
            "; no arm shares two seeds with it, so there is no p-value."
            if pairs < 2
            else (
                "; p-values are t tests of the seeds' differences, corrected by Holm over the arms of a budget, and"
                " decide the words. They trust that differences are normal: a sign-flip test, which trusts nothing,"
                f" could not give less than {sign_flip_floor(pairs):.2g} here."
            )
        )
    if fewer := [
        f"{one.result.arm} {one.result.budget.replace('_', ' ')} ({one.pairs} of {len(one.result.fvd)})"
        for one in found
        if 0 < one.pairs < len(one.result.fvd)
    ]:
        text += (
            " Differences that rest on fewer seeds than the mean beside them, because the baseline lacks some:"
            f" {', '.join(fewer)}."
        )
    if "half_compute" in budget_order(runs) and baseline == BASELINE:
        text += f" At half the compute, differences are taken to `{BASELINE}` at its whole budget."
    for budget in budget_order(runs):
        text += _detectable([one for one in found if one.result.budget == budget])
    if any(value is True for value in runs["rank_deficient"]):
        text += (
            " Generated or real clips are no more than the extractor's features, so covariances lack rank: these FVDs"
            " mean little."
        )
    return f"{text} {measured_with(comparable(own))}"


def _detectable(found: Sequence[Comparison]) -> str:
    """Of the arms of one budget."""
    text = ""
    for alone, noise in ((False, ""), (True, ", before training-seed noise,")):
        known = [one.difference.detectable for one in found if one.difference and (one.pairs == 1) == alone]
        if values := [value for value in known if math.isfinite(value)]:
            reach = f"{min(values):.2f} to {max(values):.2f}, by arm" if len(values) > 1 else f"{values[0]:.2f}"
            budget, baseline = found[0].result.budget.replace("_", " "), found[0].baseline
            text += (
                f" At {budget} the smallest FVD difference to `{baseline}` that a test by itself, uncorrected, finds"
                " with 80% power"
            )
            text += f"{noise} is {reach}."
    return text


def _row(one: Comparison) -> dict[str, object]:
    result, difference = one.result, one.difference
    fvd = mean_interval(list(result.fvd.values()))
    own = 0.0 if result.arm == one.baseline else math.nan
    return {
        "budget": result.budget,
        "arm": result.arm,
        "seeds": len(result.fvd),
        "fvd": fvd.value,
        "fvd_low": fvd.low,
        "fvd_high": fvd.high,
        "fvd_delta": difference.delta if difference else own,
        "fvd_p_value": one.p_value,
        **result.means,
        "protocol": result.protocol,
        "pairs": one.pairs,
        "verdict": one.verdict,
    }
