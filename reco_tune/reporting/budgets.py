"""The budgets under which arms are compared: what they are called, what they give, and which runs stand under each."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from reco_tune.settings import BASELINE


class Budget(NamedTuple):
    """What a budget is called."""

    title: str
    words: str
    """In a sentence."""
    gives: str
    """What it gives an arm."""


BUDGETS = {
    "equal_steps": Budget("Equal steps", "at equal steps", "every arm takes the baseline's optimiser steps"),
    "equal_compute": Budget(
        "Equal compute",
        "at equal compute",
        "every arm takes the steps that the baseline's cost buys at its measured speed",
    ),
    "half_compute": Budget(
        "Half the compute",
        "at half the compute",
        "every arm takes the steps that half of the baseline's cost buys at its measured speed",
    ),
}
"""By name, in the order of every table."""
WHOLE = f"{BASELINE} (whole budget)"
"""What the baseline's whole run is called under `half_compute`, where `full` is its run at half."""


def budget_order(runs: pd.DataFrame) -> list[str]:
    """Budgets of the study; `both` is none of its own."""
    budgets = set(runs["budget"]) - {"both"}
    return [budget for budget in BUDGETS if budget in budgets] or ["equal_steps"]


def at_budget(run_budget: Any, budget: str) -> Any:
    """Whether a run (or each of a column of runs) stands under a budget: one of `both` stands under every whole budget,
    not under half.
    """
    whole = run_budget == budget
    return whole if budget == "half_compute" else whole | (run_budget == "both")


def reference(budget: str, baseline: str = BASELINE) -> str:
    """What the arms of a budget are compared with: the baseline, at half the compute its whole run."""
    return WHOLE if budget == "half_compute" and baseline == BASELINE else baseline
