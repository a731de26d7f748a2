"""Where more training seeds would settle something: arms not told apart from the baseline, how many seeds it takes, and
the command.

Formulas and words only; nothing here runs a study.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from reco_tune.errors import ComparisonError
from reco_tune.reporting.ablation import comparisons
from reco_tune.reporting.aggregate import Difference, needed_seeds
from reco_tune.reporting.runs import IMPORTED, arm_order, comparable, reference
from reco_tune.reporting.tables import signed
from reco_tune.settings import BASELINE

MOST_SEEDS = 12
"""Where more than so many are needed, the answer is that the arms are too close to tell."""
PEEKING = (
    "Seeds that are added because of what the first ones said, and judged together with them, find differences that are"
    " not there more often than once in twenty; for a claim, judge the new ones by themselves."
)
"""Of two looks at the same test (docs/reference/fvd-protocols.md has the size of it)."""


class TopUp(NamedTuple):
    """An arm that is not resolved against the baseline at one budget."""

    budget: str
    arm: str
    needed: int | None
    """Training seeds of both at which a difference of the measured size is found with 80% power, Holm's correction over
    the arms of the budget included; None for more than `MOST_SEEDS`.
    """
    difference: Difference


def top_up(runs: pd.DataFrame) -> list[TopUp]:
    """Arms that the ablation table does not tell from the baseline, in its order; empty where everything is
    resolved."""
    compared, found = [one for one in comparisons(runs) if one.difference], []
    beside = Counter(one.result.budget for one in compared)
    for one in compared:
        budget, arm = one.result.budget, one.result.arm
        if one.difference and one.verdict == "not resolved" and not arm.endswith(IMPORTED):
            found.append(TopUp(budget, arm, needed_seeds(one.difference, MOST_SEEDS, beside[budget]), one.difference))
    return found


def top_up_words(found: Sequence[TopUp]) -> list[str]:
    """What more seeds would settle and what they would not, a sentence an arm and budget."""
    lines = []
    for one in found:
        told = (
            f"`{one.arm}` against `{reference(one.budget)}` {one.budget.replace('_', ' ')}:"
            f" {signed(one.difference.delta)}"
        )
        if one.needed is None:
            lines.append(f"{told} is too close to tell with {MOST_SEEDS} seeds.")
        else:
            lines.append(
                f"{told} would be resolved by about {one.needed} seeds (it has {one.difference.seeds}), if it is that"
                " large."
            )
    if any(one.needed is not None for one in found):
        lines.append(PEEKING)
    return lines


def top_up_commands(found: Sequence[TopUp], runs: pd.DataFrame, folder: str) -> list[str]:
    """The commands that run the seeds which would settle something and put both studies together; empty where none
    would.

    Args:
        runs: of the study.
        folder: of the study, as the commands will name it.
    """
    wanted = [one for one in found if one.needed is not None]
    if not wanted:
        return []
    arms = [arm for arm in arm_order(runs) if arm == BASELINE or arm in {one.arm for one in wanted}]
    first = max(int(seed) for seed in runs["seed"]) + 1
    more = max(one.needed - one.difference.seeds for one in wanted if one.needed is not None)
    seeds = ",".join(str(first + number) for number in range(more))
    budgets = ",".join(dict.fromkeys(one.budget for one in wanted))
    name = f"{runs['study'].iloc[0]}-more"
    run = [
        "reco-tune",
        "run",
        f"{folder}/settings.yaml",
        "--name",
        name,
        "--arms",
        ",".join(arms),
        "--seeds",
        seeds,
        "--trials",
        "0",
    ]
    return [
        shlex.join([*run, "--set", f"budgets=[{budgets}]"]),
        shlex.join(["python", "analysis/compare_studies.py", folder, f"studies/{name}"]) + "  # both studies together",
    ]


def pooled(studies: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The runs of several studies as those of one: the same arms under other training seeds.

    Raises:
        ComparisonError: where protocols or data differ, or two studies hold the same arm, budget and seed.
    """
    together = pd.concat(studies.values(), ignore_index=True)
    together.attrs["arms"] = list(dict.fromkeys(arm for runs in studies.values() for arm in arm_order(runs)))
    kept = comparable(together)
    keys = ["budget", "arm", "seed"]
    twice = kept[(kept["arm"] != "search") & kept.duplicated(keys)]
    if len(twice):
        budget, arm, seed = twice.iloc[0][keys]
        raise ComparisonError(
            f"two studies hold the arm `{arm}` at {str(budget).replace('_', ' ')} with seed {seed}; pool studies of"
            " different --seeds"
        )
    return together
