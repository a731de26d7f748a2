"""Published sets of codes in their original form (`data.layout: tokens`): recordings of many frames, cut into clips
here. Knows nothing of pixels or tokenizers, and reads only the requested clips.

    FOLDER/video.bin, segment_ids.bin, metadata.json                          1X world model v1.1
    FOLDER/videos/video_K.bin, segment_indices/segment_idx_K.bin,
    FOLDER/metadata/metadata_K.json, or all of them in FOLDER                 1X world model v2.0
    FOLDER/**/*.npy, or the same in uncompressed *.tar                        commaVQ, and sets of the same form:
                                                                              integers [frames, rows, columns] each

FOLDER is ROOT/train and ROOT/val (or test). A suffix such as in `train_v1.1` is allowed. Under `data.split: time` it
is ROOT/train, or ROOT itself, and the last `data.test_fraction` of the frames is held out.

A clip is `data.grid[0]` frames of one recording, `data.frame_stride` apart. It never crosses the end of a segment. In
1X v2.0 a clip is one coded group of 17 frames, which cannot be cut.
"""

from __future__ import annotations

import json
import math
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reco_tune.data.layouts import SPLITS, Split, Video
from reco_tune.data.token_arrays import Header, check_codes, mapped, npy_header, whole
from reco_tune.errors import DataError
from reco_tune.settings import Data, TokenGrid

GROUP_FRAMES, GROUP_BLOCKS = 17, 3
"""Frames that the tokenizer of 1X v2.0 encodes together, and the blocks it makes of them."""
_HELD_OUT = ("val", "test")
_SEGMENTS = np.dtype("<i4")


class Recording(NamedTuple):
    """Consecutive frames, or consecutive groups of frames."""

    codes: Header
    """[N, rows, columns], or [N, blocks, rows, columns] if frames are encoded in groups."""
    segments: Header | None
    """int32, one per frame. None if all frames belong to one segment."""
    frames: int
    """Number of frames. The last group may be only partly filled."""
    beside: tuple[Path, ...] = ()
    """Other files that belong to the recording."""

    @property
    def grouped(self) -> bool:
        return len(self.codes.shape) == 4

    def runs(self) -> NDArray[np.int64]:
        """Start and end [R, 2] of each segment, in frames or groups. A group that crosses a segment border belongs to
        none.
        """
        count = self.codes.shape[0]
        if self.grouped:
            count = self.frames // GROUP_FRAMES  # drops a last group that was padded
        if self.segments is None:
            return np.array([[0, count]])
        ids = mapped(self.segments)
        if self.grouped:
            ids_GF = ids[: count * GROUP_FRAMES].reshape(count, GROUP_FRAMES)
            alone = np.flatnonzero((ids_GF == ids_GF[:, :1]).all(axis=1))
            return np.column_stack([alone, alone + 1])
        starts = np.concatenate([[0], 1 + np.flatnonzero(np.diff(ids))])
        return np.column_stack([starts, np.append(starts[1:], count)])


