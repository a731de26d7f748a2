"""Compares the same arms in several studies, one by one and pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from reco_tune.errors import ComparisonError
from reco_tune.reporting.budgets import WHOLE, budget_order
from reco_tune.reporting.evidence import ablation_table
from reco_tune.reporting.runs import arm_order, comparable, refuse_mixed, told_apart
from reco_tune.settings import SEARCH

TOGETHER = "together"
"""Name of the rows in which the runs of all studies count as one study."""


def comparison_table(studies: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The ablation rows of several studies, ordered by budget and arm. All runs must have one protocol.

    If the training seeds of the studies differ, there are also rows for all studies together, with all seeds.

    Raises:
        ComparisonError: if the studies differ in protocol or data. It names the setting.
    """
    together = pd.concat(studies.values(), ignore_index=True)
    comparable(together)
    tables = {name: ablation_table(runs) for name, runs in studies.items()}
    if len(studies) > 1:
        with suppress(ComparisonError):  # the same seeds: nothing to join
            tables[TOGETHER] = ablation_table(pooled(studies))
    for name, part in tables.items():
        part.insert(0, "study", name)
    table = pd.concat(tables.values(), ignore_index=True)
    budgets = {budget: number for number, budget in enumerate(budget_order(together))}
    arms = {
        arm: number
        for number, arm in enumerate([WHOLE, *arm_order(next(iter(studies.values()))), *arm_order(together)])
    }
    order = sorted(range(len(table)), key=lambda row: (budgets[table["budget"][row]], arms[table["arm"][row]], row))
    return table.iloc[order].reset_index(drop=True)


def pooled(studies: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Pools the runs of several studies with different training seeds into one table.

    Raises:
        ComparisonError: if protocols, data or the settings of an arm differ, or two studies hold the same arm, budget
            and seed.
    """
    together = pd.concat(studies.values(), ignore_index=True)
    together.attrs["arms"] = list(dict.fromkeys(arm for runs in studies.values() for arm in arm_order(runs)))
    kept = comparable(together)
    keys = ["budget", "arm", "seed"]
    twice = kept[(kept["arm"] != SEARCH) & kept.duplicated(keys)]
    if len(twice):
        budget, arm, seed = twice.iloc[0][keys]
        raise ComparisonError(
            f"two studies hold the arm `{arm}` at {str(budget).replace('_', ' ')} with seed {seed}; pool studies of"
            " different --seeds"
        )
    refuse_mixed(kept)
    return together


def study_names(sources: Sequence[str]) -> list[str]:
    """Name of each study in a table: its folder or experiment, with as much of its path as it takes to tell them apart.

    Raises:
        ComparisonError: if a study is given twice.
    """
    places = [source if source.startswith("mlflow:") else Path(source).resolve().as_posix() for source in sources]
    for source, place in zip(sources, places, strict=True):
        if places.count(place) > 1:
            raise ComparisonError(f"{source} is given twice; give every study once")
    return told_apart(places)
