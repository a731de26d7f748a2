"""Each arm at its own best: the values that every arm tried before the table, those it got, and how much the choice
matters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from reco_tune import quantities
from reco_tune.reporting.aggregate import Estimate, mean_interval
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import number, quoted
from reco_tune.reporting.section import (
    Figure,
    RowGroup,
    Section,
    Table,
    interval_column,
    number_column,
    records,
    setting_column,
    text_column,
)
from reco_tune.settings import Tune
from reco_tune.tuning import PointResult, point_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Results = Mapping[str, Sequence[PointResult]]
"""Results of every point, by arm."""
DIGITS = {quantities.FVD.name: 2, quantities.VAL_CROSS_ENTROPY.name: 4}


def build(evidence: Evidence) -> Section:
    tune = tuned_by(evidence)
    if tune is None:
        return Section("tuning", "Each arm at its own best")
    results = {arm: point_results(tune, evidence.study.runs.values(), arm) for arm in evidence.arms}
    points = tuning_points(evidence, tune, results)
    rows = _chosen_rows(tune, results, points)
    metric, keys = quantities.ALL[tune.metric], list(tune.per_arm)
    columns = (
        text_column("arm", "arm"),
        *(setting_column(key) for key in keys),
        number_column(metric.name, f"{metric.label} ↓", DIGITS[metric.name]),
        interval_column(metric.name, digits=DIGITS[metric.name]),
        number_column("worst", "worst point", DIGITS[metric.name]),
        text_column("runs", "tuning runs"),
        text_column("steps", "steps each", "count"),
        number_column("device_hours", "device (h)", 3),
    )
    hours = sum(row["device_hours"] for row in rows if math.isfinite(row["device_hours"]))
    caption = (
        f"Before the table, every arm tried the same {tune.trials} points on the same training"
        f" {'seeds' if len(tune.seeds) > 1 else 'seed'} ({', '.join(map(str, tune.seeds))}), each at the longest of its"
        f" budgets, and got the one with the lowest mean {metric.label}. These runs took {number(hours, 3)} device"
        " hours. No other table has these runs or their seeds. Shorter budgets use the same values, which need not be"
        " their best. `tuning.csv` has every point."
    )
    table = Table(
        "tuning",
        "Chosen settings",
        columns,
        [RowGroup("", rows)] if rows else [],
        caption if rows else "",
        _at_an_end(tune, rows),
        data=points,
    )
    figure = Figure(
        "tuning",
        "Sensitivity of each arm",
        f"Mean {metric.label} of every point that an arm tried, with 95% intervals. The ring marks the"
        " chosen point. Where curves cross, the order of the arms depends on the value that they share.",
        draw_tuning,
        (points, keys, metric.name),
    )
    return Section("tuning", "Each arm at its own best", tables=[table], figures=[figure])


def tuned_by(evidence: Evidence) -> Tune | None:
    """The settings of tuning the study's arms; None if they were not tuned."""
    given = evidence.study.settings.get("tune")
    return None if given is None else Tune.model_validate(given)


def tuning_points(evidence: Evidence, tune: Tune, results: Results) -> pd.DataFrame:
    """One row for each arm and point: its settings, the mean of the metric over tuning seeds with its 95% interval, the
    number of runs, how many of them were evaluated, their steps and device hours, and whether the arm got this point.
    """
    rows = []
    spent = dict(zip(evidence.own["trial"], evidence.own["gpu_hours"], strict=True))
    for arm, own in results.items():
        chosen = evidence.study.tuned.get(arm)
        for result in own:
            if result.runs:
                hours = sum(value for run in result.runs if math.isfinite(value := spent.get(run.trial, math.nan)))
                told = [len(result.values), len(result.runs), result.runs[0].settings["training.steps"], hours]
                mean = _mean(result, tune.metric)
                rows.append([arm, *result.params.values(), *mean, *told, result.params == chosen])
    ends = [tune.metric + end for end in ("", "_low", "_high")]
    names = ["arm", *tune.per_arm, *ends, "evaluated", "runs", "steps", "device_hours", "chosen"]
    return pd.DataFrame(rows, columns=names)


