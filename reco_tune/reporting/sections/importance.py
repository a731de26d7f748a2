"""Importance of each searched setting for each objective: PED-ANOVA over the sampled runs. Only this section imports
optuna.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reco_tune import quantities
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.section import Figure, Section, Table
from reco_tune.settings import SEARCH

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

LEAST_RUNS = 10
"""With fewer sampled runs, importance means nothing."""
MOST_RUNS = 1000
"""If there are more runs, this many are taken at even distances in the order in which they were proposed. Shares change
little with more.
"""
COLUMNS = ("objective", "setting", "importance", "runs")
"""Columns of importance.csv."""
BEST_SHARE = 0.25
"""PED-ANOVA looks at the best runs: this share of all. Its default of 0.1 leaves too few runs in searches of a few
dozen.
"""
LOG_RATIO = 30
"""A setting is on a log scale if its values are above 0 and the largest is more than this many times the smallest."""


def build(evidence: Evidence) -> Section:
    table = importance_table(evidence)
    first = table.drop_duplicates("objective")  # the most important setting of each stands first
    told = zip(first["objective"], first["setting"], first["importance"], strict=True)
    figure = Figure(
        "importance",
        "Which settings matter",
        "PED-ANOVA over the sampled runs. It compares the values of a setting in the best quarter of the runs with"
        " those in all runs. Shares add up to 100%.",
        draw_importance,
        (table,),
        " ".join(f"{setting} matters most for {objective} ({share:.0%})." for objective, setting, share in told),
    )
    return Section("importance", "Which settings matter", tables=[Table("importance", data=table)], figures=[figure])


def importance_table(evidence: Evidence) -> pd.DataFrame:
    """Importance of every searched setting for every objective (shares that add up to 1), by Optuna's PED-ANOVA (arXiv
    2304.10255).

    It measures how far the values of a setting in the best runs lie from those in all comparable sampled runs. Uses at
    most `MOST_RUNS` runs. Leaves out further seeds of finalists, because repeating the best configurations would bias
    the result. Empty below `LEAST_RUNS`.
    """
    kept, runs = evidence.own_comparable, evidence.study.runs
    again = [trial for trial, run in runs.items() if run.repeats]
    kept = kept[(kept["arm"] == SEARCH) & kept["trial"].isin(runs) & ~kept["trial"].isin(again)]
    params = [runs[trial].params for trial in kept["trial"]]
    names = [name for name in dict.fromkeys(key for own in params for key in own) if all(name in own for own in params)]
    names = [name for name in names if len({str(own[name]) for own in params}) > 1]
    objectives = dict.fromkeys([evidence.quality.key, quantities.SPEEDUP.name, quantities.VAL_CROSS_ENTROPY.name])
    values = kept[list(objectives)].astype(float)
    told = [name for name in objectives if np.isfinite(values[name]).sum() >= LEAST_RUNS and values[name].nunique() > 1]
    known = np.flatnonzero(np.isfinite(values[told]).all(axis=1)) if told and names else np.array([], dtype=int)
    if len(known) < LEAST_RUNS:
        return pd.DataFrame([], columns=list(COLUMNS))
    used = known[np.linspace(0, len(known) - 1, min(len(known), MOST_RUNS)).astype(int)]
    signs = [-1.0 if quantities.ALL[name].better == "higher" else 1.0 for name in told]
    shares = _shares([params[place] for place in used], values[told].to_numpy()[used] * signs, names)
    rows = [
        [objective, name, share, len(used)]
        for objective, own in zip(told, shares, strict=True)
        for name, share in sorted(own.items(), key=lambda item: -item[1])
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def draw_importance(table: pd.DataFrame) -> Drawing | None:
    """Importance of every searched setting, a panel an objective."""
    from reco_tune.reporting.style import new_figure, style

    if table.empty:
        return None
    objectives = list(dict.fromkeys(table["objective"]))
    settings = list(table.groupby("setting")["importance"].mean().sort_values(kind="stable").index)
    with style():
        figure = new_figure(2.6 + 2.5 * len(objectives), 0.9 + 0.34 * max(3, len(settings)))
        panels = np.atleast_1d(figure.subplots(1, len(objectives), sharey=True))
        for axes, objective in zip(panels, objectives, strict=True):
            shares = (
                table[table["objective"] == objective].set_index("setting")["importance"].reindex(settings).fillna(0)
            )
            axes.barh(settings, shares, color="#0072b2", height=0.62)
            for place, share in enumerate(shares):
                axes.annotate(
                    f"{share:.0%}", (share, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
                )
            axes.set_title(quantities.ALL[objective].label)
            axes.set_xlim(0, 1.18)
            axes.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        figure.supxlabel("importance (PED-ANOVA)", fontsize=9.5)
    return figure


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
            warnings.simplefilter("ignore")  # a warning that low values count as good, as they do here
            return optuna.importance.get_param_importances(
                study, evaluator=evaluator, params=list(names), target=lambda trial: trial.values[column]
            )

    return [{name: float(share) for name, share in of(column).items()} for column in range(values.shape[1])]


def _range(values: Sequence[Any]) -> Any:
    """The log has the drawn values, not the ranges. Numbers range from their smallest to their largest value; anything
    else is a choice.
    """
    from optuna import distributions

    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        log = low > 0 and high > LOG_RATIO * low
        if all(isinstance(value, int) for value in values):
            return distributions.IntDistribution(low, high, log=log)
        return distributions.FloatDistribution(float(low), float(high), log=log)
    return distributions.CategoricalDistribution(sorted(set(values), key=str))
