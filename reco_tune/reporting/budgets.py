"""The budgets under which arms are compared: their names, what an arm gets, and which runs belong to each."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from reco_tune.reporting.numbers import quoted
from reco_tune.settings import BASELINE, COMPUTE_SHARES, SEARCH, step_cost


class Budget(NamedTuple):
    """The texts for a budget."""

    title: str
    words: str
    """In a sentence."""
    gives: str
    """What an arm gets."""
    portion: str = ""
    """Its share of the baseline's compute, in words; empty for all of it."""


BUDGETS = {
    "equal_steps": Budget("Equal steps", "at equal steps", "every arm takes as many optimiser steps as the baseline"),
    "equal_compute": Budget(
        "Equal compute",
        "at equal compute",
        "every arm costs as much as the baseline, so a faster arm takes more steps",
    ),
    "half_compute": Budget(
        "Half the compute",
        "at half the compute",
        "every arm costs half as much as the whole baseline, so a faster arm takes more steps",
        "Half",
    ),
    "quarter_compute": Budget(
        "A quarter of the compute",
        "at a quarter of the compute",
        "every arm costs a quarter as much as the whole baseline, so a faster arm takes more steps",
        "A quarter",
    ),
    "eighth_compute": Budget(
        "An eighth of the compute",
        "at an eighth of the compute",
        "every arm costs an eighth as much as the whole baseline, so a faster arm takes more steps",
        "An eighth",
    ),
}
"""Budgets by name, in the order of every table."""
WHOLE = f"{BASELINE} (whole budget)"
"""Name of the baseline's whole run under a share of its compute. There, `full` is its run at that share."""


def is_share(budget: str) -> bool:
    """Whether a budget gives less than the baseline's whole compute."""
    return COMPUTE_SHARES.get(budget, 1.0) < 1


def budget_order(runs: pd.DataFrame) -> list[str]:
    """Budgets of the study. `both` is not a budget of its own."""
    budgets = set(runs["budget"]) - {"both"}
    return [budget for budget in BUDGETS if budget in budgets] or ["equal_steps"]


def at_budget(run_budget: Any, budget: str) -> Any:
    """Whether a run (or each of a column of runs) belongs to a budget. A run of `both` belongs to every whole budget,
    but not to a share of it.
    """
    own = run_budget == budget
    return own if is_share(budget) else own | (run_budget == "both")


def reference(budget: str, baseline: str = BASELINE) -> str:
    """The arm that others are compared with: the baseline, or under a share of its compute its whole run."""
    return WHOLE if is_share(budget) and baseline == BASELINE else baseline


def meaning(budget: str, kept: pd.DataFrame) -> str:
    """What a budget gives an arm, as text: the baseline's number of steps if it ran, and the arms whose steps differ
    from the baseline's (`other_steps`).
    """
    full = _whole_baseline(kept)
    if full is None:
        return BUDGETS[budget].gives
    steps, clips = int(full["training.steps"]), int(full["training.batch_size"])
    gives = f"{BUDGETS[budget].gives} (`{BASELINE}` takes {steps:,} steps of {clips} clips)"
    fixed = kept[(kept["arm"] != SEARCH) & at_budget(kept["budget"], budget)]
    other = [
        f"{quoted(str(arm))} ({', '.join(f'{key} {own.iloc[0][key]}, not {full[key]}' for key in keys)})"
        for arm, own in fixed.groupby("arm", sort=False)
        if (keys := other_steps(own, full))
    ]
    return gives + (f"; arms with other steps: {', '.join(other)}" if other else "")


def searched_steps(kept: pd.DataFrame) -> str:
    """A sentence that says how the steps of sampled runs differ from the baseline's; empty if they do not. Begins with
    a space.
    """
    full, sampled = _whole_baseline(kept), kept[kept["arm"] == SEARCH]
    keys = other_steps(sampled, full) if full is not None else []
    named = ", ".join(f"`{key}`" for key in keys)
    return f" Sampled runs take as many steps as the baseline, but their steps differ in {named}." if keys else ""


def other_steps(rows: pd.DataFrame, full: pd.Series) -> list[str]:
    """Settings of model and training in which some of these runs differ from the baseline and on which the cost of a
    step depends.
    """
    keys = [key for key in map(str, rows) if step_cost(key) and not key.startswith(("window.", "objective."))]
    return [key for key in keys if any(value != full[key] for value in rows[key].unique())]


def _whole_baseline(kept: pd.DataFrame) -> pd.Series | None:
    """The baseline's run at its whole budget; None if there is none."""
    full = kept[(kept["arm"] == BASELINE) & (kept["budget"] == "both")]
    return None if full.empty else full.iloc[0]
