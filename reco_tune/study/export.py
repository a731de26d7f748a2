"""Exports one run of a study as an experiment file. `reco-tune train` can repeat it bit for bit, lengthen it, or
continue it. Knows settings, the log and checkpoints; trains nothing and needs no Ray.
"""

from __future__ import annotations

import math
from pathlib import Path

import yaml

from reco_tune import quantities as q
from reco_tune.errors import StudyError
from reco_tune.parts import nearest
from reco_tune.settings import Experiment, known_keys, make_experiment
from reco_tune.study_log import RunRecord, StudyFolder, StudyRecord
from reco_tune.training.checkpoint import carry_over


def best_run(study: StudyRecord, metric: str) -> RunRecord:
    """The evaluated run with the best value among those that break no constraint; the first of equal ones.

    Raises:
        StudyError: if there is no such metric, it has no better direction, or no run has it.
    """
    if metric not in q.ALL:
        raise StudyError(f"--best {metric}: not a metric; {nearest(metric, q.ALL)}")
    better = q.ALL[metric].better
    if better == "neither":
        raise StudyError(f"--best {metric}: neither higher nor lower is better; give a metric such as fvd")
    sign = 1 if better == "lower" else -1
    whole = [
        run
        for run in study.runs.values()
        if run.state == "evaluated"
        and not run.reason
        and not run.tunes
        and math.isfinite(run.metrics.get(metric, math.nan))
    ]
    if not whole:
        raise StudyError(f"--best {metric}: no evaluated run of study `{study.name}` has it; give the name of a run")
    return min(whole, key=lambda run: sign * run.metrics[metric])


def exported(run: RunRecord, steps: int | None = None) -> Experiment:
    """The experiment of a run as the study ran it, or with another number of steps.

    Raises:
        SettingsError: if that number contradicts its other settings.
    """
    known = known_keys()
    settings = {key: value for key, value in run.settings.items() if key in known}  # of an earlier version, too
    if steps is not None:
        settings |= {"training.steps": steps, "training.epochs": None}
    return make_experiment({}, settings, where=run.trial)


def experiment_text(experiment: Experiment, run: RunRecord, study: StudyRecord) -> str:
    """The text of the experiment file; its first lines say which run it is."""
    steps, own = experiment.training.steps, run.settings.get("training.steps")
    what = f"Run {run.trial} of study {study.name}" + ("" if steps == own else f", but for {steps} steps, not {own}")
    commit = study.provenance.get("commit")
    lines = [
        f"# {what}{f', made with commit {commit}' if commit else ''}.",
        "# `reco-tune train FILE --evaluate` ends in the same bits on the same machine type, versions and workers.",
    ]
    values = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return "\n".join([*lines, values])


def continued(folder: StudyFolder, run: RunRecord, experiment: Experiment, target: Path) -> int:
    """Copies the newest checkpoint of a run to the folder from which `train` continues; returns its step.

    Raises:
        StudyError: if the run left no checkpoint, or its first steps would differ in a run of that many steps.
        CheckpointError: if it is damaged.
    """
    source, steps = folder.trial(run.trial), experiment.training.steps
    if steps != run.settings.get("training.steps"):
        _check_lengthened(experiment)
    if target.exists() and any(target.iterdir()):
        raise StudyError(f"{target} is not empty; remove it, or export to a file with another name")
    step = carry_over(source, target, {"training.steps": steps, "training.epochs": experiment.training.epochs})
    if step is None:
        raise StudyError(
            f"run {run.trial} left no checkpoint in {source} (keep.checkpoints, `clean`); leave --continue out to train"
            " it from the start, with the same result"
        )
    return step


def _check_lengthened(experiment: Experiment) -> None:
    """Refuses a run in which early steps depend on the total number of steps.

    Raises:
        StudyError: if they do.
    """
    follow = {
        "training.schedule": experiment.training.schedule == "constant",
        "window.schedule": experiment.window.schedule == "constant",
        "window.full_fraction": experiment.window.full_fraction == 0,
    }
    for key, same in follow.items():
        if not same:
            raise StudyError(
                f"--continue: {key} ({experiment.flat()[key]}) depends on the length of the run, so a run of"
                f" {experiment.training.steps} steps has other first steps; leave --continue out to train it from the"
                " start"
            )
