"""`reco-tune resume`: continues a study after any crash."""

from __future__ import annotations

from typing import Annotated

import typer

from reco_tune.cli.options import Address, StudyDir, TrackingUri, study_folder


def resume(
    study_dir: StudyDir,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Changes where the study runs (resources.*), where its data is, or when it stops. Repeatable.",
        ),
    ] = None,
    address: Address = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Continues a study that was stopped or whose process died. Finished runs are never repeated. Refuses if a setting
    has changed that results depend on.

    \b
    Examples:
      reco-tune resume studies/evidence
      reco-tune resume studies/evidence --address auto --set resources.gpus_per_worker=1
    """
    folder = study_folder(study_dir)

    from reco_tune.cli.study import carry_out, command_line, sampled_trials
    from reco_tune.study import Options, resume

    options = Options(address=address, tracking_uri=tracking_uri, command=command_line())
    carry_out(
        folder,
        sampled_trials(folder),
        lambda observer: resume(folder, options, observer, changes or ()),
        tracking_uri,
    )
