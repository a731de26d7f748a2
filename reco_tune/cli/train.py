"""`reco-tune train`: trains one run without Tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reco_tune.cli.options import OneRun, Overrides, path_and_arm


def train(
    experiment: OneRun,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the run. Default: runs/FILE or runs/FILE-ARM."),
    ] = None,
    judge: Annotated[bool, typer.Option("--evaluate", help="Also evaluates the model, as a study does.")] = False,
) -> None:
    """Trains one run, or continues it where an earlier call stopped. Needs neither Ray nor MLflow. You can start it
    with torchrun.

    \b
    Examples:
      reco-tune train experiment.yaml --set training.steps=200
      reco-tune train my_space.yaml:reco
      torchrun --nproc-per-node 4 -m reco_tune train experiment.yaml --set resources.workers=4 --evaluate
    """
    from reco_tune.settings import load_run

    path, arm = path_and_arm(experiment)
    settings = load_run(path, arm, overrides or [])

    from reco_tune.cli.console import print_table, progress_bars
    from reco_tune.evaluation import evaluate
    from reco_tune.preparation import prepare_tokens
    from reco_tune.progress import quiet
    from reco_tune.training import fit, joined, plan_scheme

    piece_blocks = plan_scheme(settings).encoded_piece_blocks
    folder = output or Path("runs") / (f"{path.stem}-{arm}" if arm else path.stem)
    with joined(settings) as group, progress_bars() as bars:
        progress = bars if group.leads else quiet
        if group.leads:
            prepare_tokens(settings, progress, piece_blocks)
        group.barrier()
        cache = prepare_tokens(settings, quiet, piece_blocks)  # the cache exists by now: this only opens it
        result = fit(settings, cache, folder, progress=progress, group=group)
        metrics = dict(result.metrics)
        if judge:
            metrics |= evaluate(result.model, settings, cache, group, folder, progress).metrics
    if group.leads:
        print_table(
            f"{folder}: {result.steps} steps",
            ["metric", "value"],
            [[name, f"{value:,.6g}"] for name, value in metrics.items()],
        )
        print(f"\nmodel: {folder / 'model'}")
