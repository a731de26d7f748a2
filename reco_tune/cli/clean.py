"""`reco-tune clean`: deletes what a study no longer needs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from reco_tune.cli.options import StudyDir, study_folder


def clean(
    study_dir: StudyDir,
    checkpoints: Annotated[
        Literal["none", "last", "best"] | None,
        typer.Option(help="Which checkpoints of ended runs to keep. Default: the study's keep.checkpoints."),
    ] = None,
    models: Annotated[
        Literal["all", "frontier", "none"] | None,
        typer.Option(help="Which runs keep their models. Default: the study's keep.models."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Deletes the files. Without it, they are only listed.")] = False,
) -> None:
    """Lists what can be deleted from a study that is not running, with sizes. Deletes it with --yes. Without other
    options, it touches nothing that resume, export or rescore still needs.

    \b
    Examples:
      reco-tune clean studies/evidence
      reco-tune clean studies/evidence --checkpoints none --models frontier --yes
    """
    from reco_tune.cli.console import print_table, size
    from reco_tune.settings import Keep, load_space
    from reco_tune.study.retention import removable, remove
    from reco_tune.study.study_writer import locked
    from reco_tune.study_log import StudyFolder, read_study

    folder = StudyFolder(study_folder(study_dir))
    with locked(folder):
        space = load_space(folder.settings)
        keep = Keep(checkpoints=checkpoints or space.keep.checkpoints, models=models or space.keep.models)
        found = removable(folder, read_study(folder.path), space, keep)
        if not found:
            print("nothing to delete")
            return
        rows = []
        for what in dict.fromkeys(removal.what for removal in found):
            own = [removal for removal in found if removal.what == what]
            rows.append([what, own[0].lost, str(len(own)), size(sum(removal.bytes for removal in own))])
        total = size(sum(removal.bytes for removal in found))
        print_table(str(folder.path), ["what", "no longer possible", "folders", "size"], rows, left=2)
        if yes:
            remove(found)
        print(f"{total} deleted" if yes else f"{total} would be deleted; --yes deletes it")
