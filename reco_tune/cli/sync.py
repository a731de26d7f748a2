"""`reco-tune sync`: sends MLflow what it missed."""

from __future__ import annotations

from typing import Annotated

import typer

from reco_tune.cli.options import StudyDir, TrackingUri, study_folder


def sync(
    study_dir: StudyDir,
    tracking_uri: TrackingUri = None,
    name: Annotated[
        str | None,
        typer.Option(help="MLflow experiment. Default: the one that holds the study, or the study's name."),
    ] = None,
) -> None:
    """Sends MLflow the runs of a study that it does not have yet. Use it after a server was down, or to send a study to
    another server, under another name, or to a database that was deleted.

    \b
    Examples:
      reco-tune sync studies/evidence --tracking-uri http://mlflow:5000
      reco-tune sync studies/evidence --tracking-uri http://mlflow:5000 --name evidence-2
    """
    from reco_tune import tracking
    from reco_tune.cli.console import progress_bars
    from reco_tune.errors import StudyError
    from reco_tune.study_log import StudyFolder

    folder = StudyFolder(study_folder(study_dir))
    if driver := folder.driver:
        raise StudyError(
            f"the study in {study_dir} is running ({driver}) and updates MLflow by itself; wait until it has ended"
        )
    with progress_bars() as progress:
        done = tracking.sync(folder, tracking_uri, progress, name)
    print(f"{done.sent} of {done.runs} runs sent to experiment {done.experiment} at {tracking.shown(done.uri)}")
