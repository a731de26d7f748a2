"""`reco-tune resume`: goes on after any crash."""

from __future__ import annotations

from reco_tune.cli.options import Address, StudyDir, TrackingUri, study_folder


def resume(study_dir: StudyDir, address: Address = None, tracking_uri: TrackingUri = None) -> None:
    """Goes on with a study that was stopped or whose process died; what is finished is never repeated.

    \b
    Example:
      reco-tune resume studies/evidence
    """
    folder = study_folder(study_dir)

    from reco_tune.cli.study import carry_out, command_line, sampled_trials
    from reco_tune.study import Options, resume

    options = Options(address=address, tracking_uri=tracking_uri, command=command_line())
    carry_out(folder, sampled_trials(folder), lambda observer: resume(folder, options, observer), tracking_uri)
