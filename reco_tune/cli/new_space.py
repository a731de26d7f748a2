"""`reco-tune spaces new`: writes a space file for a user's videos, with a reason beside each choice. It chooses tokens
that keep detail at that size, a model and batch that fit the device, as many steps as the paper's passes over the
clips, and a window of two fifths of a clip.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from reco_tune.errors import DataError, SettingsError

SMALLEST_PX, LARGEST_PX = 32, 512
SIZE_STEP_PX, TEMPORAL_STRIDE = 8, 4
PASSES = 300
"""Passes over the training clips, as in the paper."""
ENOUGH_CLIPS = 4000
"""With fewer clips side by side than this, clips overlap."""
CPU_CLIPS = 1024
"""For training on a CPU."""
OPENED_VIDEOS = 12
"""Number of videos that are opened to estimate the number of clips."""
SECONDS_A_VIDEO = 20.0
STEP_TOKENS = 32_000
"""Tokens in a micro-batch on a GPU. A card of 24 GiB trains on this with memory to spare."""
LAYOUTS = ("class_folders", "flat", "frames", "csv", "ucf101", "faceforensics", "skytimelapse", "taichi")
"""Layouts (`data.layout`) that hold videos."""


class Videos(NamedTuple):
    """Facts about a user's videos."""

    root: Path | None
    layout: str
    split: str
    classes: int
    videos: int
    frames: int
    """Estimated over all videos; 0 if unknown."""


class Scale(NamedTuple):
    """The sizes that determine the training cost."""

    spatial_stride: int
    num_codes: int
    tokenizer: str
    model: str
    steps: int
    batch_size: int
    training: str
    samples: int


def new(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The space file to write.")],
    root: Annotated[Path | None, typer.Option(help="Folder of your videos.")] = None,
    layout: Annotated[
        str | None, typer.Option(help=f"Layout of the folder ({', '.join(LAYOUTS)}). By default, it is detected.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Height and width in pixels, 64 to 256. Default: 64.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames in a clip. Default: 17.")] = None,
    gpu: Annotated[
        bool | None,
        typer.Option("--gpu/--cpu", help="Train on GPUs or on the CPU. Default: on GPUs if this machine has one."),
    ] = None,
) -> None:
    """Writes a space file for your own videos, with a comment on each choice. On a terminal, it asks for options that
    you leave out.

    \b
    Examples:
      reco-tune spaces new mine.yaml
      reco-tune spaces new mine.yaml --root /data/mine --size 128 --gpu
    """
    if file.exists():
        raise SettingsError(f"{file} exists already; give another file name")
    if not file.absolute().parent.is_dir():
        raise SettingsError(f"{file.parent} is not a folder; make it, or give another file name")
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if root is None and asks:
        root = Path(typer.prompt("Folder of your videos", type=str))
    if root is None and layout is None:
        raise SettingsError(
            "--root FOLDER is missing; give the folder of your videos, or --layout if there is none yet"
        )
    videos = _look(root, layout)
    if root is not None:
        print(f"{root}: {_told(videos)}")
    size = size or (int(typer.prompt("Height and width in pixels", default=64, type=int)) if asks else 64)
    frames = frames or (int(typer.prompt("Frames of a clip", default=17, type=int)) if asks else 17)
    if gpu is None:
        has = _has_gpu()
        gpu = typer.confirm("Train on GPUs", default=has) if asks else has
    _check(size, frames)
    text = space_text(file.name, videos, size, frames, gpu)
    _write(file, text)
    print(f"{file}: {size} x {size} pixels, {frames} frames, {'GPU' if gpu else 'CPU'}; read it, then")
    print(f"  reco-tune tokenize {file} --check\n  reco-tune plan {file}\n  reco-tune run {file}")


def _write(file: Path, text: str) -> None:
    """Writes the space file; deletes it again if it does not load."""
    from reco_tune.settings import load_space

    file.write_text(text, encoding="utf-8")
    try:
        load_space(file)
    except BaseException:
        file.unlink()
        raise


