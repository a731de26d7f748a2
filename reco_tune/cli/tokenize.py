"""`reco-tune tokenize`: videos to a token cache."""

from __future__ import annotations

from typing import Annotated

import typer

from reco_tune.cli.options import ExperimentFile, Overrides, experiment_path


def tokenize(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    check: Annotated[bool, typer.Option("--check", help="Also measure how well held-out clips come back from their codes.")] = False,
) -> None:
    """Cuts videos into clips, fits the tokenizer where none is there yet and writes the codes; a second call reuses everything.

    \b
    Example:
      reco-tune tokenize experiment.yaml --set data.root=/data/ucf101 --check
    """
    from reco_tune.settings import load_experiment

    settings = load_experiment(experiment_path(experiment), overrides or [])

    from reco_tune.cli.console import progress_bars
    from reco_tune.cli.single import piece_blocks, reconstruction
    from reco_tune.tokenizers import prepare_tokens

    with progress_bars() as progress:
        cache = prepare_tokens(settings, progress, piece_blocks=piece_blocks(settings))
    blocks, rows, columns = cache.grid
    print(f"token cache: {cache.path}")
    for split in ("train", "test"):
        print(f"{split}: {len(cache.tokens(split))} clips of {blocks} x {rows} x {columns} tokens")
    print(f"classes: {cache.num_classes}, codes: {cache.num_codes}")
    for skipped in cache.skipped:
        print(f"left out: {skipped.path}: {skipped.reason}")
    if check:
        print(f"held-out clips come back with {reconstruction(cache):.1f} dB PSNR")
