"""`reco-tune demo`: a whole study on a laptop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reco_tune.cli.options import shipped_spaces

QUICK = {
    "arms": "{full: {}, fewer_frames: {}, reco: {}}",
    "trials": "2",
    "data.train_clips": "256",
    "data.test_clips": "128",
    "tokenizer.fit_clips": "256",
    "training.steps": "40",
    "training.rungs": "2",
    "evaluation.samples": "64",
    "evaluation.reference_clips": "256",
    "evaluation.validation_clips": "64",
    "resources.calibration_seconds": "0.5",
}
"""Settings of `--quick`. Every part still runs, but the study is too small to decide anything."""


def demo(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Three arms, two sampled trials and tiny budgets. Too short to rank arms."),
    ] = False,
    output: Annotated[
        Path, typer.Option(help="Folder for data, caches and studies. A second demo reuses the data of the first.")
    ] = Path("demo"),
) -> None:
    """Runs everything on a laptop: data, tokenizer, study, report. Takes under 10 minutes on two cores, under 2 with
    --quick.

    \b
    Example:
      reco-tune demo --quick --output /tmp/demo
    """
    from reco_tune.cli.study import carry_out, command_line
    from reco_tune.settings import load_space
    from reco_tune.study import Options, run

    changes = {"data.cache_dir": str((output / "cache").resolve()), **(QUICK if quick else {})}
    space = load_space(shipped_spaces()["demo"], [f"{key}={value}" for key, value in changes.items()])
    folder = free_folder(output / "studies" / ("demo-quick" if quick else "demo"))
    options = Options(name=folder.name, command=command_line())
    carry_out(folder, space.trials, lambda observer: run(space, folder, options, observer), None)


def free_folder(path: Path) -> Path:
    """The path, with -2, -3, ... appended if it exists already."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