def _mean(result: PointResult, metric: str) -> Estimate:
    """Mean and interval over seeds; with one seed, its own sampling interval."""
    ends = [
        Estimate(*(run.metrics.get(metric + end, math.nan) for end in ("", "_low", "_high"))) for run in result.judged
    ]
    return mean_interval(ends) if ends else Estimate(math.nan, math.nan, math.nan)


def _chosen_rows(tune: Tune, results: Results, points: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each arm whose settings were chosen."""
    rows = []
    for arm, own in points.groupby("arm", sort=False):
        states = Counter(run.state for result in results[str(arm)] for run in result.runs)
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        for row in records(own[own["chosen"]]):
            rows.append(
                row | {"worst": own[tune.metric].max(), "runs": told, "device_hours": float(own["device_hours"].sum())}
            )
    return rows


def _at_an_end(tune: Tune, rows: list[dict[str, Any]]) -> list[str]:
    """Arms that got an end of the range, so that the best value may lie beyond it."""
    told = []
    for key in tune.per_arm:
        values = sorted({point[key] for point in tune.points if isinstance(point[key], int | float)})
        for end, word in ((0, "lowest"), (-1, "highest")):
            arms = [quoted(row["arm"]) for row in rows if len(values) > 1 and row[key] == values[end]]
            if arms:
                told.append(f"{', '.join(arms)} got the {word} {key} that was tried: the best may lie beyond it.")
    return told


def draw_tuning(points: pd.DataFrame, keys: list[str], metric: str) -> Drawing | None:
    """The metric over each tuned setting by arm, one panel for each setting. With several settings, each value shows
    the best of its points.
    """
    from reco_tune.reporting.labels import label_line_ends
    from reco_tune.reporting.style import (
        colours,
        drawable,
        half_widths,
        lay_out,
        new_figure,
        plain_log,
        say_left_out,
        spread,
        style,
    )

    known = points[points[metric].notna()]
    shown = drawable(known, metric)
    keys = [key for key in keys if shown[key].nunique() > 1 and pd.api.types.is_numeric_dtype(shown[key])]
    if not keys or shown.empty:
        return None
    palette = colours(list(dict.fromkeys(shown["arm"])))
    log = spread(shown[metric]) > 5
    with style():
        figure = new_figure(5.6 * len(keys) + 1.0, 4.3)
        panels = [*figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]]
        lines: list[list[tuple[float, float, str, str]]] = []
        for axes, key in zip(panels, keys, strict=True):
            ends = []
            for arm, own in shown.groupby("arm", sort=False):
                best = own.sort_values(metric).drop_duplicates(key).sort_values(key)
                colour = palette[str(arm)]
                axes.plot(best[key], best[metric], color=colour, marker="o", markersize=4, linewidth=1.3)
                for row in records(best):
                    bars = half_widths(row[metric], row[f"{metric}_low"], row[f"{metric}_high"])
                    if bars is not None:
                        axes.errorbar([row[key]], [row[metric]], bars, color=colour, linewidth=0.9, alpha=0.5)
                got = own[own["chosen"]]
                axes.plot(
                    got[key], got[metric], linestyle="", marker="o", markersize=9, markerfacecolor="none", color=colour
                )
                ends.append((float(best[key].iloc[-1]), float(best[metric].iloc[-1]), str(arm), colour))
            values = sorted(set(shown[key]))
            if values[0] > 0 and values[-1] / values[0] >= 3:
                axes.set_xscale("log")
            axes.set_xticks(values if len(values) <= 7 else values[:: -(-len(values) // 6)])
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.minorticks_off()
            axes.set_xlabel(key)
            lines.append(ends)
        if log:
            panels[0].set_yscale("log")
        plain_log(panels[0], log)
        panels[0].set_ylabel(f"{quantities.ALL[metric].label} (lower is better)")
        lay_out(figure)
        label_line_ends(panels[-1], lines[-1])
        say_left_out(figure, len(known) - len(shown))
    return figure
