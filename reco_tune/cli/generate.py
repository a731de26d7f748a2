"""`reco-tune generate`: generates clips from a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from reco_tune.cli.options import CheckpointDir, Overrides, override_trained


def generate(
    checkpoint: CheckpointDir,
    clips: Annotated[
        int | None, typer.Option(min=1, help="Number of clips. By default 16, or one for each prompt.")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Name of a class. Repeatable. By default, all classes in turn.")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="What to show, for a model of texts. Repeatable.")
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
    Examples:
      reco-tune generate demo/studies/demo/trials/full-s0 --clips 25 --set sampling.temperature=0.9
      reco-tune generate studies/text_digits/trials/full-s0 --prompt "a 3 moves left and up" --clips 9
    """
    from reco_tune.training import load_model

    loaded = load_model(checkpoint)
    settings = override_trained(loaded.experiment, overrides)

    import numpy as np

    from reco_tune.cli.console import progress_bars
    from reco_tune.data.video import write_video
    from reco_tune.generation.trained import generated, grid_video, wanted

    asked = wanted(loaded, classes, prompts, clips)
    if asked.unknown:
        print(
            f"no training caption has {', '.join(asked.unknown)}; the model cannot tell such words apart",
            file=sys.stderr,
        )
    with progress_bars() as progress:
        video = generated(loaded, settings, asked.given_N, seed, progress)
    folder = output or (checkpoint.parent if checkpoint.name == "model" else checkpoint) / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    told = {"labels": asked.given_N} if loaded.words is None else {"prompts": np.array(asked.names)}
    np.savez_compressed(folder / "clips.npz", allow_pickle=False, video=video, **told)
    write_video(folder / "clips.mp4", grid_video(video))
    kinds = f"{len(set(asked.names))} {'classes' if loaded.words is None else 'prompts'}"
    print(f"{len(video)} clips of {kinds}: {folder / 'clips.mp4'}, {folder / 'clips.npz'}")