def _check(size: int, frames: int) -> None:
    if not SMALLEST_PX <= size <= LARGEST_PX or size % SIZE_STEP_PX:
        raise SettingsError(
            f"--size {size} must be a multiple of {SIZE_STEP_PX} from {SMALLEST_PX} to {LARGEST_PX}; for real videos"
            " take 64 to 256"
        )
    if frames < 1 + 2 * TEMPORAL_STRIDE or (frames - 1) % TEMPORAL_STRIDE:
        nearest = max(1 + 2 * TEMPORAL_STRIDE, 1 + TEMPORAL_STRIDE * round((frames - 1) / TEMPORAL_STRIDE))
        raise SettingsError(
            f"--frames {frames} must be 1 more than a multiple of {TEMPORAL_STRIDE}, because the first frame is a block"
            f" of its own, and at least {1 + 2 * TEMPORAL_STRIDE}; give {nearest}"
        )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _look(root: Path | None, layout: str | None) -> Videos:
    """Facts about a folder. Reads every name, but opens only a few videos."""
    from reco_tune.data.clips import list_facts
    from reco_tune.data.layouts import guess_layout, list_videos
    from reco_tune.data.processes import FailedCall
    from reco_tune.settings import Data

    if layout is not None and layout not in LAYOUTS:
        raise SettingsError(f"--layout {layout} is not a layout of videos; take one of {', '.join(LAYOUTS)}")
    if root is None:
        return Videos(None, layout or LAYOUTS[0], "time", 0, 0, 0)
    root = root.expanduser().resolve()
    guess: Any = None
    try:
        guess = guess_layout(root)
    except DataError:
        if layout is None or not root.is_dir():
            raise
    layout, split = layout or guess.layout, guess.split if guess else "time"
    data = Data.model_validate({"root": root, "layout": layout, "split": split})
    found = [video for video in list_videos(data) if not video.refused]
    opened = found[:: math.ceil(len(found) / OPENED_VIDEOS)]
    counts = [known.frames for known in list_facts(opened, SECONDS_A_VIDEO) if not isinstance(known, FailedCall)]
    if not counts:
        raise DataError(f"none of the {len(opened)} videos tried in {root} can be read; check {opened[0].path}")
    classes = len({video.class_name for video in found})
    return Videos(root, layout, split, classes, len(found), round(sum(counts) / len(opened) * len(found)))


def _told(videos: Videos) -> str:
    classes = f"{videos.classes} classes" if videos.classes > 1 else "no classes"
    return f"{videos.videos:,} videos, {classes}, about {videos.frames:,} frames; data.layout {videos.layout}"


def _scale(size: int, gpu: bool) -> Scale:
    if not gpu:
        return Scale(
            8,
            512,
            "fit_clips: 256, fit_steps: 600, fit_batch_size: 8, width: 32, learning_rate: 2.0e-3",
            "{width: 128, depth: 4, heads: 4}",
            400,
            8,
            "learning_rate: 1.0e-3, rungs: 5",
            256,
        )
    if size <= 128:
        return Scale(
            4 if size <= 64 else 8,
            1024,
            "fit_clips: 10000, fit_steps: 20000, fit_batch_size: 16, width: 64",
            "{width: 512, depth: 8, heads: 8}",
            20000,
            64,
            "learning_rate: 3.0e-4, class_dropout: 0.1, precision: bfloat16, compile: true, rungs: 10",
            2048,
        )
    return Scale(
        8,
        8192,
        "fit_clips: 20000, fit_steps: 100000, fit_batch_size: 16, width: 96",
        "{preset: 110M}",
        30000,
        96,
        "learning_rate: 1.0e-4, class_dropout: 0.1, precision: bfloat16, compile: true, rungs: 10",
        2048,
    )


