"""Tables behind the single questions that the scripts in analysis/ ask: λ, window and stride, curves by frame, several
studies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from reco_tune.errors import ComparisonError
from reco_tune.reporting.ablation import ablation_table
from reco_tune.reporting.aggregate import Measured, mean_interval
from reco_tune.reporting.curves import arm_curves
from reco_tune.reporting.runs import (
    BUDGETS,
    SEARCH,
    TITLES,
    WHOLE,
    arm_order,
    budget_order,
    comparable,
    differing,
    measured_with,
    told_apart,
)
from reco_tune.reporting.tables import GROUP_NOTE, interval, number, weight_span
from reco_tune.reporting.top_up import pooled
from reco_tune.study_log import StudyRecord

WEIGHT, REDUCTION = "objective.continuity_weight", "objective.continuity_reduction"
LAMBDA = (WEIGHT, REDUCTION)
PLACE = ("window.length_tokens", "window.stride_tokens")
MOST_LAMBDAS = 24
"""Values of λ that stand one by one in the table for people."""
LAMBDA_MEANS = ("val_cross_entropy", "continuity", "hidden_norm")


def lambda_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Windowed runs by λ, those with a penalty on h² left out: budget, λ, reduction, arm, FVD with interval, validation
    cross-entropy, raw continuity term, mean h², and whether the runs of that budget differ in λ, its reduction and the
    training seed alone.
    """
    rows = _weighted(runs)
    keys = ["budget", *LAMBDA, "arm", "trial", "seed"]
    values = ["fvd", "fvd_low", "fvd_high", "val_cross_entropy", "continuity", "hidden_norm", "comparable"]
    rows = rows.iloc[rows[WEIGHT].astype(float).to_numpy().argsort(kind="stable")]
    parts = [
        own.assign(comparable=not _beside(own, LAMBDA))
        for own in (rows[rows["budget"] == budget] for budget in budget_order(runs))
    ]
    return pd.concat(parts)[[*keys, *values]].reset_index(drop=True)


def window_stride_table(runs: pd.DataFrame, budget: str) -> pd.DataFrame:
    """Windowed runs by arm, window length and stride in tokens: how many, mean FVD, mean speed-up, and the 95% interval
    of that FVD.

    The interval is that of `aggregate.mean_interval` over the runs of the row: seeds of an arm, or sampled runs, which
    may differ in other settings. `comparable` says whether all runs of the budget differ in window, stride and training
    seed alone.
    """
    rows = _windowed(runs)
    rows = rows[rows["budget"] == budget]
    rows, alike = rows.astype(dict.fromkeys(PLACE, int)), not _beside(rows, PLACE)
    cells = []
    for arm in dict.fromkeys(rows["arm"]):
        for place, group in rows[rows["arm"] == arm].groupby(list(PLACE), sort=True):
            fvd = _mean_fvd(group)
            cells.append([arm, *place, len(group), fvd.value, float(group["speedup"].mean()), fvd.low, fvd.high, alike])
    return pd.DataFrame(cells, columns=["arm", *PLACE, "runs", "fvd", "speedup", "fvd_low", "fvd_high", "comparable"])


def window_stride_tables(runs: pd.DataFrame) -> pd.DataFrame:
    """`window_stride_table` of every budget below each other, the budget in the first column."""
    parts = [window_stride_table(runs, budget) for budget in budget_order(runs)]
    for budget, part in zip(budget_order(runs), parts, strict=True):
        part.insert(0, "budget", budget)
    return pd.concat(parts, ignore_index=True)


