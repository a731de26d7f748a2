"""`reco-tune stop`, `retry` and `pause`: steer a study from another terminal, through its folder."""

from __future__ import annotations

from typing import Annotated

import typer

from reco_tune.cli.options import Address, StudyDir, TrackingUri, study_folder
from reco_tune.errors import StudyError, command

Run = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, for example search-0003.")]


def stop(study_dir: StudyDir, run: Run) -> None:
    """Stops one run. It writes a checkpoint, counts as pruned and appears in no table. `retry` continues it.

    \b
    Example:
      reco-tune stop studies/evidence reco-equal_steps-s2
    """
    from reco_tune.study.steering import stop_runs
    from reco_tune.study_log import StudyFolder

    folder = StudyFolder(study_folder(study_dir))
    stop_runs(folder, [run])
    print(f"{run} stops; `{command('retry', folder.path, run)}` continues it")


def retry(
    study_dir: StudyDir,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Name of a run that failed or was stopped.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Retries every run that failed.")] = False,
    address: Address = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Retries runs that failed or were stopped, from their last checkpoint. A running study takes them up; otherwise
    this command continues the study.

    \b
    Examples:
      reco-tune retry studies/evidence reco-equal_steps-s2
      reco-tune retry studies/evidence --failed
    """
    folder = study_folder(study_dir)
    if (run is None) == (not failed):
        raise StudyError("give one run, or --failed for every run that failed")

    from reco_tune.cli.study import carry_out, command_line, sampled_trials
    from reco_tune.study import Options, resume
    from reco_tune.study.steering import FAILED, retry_runs
    from reco_tune.study_log import StudyFolder

    target, names = StudyFolder(folder), [run or FAILED]
    if retry_runs(target, names):
        print(f"the study retries {run or 'its failed runs'}")
        return
    options = Options(address=address, tracking_uri=tracking_uri, command=command_line())
    carry_out(folder, sampled_trials(folder), lambda observer: resume(folder, options, observer), tracking_uri)


def pause(study_dir: StudyDir) -> None:
    """Pauses a running study, like Ctrl-C in its own terminal: its runs write a checkpoint and stop.

    \b
    Example:
      reco-tune pause studies/evidence
    """
    from reco_tune.study.steering import pause_study
    from reco_tune.study_log import StudyFolder

    folder = StudyFolder(study_folder(study_dir))
    pause_study(folder)
    print(f"the study pauses; `{command('resume', folder.path)}` continues it")
