"""Estimates the state of a study and its time left from its log alone, and turns its runs into table rows. Uses no
terminal and no clock.

Work is counted in baseline steps: a run's steps divided by its arm's speed-up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from reco_tune import pareto
from reco_tune.quantities import FVD
from reco_tune.settings import BASELINE, COMPUTE_SHARES
from reco_tune.study_log import ENDED, RunRecord, StudyRecord, quality_of, speed_of, whole_at_equal_steps

COUNTED = ("planned", "running", "pruned", "failed", "evaluated")
"""States that `summary` counts."""
EVALUATION_SHARE = 0.1
"""Part of a run's work that comes after training: sampling and measuring."""


@dataclass(frozen=True)
class Standing:
    """The state of a study."""

    ended: int
    total: int
    """Number of runs, including those not proposed yet."""
    done_share: float
    """Share of the work that is done."""
    elapsed_seconds: float
    """From the first start of a run until now, or until the last end."""
    left_seconds: float | None
    """None if it cannot be estimated yet."""
    hypervolume: float | None = None
    """Area between the frontier so far and the reference point, in speed-up x FVD (or validation cross-entropy); None
    before two runs can be compared.
    """
    worst: float = 0.0
    """Quality of the reference point (`pareto.speed_fvd`)."""
    quality: str = "FVD"
    """Metric of the reference point."""
    tuning: str = ""
    """Progress of tuning the arms, as text; empty when all are tuned."""


def standing(study: StudyRecord, trials: int, now: float, running: Mapping[str, float] | None = None) -> Standing:
    """
    Args:
        trials: sampled runs of the space; runs that are not in the log yet count as planned, further seeds of finalists
            do not count.
        now: Unix seconds; ignored if the study is finished.
        running: shares of running runs that are newer than the log's.
    """
    runs = list(study.runs.values())
    sampled = [run for run in runs if run.arm == "search" and not run.repeats]
    missing = 0 if study.finished else max(0, trials - len(sampled))
    works = {run.trial: work(run) for run in runs if run.arm != "search" or "speedup" in run.metrics}
    known = [works[run.trial] for run in sampled if run.trial in works]
    per_sampled = sum(known) / len(known) if known else max(works.values(), default=1.0) / 2
    works |= {run.trial: per_sampled for run in runs if run.trial not in works}  # not calibrated yet
    unplanned = _unplanned(study)
    total = sum(works.values()) + missing * per_sampled + sum(unplanned)
    done = sum(works[run.trial] * max(share(run), (running or {}).get(run.trial, 0.0)) for run in runs)
    began = min((run.started for run in runs if run.started), default=None)
    end = max((run.ended for run in runs if run.ended), default=now) if study.finished else now
    elapsed = 0.0 if began is None else max(0.0, end - began)
    left = elapsed * (total - done) / done if done > 0 and elapsed > 0 else None
    ended = sum(run.state in ENDED for run in runs)
    left = 0.0 if study.finished else left
    everything, area = len(runs) + missing + len(unplanned), _hypervolume(runs)
    return Standing(ended, everything, done / total if total else 0.0, elapsed, left, *area, _tuning(study))


def _unplanned(study: StudyRecord) -> list[float]:
    """Work of every run that waits until the settings of its arm are chosen. At an arm's longest budget, it is the work
    of a run that tunes the arm.
    """
    works: list[float] = []
    longest: dict[str, float] = {}
    for run in study.runs.values():
        if run.tunes and run.arm not in study.tuned:
            longest[run.arm] = max(longest.get(run.arm, 0.0), work(run))
    for arm, whole in longest.items():
        shares = [COMPUTE_SHARES.get(budget, 1.0) for budget in study.settings["budgets"]]
        own = [1.0, *(share for share in shares if share < 1)] if arm == BASELINE else shares
        works += [whole * share for share in own for _ in study.settings["seeds"]]
    return works


def _tuning(study: StudyRecord) -> str:
    """Progress of tuning the arms, as text. Empty if there is nothing to tune, or all arms are tuned."""
    arms = {run.arm for run in study.runs.values() if run.tunes}
    left = arms - study.tuned.keys()
    return f"tuning: settings chosen for {len(arms) - len(left)} of {len(arms)} arms" if left else ""


