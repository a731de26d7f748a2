"""Which of the searched settings decides each objective: PED-ANOVA over the sampled runs. Of the reports, only this imports optuna."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reco_tune import quantities
from reco_tune.reporting.runs import SEARCH, comparable
from reco_tune.study_log import StudyRecord

LEAST_RUNS = 10
"""Fewer sampled runs say nothing about importance."""
OBJECTIVES = ("fvd", "speedup", "val_cross_entropy")
COLUMNS = ("objective", "setting", "importance", "runs")
"""Columns of importance.csv."""
BEST_SHARE = 0.25
"""PED-ANOVA asks where the best runs lie: this share of them (its own default of 0.1 leaves too few in searches of some dozen runs)."""
LOG_RATIO = 30
"""A setting whose largest value is more than this many times its smallest, both above 0, is taken on a log scale."""


def importance_table(study: StudyRecord, runs: pd.DataFrame) -> pd.DataFrame:
    """Importance of every searched setting for every objective (shares that add up to 1), by Optuna's PED-ANOVA (arXiv 2304.10255).

    It measures how far the best runs' values of a setting lie from those of all runs that may be compared. Empty below `LEAST_RUNS`.
    """
    kept = comparable(runs)
    kept = kept[kept["arm"] == SEARCH]
    params = [study.runs[trial].params for trial in kept["trial"]]
    names = [name for name in dict.fromkeys(key for own in params for key in own) if all(name in own for own in params)]
    names = [name for name in names if len({str(own[name]) for own in params}) > 1]
    rows = []
    for objective in OBJECTIVES:
        values = kept[objective].astype(float).tolist()
        known = [place for place, value in enumerate(values) if math.isfinite(value)]
        if len(known) >= LEAST_RUNS and len({values[place] for place in known}) > 1 and names:
            sign = -1.0 if quantities.ALL[objective].better == "higher" else 1.0
            shares = _shares([params[place] for place in known], [sign * values[place] for place in known], names)
            rows += [[objective, name, share, len(known)] for name, share in sorted(shares.items(), key=lambda item: -item[1])]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _shares(params: Sequence[Mapping[str, Any]], values: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PED-ANOVA is marked experimental
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
    ranges = {name: _range([own[name] for own in params]) for name in names}
    study = optuna.create_study(direction="minimize")
    study.add_trials(
        [
            optuna.trial.create_trial(params={name: own[name] for name in names}, distributions=ranges, value=value)
            for own, value in zip(params, values, strict=True)
        ]
    )
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(names))
    return {name: float(found[name]) for name in names}


def _range(values: Sequence[Any]) -> Any:
    """The log keeps what was drawn, not from where: numbers from their smallest to their largest value, anything else as a choice."""
    from optuna import distributions

    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        log = low > 0 and high > LOG_RATIO * low
        if all(isinstance(value, int) for value in values):
            return distributions.IntDistribution(low, high, log=log)
        return distributions.FloatDistribution(float(low), float(high), log=log)
    return distributions.CategoricalDistribution(sorted(set(values), key=str))