class Windows:
    """The clips of one split. Indexing by an array of clip numbers reads them as integers [n, blocks, rows, columns].

    Reading raises DataError for codes outside the codebook.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        owner_N: NDArray[np.int64],
        start_N: NDArray[np.int64],
        grid: TokenGrid,
        frame_stride: int,
        num_codes: int,
    ) -> None:
        self._recordings, self._owner_N, self._start_N = recordings, owner_N, start_N
        self._grid, self._stride, self._num_codes = grid, frame_stride, num_codes

    def __len__(self) -> int:
        return len(self._owner_N)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        found = np.empty((len(rows), *self._grid), np.int64)
        for place, row in enumerate(rows):
            recording, start = self._recordings[self._owner_N[row]], int(self._start_N[row])
            codes = mapped(recording.codes)
            if recording.grouped:
                found[place] = codes[start]
            else:
                found[place] = codes[start : start + (self._grid.blocks - 1) * self._stride + 1 : self._stride]
            check_codes(found[place : place + 1], recording.codes.path, self._num_codes)
        return found

    def place(self, row: int) -> tuple[Path, int]:
        """File and first frame (or group) of a clip."""
        return self._recordings[self._owner_N[row]].codes.path, int(self._start_N[row])


def is_token_set(data: Data) -> bool:
    """Whether the root holds recordings instead of arrays of clips."""
    if data.root is None or any((data.root / f"train.{kind}").is_file() for kind in ("npy", "safetensors")):
        return False
    return data.root.is_dir() and bool(
        _folders(data.root, "train") or next(_recordings_in(data.root, data, None), None)
    )


def token_set_files(data: Data) -> list[Video]:
    """The files of a token set, for `data_fingerprint`."""
    found: dict[Path, Video] = {}
    for split, recordings in _recordings(data, None).items():
        for one in recordings:
            for path in (one.codes.path, *([one.segments.path] if one.segments else []), *one.beside):
                found[path] = Video(path, "all", split)
    return list(found.values())


def read_token_set(data: Data, grid: TokenGrid, num_codes: int) -> dict[Split, Windows]:
    """The clips of both splits; no codes are read yet.

    Raises:
        DataError: if files are missing, truncated, or of another grid.
    """
    found = _recordings(data, grid)
    for recordings in found.values():
        for one in recordings:
            _check_grid(one, grid, data)
    ends: dict[Split, tuple[int, float]] = dict.fromkeys(SPLITS, (0, math.inf))
    if data.split == "time":
        units = sum(one.codes.shape[0] for one in found["train"])
        cut = units - max(1, round(units * data.test_fraction))
        found, ends = dict.fromkeys(SPLITS, found["train"]), {"train": (0, cut), "test": (cut, math.inf)}
    return {
        split: Windows(own, *_windows(own, grid, data, *ends[split]), grid, data.frame_stride, num_codes)
        for split, own in found.items()
    }


def _windows(
    recordings: Sequence[Recording], grid: TokenGrid, data: Data, begin: int, end: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Recording and start of every clip between two positions, with all recordings laid end to end. Clips that cross
    either position are left out.
    """
    span = 1 if recordings and recordings[0].grouped else (grid.blocks - 1) * data.frame_stride + 1
    step = data.clip_stride or max(span, 1)
    owners, starts, before = [], [], 0
    for number, one in enumerate(recordings):
        count = one.codes.shape[0]
        low, high = min(max(0, begin - before), count), int(min(max(0, end - before), count))
        for first, last in np.clip(one.runs(), low, high):
            own = np.arange(first, last - span + 1, step)
            starts.append(own)
            owners.append(np.full(len(own), number))
        before += count
    empty = np.zeros(0, np.int64)
    joined = (np.concatenate([empty, *parts]).astype(np.int64) for parts in (owners, starts))
    return next(joined), next(joined)


def _check_grid(one: Recording, grid: TokenGrid, data: Data) -> None:
    if one.grouped:
        if grid.blocks != GROUP_BLOCKS or grid.rows != grid.columns:
            raise DataError(
                f"{one.codes.path} holds groups of {GROUP_BLOCKS} square blocks, but the settings give {grid.blocks} x"
                f" {grid.rows} x {grid.columns} codes per clip; set data.grid to [3, 32, 32]"
            )
        if data.frame_stride != 1 or data.clip_stride is not None:
            raise DataError(
                f"{one.codes.path} holds groups of {GROUP_FRAMES} frames that were encoded together, which"
                " data.frame_stride and data.clip_stride would split; leave both out"
            )
        return
    if one.codes.shape[1:] != (grid.rows, grid.columns):
        raise DataError(
            f"{one.codes.path} has frames of {one.codes.shape[1:]} codes, but the settings give {grid.rows} x"
            f" {grid.columns}; set data.grid to [blocks, {', '.join(map(str, one.codes.shape[1:]))}]"
        )


def _recordings(data: Data, grid: TokenGrid | None) -> dict[Split, list[Recording]]:
    """The recordings of each split, sorted by name. The size of groups is checked if the grid is known."""
    assert data.root is not None
    if data.split == "time":
        folders = {"train": _folder(data.root, "train") or data.root}
    else:
        folders = {split: _folder(data.root, split) or data.root / split for split in SPLITS}
    found: dict[Split, list[Recording]] = {}
    for split in SPLITS if data.split == "lists" else SPLITS[:1]:
        found[split] = list(_recordings_in(folders[split], data, grid)) if folders[split].is_dir() else []
        if not found[split]:
            raise DataError(
                f"{folders[split]} holds no recordings of codes (video.bin, videos/video_0.bin, or .npy of shape"
                " [frames, rows, columns]); add them, or set data.split to time to hold out a part of the other frames"
            )
    return found


