"""A user's own codes, stored as arrays (`data.layout: tokens`). Knows nothing of pixels or tokenizers.

    ROOT/train.npy, ROOT/test.npy                    integers [clips, blocks, rows, columns] or [clips, tokens]
    ROOT/train.labels.npy, ROOT/test.labels.npy      integers [clips] from 0; without them there is one class
    ROOT/train.safetensors, ROOT/test.safetensors    instead of the above, with the tensors `tokens` and `labels`

With `data.split: time`, the last `data.test_fraction` of the training clips is the test split, and only train is
needed.

Headers are checked against the settings and the size of the file before anything is read; arrays stay on disk.
"""

from __future__ import annotations

import json
import math
from operator import index
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from reco_tune.data.layouts import SPLITS, Split, Video
from reco_tune.errors import DataError
from reco_tune.settings import Data, TokenGrid

MOST_CLASSES = 65_536
"""Limit on the highest label: a model has a vector for every class, and its checkpoints name every class."""
_CHUNK_CLIPS = 4096
_MOST_HEADER_BYTES = 1 << 20
"""Largest accepted header of a .safetensors file."""
_INTEGERS = {f"{kind.upper()}{8 * size}": np.dtype(f"<{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)}
"""NumPy types by the names that safetensors uses."""


class CodedClips(NamedTuple):
    """The clips of one split, in the order of the file."""

    path: Path
    tokens: np.ndarray
    """Integers [N, ...], memory-mapped."""
    labels: np.ndarray
    """int64 [N]."""


def token_files(data: Data) -> list[Video]:
    """The files of codes and labels, for `data_fingerprint`.

    Raises:
        DataError: if a required file is missing.
    """
    if data.root is None or not data.root.is_dir():
        raise DataError(f"data.root ({data.root}) is not a folder; give the folder of train.npy and test.npy")
    found: list[Video] = []
    for split in SPLITS if data.split == "lists" else SPLITS[:1]:
        names = [f"{split}.npy", f"{split}.safetensors"]
        paths = [data.root / name for name in names if (data.root / name).is_file()]
        if len(paths) != 1:
            raise DataError(
                f"{data.root} must have exactly one of {' and '.join(names)}, but has {len(paths)}; add or remove one,"
                " or change data.split"
            )
        labels = data.root / f"{split}.labels.npy"
        found += [Video(path, "all", split) for path in [*paths, labels] if path.is_file()]
    return found


def read_headers(data: Data, grid: TokenGrid) -> dict[Split, tuple[Header, Header | None]]:
    """Locates the codes and labels of each split without reading them.

    Raises:
        DataError: if files are missing, cannot be read, or do not hold codes of that grid.
    """
    files = {video.split: video.path for video in token_files(data) if not video.path.name.endswith(".labels.npy")}
    headers = {split: _headers(files[split]) for split in SPLITS if split in files}
    for codes, labels in headers.values():
        _check_shapes(codes, labels, grid)
    return headers


def read_coded_clips(data: Data, grid: TokenGrid, num_codes: int) -> tuple[dict[Split, CodedClips], tuple[str, ...]]:
    """Reads and checks both splits and the names of the classes.

    Raises:
        DataError: if files cannot be read, or do not hold codes of that grid below `num_codes`.
    """
    headers = read_headers(data, grid)
    labelled = [split for split, (_, labels) in headers.items() if labels is not None]
    if data.class_conditional and 0 < len(labelled) < len(headers):
        raise DataError(
            f"{data.root} has labels for {labelled[0]} only; add the others, or set data.class_conditional=false"
        )
    found: dict[Split, CodedClips] = {}
    for split, (codes, labels) in headers.items():
        tokens = mapped(codes)
        check_codes(tokens, codes.path, num_codes)
        used = labels if data.class_conditional else None
        found[split] = CodedClips(
            codes.path, tokens, np.zeros(len(tokens), np.int64) if used is None else _labels(used)
        )
    if "test" not in found:
        train = found["train"]
        cut = len(train.labels) - max(1, round(len(train.labels) * data.test_fraction))
        found = {
            "train": train._replace(tokens=train.tokens[:cut], labels=train.labels[:cut]),
            "test": train._replace(tokens=train.tokens[cut:], labels=train.labels[cut:]),
        }
    classes = 1 + max(int(clips.labels.max(initial=0)) for clips in found.values())
    return found, tuple(map(str, range(classes))) if classes > 1 else ("all",)


class Header(NamedTuple):
    """The position, type and shape of an array in a file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int


def _headers(path: Path) -> tuple[Header, Header | None]:
    """Headers of the codes, and of the labels if there are any."""
    beside = path.with_name(f"{path.stem}.labels.npy")
    if path.suffix == ".npy":
        return npy_header(path, "codes"), npy_header(beside, "labels") if beside.is_file() else None
    if beside.is_file():
        raise DataError(
            f"{path} cannot take its labels from {beside.name}; save them in the .safetensors file, as the tensor"
            " `labels`"
        )
    return _safetensors_headers(path)


def npy_header(path: Path, what: str, at: int = 0) -> Header:
    """The header of a .npy file, or of one inside an archive, from its first byte.

    Raises:
        DataError: if it cannot be read, is truncated or does not hold integers.
    """
    try:
        with path.open("rb") as file:
            file.seek(at)
            if file.read(2) == b"PK":
                raise DataError(f"{path} is a .npz archive with a wrong extension; save {what} with numpy.save")
            file.seek(at)
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, in_columns, dtype = read(file)
            header = Header(path, dtype, shape, "F" if in_columns else "C", file.tell())
    except DataError:
        raise
    except Exception as error:  # numpy parses the header as Python, which can raise many errors
        raise DataError(f"{path} is not a readable .npy file ({_first_line(error)}); write it again") from error
    if dtype.kind not in "iu":
        raise DataError(f"{path} has {what} of type {dtype}; save {what} as integers")
    return whole(header)


def _safetensors_headers(path: Path) -> tuple[Header, Header | None]:
    """Reads the headers. The format is: 8 bytes with the length of the header, the header in JSON, the arrays."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MOST_HEADER_BYTES:
                raise ValueError(f"its header claims a length of {length} bytes")
            entries = json.loads(file.read(length))
        found: dict[str, Header] = {}
        for name, what in (("tokens", "codes"), ("labels", "labels")):
            if name not in entries:
                continue
            kind, shape, (start, end) = (entries[name][key] for key in ("dtype", "shape", "data_offsets"))
            if kind not in _INTEGERS:
                raise DataError(f"{path} has {what} of type {kind}; save {what} as integers")
            header = Header(path, _INTEGERS[kind], tuple(map(index, shape)), "C", 8 + length + index(start))
            if start < 0 or index(end) - start != _size_bytes(header):
                raise ValueError(f"its header gives {name} {end - start} bytes, which does not match shape and type")
            found[name] = whole(header)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path} is not a readable .safetensors file ({_first_line(error)}); write it again") from error
    if "tokens" not in found:
        raise DataError(f"{path} has no tensor `tokens`; save the codes under that name")
    return found["tokens"], found.get("labels")


def _size_bytes(header: Header) -> int:
    return math.prod(header.shape) * header.dtype.itemsize


def whole(header: Header, exactly: bool = False) -> Header:
    """
    Checks the size of a file against its header.

    Raises:
        DataError: if the file is smaller, or, with `exactly`, larger.
    """
    needed, size = header.offset + _size_bytes(header), header.path.stat().st_size
    if min(header.shape, default=0) < 0 or needed > size or (exactly and needed != size):
        raise DataError(
            f"{header.path} has {size} bytes, but an array of shape {header.shape} needs {needed}; it is truncated or"
            " damaged: write it again"
        )
    return header


def mapped(header: Header) -> np.ndarray:
    """Memory-maps the array without reading it."""
    if 0 in header.shape:
        return np.empty(header.shape, header.dtype)
    return np.memmap(header.path, header.dtype, "r", header.offset, header.shape, header.order)


def _check_shapes(codes: Header, labels: Header | None, grid: TokenGrid) -> None:
    if codes.shape[1:] not in (tuple(grid), (grid.num_tokens,)):
        own = codes.shape[1:]
        said = str(list(own)) if len(own) == 3 else f"[blocks, rows, columns], a product of {math.prod(own)}"
        raise DataError(
            f"{codes.path} has clips of shape {own}, but the settings give {grid.blocks} x {grid.rows} x {grid.columns}"
            f" = {grid.num_tokens} tokens; set data.grid to {said}"
        )
    if labels is not None and labels.shape != codes.shape[:1]:
        raise DataError(
            f"{labels.path} has labels of shape {labels.shape} for {codes.shape[0]} clips; give each clip one label"
        )


def check_codes(tokens: np.ndarray, path: Path, num_codes: int) -> None:
    """
    Checks the range of codes.

    Raises:
        DataError: if a code is below 0, or not below `num_codes`.
    """
    for start in range(0, len(tokens), _CHUNK_CLIPS):
        chunk = tokens[start : start + _CHUNK_CLIPS]
        low, high = int(chunk.min()), int(chunk.max())
        if low < 0 or high >= num_codes:
            raise DataError(
                f"{path} has the code {low if low < 0 else high}, but tokenizer.num_codes is {num_codes}; set it to the"
                " size of the codebook"
            )


def _labels(header: Header) -> np.ndarray:
    """int64 [N]."""
    labels = mapped(header)
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or high >= MOST_CLASSES:
        raise DataError(
            f"{header.path} has the label {low if low < 0 else high}; labels are class numbers from 0, and at most"
            f" {MOST_CLASSES:,} classes are allowed: renumber them"
        )
    return labels.astype(np.int64)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]
