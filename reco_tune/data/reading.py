"""Reads one video (a file or a folder of images): its length, and frames scaled to the model's size.

These functions run in separate processes (`processes`). They take and return plain values and never import torch, so
these processes stay small and start quickly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reco_tune.data.frame_folders import examine_frames, has_images, list_frames, read_images
from reco_tune.data.video import examine, iterate_frames

_IMAGES = 16
"""Images of a folder that are open at once."""
EQUAL_FRAMES = 12
"""A run of this many equal frames is suspicious: decoders repeat the last frame where data are damaged."""


class VideoFacts(NamedTuple):
    """Facts about a video, read before its clips are cut."""

    frames: int
    suspicion: str
    """Empty, or a sign of damage: the header and the contents disagree, or the time stamps jump."""


class FrameRequest(NamedTuple):
    """A request for some frames of one video at the model's size."""

    path: Path
    indices: np.ndarray
    """int64, in rising order."""
    size_px: int
    resize: str


class RequestedFrames(NamedTuple):
    """The frames of one request."""

    frames_FCHW: np.ndarray
    """uint8 [F, 3, size, size]."""
    equal: tuple[int, int] | None
    """First and last frame of the longest run of equal frames, if it is suspicious."""


def facts_of(path: Path) -> VideoFacts:
    """
    Reads the length of a video and checks it for damage.

    Raises:
        DataError: if it is not a readable video.
    """
    if path.is_dir() and has_images(path):
        return VideoFacts(*examine_frames(path))
    return VideoFacts(*examine(path))


def read_frames(request: FrameRequest) -> RequestedFrames:
    """
    Decodes and scales the frames of a request.

    Raises:
        DataError: if one of the frames cannot be decoded.
    """
    small_FCHW = np.empty((len(request.indices), 3, request.size_px, request.size_px), np.uint8)
    runs = _EqualRuns()
    for small_CHW, frame_HWC in zip(small_FCHW, _frames(request.path, request.indices.tolist()), strict=True):
        resize_frames(frame_HWC[None], request.size_px, request.resize, small_CHW[None])
        runs.add(small_CHW, frame_HWC)
    first, last = runs.longest
    equal = (int(request.indices[first]), int(request.indices[last])) if last - first + 1 >= EQUAL_FRAMES else None
    return RequestedFrames(small_FCHW, equal)


def resize_frames(frames_FHWC: np.ndarray, size_px: int, resize: str, out: np.ndarray | None = None) -> np.ndarray:
    """Scales the centre square or the whole frame to uint8 [F, 3, size, size], into `out` if it is given.

    Whole factors average k x k blocks, which recovers enlarged frames exactly. Other factors use Pillow's antialiased
    bilinear filter. It computes in integers, so the pixels are the same on every machine.
    """
    height, width = frames_FHWC.shape[1:3]
    if resize == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        frames_FHWC = frames_FHWC[:, top : top + side, left : left + side]
        height = width = side
    small_FCHW = np.empty((len(frames_FHWC), 3, size_px, size_px), np.uint8) if out is None else out
    scaled = _averaged if height == width and height % size_px == 0 else _filtered
    for small_CHW, frame_HWC in zip(small_FCHW, frames_FHWC, strict=True):
        small_CHW[:] = scaled(frame_HWC, size_px).transpose(2, 0, 1)
    return small_FCHW


def _averaged(frame_HWC: np.ndarray, size_px: int) -> np.ndarray:
    factor = len(frame_HWC) // size_px
    if factor == 1:
        return frame_HWC
    blocks = frame_HWC.reshape(size_px, factor, size_px, factor, 3)
    averaged: np.ndarray = np.rint(blocks.sum(axis=(1, 3), dtype=np.float32) / np.float32(factor**2))
    return averaged.astype(np.uint8)


def _filtered(frame_HWC: np.ndarray, size_px: int) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(frame_HWC))
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BILINEAR))


def _frames(path: Path, indices: Sequence[int]) -> Iterator[np.ndarray]:
    if not path.is_dir():
        yield from iterate_frames(path, indices)
        return
    images = list_frames(path)
    for start in range(0, len(indices), _IMAGES):
        yield from read_images([images[index] for index in indices[start : start + _IMAGES]])


class _EqualRuns:
    """Finds the longest run of equal frames in a stream of frames."""

    def __init__(self) -> None:
        self.longest = (0, 0)
        self._start = self._count = 0
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, small: np.ndarray, full: np.ndarray) -> None:
        """Adds a frame. Scaled frames are compared first because that is cheap; full frames only if the scaled ones
        agree.
        """
        pair = small, full
        if self._last is None or not all(np.array_equal(a, b) for a, b in zip(self._last, pair, strict=True)):
            self._start = self._count
        if self._count - self._start > self.longest[1] - self.longest[0]:
            self.longest = (self._start, self._count)
        self._last = pair
        self._count += 1
