"""The ablation table: arms in the order of the space file, means over training seeds, differences to the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from markupsafe import Markup

from reco_tune.quantities import KERNEL_DISTANCE, VAL_CROSS_ENTROPY
from reco_tune.reporting.aggregate import sign_flip_floor
from reco_tune.reporting.budgets import BUDGETS, WHOLE, is_share, meaning, reference
from reco_tune.reporting.comparisons import CLIP, DETAILS, Comparison, best_row
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.imported import file_names, origin_note
from reco_tune.reporting.numbers import hours, number, p_value, quoted, signed
from reco_tune.reporting.paper import SOURCE, Reference
from reco_tune.reporting.quality import FVD, Quality
from reco_tune.reporting.render.scatter import interval_bar
from reco_tune.reporting.runs import SPEEDS, exclusions, stopped_arms
from reco_tune.reporting.section import (
    Column,
    Row,
    RowGroup,
    Section,
    Table,
    interval_column,
    number_column,
    quality_column,
    records,
    setting_column,
    text_column,
)
from reco_tune.settings import BASELINE, SEARCH, TUNE

LOSS = VAL_CROSS_ENTROPY.name
HAD = {LOSS: "val CE", KERNEL_DISTANCE.name: "kernel distance"}
"""What is shown of an arm that was stopped, as far as it was measured."""
PAPER = ("fvd_paper", "speedup_paper")


def build(evidence: Evidence) -> Section:
    table = ablation_table(evidence)
    return Section("ablation", "Ablation", tables=[table])


def ablation_table(evidence: Evidence) -> Table:
    """The rows of `comparisons.ablation_rows`, grouped by budget. If conditions match, the paper's numbers are beside
    them.
    """
    paper = evidence.paper
    bests = {(turn.budget, turn.arm): turn.best for turn in evidence.turns}
    best = Column(
        "best_val_cross_entropy", "best val CE (nats/token) ↓", lambda row: number(row["best"], 3), optional=True
    )
    quality = evidence.quality
    told = [quality.key, f"{quality.key}_interval", quality.delta]
    loss = [LOSS] if quality is FVD else []
    chosen = list(_chosen(evidence, BASELINE))
    return Table(
        "ablation",
        "Ablation",
        [
            *columns_for_people(quality, CLIP[0] in evidence.ablation),
            best,
            *map(setting_column, chosen),
            *(_paper_columns(paper) if paper else ()),
        ],
        _groups(evidence, bests),
        caption(evidence) + origin_note(file_names(evidence.imports)),
        [
            *_refused(evidence),
            *(turn.words for turn in evidence.turns),
            *([f"Chosen for each arm before the table: {', '.join(map(quoted, chosen))}."] if chosen else []),
            *([f"Columns of the paper: {SOURCE}, same data set and protocol."] if paper else []),
        ],
        left_out(evidence.runs),
        evidence.ablation.drop(columns=[*DETAILS]),
        ("csv", "md", "tex"),
        latex=[
            "arm",
            "seeds",
            *told,
            CLIP[0],
            f"{CLIP[0]}_interval",
            "speedup",
            "speedup_limit",
            *loss,
            quality.p_value,
            "verdict",
            *PAPER,
        ],
        terminal=[
            *("arm", "seeds", *told, quality.p_value, "verdict", *CLIP[:1]),
            *("speedup", "speedup_limit", "peak_memory_ratio", *chosen),
        ],
        mark=lambda row: "baseline" if row["arm"] == reference(row["budget"], evidence.baseline) else "",
    )


def _clip_columns() -> list[Column]:
    return [number_column(CLIP[0], "CLIP score ↑", 3), interval_column(CLIP[0], digits=3)]


def columns_for_people(quality: Quality, clip: bool = False) -> list[Column]:
    """Columns of the table on the page. Optional ones that are empty in a budget are left out there."""

    def drawn_interval(row: Row) -> Markup:
        """The interval in words and drawn."""
        value, low, high = (row[name] for name in quality.ends)
        return Markup("{}{}").format(between.text(row), interval_bar(value, low, high, *row["range"]))

    between = interval_column(quality.key, digits=quality.digits)
    loss = number_column(LOSS, "val CE (nats/token) ↓", 3, latex="Val.\\ CE (nats/token) $\\downarrow$")
    return [
        text_column("arm", "arm"),
        text_column("seeds", "seeds", "count"),
        quality_column(quality),
        replace(between, markup=drawn_interval),
        Column(
            quality.delta,
            "Δ to baseline ↓",
            lambda row: signed(row[quality.delta], quality.digits),
            latex="$\\Delta\\downarrow$",
        ),
        Column(quality.p_value, "p", lambda row: p_value(row[quality.p_value]), "count", "$p$", optional=True),
        text_column("verdict", "verdict"),
        *(_clip_columns() if clip else []),
        number_column("speedup", "speed-up (x) ↑"),
        interval_column("speedup"),
        number_column("speedup_limit", "limit (x)"),
        number_column("limit_fraction", "of limit ↑"),
        number_column("peak_memory_ratio", "memory (x) ↓"),
        Column("gpu_hours", "device (h) ↓", lambda row: hours(row["gpu_hours"])),
        *([loss] if quality is FVD else []),
    ]


def _refused(evidence: Evidence) -> list[str]:
    """Arms that break a constraint of the search, in a sentence."""
    points = evidence.frontier.points
    rows = records(points[(points["infeasible"] != "") & (points["arm"] != SEARCH)])
    named = [f"{quoted(row['arm'])} {BUDGETS[row['budget']].words} ({row['infeasible']})" for row in rows]
    return (
        [f"Kept off the frontier, because they break a constraint of the search: {'; '.join(named)}."] if rows else []
    )


def left_out(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """(trial, reason) of every fixed-arm run that is not in the table. They are listed below it, so that no run is
    dropped silently.
    """
    reasons = exclusions(runs)
    return [
        (trial, why)
        for trial, arm, budget, why in zip(runs["trial"], runs["arm"], runs["budget"], reasons, strict=True)
        if why and arm != SEARCH and budget != TUNE
    ]


def caption(evidence: Evidence) -> str:
    """What the intervals include, how the p-values are computed, the smallest effect that could have been detected, and
    the origin of the numbers.
    """
    found, baseline = evidence.own_comparisons, evidence.baseline
    if not found:
        return "No arm has been evaluated yet."
    seeds, pairs = max(len(one.result.values) for one in found), max(one.pairs for one in found)
    fvd = evidence.quality is FVD
    if seeds <= 1 and not fvd:
        text = (
            "One training seed: there is neither an interval nor a p-value, because nothing is sampled. Only more seeds"
            " can show the noise."
        )
    elif seeds <= 1:
        text = (
            "One training seed: the intervals include sampling noise only (which clips were generated), not the noise"
            " between training seeds. There is no p-value; the verdicts follow from the intervals."
        )
    else:
        text = (
            f"Means over up to {seeds} training seeds, with 95% t intervals over seeds."
            + (
                " If the spread over seeds is smaller than the sampling noise, the interval uses the sampling noise. An"
                " arm with one seed has the interval of its sampling noise."
                if fvd
                else ""
            )
            + f" Differences are paired with `{baseline}` by seed"
        )
        text += (
            "; no arm shares two seeds with it, so there is no p-value."
            if pairs < 2
            else (
                ". P-values are from t tests of these differences, corrected by Holm over the arms of a budget. The"
                " verdicts follow from them. The t test assumes normally distributed differences. A sign-flip test does"
                f" not, but it cannot give a p-value below {sign_flip_floor(pairs):.2g} here."
            )
        )
    if fewer := [
        f"{quoted(one.result.arm)} {one.result.budget.replace('_', ' ')} ({one.pairs} of {len(one.result.values)})"
        for one in found
        if 0 < one.pairs < len(one.result.values)
    ]:
        text += (
            " These differences use fewer seeds than the mean in their row, because the baseline did not run all seeds:"
            f" {', '.join(fewer)}."
        )
    if baseline == BASELINE and (shares := [BUDGETS[one].words for one in evidence.budgets if is_share(one)]):
        where = " and ".join(shares)
        text += f" {where[0].upper()}{where[1:]}, differences are taken to `{BASELINE}` at its whole budget."
    for budget in evidence.budgets:
        text += _detectable([one for one in found if one.result.budget == budget], evidence.quality)
    if any(value is True for value in evidence.runs["rank_deficient"]):
        text += (
            " The extractor has at least as many features as there are generated or real clips. So the covariances lack"
            " rank, and these FVDs mean little."
        )
    return f"{text} {evidence.origin}"


def _detectable(found: Sequence[Comparison], quality: Quality) -> str:
    """The smallest effects that could have been detected for the arms of one budget."""
    text = ""
    for alone, noise in ((False, ""), (True, ", before training-seed noise,")):
        known = [one.difference.detectable for one in found if one.difference and (one.pairs == 1) == alone]
        if values := [value for value in known if math.isfinite(value)]:
            least, most = (number(end, quality.digits) for end in (min(values), max(values)))
            reach = f"{least} to {most}, by arm" if len(values) > 1 else least
            budget, baseline = found[0].result.budget.replace("_", " "), found[0].baseline
            text += (
                f" At {budget}, the smallest {quality.name} difference to `{baseline}` that a single, uncorrected test"
                " finds with 80% power"
            )
            text += f"{noise} is {reach}."
    return text


def _groups(evidence: Evidence, bests: Mapping[tuple[str, str], float]) -> list[RowGroup]:
    """`bests` holds the lowest validation cross-entropy of arms that overfit."""
    groups, (value, low, high) = [], evidence.quality.ends
    for name, own in evidence.ablation.groupby("budget", sort=False):
        budget = BUDGETS[str(name)]
        ends = own[low].fillna(own[value]).min(), own[high].fillna(own[value]).max()
        shown: list[dict[str, Any]] = [
            {
                **row,
                **_chosen(evidence, str(row["arm"])),
                "range": tuple(map(float, ends)),
                "best": bests.get((row["budget"], row["arm"]), math.nan),
            }
            for row in records(own)
        ]
        shown += [{**shown[0], **row, **_chosen(evidence, row["arm"])} for row in _stopped(evidence, str(name))]
        groups.append(RowGroup(budget.title, shown, meaning(str(name), evidence.own_comparable), best_row(own)))
    return groups


def _chosen(evidence: Evidence, arm: str) -> dict[str, Any]:
    """Settings that were chosen for an arm before the table. The value is None for settings that were chosen only for
    other arms.
    """
    tuned = evidence.study.tuned
    own = tuned.get(BASELINE if arm == WHOLE else arm, {})
    return {key: own.get(key) for chosen in tuned.values() for key in chosen}


def _stopped(evidence: Evidence, budget: str) -> list[dict[str, Any]]:
    """Arms that were stopped at a rung: their steps and metrics at that point, and their measured speed."""
    empty = dict.fromkeys([*evidence.ablation, "best"], math.nan)
    found = []
    for (arm, own), run in stopped_arms(evidence.runs).items():
        if own == budget:
            had = [f"{name} {number(run[key], 3)}" for key, name in HAD.items() if number(run[key])]
            where = f"step {run['steps']:.0f} of {run['training.steps']} (seed {run['seed']})"
            verdict = f"stopped at {where}: {', '.join(had)}"
            speeds = {name: run[name] for name in SPEEDS}
            found.append({**empty, **speeds, "budget": own, "arm": arm, "seeds": 0, "verdict": verdict})
    return found


def _paper_columns(paper: dict[str, Reference]) -> list[Column]:
    """The paper has one budget: equal steps."""

    def known(row: Row, name: str) -> str:
        found = paper.get(row["arm"]) if row["budget"] == "equal_steps" else None
        return number(getattr(found, name), 1) if found else ""

    return [
        Column("fvd_paper", "FVD, paper ↓", lambda row: known(row, "fvd")),
        Column("speedup_paper", "speed-up, paper (x) ↑", lambda row: known(row, "speedup")),
    ]
