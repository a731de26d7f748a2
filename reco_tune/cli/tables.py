"""The tables of a report on the terminal: the ablation and the frontier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reco_tune.cli.console import print_table

if TYPE_CHECKING:
    import pandas as pd

    from reco_tune.reporting import Report

ABLATION = {
    "budget": "budget",
    "arm": "arm",
    "seeds": "seeds",
    "fvd": "FVD",
    "": "95% interval",
    "fvd_delta": "to full",
    "fvd_p_value": "p",
    "verdict": "verdict",
    "speedup": "speed-up",
    "speedup_limit": "limit",
    "peak_memory_ratio": "memory",
    "val_cross_entropy": "val CE",
}
"""Columns of the ablation and their headings; the empty one is the interval of FVD."""
MOST_LEFT_OUT = 3
"""Runs without a place in the table that are named, each with its reason."""
FRONTIER = {
    "trial": "run",
    "window.length_tokens": "W",
    "window.stride_tokens": "S",
    "window.first_frame_probability": "p",
    "objective.continuity_weight": "λ",
    "speedup": "speed-up",
    "fvd": "FVD",
    "": "95% interval",
}


def print_report(report: Report, study: str) -> None:
    """Prints the ablation table and what it lacks, the frontier at its first budget, what both say of the claims, what
    more seeds settle.

    Args:
        study: its folder, as the commands for more seeds name it.
    """
    from reco_tune.reporting.top_up import top_up_commands, top_up_words
    from reco_tune.reporting.verdicts import BUDGET_WORDS

    print()
    _print("Ablation", ABLATION, report.ablation, left=2)
    if report.caption:
        print(report.caption)
    if report.left_out:
        named = "; ".join(f"{trial} ({why})" for trial, why in report.left_out[:MOST_LEFT_OUT])
        rest = len(report.left_out) - MOST_LEFT_OUT
        print(f"Left out of the table: {named}{f'; {rest} more, listed in ablation.md' if rest > 0 else ''}.")
    if not report.study.finished:
        print("The study is not finished: these are its numbers so far.")
    print()
    budget = next((name for name in BUDGET_WORDS if len(report.frontier.at(name))), "equal_steps")
    _print(
        f"Frontier: no other run {BUDGET_WORDS[budget]} is as fast and as good",
        FRONTIER,
        report.frontier.non_dominated(budget),
        left=1,
    )
    print()
    for verdict in report.verdicts:
        budget = BUDGET_WORDS.get(verdict.budget, verdict.budget)
        print(f"{verdict.outcome:>12}: {verdict.claim} ({budget})")
    if report.top_up:
        more = [*top_up_words(report.top_up), *top_up_commands(report.top_up, report.runs, study)]
        print("\nMore training seeds")
        print("\n".join(f"  {line}" for line in more))


def _print(title: str, columns: dict[str, str], frame: pd.DataFrame, left: int) -> None:
    rows = [
        [_interval(line) if key == "" else _cell(line.get(key), key) for key in columns]
        for line in frame.to_dict("records")
    ]
    told = [
        number for number in range(len(columns)) if any(row[number] for row in rows)
    ]  # p says nothing at one training seed
    headings = list(columns.values())
    print_table(title, [headings[number] for number in told], [[row[number] for number in told] for row in rows], left)


def _interval(line: Mapping[Any, Any]) -> str:
    low, high = line.get("fvd_low"), line.get("fvd_high")
    return "" if low is None or high is None or math.isnan(low) else f"{low:.2f} to {high:.2f}"


def _cell(value: Any, key: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if key in ("speedup", "speedup_limit"):
        return f"{value:.2f}x"
    if isinstance(value, float):
        return (
            f"{value:.3g}"
            if key in ("fvd_p_value", "objective.continuity_weight", "window.first_frame_probability")
            else f"{value:.2f}"
        )
    return str(value)
