"""Codes that somebody has already, as arrays on disk (`data.layout: tokens`). Knows nothing of pixels or tokenizers.

    ROOT/train.npy, ROOT/test.npy                    integers [clips, blocks, rows, columns] or [clips, tokens]
    ROOT/train.labels.npy, ROOT/test.labels.npy      integers [clips] from 0; without them there is one class
    ROOT/train.safetensors, ROOT/test.safetensors    or these, with the tensors `tokens` and `labels`

`data.split: time` takes the last `data.test_fraction` of the training clips for test; then only train is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from reco_tune.data.layouts import SPLITS, Split, Video
from reco_tune.errors import DataError
from reco_tune.settings import Data, TokenGrid

_CHUNK_CLIPS = 4096


class CodedClips(NamedTuple):
    """The clips of one split, in the order of the file."""

    path: Path
    tokens: np.ndarray
    """Integers [N, ...], memory-mapped where they are `.npy`."""
    labels: np.ndarray
    """int64 [N]."""


def token_files(data: Data) -> list[Video]:
    """The files that are there, as `data_fingerprint` takes them.

    Raises:
        DataError: where one that is needed is missing.
    """
    if data.root is None or not data.root.is_dir():
        raise DataError(f"data.root ({data.root}) is not a folder; name the folder of train.npy and test.npy")
    found: list[Video] = []
    for split in SPLITS if data.split == "lists" else SPLITS[:1]:
        names = [f"{split}.npy", f"{split}.safetensors"]
        paths = [data.root / name for name in names if (data.root / name).is_file()]
        if len(paths) != 1:
            raise DataError(
                f"{data.root} needs one of {' and '.join(names)}, it has {len(paths)}; add or remove one, or change"
                " data.split"
            )
        labels = data.root / f"{split}.labels.npy"
        found += [Video(path, "all", split) for path in [*paths, labels] if path.is_file()]
    return found


def read_coded_clips(data: Data, grid: TokenGrid, num_codes: int) -> tuple[dict[Split, CodedClips], tuple[str, ...]]:
    """Both splits, checked, and the names of the classes.

    Raises:
        DataError: for files that cannot be read, or do not hold codes of that grid below `num_codes`.
    """
    read = {
        video.split: _read(data, video) for video in token_files(data) if not video.path.name.endswith(".labels.npy")
    }
    for clips in read.values():
        _check(clips, grid, num_codes)
    if "test" not in read:
        train = read["train"]
        cut = len(train.labels) - max(1, round(len(train.labels) * data.test_fraction))
        read = {
            "train": train._replace(tokens=train.tokens[:cut], labels=train.labels[:cut]),
            "test": train._replace(tokens=train.tokens[cut:], labels=train.labels[cut:]),
        }
    found: dict[Split, CodedClips] = {split: read[split] for split in SPLITS}
    labelled = data.class_conditional and any(clips.labels.any() for clips in found.values())
    classes = 1 + max(int(clips.labels.max(initial=0)) for clips in found.values())
    return found, tuple(map(str, range(classes))) if labelled else ("all",)


def _read(data: Data, video: Video) -> CodedClips:
    path = video.path
    assert data.root is not None
    labels: np.ndarray | None = None
    try:
        if path.suffix == ".npy":
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
            beside = data.root / f"{video.split}.labels.npy"
            labels = np.load(beside, allow_pickle=False) if beside.is_file() else None
        else:
            from safetensors.numpy import load_file

            tensors = load_file(path)
            tokens, labels = tensors["tokens"], tensors.get("labels")
    except KeyError as error:
        raise DataError(f"{path} holds no tensor {error}; save the codes under that name") from error
    except Exception as error:  # numpy and safetensors raise many kinds
        raise DataError(
            f"{path} or its labels cannot be read ({str(error).splitlines()[0][:120]}); write them anew"
        ) from error
    if labels is None:
        labels = np.zeros(len(tokens), np.int64)
    for name, array in (("codes", tokens), ("labels", labels)):
        if not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"{path} has {name} of type {array.dtype}; {name} are integers")
    if labels.shape != tokens.shape[:1] or labels.min(initial=0) < 0:
        raise DataError(
            f"{path} has {len(tokens)} clips, but its labels have shape {labels.shape} and begin at"
            f" {labels.min(initial=0)}"
        )
    labels = labels.astype(np.int64) if data.class_conditional else np.zeros(len(tokens), np.int64)
    return CodedClips(path, tokens, labels)


def _check(clips: CodedClips, grid: TokenGrid, num_codes: int) -> None:
    shape = clips.tokens.shape
    if shape[1:] not in (tuple(grid), (grid.num_tokens,)):
        raise DataError(
            f"{clips.path} has clips of shape {shape[1:]}, but data.clip_frames, data.size_px and the tokenizer's"
            f" strides make {grid.blocks} x {grid.rows} x {grid.columns} = {grid.num_tokens} tokens; change these"
            " settings"
        )
    for start in range(0, len(clips.tokens), _CHUNK_CLIPS):
        chunk = clips.tokens[start : start + _CHUNK_CLIPS]
        low, high = int(chunk.min()), int(chunk.max())
        if low < 0 or high >= num_codes:
            wrong = low if low < 0 else high
            raise DataError(
                f"{clips.path} holds the code {wrong}, but tokenizer.num_codes is {num_codes}; set it to the codebook's"
                " size"
            )
