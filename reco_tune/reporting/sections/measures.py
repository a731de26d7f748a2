"""Other measures than FVD, by arm: means over training seeds with their intervals, and their difference to the
baseline.

FVD hardly reacts to damaged motion and does not show why a model fails. So no claim rests on FVD alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from reco_tune import quantities as q
from reco_tune.reporting.aggregate import Estimate, holm, mean_interval, paired_difference
from reco_tune.reporting.budgets import BUDGETS, reference
from reco_tune.reporting.comparisons import ONE_SEED, Results, estimates, standing
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import significant
from reco_tune.reporting.quality import FVD, quality_of
from reco_tune.reporting.section import Column, RowGroup, Section, Table, records, text_column

BESIDE_FVD = (
    q.FVD_HELDOUT,
    q.COPY_RATE,
    q.KERNEL_DISTANCE,
    q.MOTION_DISTANCE,
    q.FLOW_UNEXPLAINED,
    q.CLIP_SCORE,
    q.CLASS_ACCURACY,
    q.LAST_FRAME_ACCURACY,
    q.PROMPT_DIGIT_ACCURACY,
    q.PROMPT_DIRECTION_ACCURACY,
    q.VAL_CROSS_ENTROPY,
)
"""Measures of the generated clips, and of the model on real ones."""
ANALYSES = (
    q.FIRST_FRAME_GAP,
    q.ERROR_GROWTH_RATE,
    q.ERROR_GROWTH_SLOPE,
    q.ERROR_GROWTH_AIC,
    *q.STEPS_OF_H,
)
"""Analyses of failures: the first-frame gap, the growth of errors, the steps of h."""
COLUMNS = ("budget", "arm", "measure", "seeds", "value", "low", "high", "delta", "delta_low", "delta_high", "verdict")
"""Columns of measures.csv."""
_SHARES = {
    q.COPY_RATE,
    q.CLASS_ACCURACY,
    q.LAST_FRAME_ACCURACY,
    q.PROMPT_DIGIT_ACCURACY,
    q.PROMPT_DIRECTION_ACCURACY,
}
"""Never above 1."""
NOTE = (
    "Means over training seeds with 95% t intervals. (With one seed, only some measures have an interval. It"
    " contains sampling noise only.) Better and worse compare with the baseline: t tests of differences paired by seed,"
    " with Holm's correction over the arms of a budget, separately for each measure. A value without such a word is not"
    " resolved."
)
NOTE_OF_LAWS = (
    "The law of error growth (exponential or linear) is the one whose AIC is lower by at least 2. With two or more"
    " seeds, the interval of the AIC difference must also exclude 0. A step of h is the root mean square difference of"
    " h between neighbouring tokens, or between the same place in adjacent frames. Columns with / |h| divide it by the"
    " size of h. If h only shrinks, its steps shrink too, but not these columns."
)


def build(evidence: Evidence) -> Section:
    table = measures_table(evidence.results)
    title = "Other measures"
    beside = _table(title, table, BESIDE_FVD, NOTE)
    note = NOTE_OF_LAWS if beside.groups else f"{NOTE} {NOTE_OF_LAWS}"
    analyses = _table("First-frame gap, error growth and steps of h", table, ANALYSES, note)
    return Section(
        "beside",
        title,
        "FVD is almost blind to damaged motion and says nothing about single frames."
        if len(table) and evidence.quality is FVD
        else "",
        [Table("measures", data=table), beside, analyses, Table("measures", remarks=[evidence.origin], files=("md",))],
    )


def measures_table(results: Results) -> pd.DataFrame:
    """One row for each budget, measured quantity and arm. `delta` is to the baseline of the budget; `verdict` says in
    words what it means.
    """
    rows: list[list[object]] = []
    for budget in dict.fromkeys(budget for budget, _ in results):
        arms = {result.arm: result.runs for result in results.values() if result.budget == budget}
        main = {quality_of(runs).key for runs in arms.values()}  # which the ablation table holds
        for quantity in (one for one in (*BESIDE_FVD, *ANALYSES) if one.name not in main):
            known = {arm: values for arm, own in arms.items() if (values := estimates(own, quantity))}
            rows += [[budget, arm, quantity.name, *row] for arm, row in _rows(known, reference(budget), quantity)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def growth_law(value: float, low: float, high: float) -> str:
    """The law of error growth, from the mean difference of AIC (`quantities.ERROR_GROWTH_AIC`) and its interval over
    seeds, if any.
    """
    if abs(value) < q.RESOLVED_AIC or low <= 0 <= high:
        return "not resolved"
    return ("exponential" if value > 0 else "linear") + ("" if math.isfinite(low) else ONE_SEED)


def _rows(
    arms: Mapping[str, Mapping[int, Estimate]], baseline: str, quantity: q.Quantity
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
            list(arms[arm].values()),
            -math.inf if quantity in q.SIGNED else 0.0,
            1.0 if quantity in _SHARES else math.inf,
        )
        ends = (difference.delta, difference.low, difference.high) if difference else (math.nan,) * 3
        told = [end if math.isfinite(end) else math.nan for end in ends]
        yield arm, [len(arms[arm]), *mean, *told, standing(difference, p_value, *words)]


def _table(title: str, table: pd.DataFrame, kind: Sequence[q.Quantity], note: str) -> Table:
    """A table of one kind of measure, for people: grouped by budget, an arm in each row, a measure in each column."""
    groups, own = [], table[table["measure"].isin([quantity.name for quantity in kind])]
    for budget, part in own.groupby("budget", sort=False):
        cells = {(row["arm"], row["measure"]): row for row in records(part)}
        rows: list[dict[str, Any]] = []
        for arm in dict.fromkeys(part["arm"]):
            aic = cells.get((arm, q.ERROR_GROWTH_AIC.name))
            law = growth_law(aic["value"], aic["low"], aic["high"]) if aic else ""
            rows.append({"arm": arm, "law": law, **{one.name: cells.get((arm, one.name)) for one in kind}})
        groups.append(RowGroup(BUDGETS[str(budget)].title, rows))
    columns = [text_column("arm", "arm")]
    columns += [_measure_column(quantity) for quantity in kind if quantity is not q.ERROR_GROWTH_AIC]
    columns += [Column("law", "law of error growth", lambda row: str(row["law"]), "text", optional=True)]
    return Table("measures", title, columns, groups, note if groups else "", files=("md",))


def _measure_column(quantity: q.Quantity) -> Column:
    name = quantity.name
    return Column(
        name,
        quantity.heading,
        lambda row: measure_cell(row[name]),
        optional=True,
        markup=lambda row: _measure_markup(row[name]),
    )


def measure_cell(row: Mapping[str, Any] | None) -> str:
    """A value, its interval and its verdict in one line; empty if it was not measured."""
    return " ".join(part for part in _parts(row) if part)


def _measure_markup(row: Mapping[str, Any] | None) -> Markup:
    value, ends, word = _parts(row)
    told = Markup(' <span class="when">{}</span>').format(word) if word else ""
    return Markup("{}{}{}").format(
        value, told, Markup('<br><span class="range">{}</span>').format(ends) if ends else ""
    )


def _parts(row: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """A value with three digits, its interval, and its verdict against the baseline. Missing parts are empty."""
    if row is None:
        return "", "", ""
    value, low, high = (significant(row[name]) for name in ("value", "low", "high"))
    ends = f"[{low}, {high}]" if math.isfinite(row["low"]) else ""
    return value, ends, "" if row["verdict"] == "not resolved" else row["verdict"]
