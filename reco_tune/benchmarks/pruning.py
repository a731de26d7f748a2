"""How much compute a search needs to find the frontier, with and without pruning, replayed over a table of recorded
runs.

Every strategy sees the same configurations with their recorded values (`benchmarks.recording`), so twenty seeds take
minutes. The decisions are those of a study: `goes_on` at the deciding rungs, and the searcher's proposals, each
mapped to the nearest recorded configuration that is left. One run at a time. A pruned run costs what it had cost at
its last rung; a complete run includes its evaluation.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reco_tune import pareto
from reco_tune import quantities as q
from reco_tune.benchmarks.recording import RecordedRun
from reco_tune.benchmarks.tables import Column, Row, Table
from reco_tune.errors import DataError
from reco_tune.pareto import deciding_rungs, goes_on
from reco_tune.progress import Progress, quiet
from reco_tune.settings import Pruning, Range, Sampler, Space

SHARE = 0.95
"""Share of the whole table's hypervolume that must be found."""
PRUNINGS = (
    Pruning(kind="pareto_asha"),
    Pruning(kind="pareto_asha", reduction_factor=2),
    Pruning(kind="pareto_asha", grace_rungs=2),
)
"""The default pruning, and variants of its two settings."""

_COLUMNS = (
    Column("search", "search"),
    Column("pruning", "pruning"),
    Column("cost", "compute in"),
    Column("median", "median share of the table's", ".1%"),
    Column("low", "lower quartile", ".1%"),
    Column("high", "upper quartile", ".1%"),
    Column("factor", "random / this", ".2f"),
    Column("begun", "runs begun", ".0f"),
    Column("whole", "of which complete", ".0f"),
    Column("reached", "seeds that found enough", ".0%"),
)


class SearchCost(NamedTuple):
    """One search over the table, until it has found enough or no configuration is left."""

    cpu_seconds: float
    """Includes validation, checkpoints and the evaluation of complete runs. Infinite if too little was found."""
    training_flops: float
    begun: int
    whole: int


def bench_pruning(table: Sequence[RecordedRun], space: Space, seeds: int, progress: Progress = quiet) -> Table:
    """Compute until `SHARE` of the table's hypervolume over speed-up limits and FVDs is found. The reference point is
    speed-up 0 and the largest FVD, as in the report.

    Args:
        space: the search space over which the table was recorded.
        seeds: repetitions of each strategy, with other orders of the table and other seeds of the searcher.
    """
    drawn: list[tuple[str, Pruning]] = [("random", Pruning()), ("tpe", Pruning()), ("tpe", PRUNINGS[0])]
    drawn[1:1] = [("random", pruning) for pruning in PRUNINGS]
    whole = _cost(table, [len(run.rungs) for run in table])
    rows: list[Row] = []
    for number, (search, pruning) in enumerate(drawn):
        found: list[SearchCost] = []
        for seed in range(seeds):
            progress(number * seeds + seed, len(drawn) * seeds, "replayed searches")
            found.append(replay(table, _chooser(search, table, space, seed), pruning))
        rows += [_row(search, pruning, found, name, total) for name, total in whole.items()]
    for row in rows:
        random = next(other["median"] for other in rows if other["cost"] == row["cost"])
        assert isinstance(random, float) and isinstance(row["median"], float)
        row["factor"] = random / row["median"]
    progress(1, 1, "replayed searches")
    title = (
        f"Compute until {SHARE:.0%} of the hypervolume of {len(table)} recorded configurations is found ({seeds} seeds)"
    )
    return Table("pruning", title, _COLUMNS, sorted(rows, key=lambda row: str(row["cost"])))


Choose = Callable[[tuple[int, tuple[float, float] | None] | None], int | None]
"""Gets the row that ran last with its speed-up and FVD (None: it was pruned), and returns the next row. Returns None
when the table is used up.
"""


def replay(table: Sequence[RecordedRun], choose: Choose, pruning: Pruning) -> SearchCost:
    """One search over the table."""
    points_N2, reference = _points(table)
    wanted = SHARE * pareto.hypervolume(points_N2, reference)
    known: dict[int, list[tuple[float, float]]] = defaultdict(list)
    ended: list[tuple[int, int]] = []
    last, reached = None, False
    while not reached and (row := choose(last)) is not None:
        rungs = _rungs(table[row], pruning, known)
        ended.append((row, rungs))
        whole = [other for other, done in ended if done == len(table[other].rungs)]
        final = table[row].final
        last = row, (final[q.SPEEDUP_LIMIT.name], final[q.FVD.name]) if rungs == len(table[row].rungs) else None
        reached = last[1] is not None and pareto.hypervolume(points_N2[whole], reference) >= wanted
    spent = (
        _cost([table[row] for row, _ in ended], [rungs for _, rungs in ended])
        if reached
        else dict.fromkeys(SearchCost._fields[:2], math.inf)
    )
    return SearchCost(**spent, begun=len(ended), whole=len(whole))