def _folder(root: Path, split: str) -> Path | None:
    found = _folders(root, split)
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"{root} has {names} for {split}; keep one of them there, or give a folder that has only one")
    return found[0] if found else None


def _folders(root: Path, split: str) -> list[Path]:
    names = _HELD_OUT if split == "test" else (split,)
    return sorted(path for path in root.iterdir() if path.is_dir() and re.split("[_-]", path.name)[0] in names)


def _recordings_in(folder: Path, data: Data, grid: TokenGrid | None) -> Iterator[Recording]:
    if (folder / "video.bin").is_file():
        yield _frames(folder)
        return
    videos = folder / "videos" if (folder / "videos").is_dir() else folder
    shards = sorted(videos.glob("video_*.bin"), key=lambda path: int(re.sub(r"\D", "", path.stem) or 0))
    for path in shards:
        yield _groups(folder, path, grid)
    if shards:
        return
    for path in sorted(folder.rglob("*")):
        if data.cache_dir is not None and path.is_relative_to(data.cache_dir):
            continue
        if path.suffix == ".npy":
            yield _array(npy_header(path, "codes"))
        elif path.suffix == ".tar":
            yield from _archived(path)
        elif path.name.endswith((".tar.gz", ".tgz", ".zip")):
            raise DataError(
                f"{path} is compressed, so clips cannot be read one by one; unpack it and remove the archive"
            )


def _frames(folder: Path) -> Recording:
    """A recording of 1X v1.1."""
    facts = _facts(folder / "metadata.json", "num_images", "s")
    kind = str(facts.get("token_dtype", "uint32"))
    if not re.fullmatch(r"u?int(8|16|32|64)", kind):
        raise DataError(f"{folder / 'metadata.json'} has the token_dtype {kind!r}; save codes as integers")
    count, side = facts["num_images"], facts["s"]
    codes = whole(Header(folder / "video.bin", np.dtype(kind).newbyteorder("<"), (count, side, side), "C", 0), True)
    segments = whole(Header(_needed(folder / "segment_ids.bin"), _SEGMENTS, (count,), "C", 0), True)
    return Recording(codes, segments, count, (folder / "metadata.json",))


def _groups(folder: Path, path: Path, grid: TokenGrid | None) -> Recording:
    """A shard of 1X v2.0."""
    number = re.sub(r"\D", "", path.stem)
    apart = path.parent != folder
    facts_path = (folder / "metadata" if apart else folder) / f"metadata_{number}.json"
    frames = _facts(facts_path, "shard_num_frames")["shard_num_frames"]
    shape = (math.ceil(frames / GROUP_FRAMES), *(grid or ()))
    codes = Header(path, np.dtype("<i4"), shape, "C", 0)
    if grid is not None and path.stat().st_size != math.prod(shape) * 4:
        raise DataError(
            f"{path} has {path.stat().st_size} bytes, but {shape[0]} groups of {grid.blocks} x {grid.rows} x"
            f" {grid.columns} codes need {math.prod(shape) * 4}; set data.grid to [3, 32, 32], or replace the file if"
            " it is truncated"
        )
    segments = _needed((folder / "segment_indices" if apart else folder) / f"segment_idx_{number}.bin")
    return Recording(codes, whole(Header(segments, _SEGMENTS, (frames,), "C", 0), True), frames, (facts_path,))


def _archived(path: Path) -> Iterator[Recording]:
    """Arrays inside an archive, each read where it lies."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = sorted((one.name, one.offset_data) for one in archive if one.name.endswith(".npy"))
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable archive ({error}); unpack it, or write it again") from error
    for _, offset in members:
        yield _array(npy_header(path, "codes", offset))


def _array(codes: Header) -> Recording:
    if len(codes.shape) != 3:
        raise DataError(
            f"{codes.path} has codes of shape {codes.shape}; a recording needs [frames, rows, columns]; put clips that"
            " are already cut into train.npy and test.npy"
        )
    return Recording(codes, None, codes.shape[0])


def _facts(path: Path, *needed: str) -> dict[str, Any]:
    try:
        facts = json.loads(_needed(path).read_text(encoding="utf-8"))
        if not all(type(facts[name]) is int and facts[name] >= 0 for name in needed):
            raise ValueError(f"{' and '.join(needed)} must be whole numbers")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as metadata of its recording ({error}); write it again") from error
    found: dict[str, Any] = facts
    return found


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path} is missing, so clips could span two recordings; copy the whole data set")
    return path
