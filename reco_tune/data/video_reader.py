"""Reads one video file with PyAV, and continues from its current position if it can. Knows nothing of decord.

It seeks to the last key frame of the index before the wanted frame, and identifies frames by their time stamps. If
the index has no key frames, it decodes from the start and counts.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from reco_tune.data.video_index import Entry, VideoIndex, first_line, open_video
from reco_tune.errors import DataError


def state_of(path: Path) -> tuple[int, ...]:
    """A key that changes when the file is written to. It also differs in a forked process."""
    found = path.stat()
    return os.getpid(), found.st_ino, found.st_size, found.st_mtime_ns


class VideoReader:
    """One open video. Not safe for several callers at a time."""

    def __init__(self, path: Path, index: VideoIndex) -> None:
        from av.video.reformatter import VideoReformatter

        self.path, self.index, self.state = path, index, state_of(path)
        self.damaged = 0
        """Packets so far that failed to decode."""
        self._reformatter = VideoReformatter()  # kept: a new one for every frame would double the time
        self._container: Any = None
        self._stream: Any = None
        self._shown: Iterator[tuple[int, Any]] = iter(())
        self._entry_numbers = {entry.pts: entry.number for entry in index.entries}
        self._declared_size = (0, 0)
        self._placed = False
        """Whether the next frame of `_shown` is frame `_next` or later."""
        self._next = 0

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container, self._placed = None, False

    def frame(self, number: int) -> np.ndarray:
        """uint8 [H, W, 3].

        Raises:
            DataError: if it cannot be decoded.
        """
        import av

        try:
            self._approach(number)
            for place, frame in self._shown:
                self._next = place + 1
                if place == number:
                    return self._picture(frame)
                if place > number:
                    break
        except (av.FFmpegError, OSError, ValueError) as error:
            raise DataError(f"{self.path} cannot be decoded ({first_line(error)}); replace or remove it") from error
        raise DataError(f"{self.path} cannot be decoded at frame {number}; replace or remove it")

    def shown_from_start(self) -> Iterator[tuple[int, Any]]:
        """All frames with their numbers."""
        self._restart()
        return self._shown

    def forget_place(self) -> None:
        """Makes the next read independent of earlier ones, if the index has key frames. The repair of a damaged
        picture depends on where decoding began.
        """
        self._placed = self._placed and not self.index.entries

    def _picture(self, frame: Any) -> np.ndarray:
        """The picture, scaled to the size of the first one: ffmpeg does the same if a recording changes its size."""
        size = frame.width, frame.height
        if size != self._declared_size:
            size = self._first_size
        return _upright(self._reformatter.reformat(frame, *size, format="rgb24").to_ndarray(), _matrix(frame))

    @cached_property
    def _first_size(self) -> tuple[int, int]:
        video = VideoReader(self.path, self.index)
        _, frame = next(video.shown_from_start())
        video.close()
        return frame.width, frame.height

    def _approach(self, number: int) -> None:
        """Seeks to the last key frame up to that frame, unless the current position is closer."""
        place = bisect_right(self.index.entries, number, key=lambda entry: entry.number)
        entry = self.index.entries[place - 1] if place else None
        begin = entry.number if entry else 0
        if self._placed and begin <= self._next <= number:
            return
        if entry is None or begin == 0 or not self._seek(entry):
            self._restart()

    def _restart(self) -> None:
        self.close()
        self._container = open_video(self.path)
        self._stream = self._container.streams[self.index.stream]
        self._stream.codec_context.thread_count = 1  # the other cores have their own processes
        self._declared_size = self._stream.width, self._stream.height
        self._go_on(0, self._container.demux(self._stream))

    def _seek(self, entry: Entry) -> bool:
        """Whether the seek led to the key frame or to one before it. Formats differ in how they interpret the seek
        time.
        """
        import av

        if self._container is None:
            self._restart()
        for time in (entry.pts, entry.dts):
            with suppress(av.FFmpegError):
                self._container.seek(entry.pts if time is None else time, stream=self._stream)
                packets = self._container.demux(self._stream)
                for packet in packets:
                    number = self._entry_numbers.get(packet.pts)
                    if packet.is_keyframe and number is not None and number <= entry.number:
                        self._go_on(number, chain([packet], packets))
                        return True
        return False

    def _go_on(self, number: int, packets: Iterable[Any]) -> None:
        self._placed, self._next, self._shown = True, number, self._numbered(packets)

    def _numbered(self, packets: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        times = self.index.times
        for place, frame in enumerate(self._decoded(packets)):
            if times is None:
                yield place, frame
            elif frame.pts is not None:
                number = int(np.searchsorted(times, frame.pts))
                if number < len(times) and times[number] == frame.pts:
                    yield number, frame

    def _decoded(self, packets: Iterable[Any]) -> Iterator[Any]:
        """Decodes as ffmpeg does: it skips packets that fail to decode, and ends where a truncated file ends."""
        import av

        packets = iter(packets)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                packet = None
            if packet is not None and not packet.size:
                continue  # an AVI may repeat a frame, and the last packet is empty
            try:
                yield from self._stream.decode(packet)
            except av.FFmpegError:
                self.damaged += 1
            if packet is None:
                return


def _matrix(frame: Any) -> np.ndarray | None:
    """int32 [3, 3]: the display matrix of the file."""
    found = frame.side_data.get("DISPLAYMATRIX")
    return None if found is None else np.frombuffer(bytes(found), np.int32).reshape(3, 3)


def _upright(pixels_HWC: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Rotates and mirrors as ffmpeg does: a stored point (x, y, 1) is shown at (x, y, 1) @ matrix.

    Raises:
        ValueError: if the rotation is not a multiple of 90 degrees.
    """
    if matrix is None or not matrix[:2, :2].any():
        return pixels_HWC
    (a, b), (c, d) = matrix[:2, :2].tolist()
    sideways = abs(b) + abs(c) > abs(a) + abs(d)
    if sideways:
        pixels_HWC, a, d, b, c = pixels_HWC.swapaxes(0, 1), c, b, a, d
    if max(abs(b), abs(c)) > 0.02 * min(abs(a), abs(d)):
        raise ValueError(
            "its display matrix rotates it by an angle other than a multiple of 90 degrees; re-encode it with ffmpeg"
        )
    return pixels_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
