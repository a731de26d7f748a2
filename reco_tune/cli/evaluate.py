"""`reco-tune evaluate`: evaluates a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reco_tune.cli.options import CheckpointDir, Overrides, override_trained


def evaluate(
    checkpoint: CheckpointDir,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for samples.npz. By default, samples are not kept.")
    ] = None,
) -> None:
    """Evaluates a trained model: generates clips, compares them with real ones, and prints metrics, curves and protocol
    as JSON.

    \b
    Examples:
      reco-tune evaluate demo/studies/demo/trials/full-s0 --set evaluation.samples=2048
      reco-tune evaluate studies/mine/trials/reco-s0 --set evaluation.protocol=latte
        --set evaluation.extractor_path=i3d_torchscript.pt
    """
    from reco_tune.training import load_model

    loaded = load_model(checkpoint)
    settings = override_trained(loaded.experiment, overrides)
    if settings.evaluation.checkpoint != loaded.experiment.evaluation.checkpoint:
        loaded = load_model(checkpoint, settings.evaluation.checkpoint)

    import json
    from dataclasses import asdict

    from reco_tune.cli.console import progress_bars
    from reco_tune.cli.single import cache_of
    from reco_tune.evaluation import evaluate, prepare_evaluation
    from reco_tune.training import joined, prepare_device

    with joined(settings) as group, progress_bars() as progress:
        cache = cache_of(loaded, settings, progress)
        if cache.has_pixels:
            prepare_evaluation(settings, cache, progress)
        model = loaded.model.to(prepare_device(settings))
        result = evaluate(model, settings, cache, group=group, folder=output, progress=progress)
    if group.leads:
        print(json.dumps(asdict(result), indent=2, default=str))
