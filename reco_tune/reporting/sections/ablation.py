"""The ablation table: arms in the order of the space file, means over training seeds, differences to the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from reco_tune.reporting.aggregate import sign_flip_floor
from reco_tune.reporting.budgets import BUDGETS, meaning, reference
from reco_tune.reporting.comparisons import COLUMNS, Comparison, best_row
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.imported import file_names, origin_note
from reco_tune.reporting.numbers import hours, interval, number, p_value, quoted, signed
from reco_tune.reporting.paper import SOURCE, Reference
from reco_tune.reporting.render.scatter import interval_bar
from reco_tune.reporting.runs import exclusions
from reco_tune.reporting.section import (
    Column,
    Row,
    RowGroup,
    Section,
    Table,
    interval_column,
    number_column,
    records,
    text_column,
)
from reco_tune.settings import BASELINE, SEARCH

COLUMNS_FOR_PEOPLE = (
    text_column("arm", "arm"),
    text_column("seeds", "seeds", "count"),
    number_column("fvd", "FVD"),
    Column(
        "fvd_interval",
        "95% interval",
        interval_column("fvd").text,
        "interval",
        markup=lambda row: _drawn_interval(row),
    ),
    Column("fvd_delta", "Δ to baseline", lambda row: signed(row["fvd_delta"]), latex="$\\Delta$"),
    Column("fvd_p_value", "p", lambda row: p_value(row["fvd_p_value"]), "count", "$p$", optional=True),
    text_column("verdict", "verdict"),
    number_column("speedup", "speed-up"),
    interval_column("speedup"),
    number_column("speedup_limit", "limit"),
    number_column("limit_fraction", "of limit"),
    number_column("peak_memory_ratio", "memory"),
    Column("gpu_hours", "device h", lambda row: hours(row["gpu_hours"])),
    number_column("val_cross_entropy", "val CE", 3, latex="Val.\\ CE"),
)
LATEX = (
    "arm",
    "seeds",
    "fvd",
    "fvd_interval",
    "fvd_delta",
    "speedup",
    "speedup_limit",
    "val_cross_entropy",
    "fvd_p_value",
    "verdict",
    "fvd_paper",
    "speedup_paper",
)
"""Columns that a paper has room for."""
TERMINAL = (
    "arm",
    "seeds",
    "fvd",
    "fvd_interval",
    "fvd_delta",
    "fvd_p_value",
    "verdict",
    "speedup",
    "speedup_limit",
    "peak_memory_ratio",
    "val_cross_entropy",
)


def build(evidence: Evidence) -> Section:
    table = ablation_table(evidence)
    return Section("ablation", "Ablation", tables=[table])


def ablation_table(evidence: Evidence) -> Table:
    """The rows of `comparisons.ablation_rows`, a group a budget; beside them the paper's own where conditions match."""
    paper = evidence.paper
    bests = {(turn.budget, turn.arm): turn.best for turn in evidence.turns}
    best = Column("best_val_cross_entropy", "best val CE", lambda row: number(row["best"], 3), optional=True)
    columns = [*COLUMNS_FOR_PEOPLE, best, *(_paper_columns(paper) if paper else ())]
    return Table(
        "ablation",
        "Ablation",
        columns,
        _groups(evidence, bests),
        caption(evidence) + origin_note(file_names(evidence.imports)),
        [
            *_refused(evidence),
            *(turn.words for turn in evidence.turns),
            *([f"Columns of the paper: {SOURCE}, same data set and protocol."] if paper else []),
        ],
        left_out(evidence.runs),
        evidence.ablation[list(COLUMNS)],
        ("csv", "md", "tex"),
        LATEX,
        TERMINAL,
        mark=lambda row: "baseline" if row["arm"] == reference(row["budget"], evidence.baseline) else "",
    )


def _refused(evidence: Evidence) -> list[str]:
    """Arms that break a constraint of the search, in a sentence."""
    points = evidence.frontier.points
    rows = records(points[(points["infeasible"] != "") & (points["arm"] != SEARCH)])
    named = [f"{quoted(row['arm'])} {BUDGETS[row['budget']].words} ({row['infeasible']})" for row in rows]
    return [f"On no frontier, because a constraint of the search is broken: {'; '.join(named)}."] if rows else []


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


def caption(evidence: Evidence) -> str:
    """Which variance the intervals hold, how the p-values are made, the smallest effect that could have been detected,
    and the origin.
    """
    found, baseline = evidence.own_comparisons, evidence.baseline
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
        f"{quoted(one.result.arm)} {one.result.budget.replace('_', ' ')} ({one.pairs} of {len(one.result.fvd)})"
        for one in found
        if 0 < one.pairs < len(one.result.fvd)
    ]:
        text += (
            " Differences that rest on fewer seeds than the mean beside them, because the baseline lacks some:"
            f" {', '.join(fewer)}."
        )
    if "half_compute" in evidence.budgets and baseline == BASELINE:
        text += f" At half the compute, differences are taken to `{BASELINE}` at its whole budget."
    for budget in evidence.budgets:
        text += _detectable([one for one in found if one.result.budget == budget])
    if any(value is True for value in evidence.runs["rank_deficient"]):
        text += (
            " Generated or real clips are no more than the extractor's features, so covariances lack rank: these FVDs"
            " mean little."
        )
    return f"{text} {evidence.origin}"


def _detectable(found: Sequence[Comparison]) -> str:
    """Of the arms of one budget."""
    text = ""
    for alone, noise in ((False, ""), (True, ", before training-seed noise,")):
        known = [one.difference.detectable for one in found if one.difference and (one.pairs == 1) == alone]
        if values := [value for value in known if math.isfinite(value)]:
            reach = f"{number(min(values))} to {number(max(values))}, by arm" if len(values) > 1 else number(values[0])
            budget, baseline = found[0].result.budget.replace("_", " "), found[0].baseline
            text += (
                f" At {budget} the smallest FVD difference to `{baseline}` that a test by itself, uncorrected, finds"
                " with 80% power"
            )
            text += f"{noise} is {reach}."
    return text


def _drawn_interval(row: Row) -> Markup:
    """The interval in words and drawn."""
    bar = interval_bar(row["fvd"], row["fvd_low"], row["fvd_high"], *row["range"])
    return Markup("{}{}").format(interval(row["fvd_low"], row["fvd_high"]), bar)


def _groups(evidence: Evidence, bests: Mapping[tuple[str, str], float]) -> list[RowGroup]:
    """`bests` holds the lowest validation cross-entropy of arms that overfit."""
    groups = []
    for name, own in evidence.ablation.groupby("budget", sort=False):
        budget = BUDGETS[str(name)]
        ends = own["fvd_low"].fillna(own["fvd"]).min(), own["fvd_high"].fillna(own["fvd"]).max()
        shown: list[dict[str, Any]] = [
            {**row, "range": tuple(map(float, ends)), "best": bests.get((row["budget"], row["arm"]), math.nan)}
            for row in records(own)
        ]
        groups.append(RowGroup(budget.title, shown, meaning(str(name), evidence.own_comparable), best_row(own)))
    return groups


def _paper_columns(paper: dict[str, Reference]) -> list[Column]:
    """The paper has one budget: equal steps."""

    def known(row: Row, name: str) -> str:
        found = paper.get(row["arm"]) if row["budget"] == "equal_steps" else None
        return number(getattr(found, name), 1) if found else ""

    return [
        Column("fvd_paper", "FVD, paper", lambda row: known(row, "fvd")),
        Column("speedup_paper", "speed-up, paper", lambda row: known(row, "speedup")),
    ]