def _hypervolume(runs: list[RunRecord]) -> tuple[float | None, float, str]:
    """Hypervolume of the whole runs at equal steps, fixed and sampled, and the quality of its reference point."""
    quality = quality_of(runs)
    whole = whole_at_equal_steps(runs, quality.name)
    covered = _covered(tuple(map(speed_of, whole)), tuple(run.metrics[quality.name] for run in whole))
    return *covered, "FVD" if quality is FVD else "validation cross-entropy"


@lru_cache(maxsize=1)  # cached: a live view calls this at every redraw, but runs seldom end
def _covered(speeds: tuple[float, ...], qualities: tuple[float, ...]) -> tuple[float | None, float]:
    points, reference = pareto.speed_fvd(speeds, qualities)
    return (pareto.hypervolume(points, reference) if len(points) > 1 else None), reference[1]


def header(runs: Sequence[RunRecord]) -> list[str]:
    """Of `row`."""
    return ["run", "state", "step", "val CE", "speed-up", *(["FVD"] if quality_of(runs) is FVD else []), "seconds"]


def summary_header(runs: Sequence[RunRecord]) -> list[str]:
    """Of `summary`."""
    return ["arm", "runs", *COUNTED, "moves", "best FVD" if quality_of(runs) is FVD else "best val CE"]


def work(run: RunRecord) -> float:
    """Baseline steps that the run costs."""
    return float(run.settings.get("training.steps", 1)) / max(run.metrics.get("speedup", 1.0), 1e-3)


def steps_done(run: RunRecord) -> int:
    """Optimiser steps in the log."""
    return int(max([run.metrics.get("steps", 0), *(report["step"] for report in run.reports)]))


def share(run: RunRecord) -> float:
    """Part of a run that is done."""
    if run.state in ENDED:
        return 1.0
    return (1 - EVALUATION_SHARE) * min(1.0, steps_done(run) / max(1, int(run.settings.get("training.steps", 1))))


def row(run: RunRecord, now: float) -> list[str]:
    """A run as the cells under `header`."""
    steps = f"{steps_done(run)}/{run.settings.get('training.steps', '?')}"
    end = run.ended if run.state in ENDED else now
    seconds = f"{end - run.started:.0f}" if run.started and end else ""
    return [
        run.trial,
        run.state,
        steps,
        _cell(run, "val_cross_entropy", 3),
        _cell(run, "speedup", 2, "x"),
        *([_cell(run, "fvd", 2)] if quality_of([run]) is FVD else []),
        seconds,
    ]


def summary(runs: Iterable[RunRecord]) -> list[list[str]]:
    """The runs of every arm as the cells under `summary_header`, in the order in which the arms appear."""
    arms: dict[str, list[RunRecord]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    rows = []
    for arm, theirs in arms.items():
        states: Counter[str] = Counter("running" if run.state == "completed" else run.state for run in theirs)
        quality = quality_of(theirs)
        key, digits = quality.name, 2 if quality is FVD else 3
        found = [
            run.metrics[key] for run in theirs if run.state == "evaluated" and not run.tunes and key in run.metrics
        ]
        counts = (len(theirs), *(states[state] for state in COUNTED), sum(run.moves for run in theirs))
        rows.append([arm, *(f"{count:,}" for count in counts), f"{min(found):.{digits}f}" if found else ""])
    return rows


def headline(found: Standing) -> str:
    """The state of the study, in one line."""
    left = (
        ""
        if found.left_seconds is None or found.ended == found.total
        else f", about {duration(found.left_seconds)} left"
    )
    told = (
        f"{found.ended} of {found.total} runs ended, {found.done_share:.0%} of the work,"
        f" {duration(found.elapsed_seconds)} so far{left}{f', {found.tuning}' if found.tuning else ''}"
    )
    if found.hypervolume is None:
        return told
    return f"{told}, hypervolume {found.hypervolume:.4g} (to speed-up 0 and {found.quality} {found.worst:.4g})"


def duration(seconds: float) -> str:
    """75 -> "1:15"; 3700 -> "1:01:40"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _cell(run: RunRecord, name: str, digits: int, unit: str = "") -> str:
    value = run.metrics.get(name)
    return "" if value is None else f"{value:.{digits}f}{unit}"
