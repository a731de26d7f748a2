"""`reco-tune tokenize`: encodes videos into a token cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reco_tune.cli.options import Address, Overrides, Planned, path_and_arm
from reco_tune.errors import SettingsError

if TYPE_CHECKING:
    from reco_tune.data.clips import Skipped
    from reco_tune.settings import Experiment

LISTED = 10
"""Number of videos that are named on the terminal. The files name all."""


def tokenize(
    settings: Planned,
    overrides: Overrides = None,
    fit: Annotated[bool, typer.Option("--fit", help="Stop after the tokenizer is fitted or copied.")] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Also check the reconstruction of held-out clips: PSNR, codes used, a video."),
    ] = False,
    address: Address = None,
) -> None:
    """Cuts videos into clips, fits the tokenizer if there is none yet, and writes the codes. Continues where an earlier
    call stopped.

    \b
    Examples:
      reco-tune tokenize my_space.yaml --check
      reco-tune tokenize experiment.yaml --set data.root=/data/ucf101
      reco-tune tokenize my_space.yaml --address auto    (decoding and encoding on a Ray cluster)
    """
    if fit and (check or address):
        raise SettingsError(
            "--fit stops before encoding and runs only on this machine; leave --check and --address out"
        )

    experiment, piece_blocks = _asked(settings, overrides or [])

    import torch

    from reco_tune.cli.console import progress_bars
    from reco_tune.cli.single import reconstruction
    from reco_tune.data.video import write_video
    from reco_tune.generation.trained import grid_video
    from reco_tune.preparation import prepare_tokenizer, prepare_tokens

    with progress_bars() as progress:
        if fit:
            print(f"tokenizer: {prepare_tokenizer(experiment, progress, piece_blocks)}")
            return
        if address is None:
            cache = prepare_tokens(experiment, progress, piece_blocks)
        else:
            from reco_tune.study.tokenizing import prepare_tokens_on_cluster

            cache = prepare_tokens_on_cluster(experiment, address, progress, piece_blocks)
    blocks, rows, columns = cache.grid
    print(f"token cache: {cache.path}")
    for split in ("train", "test"):
        print(f"{split}: {len(cache.tokens(split))} clips of {blocks} x {rows} x {columns} tokens")
    print(f"classes: {cache.num_classes}, codes: {cache.num_codes}")
    if experiment.model.condition == "text":
        captions = cache.captions(experiment.captions_name)
        print(f"captions: {captions.num_words} words, {captions.length} a clip; {captions.shortened} captions cut off")
    _print_list("left out", cache.skipped, cache.path / "skipped.csv")
    _print_list("used, but suspicious", cache.suspicious, cache.path / "suspicious.csv")
    if check:
        found = reconstruction(cache, experiment.device_type if torch.cuda.is_available() else "cpu")
        write_video(cache.path / "check.mp4", grid_video(found.side_by_side_NFCHW))
        print(f"reconstruction of held-out clips: {found.psnr_db:.1f} dB PSNR (higher is better)")
        share = found.codes_used / cache.num_codes
        print(f"codes used: {found.codes_used} of {cache.num_codes} ({share:.1%}), perplexity {found.perplexity:.1f}")
        print(f"original and reconstruction side by side: {cache.path / 'check.mp4'}")


def _asked(given: str, overrides: list[str]) -> tuple[Experiment, tuple[int, ...]]:
    """Data and tokenizer of a file, and the lengths of the pieces that its runs train on."""
    path, arm = path_and_arm(given)

    from reco_tune.settings import holds_space, load_run, load_space, read_yaml

    if arm is None and holds_space(read_yaml(path)):
        from reco_tune.cost import plan

        planned = plan(load_space(path, overrides))
        return planned.shared, planned.piece_blocks
    experiment = load_run(path, arm, overrides)

    from reco_tune.training import plan_scheme

    return experiment, plan_scheme(experiment).encoded_piece_blocks


def _print_list(what: str, videos: list[Skipped], file: Path) -> None:
    for video in videos[:LISTED]:
        print(f"{what}: {video.path}: {video.reason}")
    if len(videos) > LISTED:
        print(f"{what}: {len(videos) - LISTED} more, listed in {file}")
