"""Content of a study's parent run in MLflow: numbers for the list of studies, and a note with its tables. Pure
functions of the study's record and its report folder. Knows nothing of MLflow.
"""

from __future__ import annotations

import math
from pathlib import Path

from reco_tune import pareto
from reco_tune.study_log import ENDED, StudyRecord, quality_of, speed_of, whole_at_equal_steps

SPEEDS = (1.0, 1.5, 2.0, 3.0)
"""For each of these speed-ups: the best run among those that are at least this much faster than the baseline."""
NOTE_CHARACTERS = 5000
"""MLflow's limit on a tag."""


def summary_metrics(study: StudyRecord) -> dict[str, float]:
    """Counts of runs, device hours, the hypervolume of the frontier, and the best quality at each speed."""
    runs = list(study.runs.values())
    told: dict[str, float] = {"runs": len(runs), "device_hours": study.device_seconds / 3600}
    told |= {f"runs_{state}": sum(run.state == state for run in runs) for state in ENDED}
    quality = quality_of(runs).name
    whole = [
        run
        for run in runs
        if run.state == "evaluated" and not run.tunes and math.isfinite(run.metrics.get(quality, math.nan))
    ]
    for least in SPEEDS:
        found = [run.metrics[quality] for run in whole if speed_of(run) >= least]
        if found:
            told[f"best_{quality}_from_{least:g}x"] = min(found)
    equal = whole_at_equal_steps(whole, quality)
    points, reference = pareto.speed_fvd([speed_of(run) for run in equal], [run.metrics[quality] for run in equal])
    if len(points) > 1:
        told["hypervolume"] = pareto.hypervolume(points, reference)
    return told


def note(study: StudyRecord, report: Path) -> str:
    """The question, the runs of the study and its ablation table if the report has one, in Markdown."""
    counts = {state: sum(run.state == state for run in study.runs.values()) for state in ENDED}
    ended = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    parts = [study.question, f"{len(study.runs)} runs{f': {ended}' if ended else ''}."]
    parts += [f"Extended by {', '.join(one['what'])}." for one in study.extensions]
    parts += [f"Stopped early: {study.limited}."] if study.limited else []
    table = report / "ablation.md"
    if table.is_file():
        text = table.read_text(encoding="utf-8").strip()
        if sum(map(len, parts)) + len(text) + 2 * len(parts) <= NOTE_CHARACTERS:
            parts.append(text)
        else:
            parts.append("The tables are among the artifacts, in `report/`.")
    return "\n\n".join(parts)[:NOTE_CHARACTERS]
