"""`reco-tune export`: a run of a study as an experiment file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reco_tune.cli.options import StudyDir, study_folder


def export(
    study_dir: StudyDir,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Name of a run, as `status` lists it.")] = None,
    best: Annotated[
        str | None, typer.Option(metavar="METRIC", help="Takes the run with the best fvd, speedup, ...")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Changes the number of optimiser steps.")] = None,
    goes_on: Annotated[
        bool, typer.Option("--continue", help="Also copies its checkpoint, so that `train` continues from it.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="The file to write. Default: RUN.yaml.")] = None,
) -> None:
    """Writes the experiment file of one run. `reco-tune train` can then repeat it bit for bit, or train it for longer.

    \b
    Examples:
      reco-tune export studies/evidence reco-equal_steps-s0
      reco-tune export studies/evidence --best fvd --steps 20000 --output longer.yaml
    """
    from reco_tune.errors import StudyError, command
    from reco_tune.quantities import ALL
    from reco_tune.study.export import best_run, continued, experiment_text, exported
    from reco_tune.study_log import StudyFolder, named_run, read_study

    folder = StudyFolder(study_folder(study_dir))
    study = read_study(folder.path)
    if (run is None) == (best is None):
        raise StudyError("give the name of a run, or --best METRIC; `reco-tune status` lists the runs")
    record = best_run(study, best) if best is not None else named_run(study, str(run))
    experiment = exported(record, steps)
    path = output or Path(f"{record.trial}.yaml")
    text = experiment_text(experiment, record, study)
    if path.exists() and (not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text):
        raise StudyError(f"{path} exists and is another file; give --output another name")
    trained = Path("runs") / path.stem
    step = continued(folder, record, experiment, trained) if goes_on else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if best is not None:
        print(f"best {ALL[best].label}: {record.trial}, {record.metrics[best]:.6g}")
    if steps is None and experiment.result_hash() != record.settings_hash:
        print(
            "note: an earlier version wrote its settings; newer settings take their defaults, so results may differ in"
            " bits"
        )
    print(f"{path}: {experiment.training.steps} steps" + (f", goes on at step {step} in {trained}" if step else ""))
    print(command("train", path, "--evaluate"))