def window_stride_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a `window_stride_table` that make one map, a place once: of sampled runs; without any, of comparable
    arms.
    """
    sampled = table[table["arm"] == SEARCH]
    return sampled if len(sampled) else table[table["comparable"].astype(bool)].drop_duplicates(list(PLACE))


def lambda_groups(table: pd.DataFrame) -> pd.DataFrame:
    """`lambda_table` by budget, arm, reduction and λ, for people: how many runs, mean FVD with its interval, means of
    the other values.

    Where an arm (or the search) has more than `MOST_LAMBDAS` values of λ, they are put together by half decades from
    `lowest` to `highest`.
    """
    columns = [
        "budget",
        "arm",
        "reduction",
        "lowest",
        "highest",
        "runs",
        "fvd",
        "fvd_low",
        "fvd_high",
        *LAMBDA_MEANS,
        "comparable",
    ]
    rows: list[list[object]] = []
    for (budget, arm, reduction), own in table.groupby(["budget", "arm", REDUCTION], sort=False):
        weights = own[WEIGHT].astype(float)
        few = weights.nunique() <= MOST_LAMBDAS
        group = weights if few else np.floor(2 * np.log10(weights.where(weights > 0, 1e-99)))
        for _, members in own.groupby(group, sort=True):
            fvd, inside = _mean_fvd(members), weights[members.index]
            means = [float(members[name].mean()) for name in LAMBDA_MEANS]
            rows.append(
                [
                    budget,
                    arm,
                    reduction,
                    inside.min(),
                    inside.max(),
                    len(members),
                    *fvd,
                    *means,
                    own["comparable"].iloc[0],
                ]
            )
    return pd.DataFrame(rows, columns=columns)


def lowest_by_weight(groups: pd.DataFrame) -> list[str]:
    """Of `lambda_groups`, by budget in words: the lowest mean FVD, over how many runs of which arm, and its λ with the
    reduction.
    """
    lines = []
    for budget, rows in groups.groupby("budget", sort=False):
        best = rows.iloc[int(rows["fvd"].argmin())].to_dict()
        runs = f"{best['runs']} run{'s' if best['runs'] > 1 else ''} of {best['arm']}"
        place = f"at λ = {weight_span(best)} ({best['reduction']})"
        title, fvd = TITLES[str(budget)].lower(), f"{number(best['fvd'])} {interval(best['fvd_low'], best['fvd_high'])}"
        mixed = "" if best["comparable"] else "; rows differ in more than λ"
        lines.append(f"{title}: lowest mean FVD {fvd.strip()} {place}, {runs}{mixed}")
    return lines


def lambda_caption(runs: pd.DataFrame) -> str:
    """What the rows of the λ table are, why no best may be marked, and where they come from."""
    return _caption(_weighted(runs), LAMBDA)


def window_stride_caption(runs: pd.DataFrame) -> str:
    """The same of the window x stride table."""
    return _caption(_windowed(runs), PLACE)


def _caption(rows: pd.DataFrame, asked: Sequence[str]) -> str:
    also = {key for budget in dict.fromkeys(rows["budget"]) for key in _beside(rows[rows["budget"] == budget], asked)}
    names = ", ".join(f"`{key}`" for key in rows.columns if key in also)
    mixed = f" Where rows of a budget differ in more, here in {names}, no best is marked." if also else ""
    return f"{GROUP_NOTE}{mixed} {measured_with(rows)}".rstrip()


def _beside(rows: pd.DataFrame, asked: Sequence[str]) -> list[str]:
    """What runs of one budget differ in beside what is asked about and the seed; the steps that a compute budget gives
    are no choice.
    """
    given = ["training.steps"] if set(rows["budget"]) - {"equal_steps"} else []
    return [key for key in differing(rows) if key not in (*asked, "training.seed", *given)]


def _weighted(runs: pd.DataFrame) -> pd.DataFrame:
    """Windowed runs without a penalty on h²: that is a control with a weight of its own, which λ = 0 says
    nothing of."""
    rows = _windowed(runs)
    return rows[rows["objective.norm_weight"].astype(float).fillna(0) == 0]


def _windowed(runs: pd.DataFrame) -> pd.DataFrame:
    """Comparable runs of the windowed scheme; a study in which nothing was planned yet has no settings as columns."""
    kept, settings = comparable(runs), ["window.scheme", *PLACE, *LAMBDA, "objective.norm_weight"]
    return (
        kept[kept["window.scheme"] == "window"]
        if "window.scheme" in kept
        else kept.iloc[:0].assign(**dict.fromkeys(settings, ""))
    )


def _mean_fvd(rows: pd.DataFrame) -> Measured:
    return mean_interval(
        [Measured(*map(float, one)) for one in zip(rows["fvd"], rows["fvd_low"], rows["fvd_high"], strict=True)]
    )


def curve_table(study: StudyRecord, names: Sequence[str]) -> pd.DataFrame:
    """Curves as rows: budget, arm, position (frame or block) and one column a curve."""
    rows = []
    for budget in BUDGETS:
        for arm, curves in arm_curves(study, budget).items():
            own = [curves.get(name, []) for name in names]
            for position in range(max(map(len, own), default=0)):
                values = [curve[position] if position < len(curve) else None for curve in own]
                rows.append([budget, arm, position, *values])
    return pd.DataFrame(rows, columns=["budget", "arm", "position", *names])


TOGETHER = "together"
"""Runs of all studies as those of one."""


def comparison_table(studies: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The ablation rows of several studies below each other by budget and arm, their runs under one protocol.

    Studies of different training seeds also stand together, with all their seeds.

    Raises:
        ComparisonError: where the studies differ in protocol or data; it names the knob.
    """
    together = pd.concat(studies.values(), ignore_index=True)
    comparable(together)
    parts = []
    for name, runs in studies.items():
        table = ablation_table(runs)
        table.insert(0, "study", name)
        parts.append(table)
    if len(studies) > 1:
        with suppress(ComparisonError):  # the same seeds: nothing to join
            joined = ablation_table(pooled(studies))
            joined.insert(0, "study", TOGETHER)
            parts.append(joined)
    table = pd.concat(parts, ignore_index=True)
    budgets = {budget: number for number, budget in enumerate(budget_order(together))}
    arms = {
        arm: number
        for number, arm in enumerate([WHOLE, *arm_order(next(iter(studies.values()))), *arm_order(together)])
    }
    order = sorted(range(len(table)), key=lambda row: (budgets[table["budget"][row]], arms[table["arm"][row]], row))
    return table.iloc[order].reset_index(drop=True)


def study_names(sources: Sequence[str]) -> list[str]:
    """What each study is called in a table: its folder's or experiment's name, with as much before it as tells it from
    the others.

    Raises:
        ComparisonError: where a study is given twice.
    """
    places = [source if source.startswith("mlflow:") else Path(source).resolve().as_posix() for source in sources]
    for source, place in zip(sources, places, strict=True):
        if places.count(place) > 1:
            raise ComparisonError(f"{source} is given twice; give every study once")
    return told_apart(places)
