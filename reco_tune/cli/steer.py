"""`reco-tune stop`, `retry` and `pause`: steer a study from another terminal, through its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from reco_tune.cli.options import Address, StudyDir, TrackingUri, study_folder
from reco_tune.errors import StoppedError, StudyError, command

if TYPE_CHECKING:
    from reco_tune.study.requests import What
    from reco_tune.study_log import StudyFolder

Run = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, for example search-0003.")]


def answered(folder: StudyFolder, what: What, **fields: Any) -> dict[str, Any] | None:
    """The answer of the process that drives a study; None if there is none.

    Raises:
        StudyError: if it refuses.
        StoppedError: if it has not answered yet.
    """
    from reco_tune.study import requests

    if not folder.live:
        return None
    request = requests.ask(folder, what, **fields)
    event = requests.answer(folder, request)
    if event is None and folder.live:
        raise StoppedError(
            f"the study is busy ({folder.driver}) and will answer as soon as its workers run;"
            f" `{command('status', folder.path)}` shows its progress"
        )
    return event


def stop(study_dir: StudyDir, run: Run) -> None:
    """Stops one run. It writes a checkpoint, counts as pruned and appears in no table. `retry` continues it.

    \b
    Example:
      reco-tune stop studies/evidence reco-equal_steps-s2
    """
    from reco_tune.study.steering import stop_aside
    from reco_tune.study_log import StudyFolder

    folder = StudyFolder(study_folder(study_dir))
    if answered(folder, "stop", runs=[run]) is None:
        stop_aside(folder, [run])
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
    from reco_tune.study.steering import FAILED, retry_aside
    from reco_tune.study_log import StudyFolder

    target, names = StudyFolder(folder), [run or FAILED]
    if answered(target, "retry", runs=names) is not None:
        print(f"the study retries {run or 'its failed runs'}")
        return
    retry_aside(target, names)
    options = Options(address=address, tracking_uri=tracking_uri, command=command_line())
    carry_out(folder, sampled_trials(folder), lambda observer: resume(folder, options, observer), tracking_uri)


def pause(study_dir: StudyDir) -> None:
    """Pauses a running study, like Ctrl-C in its own terminal: its runs write a checkpoint and stop.

    \b
    Example:
      reco-tune pause studies/evidence
    """
    from reco_tune.study_log import StudyFolder

    folder = StudyFolder(study_folder(study_dir))
    if answered(folder, "pause") is None:
        raise StudyError(f"the study in {folder.path} is not running; `{command('resume', folder.path)}` continues it")
    print(f"the study pauses; `{command('resume', folder.path)}` continues it")
