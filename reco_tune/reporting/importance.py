"""Which of the searched settings decides each objective: PED-ANOVA over the sampled runs. Of the reports, only this
imports optuna.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reco_tune import quantities
from reco_tune.reporting.runs import SEARCH, comparable
from reco_tune.study_log import StudyRecord

LEAST_RUNS = 10
"""Fewer sampled runs say nothing about importance."""
MOST_RUNS = 1000
"""Of more, this many are taken evenly in the order in which they were asked for: shares settle long before."""
OBJECTIVES = ("fvd", "speedup", "val_cross_entropy")
COLUMNS = ("objective", "setting", "importance", "runs")
"""Columns of importance.csv."""
BEST_SHARE = 0.25
"""PED-ANOVA asks where the best runs lie: this share of them (its own default of 0.1 leaves too few in searches of some
dozen runs).
"""
LOG_RATIO = 30
"""A setting whose largest value is more than this many times its smallest, both above 0, is taken on a log scale."""


class Searched(NamedTuple):
    """Sampled runs that tell of importance: what was chosen for each, and what came of it."""

    params: list[Mapping[str, Any]]
    settings: list[str]
    """Those that every run chose and that took several values."""
    objectives: list[str]
    values_NM: NDArray[np.float64]
    """Every objective of every run."""


def importance_table(study: StudyRecord, runs: pd.DataFrame) -> pd.DataFrame:
    """Importance of every searched setting for every objective (shares that add up to 1), by Optuna's PED-ANOVA (arXiv
    2304.10255).

    It measures how far the best runs' values of a setting lie from those of all runs that may be compared. Empty below
    `LEAST_RUNS`.
    """
    return importance_of(searched(study, runs))


def searched(study: StudyRecord, runs: pd.DataFrame) -> Searched:
    """The sampled runs that may be compared, at most `MOST_RUNS` of them, without finalists' further seeds."""
    kept = comparable(runs)
    kept = kept[kept["arm"] == SEARCH]
    again = [
        trial for trial, run in study.runs.items() if run.repeats
    ]  # the best once more: they would pass for what sampling found
    kept = kept[~kept["trial"].isin(again)]
    params = [study.runs[trial].params for trial in kept["trial"]]
    names = [name for name in dict.fromkeys(key for own in params for key in own) if all(name in own for own in params)]
    names = [name for name in names if len({str(own[name]) for own in params}) > 1]
    values = kept[list(OBJECTIVES)].astype(float)
    told = [name for name in OBJECTIVES if np.isfinite(values[name]).sum() >= LEAST_RUNS and values[name].nunique() > 1]
    known = np.flatnonzero(np.isfinite(values[told]).all(axis=1)) if told and names else np.array([], dtype=int)
    used = known[np.linspace(0, len(known) - 1, min(len(known), MOST_RUNS)).astype(int)]
    return Searched([params[place] for place in used], names, told, values[told].to_numpy()[used])


def importance_of(runs: Searched) -> pd.DataFrame:
    """`importance_table` of what was picked for it."""
    if len(runs.params) < LEAST_RUNS:
        return pd.DataFrame([], columns=list(COLUMNS))
    signs = [-1.0 if quantities.ALL[name].better == "higher" else 1.0 for name in runs.objectives]
    shares = _shares(runs.params, runs.values_NM * signs, runs.settings)
    rows = [
        [objective, name, share, len(runs.params)]
        for objective, own in zip(runs.objectives, shares, strict=True)
        for name, share in sorted(own.items(), key=lambda item: -item[1])
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _shares(
    params: Sequence[Mapping[str, Any]], values: NDArray[np.float64], names: Sequence[str]
) -> list[dict[str, float]]:
    """Importance by setting for every column of `values` [runs, objectives], all to be minimised."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PED-ANOVA is marked experimental
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
    ranges = {name: _range([own[name] for own in params]) for name in names}
    study = optuna.create_study(directions=["minimize"] * values.shape[1])
    study.add_trials(
        [
            optuna.trial.create_trial(params={name: own[name] for name in names}, distributions=ranges, values=row)
            for own, row in zip(params, values.tolist(), strict=True)
        ]
    )

    def of(column: int) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that low values count as good: they are made so
            return optuna.importance.get_param_importances(
                study, evaluator=evaluator, params=list(names), target=lambda trial: trial.values[column]
            )

    return [{name: float(share) for name, share in of(column).items()} for column in range(values.shape[1])]


def _range(values: Sequence[Any]) -> Any:
    """The log keeps what was drawn, not from where: numbers from their smallest to their largest value, anything else
    as a choice.
    """
    from optuna import distributions

    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        log = low > 0 and high > LOG_RATIO * low
        if all(isinstance(value, int) for value in values):
            return distributions.IntDistribution(low, high, log=log)
        return distributions.FloatDistribution(float(low), float(high), log=log)
    return distributions.CategoricalDistribution(sorted(set(values), key=str))
