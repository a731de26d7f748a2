"""Decides what a study keeps on disk: checkpoints and models of ended runs, by its setting `keep`, and leftovers.
Deletes only what it has listed, and nothing that a resumed study needs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reco_tune import quantities as q
from reco_tune.pareto import non_dominated
from reco_tune.settings import BASELINE, Keep, Space
from reco_tune.study_log import ENDED, RunRecord, StudyFolder, StudyRecord

CHECKPOINT, MODEL, BEST = "checkpoint", "model", "best"
"""Folders of a run, as in `training.checkpoint`. Repeated here, because importing that module takes seconds."""


class Removal(NamedTuple):
    """A file or folder that may be deleted."""

    path: Path
    what: str
    """Kind of the file, as text. Files of one kind are listed together."""
    lost: str
    """What is no longer possible without it."""
    bytes: int


_LEFTOVER = "half-written folders of processes that were killed"
_LOST = {
    "checkpoints": "training these runs for longer (`export --continue`)",
    "models": "`rescore`, `generate` and `evaluate` of these runs; `export` and `train` make them again",
    "state of Ray": "nothing, a resumed study makes it anew",
    _LEFTOVER: "nothing",
}


def disk_use(folder: StudyFolder) -> dict[str, int]:
    """Bytes on disk by part, the largest first, without empty parts."""
    parts = {"checkpoints": 0, "models": 0, "MLflow": 0, "Ray": 0, "the rest": 0}
    for entry in folder.path.iterdir() if folder.path.is_dir() else ():
        if entry.name == "trials":
            for run in entry.iterdir():
                for own in run.iterdir() if run.is_dir() else ():
                    name = {CHECKPOINT: "checkpoints", MODEL: "models", BEST: "models"}.get(own.name, "the rest")
                    parts[name] += _bytes(own)
        else:
            name = {"mlflow.db": "MLflow", "mlartifacts": "MLflow", "ray": "Ray"}.get(entry.name, "the rest")
            parts[name] += _bytes(entry)
    return {name: size for name, size in sorted(parts.items(), key=lambda item: -item[1]) if size}


def removable(folder: StudyFolder, study: StudyRecord, space: Space, keep: Keep) -> list[Removal]:
    """What may be deleted from a study that is not running: what `keep` does not keep, and leftovers."""
    found = [*_given_up(folder, study, space, keep, failed=True)]
    if folder.ray.is_dir():
        found.append(_removal(folder.ray, "state of Ray"))
    trials = folder.path / "trials"
    for half in sorted([*trials.glob("*/.*.tmp"), *trials.glob(f"*/{CHECKPOINT}/.*.tmp")]):
        if not any(half.is_relative_to(other.path) for other in found):
            found.append(_removal(half, _LEFTOVER))
    return found


def remove(removals: Iterable[Removal]) -> None:
    """Deletes the listed files."""
    for removal in removals:
        shutil.rmtree(removal.path) if removal.path.is_dir() else removal.path.unlink(missing_ok=True)


def give_up(folder: StudyFolder, study: StudyRecord, space: Space) -> None:
    """Deletes what a finished study does not keep. Files that cannot be deleted stay."""
    for removal in _given_up(folder, study, space, space.keep, failed=False):
        shutil.rmtree(removal.path, ignore_errors=True)


def give_up_run(folder: StudyFolder, run: RunRecord, keep: Keep) -> None:
    """Deletes what a run that has just ended does not keep. The frontier is known only at the end of the study."""
    for removal in _given_up_by(folder, run, keep, failed=False, model=keep.models == "none"):
        shutil.rmtree(removal.path, ignore_errors=True)


def on_frontier(study: StudyRecord, space: Space) -> set[str]:
    """Runs of the configurations on the frontier: no other configuration beats them in every objective, by means over
    seeds. A configuration is an arm under a budget, or a sampled run with its further seeds.
    """
    rows: dict[tuple[str, str], list[RunRecord]] = {}
    for run in study.runs.values():
        if run.state == "evaluated" and not run.reason and not run.tunes:
            rows.setdefault((run.repeats or (run.trial if run.params else run.arm), run.budget), []).append(run)
    budgets = {budget for _, budget in rows} - {"both"} or {"both"}
    kept: set[str] = set()
    for budget in budgets:
        own = [runs for (_, of), runs in rows.items() if of in (budget, "both")]
        points = np.array([[_mean(runs, name, way) for name, way in space.objectives.items()] for runs in own])
        kept |= {run.trial for runs, best in zip(own, non_dominated(points), strict=True) if best for run in runs}
    return kept


def _mean(runs: list[RunRecord], metric: str, direction: str) -> float:
    """A run's objectives, to be minimised. The baseline's speed-up is 1, because nobody measures it."""
    missing = 1.0 if metric == q.SPEEDUP.name and runs[0].arm == BASELINE else np.nan
    value = float(np.mean([run.metrics.get(metric, missing) for run in runs]))
    return -value if direction == "maximize" else value


def _given_up(folder: StudyFolder, study: StudyRecord, space: Space, keep: Keep, failed: bool) -> Iterator[Removal]:
    """Args: failed: whether to include failed runs. A failed run may be retried."""
    kept = on_frontier(study, space) if keep.models == "frontier" and study.finished else set(study.runs)
    for run in study.runs.values():
        yield from _given_up_by(folder, run, keep, failed, model=keep.models == "none" or run.trial not in kept)


def _given_up_by(folder: StudyFolder, run: RunRecord, keep: Keep, failed: bool, model: bool) -> Iterator[Removal]:
    ended = ENDED if failed else ("evaluated", "pruned")
    gone = {CHECKPOINT: keep.checkpoints != "last" and run.state in ended}
    gone |= {MODEL: model and run.state == "evaluated"}
    gone |= {BEST: gone[MODEL] and keep.checkpoints != "best"}
    for name, given_up in gone.items():
        path = folder.trial(run.trial) / name
        if given_up and path.is_dir():
            yield _removal(path, "checkpoints" if name == CHECKPOINT else "models")


def _removal(path: Path, what: str) -> Removal:
    return Removal(path, what, _LOST[what], _bytes(path))


def _bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder. Files that disappear meanwhile count as 0."""
    try:
        if not path.is_dir() or path.is_symlink():
            return path.lstat().st_size
        with os.scandir(path) as entries:
            return sum(_bytes(Path(entry.path)) for entry in entries)
    except OSError:
        return 0