def in_order(rows: Sequence[int]) -> Choose:
    """One row after another, whatever their results."""
    left = iter(rows)
    return lambda last: next(left, None)


def _chooser(search: str, table: Sequence[RecordedRun], space: Space, seed: int) -> Choose:
    if search == "random":
        return in_order(np.random.default_rng(seed).permutation(len(table)).tolist())
    return _StudySearch(
        table, space.model_copy(update={"trials": len(table), "sampler": Sampler(kind="tpe", seed=seed)})
    )


class _StudySearch:
    """The study's searcher. Each proposal is mapped to the nearest recorded configuration that is left."""

    def __init__(self, table: Sequence[RecordedRun], space: Space) -> None:
        from reco_tune.study.searcher import Search  # imported here: the other searches need no Optuna

        self._search, self._ranges, self._table = Search(space), space.search, table
        self._left = list(range(len(table)))

    def __call__(self, last: tuple[int, tuple[float, float] | None] | None) -> int | None:
        if last is not None:
            trial, point = f"recorded-{last[0]}", last[1]
            metrics = dict(zip((q.SPEEDUP.name, q.FVD.name), point, strict=True)) if point else None
            ended = {"event": "evaluated", "metrics": metrics} if metrics else {"event": "pruned"}
            self._search.apply({**ended, "trial": trial})
        proposal = self._search.ask() if self._left else None
        if proposal is None:
            return None
        self._search.apply({"event": "failed", "trial": proposal.trial})  # the nearest configuration runs in its place
        wanted = _unit(proposal.event["params"], self._ranges)
        row = min(
            self._left, key=lambda row: float(np.square(_unit(self._table[row].params, self._ranges) - wanted).sum())
        )
        self._left.remove(row)
        params = {key: int(value) if self._ranges[key].int else value for key, value in self._table[row].params.items()}
        taken = {"trial": f"recorded-{row}", "params": params, "settings_hash": str(row)}
        self._search.apply({**proposal.event, "event": "asked", **taken})
        return row


def _unit(params: Mapping[str, float], ranges: Mapping[str, Range]) -> NDArray[np.float64]:
    """Position of a configuration in each range, from 0 to 1."""
    place = []
    for key, range_ in ranges.items():
        bounds = range_.int or range_.float
        if bounds is None:
            raise DataError(
                f"search: {key} is a choice, but recorded configurations are compared by distance; give int or float"
            )
        low, high, value = (math.log(number) if range_.log else float(number) for number in (*bounds, params[key]))
        place.append((value - low) / (high - low))
    return np.asarray(place)


def _rungs(run: RecordedRun, pruning: Pruning, known: dict[int, list[tuple[float, float]]]) -> int:
    """Number of rungs that a run completes."""
    if pruning.kind == "none":
        return len(run.rungs)
    for rung in deciding_rungs(len(run.rungs), pruning.grace_rungs, pruning.reduction_factor):
        known[rung].append((-run.final[q.SPEEDUP_LIMIT.name], run.rungs[rung - 1].val_cross_entropy))
        if not goes_on(known[rung], len(known[rung]) - 1, pruning.reduction_factor):
            return rung
    return len(run.rungs)


def _cost(runs: Sequence[RecordedRun], rungs: Sequence[int]) -> dict[str, float]:
    """Cost of these runs if they end at these rungs."""
    last = [run.rungs[done - 1] for run, done in zip(runs, rungs, strict=True)]
    evaluations = sum(
        run.final["evaluation_cpu_seconds"] for run, done in zip(runs, rungs, strict=True) if done == len(run.rungs)
    )
    seconds = sum(rung.training_cpu_seconds for rung in last) + evaluations
    return {"cpu_seconds": seconds, "training_flops": sum(rung.training_flops for rung in last)}


def _points(table: Sequence[RecordedRun]) -> pareto.SpeedFVD:
    return pareto.speed_fvd(
        [run.final[q.SPEEDUP_LIMIT.name] for run in table], [run.final[q.FVD.name] for run in table]
    )


def _row(search: str, pruning: Pruning, found: Sequence[SearchCost], cost: str, whole: float) -> Row:
    shares = np.array([getattr(one, cost) for one in found]) / whole
    low, middle, high = (float(np.quantile(shares, share, method="higher")) for share in (0.25, 0.5, 0.75))
    told = f"1 in {pruning.reduction_factor} from rung {pruning.grace_rungs}" if pruning.kind != "none" else "none"
    row: Row = {
        "search": search,
        "pruning": told,
        "cost": cost.replace("_", " "),
        "median": middle,
        "low": low,
        "high": high,
    }
    counts = {name: float(np.median([getattr(one, name) for one in found])) for name in ("begun", "whole")}
    return {**row, **counts, "reached": float(np.isfinite(shares).mean()), "factor": None}
