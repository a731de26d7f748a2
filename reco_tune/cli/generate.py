"""`reco-tune generate`: clips from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reco_tune.cli.options import CheckpointDir, Overrides, override_trained


def generate(
    checkpoint: CheckpointDir,
    clips: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 16,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Name of a class. Repeatable. By default, all classes in turn.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the sampling.")] = 0,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for clips.mp4 and clips.npz. Default: generated/ beside the model.")
    ] = None,
) -> None:
    """Generates clips from a trained model. Writes a grid video to look at, and the pixels as uint8 [clips, frames, 3,
    height, width].

    \b
    Example:
      reco-tune generate demo/studies/demo/trials/full-s0 --clips 25 --set sampling.temperature=0.9
    """
    from reco_tune.training import load_model

    loaded = load_model(checkpoint)
    settings = override_trained(loaded.experiment, overrides)

    import numpy as np

    from reco_tune.cli.console import progress_bars
    from reco_tune.data.video import write_video
    from reco_tune.generation.trained import generated, grid_video, labels_of

    labels = labels_of(loaded.cache.class_names, classes, clips)
    with progress_bars() as progress:
        video = generated(loaded, settings, labels, seed, progress)
    folder = output or (checkpoint.parent if checkpoint.name == "model" else checkpoint) / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "clips.npz", video=video, labels=labels)
    write_video(folder / "clips.mp4", grid_video(video))
    print(f"{clips} clips of {len(set(labels.tolist()))} classes: {folder / 'clips.mp4'}, {folder / 'clips.npz'}")