def space_text(name: str, videos: Videos, size: int, frames: int, gpu: bool) -> str:
    """The text of the space file."""
    scale = _scale(size, gpu)
    blocks, side = 1 + (frames - 1) // TEMPORAL_STRIDE, size // scale.spatial_stride
    window = max(2, round(0.4 * blocks))
    side_by_side = videos.frames // frames
    overlap = 0 < side_by_side < ENOUGH_CLIPS
    clip_stride = max(1, videos.frames // ENOUGH_CLIPS)
    clips = round(0.8 * (videos.frames / clip_stride if overlap else side_by_side))
    clips = clips if gpu else min(clips, CPU_CLIPS)
    steps = min(scale.steps, max(400, PASSES * clips // scale.batch_size)) if clips else scale.steps
    passes = f"about {steps * scale.batch_size / clips:,.0f} passes over {clips:,} training clips" if clips else ""
    known = videos.classes > 1 or videos.root is None
    guided = gpu and known
    training = scale.training if known else scale.training.replace("class_dropout: 0.1, ", "")
    told = _told(videos) if videos.root else "not known yet"
    lines = [
        "# Question: do windows train faster than full sequences on these videos, and what does each cost in quality?",
        f"# Launch:   reco-tune tokenize {name} --check     (look at check.mp4: a study is as good as its tokenizer)",
        f"#           reco-tune plan {name}                 (hours, memory and disk on this machine)",
        f"#           reco-tune run {name}",
        f"# Videos:   {told}",
        "# Keys:     reco-tune settings     (every key with its meaning, range and default)",
        "",
        "question: Do windows train faster than full sequences on these videos, and what does each cost in quality?",
        "",
        "experiment:",
        "  data:",
        f"    root: {_quoted(str(videos.root))}"
        if videos.root
        else "    # root: /data/mine     # the folder of your videos",
        *_cache_lines(videos.root),
        f"    layout: {videos.layout}",
        _split_line(videos.split),
        f"    clip_frames: {frames}          # {blocks} blocks: the first frame, then groups of {TEMPORAL_STRIDE}",
        f"    size_px: {size}",
        f"    clip_stride: {clip_stride}           # clips overlap: side by side there are only {side_by_side:,}"
        if overlap
        else "    # clip_stride: 4         # clips that overlap, where there are few videos; by default side by side",
    ]
    if not gpu:
        lines += [
            f"    train_clips: {CPU_CLIPS}        # at most: a CPU encodes and trains on few",
            "    test_clips: 256",
        ]
    lines += [
        f"  tokenizer:                 # a clip is {blocks} x {side} x {side} = {blocks * side * side:,} tokens",
        "    kind: vq                 # trained on your clips; for 256 px a pretrained one is better:",
        "    # kind: vidtok           # docs/how-to/pretrained-tokenizers.md; leave the keys below out then",
        "    # path: /models/vidtok_fsq_causal_488_32768_v1_1",
        f"    spatial_stride: {scale.spatial_stride}",
        f"    temporal_stride: {TEMPORAL_STRIDE}",
        f"    num_codes: {scale.num_codes}",
        *(f"    {part}" for part in scale.tokenizer.split(", ")),
        f"  model: {scale.model}",
        f"  window: {{length_blocks: {window}, stride_fraction: 0.5}}     # W = {window} of {blocks} blocks, S = W / 2",
        "  training:",
        f"    steps: {steps}            # {passes or 'of the baseline; the paper makes 300 passes over the clips'}",
        f"    batch_size: {scale.batch_size}",
        *([f"    micro_batches: {_micro_batches(scale.batch_size, blocks * side * side)}"] if gpu else []),
        f"    warmup_steps: {min(1000, steps // 20)}",
        *(f"    {part}" for part in training.split(", ")),
        f"  sampling: {{{_sampling(scale, guided)}}}",
        *_evaluation(videos, scale, gpu),
        "",
        "arms:",
        "  full:             # the baseline: every token of every clip",
        "  fewer_frames:     # short pieces, joined when generating",
        *(["  local_balanced:   # windows, half of them at the first frame"] if gpu else []),
        "  reco:             # windows, half of them at the first frame, and the continuity term",
        "  # norm_penalty:   # control: a penalty on h² without any difference of neighbours",
        "",
        "budgets: [equal_steps, equal_compute]"
        if gpu
        else "budgets: [equal_steps]     # add equal_compute: two more runs",
        "seeds: [0]                 # three or more settle differences: [0, 1, 2]",
        "",
        "# What Optuna may choose, beside the arms:",
        "# search:",
        "#   window.length_blocks: {int: [1, " + f"{blocks - 1}" + "]}",
        "#   objective.continuity_weight: {float: [1.0e-3, 1.0], log: true}",
        "# trials: 16",
        "",
        "resources:",
        "  workers: 1               # per run; more GPUs for one run: 4",
        *(
            ["  cpus_per_worker: 4", "  gpus_per_worker: 1", "  max_failures: 5", "  calibration_seconds: 60"]
            if gpu
            else ["  cpus_per_worker: 1", "  calibration_seconds: 8"]
        ),
    ]
    return "\n".join(lines) + "\n"


def _cache_lines(root: Path | None) -> list[str]:
    """The cache folder, if codes cannot be written beside the videos."""
    if root is None or os.access(root.parent, os.W_OK):
        return []
    return [
        f"    cache_dir: {_quoted(str(Path.cwd() / '.cache' / 'reco-tune'))}     # {root.parent} is not yours to write"
    ]


def _micro_batches(batch_size: int, tokens: int) -> int:
    """The fewest micro-batches whose clips have at most `STEP_TOKENS`."""
    return next(n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n * tokens <= STEP_TOKENS)


def _split_line(split: str) -> str:
    if split == "lists":
        return "    split: lists             # the test set that the folder names"
    return (
        "    split: time              # the last fifth of every video is held out, no frame shared\n"
        "    test_fraction: 0.2"
    )


def _sampling(scale: Scale, guided: bool) -> str:
    drawn = f"top_k: {max(100, scale.num_codes // 2)}, batch_size: 64"
    return f"{drawn}, top_p: 0.9, guidance: 1.5" if guided else drawn


def _evaluation(videos: Videos, scale: Scale, gpu: bool) -> list[str]:
    if gpu and (videos.classes > 1 or videos.root is None):
        protocol, why = "native", "features learned from your classes"
    else:
        protocol, why = "native-pca", "principal components of pixels"
    return [
        "  evaluation:",
        f"    protocol: {protocol}     # {why}: ranks arms of this study, compares with nothing published",
        "    # protocol: stylegan-v   # FVD as papers compute it (16 frames, I3D): docs/how-to/published-fvd.md",
        "    # extractor_path: /models/i3d_torchscript.pt",
        f"    samples: {scale.samples}",
        f"    reference_clips: {scale.samples}",
        f"    validation_clips: {scale.samples // 4 if gpu else 128}",
    ]


def _quoted(text: str) -> str:
    return (
        text if all(letter.isalnum() or letter in "/._-" for letter in text) else json.dumps(text, ensure_ascii=False)
    )
