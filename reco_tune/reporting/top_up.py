"""Where more training seeds would settle something: arms not told apart from the baseline, how many seeds it takes, and the command.

Formulas and words only; nothing here runs a study.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from reco_tune.errors import ComparisonError
from reco_tune.reporting.ablation import arm_results
from reco_tune.reporting.aggregate import Difference, needed_seeds, paired_difference
from reco_tune.reporting.runs import IMPORTED, WHOLE, arm_order, comparable, reference
from reco_tune.reporting.tables import signed
from reco_tune.settings import BASELINE

MOST_SEEDS = 12
"""Where more than so many are needed, the answer is that the arms are too close to tell."""


class TopUp(NamedTuple):
    """An arm that is not resolved against the baseline at one budget."""

    budget: str
    arm: str
    needed: int | None
    """Training seeds of both at which a difference of the measured size is found with 80% power; None for more than `MOST_SEEDS`."""
    difference: Difference


def top_up(runs: pd.DataFrame) -> list[TopUp]:
    """Arms whose interval against the baseline holds zero, in the order of the tables; empty where everything is resolved."""
    results = arm_results(runs)
    found = []
    for (budget, arm), result in results.items():
        compared = results.get((budget, reference(budget)))
        if compared is None or arm in (compared.arm, WHOLE) or arm.endswith(IMPORTED):
            continue
        difference = paired_difference(result.fvd, compared.fvd)
        if difference is not None and not difference.resolved:
            found.append(TopUp(budget, arm, needed_seeds(difference, MOST_SEEDS), difference))
    return found


def top_up_words(runs: pd.DataFrame, folder: str) -> list[str]:
    """What more seeds would settle, what they would not, and the command for the rest; empty where everything is resolved.

    Args:
        folder: of the study, as the command will name it.
    """
    lines, wanted = [], []
    for one in top_up(runs):
        told = f"`{one.arm}` against `{reference(one.budget)}` {one.budget.replace('_', ' ')}: {signed(one.difference.delta)}"
        if one.needed is None:
            lines.append(f"{told} is too close to tell with {MOST_SEEDS} seeds.")
        else:
            lines.append(f"{told} would be resolved by about {one.needed} seeds (it has {one.difference.seeds}), if it is that large.")
            wanted.append(one)
    if wanted:
        arms = [arm for arm in arm_order(runs) if arm == BASELINE or arm in {one.arm for one in wanted}]
        known = sorted({int(seed) for seed in runs["seed"]})
        more = max(one.needed - one.difference.seeds for one in wanted if one.needed is not None)
        seeds = ",".join(str(known[-1] + 1 + number) for number in range(more))
        budgets = ",".join(dict.fromkeys(one.budget for one in wanted))
        lines.append(
            f"reco-tune run {folder}/settings.yaml --name {runs['study'].iloc[0]}-more --arms {','.join(arms)} --seeds {seeds} --trials 0 "
            f"--set budgets=[{budgets}]"
        )
        lines.append(f"python analysis/compare_studies.py {folder} studies/{runs['study'].iloc[0]}-more    (both studies together)")
    return lines


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
            f"two studies hold the arm `{arm}` at {str(budget).replace('_', ' ')} with seed {seed}; pool studies of different --seeds"
        )
    return together
