"""Encodes clips, part by part, here or on another machine."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from reco_tune import settings
from reco_tune.data.clips import PART_CLIPS, Clip, Failure, decode, parts
from reco_tune.data.processes import Processes
from reco_tune.device import exact_float32
from reco_tune.errors import DataError
from reco_tune.tokenizers.base import Tokenizer
from reco_tune.tokenizers.kinds import load_tokenizer


class PartTask(NamedTuple):
    """The inputs for encoding one part, on any machine with access to the same files."""

    number: int
    rows: list[int]
    """Rows of the clips in the cache."""
    clips: list[Clip]
    data: settings.Data
    tokenizer_path: Path
    device: str
    piece_blocks: tuple[int, ...]
    readers: int
    """Number of decoder processes."""


class EncodedPart(NamedTuple):
    """Codes of the clips of one part that could be decoded."""

    number: int
    rows: list[int]
    codes_BT: np.ndarray
    """int32."""
    pieces: dict[int, np.ndarray]
    """int32 [B, P, tokens] by piece length in blocks."""
    failed: list[Failure]
    equal: list[tuple[Path, int, int]]


Spread = Callable[[Callable[[PartTask], EncodedPart], list[PartTask]], Iterable[EncodedPart]]
"""Calls a module-level function with every task, on any machine and in any order."""


def encode_part(task: PartTask) -> EncodedPart:
    """Decodes and encodes a part, with the same bits as in the calling process.

    Raises:
        DataError: if the videos or the tokenizer are not visible from here.
    """
    root = task.data.root
    assert root is not None
    for path in (root, task.tokenizer_path):
        if not path.exists():
            raise DataError(
                f"{path} is not visible from {socket.gethostname()}; put data.root and data.cache_dir on storage that"
                " every node can read"
            )
    device = task.device if torch.cuda.is_available() else "cpu"
    exact_float32()
    with Processes(task.data.decode_seconds, task.readers) as processes:
        (part,) = decode(task.clips, task.data, parts(task.clips, len(task.clips)), processes=processes)
    order = np.argsort(part.rows)
    failed = [failure._replace(place=task.rows[failure.place]) for failure in part.failed]
    rows = [task.rows[part.rows[place]] for place in order]
    video = torch.from_numpy(part.video_BFCHW[order])
    encoder = Encoder(_kept_tokenizer(task.tokenizer_path), task.data, device)
    return encoder.encoded(DecodedPart(task.number, rows, video, failed, part.equal), task.piece_blocks)


@lru_cache(maxsize=1)
def _kept_tokenizer(path: Path) -> Tokenizer:
    """Loaded once per process, for all parts that it encodes."""
    return load_tokenizer(path)


class Encoder(NamedTuple):
    """A tokenizer, its device, and the lengths of the clips it gets."""

    tokenizer: Tokenizer
    data: settings.Data
    device: str

    def codes(self, video_BFCHW: torch.Tensor) -> np.ndarray:
        """int32 [B, T]."""
        return self.tokenizer.encode(video_BFCHW.to(self.device)).flatten(1).to(torch.int32).cpu().numpy()

    def encoded(self, part: DecodedPart, piece_blocks: Sequence[int]) -> EncodedPart:
        if not part.rows:
            return EncodedPart(part.number, [], np.zeros((0, 0), np.int32), {}, part.failed, part.equal)
        pieces = {blocks: self.pieces(part.video_BFCHW, blocks) for blocks in piece_blocks}
        return EncodedPart(part.number, part.rows, self.codes(part.video_BFCHW), pieces, part.failed, part.equal)

    def pieces(self, video_BFCHW: torch.Tensor, blocks: int) -> np.ndarray:
        """int32 [B, P, tokens]: the sub-clips that start at frame j * temporal_stride, each encoded as a clip of its
        own.
        """
        step = self.tokenizer.temporal_stride
        frames = 1 + (blocks - 1) * step
        starts = range(0, video_BFCHW.shape[1] - frames + 1, step)
        return np.stack([self.codes(video_BFCHW[:, start : start + frames]) for start in starts], axis=1)


class DecodedPart(NamedTuple):
    """Some clips, ready to be encoded together."""

    number: int
    rows: list[int]
    video_BFCHW: torch.Tensor
    failed: list[Failure]
    equal: list[tuple[Path, int, int]]


class LeftParts:
    """The parts that are not encoded yet. First those clips whose pixels are kept, then the others, which are decoded
    on the fly.
    """

    def __init__(
        self,
        done: set[int],
        pixels: np.ndarray,
        pixel_rows: Sequence[int],
        clips: list[Clip],
        data: settings.Data,
        dead: dict[Path, str],
        processes: Processes,
    ) -> None:
        self._pixels, self._data, self._dead, self._processes = pixels, data, dead, processes
        self._kept = [list(pixel_rows[start : start + PART_CLIPS]) for start in range(0, len(pixel_rows), PART_CLIPS)]
        self._rest, self._first = clips[len(pixel_rows) :], len(pixel_rows)
        self._parts = parts(self._rest)
        self._clips = clips
        self.parts = len(self._kept) + len(self._parts)
        self.left = [number for number in range(self.parts) if number not in done]

    def tasks(
        self, experiment: settings.Experiment, tokenizer_path: Path, piece_blocks: tuple[int, ...]
    ) -> list[PartTask]:
        """The same parts as tasks for other machines. They decode all clips, also those whose pixels are kept
        here.
        """
        cpus, device = experiment.resources.cpus_per_worker, experiment.device_type
        tasks = []
        for number in self.left:
            start, kept = number * PART_CLIPS, len(self._kept)
            rows = (
                list(range(start, start + len(self._kept[number])))
                if number < kept
                else [self._first + place for place in self._parts[number - kept]]
            )
            clips = [self._clips[row] for row in rows]
            tasks.append(PartTask(number, rows, clips, self._data, tokenizer_path, device, piece_blocks, cpus))
        return tasks

    def __iter__(self) -> Iterator[DecodedPart]:
        before = len(self._kept)
        for number in self.left:
            if number < before:
                start, rows = number * PART_CLIPS, self._kept[number]
                video = np.array(self._pixels[rows])
                yield DecodedPart(number, list(range(start, start + len(rows))), torch.from_numpy(video), [], [])
        later = [number for number in self.left if number >= before]
        decoded = decode(
            self._rest, self._data, [self._parts[number - before] for number in later], self._dead, self._processes
        )
        for number, part in zip(later, decoded, strict=True):
            failed = [failure._replace(place=self._first + failure.place) for failure in part.failed]
            yield DecodedPart(
                number, [self._first + row for row in part.rows], torch.from_numpy(part.video_BFCHW), failed, part.equal
            )
