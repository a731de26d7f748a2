"""`reco-tune status`: prints the state of a study from its log."""

from __future__ import annotations

from typing import Annotated

import typer

from reco_tune.cli.options import StudyDir, study_folder

MOST_LISTED = 50
"""Largest number of runs that are listed one by one by default. For a larger study, only running ones are listed."""
MOST_REASONS = 5
"""Number of reasons that are shown for a large study."""


def status(
    study_dir: StudyDir,
    every: Annotated[bool, typer.Option("--all", help="Lists every run, even of a large study.")] = False,
) -> None:
    """Prints the state of the runs, the cost so far and the time left. Reads the log, so it works while the study runs
    and after a crash. Sums up a study of many runs by arm.

    \b
    Example:
      reco-tune status studies/evidence
      reco-tune status studies/evidence --all
    """
    import time
    from collections import Counter

    from reco_tune.cli.console import print_table, size
    from reco_tune.cli.estimate import (
        duration,
        header,
        headline,
        row,
        standing,
        summary,
        summary_header,
    )
    from reco_tune.cli.study import sampled_trials
    from reco_tune.errors import command
    from reco_tune.quantities import STAGE_SECONDS
    from reco_tune.study.phases import current_phase
    from reco_tune.study.retention import disk_use
    from reco_tune.study_log import StudyFolder, read_study

    folder = StudyFolder(study_folder(study_dir))
    trials, study, live = sampled_trials(folder.path), read_study(folder.path), folder.live
    now = time.time() if live or study.time is None else study.time  # a study that has stopped spends no time
    runs, title = list(study.runs.values()), f"{study.name}: {study.question}"
    if every or len(runs) <= MOST_LISTED:
        print_table(title, header(runs), [row(run, now) for run in runs], left=2)
        print()
        for run in runs:
            if run.reason:
                print(f"{run.trial} {run.state}: {run.reason}")
    else:
        print_table(title, summary_header(runs), summary(runs), left=1)
        running = [run for run in runs if run.state in ("running", "completed")]
        if running:
            print_table("at work", header(runs), [row(run, now) for run in running[:MOST_LISTED]], left=2)
        failed = Counter(run.reason for run in runs if run.state == "failed")
        for reason, count in failed.most_common(MOST_REASONS):
            print(f"{count} failed: {reason}")
        hidden = max(0, len(running) - MOST_LISTED), max(0, len(failed) - MOST_REASONS)
        more = [f"{count} more {what}" for count, what in zip(hidden, ("at work", "reasons"), strict=True) if count]
        print(f"{', '.join([*more, '']) if more else ''}--all lists every run\n")
    phase = current_phase(folder)
    if live:
        state = phase.words(now) if phase else "running"
    elif study.finished:
        state = "finished"
    else:
        stopped = f"stopped, because {study.limited}" if study.limited else "not running"
        state = f"{stopped}; `{command('resume', study_dir)}` continues it"
    print(f"{headline(standing(study, trials, now))}; {state}")
    *stages, last = (stage.label.lower() for stage in STAGE_SECONDS)
    print(f"spent so far: {duration(study.device_seconds)} of device time on {', '.join(stages)} and {last}")
    use = ", ".join(f"{what} {size(count)}" for what, count in disk_use(folder).items())
    print(f"on disk: {use}")
