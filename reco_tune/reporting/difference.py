"""The differences between two runs, or two studies: settings, and results if they are comparable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from reco_tune.errors import ComparisonError
from reco_tune.quantities import ALL, JUDGED
from reco_tune.reporting.numbers import interval, number, signed
from reco_tune.reporting.quality import quality_of
from reco_tune.reporting.runs import load_runs
from reco_tune.reporting.studies import comparison_table
from reco_tune.settings import flatten
from reco_tune.study_log import RunRecord, StudyRecord
from reco_tune.tuning import in_words

MUST_AGREE = ("protocol", "data_fingerprint")
"""Provenance that must be equal for the results of two runs to be comparable."""
FACTS = ("commit", "version", "hardware", "platform")


class Row(NamedTuple):
    """One difference, as text."""

    name: str
    first: str
    second: str
    change: str = ""


@dataclass(frozen=True)
class Differences:
    """Rows in the order of the settings, and of the metrics."""

    settings: list[Row]
    results: list[Row]
    incomparable: str
    """Why results are left out; empty if they are not."""


def of_runs(first: RunRecord, second: RunRecord) -> Differences:
    """Every setting and metric that is not the same; measures of the clips only under one protocol and data set."""
    pair = (first, second)
    told = [(key, *(str(run.provenance.get(key, "")) for run in pair)) for key in MUST_AGREE]
    apart = [f"{key.replace('_', ' ')} is {a} and {b}" for key, a, b in told if a and b and a != b]
    results = [Row("state", first.state, second.state)] if first.state != second.state else []
    for name, quantity in ALL.items():
        a, b = (run.metrics.get(name) for run in pair)
        if a != b and not (apart and name in JUDGED):
            change = f"{b - a:+.4g}" if a is not None and b is not None else ""
            before, now = ("" if x is None else f"{x:,.6g}" for x in (a, b))
            results.append(Row(quantity.label, before, now, change))
    return Differences([*_differing(first.settings, second.settings)], results, "; ".join(apart))


def of_studies(first: StudyRecord, second: StudyRecord) -> Differences:
    """Settings of the spaces and where they ran; every arm that both have evaluated, by budget."""
    settings = [*_differing(_space(first), _space(second))]
    settings += _differing(*({key: study.provenance.get(key) for key in FACTS} for study in (first, second)))
    try:
        table = comparison_table({"A": load_runs(first), "B": load_runs(second)})
    except ComparisonError as error:
        return Differences(settings, [], str(error))
    quality, results = quality_of(table), []
    for (budget, arm), rows in table.groupby(["budget", "arm"], sort=False):
        own = {str(row["study"]): row for row in rows.to_dict("records")}
        before, now = (_arm(own.get(name), quality.ends, quality.digits) for name in ("A", "B"))
        change = signed(own["B"][quality.key] - own["A"][quality.key], quality.digits) if {"A", "B"} <= set(own) else ""
        results.append(Row(f"{quality.title} of {arm}, {str(budget).replace('_', ' ')}", before, now, change))
    return Differences(settings, results, "")


def _arm(row: Mapping[Any, Any] | None, ends: tuple[str, str, str], digits: int) -> str:
    if row is None:
        return ""
    value, low, high = (row[end] for end in ends)
    seeds = int(row["seeds"])
    return f"{number(value, digits)} {interval(low, high, digits)} ({seeds} seed{'s' if seeds > 1 else ''})"


def _space(study: StudyRecord) -> dict[str, Any]:
    settings = {key: value for key, value in study.settings.items() if key not in ("source", "question")}
    own = {key.removeprefix("experiment."): value for key, value in flatten(settings).items()}
    return own | {f"chosen for {arm}": in_words(chosen) for arm, chosen in study.tuned.items()}


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Row]:
    for key in dict.fromkeys([*first, *second]):
        if first.get(key) != second.get(key):
            yield Row(key, *(_word(side[key]) if side.get(key) is not None else "" for side in (first, second)))


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
