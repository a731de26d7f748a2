"""`reco-tune rescore`: evaluates a study's models under another protocol."""

from __future__ import annotations

from reco_tune.cli.options import Overrides, StudyDir, TrackingUri, study_folder


def rescore(study_dir: StudyDir, overrides: Overrides = None, tracking_uri: TrackingUri = None) -> None:
    """Evaluates a study's kept models under another protocol or way of sampling, on this machine, and adds the results
    to its log. Tables still show the study's own protocol; `report --protocol` shows the other. After an interruption,
    the same command continues.

    \b
    Examples:
      reco-tune rescore studies/evidence --set evaluation.reference_split=test
      reco-tune rescore studies/evidence --set sampling.cache_precision=int8
      reco-tune rescore studies/mine --set evaluation.protocol=latte --set evaluation.extractor_path=i3d_torchscript.pt
    """
    from reco_tune.errors import command

    folder = study_folder(study_dir)

    from reco_tune.cli.console import progress_bars
    from reco_tune.cli.study import mirror_sentence
    from reco_tune.study.rescore import rescore
    from reco_tune.study_log import StudyFolder

    with progress_bars() as progress:
        found = rescore(folder, overrides or [], progress)
    for trial, why in found.lost.items():
        print(f"{trial}: {why}")
    counts = f"{len(found.scored)} runs evaluated, {len(found.known)} had been already, {len(found.lost)} have no model"
    print(f"{found.protocol}: {counts}")
    print(command("report", folder, "--protocol", found.protocol))
    print(f"MLflow: {mirror_sentence(StudyFolder(folder), tracking_uri)}")
