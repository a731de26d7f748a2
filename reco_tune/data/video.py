"""Frames of one video file, in and out. Knows nothing of clips, folders or classes.

A frame's number is its place among the frames that ffmpeg shows. PyAV reads from the last entry of the index before
the wanted frame, or from the start where there is none. decord reads AVI files of pictures that stand alone (FFV1,
Motion JPEG): elsewhere its seeks give wrong frames without a word, and PyAV is not slower (docs/benchmark.md).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from reco_tune.data.video_index import Entry, VideoIndex, first_line, index_video, jump_in_time, open_video
from reco_tune.errors import DataError

READER = "by time stamps, else from the start"
"""How frames are found; part of the fingerprint, so that clips which were cut in another way are not used on."""
EXTENSIONS = frozenset({".avi", ".mp4", ".m4v", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".gif"})
"""Names that count as videos."""


def count_frames(path: Path) -> int:
    """Frames that ffmpeg shows (headers lie).

    Raises:
        DataError: if the file is no readable video.
    """
    return examine(path)[0]


def examine(path: Path) -> tuple[int, str]:
    """`count_frames`, and what is suspicious about them, or nothing. Pictures are decoded only where the packets leave
    open how many are shown.

    Raises:
        DataError: if the file is no readable video.
    """
    index = index_video(path)
    if index.times is not None:
        return len(index.times), index.suspicion
    with closing(_Video(path, index)) as video:
        seconds = [frame.time for _, frame in video.shown_from_start()]
        if not seconds:
            raise DataError(f"{path} holds no frame that can be decoded; replace or remove it")
        damage = f"{video.damaged} of its packets cannot be decoded" if video.damaged else ""
        jump = jump_in_time([time for time in seconds if time is not None])
        return len(seconds), index.suspicion or damage or jump


def read_frames(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Frames `indices` (rising) as uint8 [F, H, W, 3], RGB.

    Raises:
        DataError: if one of them cannot be decoded, or they differ in size.
    """
    return np.stack(list(iterate_frames(path, indices)))


def iterate_frames(path: Path, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """`read_frames` one by one, uint8 [H, W, 3], so that a long video never lies in memory at full size."""
    video, done = _opened(path), 0
    try:
        with suppress(DecordFailedError):
            for frame in decord_frames(path, video.index, indices):
                yield frame
                done += 1
        shape = None
        for number in indices[done:]:
            frame = video.frame(number)
            if frame.shape != (shape := shape or frame.shape):
                raise DataError(
                    f"{path} changes from {shape[1]} x {shape[0]} to {frame.shape[1]} x {frame.shape[0]} px by frame"
                    f" {number}; cut it there, or scale it to one size"
                )
            yield frame
    except BaseException:
        video.close()
        raise
    _kept[:] = [video]


def write_video(path: Path, frames: np.ndarray, fps: float = 10, lossless: bool = False) -> None:
    """Writes uint8 [F, H, W, 3] as H.264 in yuv420p, which browsers play (an odd side is padded), or as lossless FFV1
    (`.avi`).

    Lossless gray frames are stored as gray, which decodes to the same bits. decord reads lossless files whose sides are
    multiples of 32.
    """
    import av

    if lossless:
        gray = bool((frames == frames[..., :1]).all())
        codec, pixels, options = "ffv1", "gray" if gray else "bgr0", {}
    else:
        frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
        gray, codec, pixels, options = False, "libx264", "yuv420p", {"crf": "18"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        stream.codec_context.thread_count = (
            1  # threads cost more than they save at these sizes, and one gives the same bytes everywhere
        )
        for frame in frames:
            image = np.ascontiguousarray(frame[..., 0] if gray else frame)
            picture = av.VideoFrame.from_ndarray(image, format="gray" if gray else "rgb24")
            container.mux(stream.encode(picture if gray else picture.reformat(format=pixels)))
        container.mux(stream.encode())


class DecordFailedError(Exception):
    """decord is absent, not asked or gave up; PyAV is next."""


def decord_frames(path: Path, index: VideoIndex, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """A reader is opened for every call and never shared: over a fork it hangs, over threads it raises."""
    if not index.decord or index.times is None:
        raise DecordFailedError("its seeks are not to be trusted")
    try:
        import decord
    except (ImportError, OSError) as error:
        raise DecordFailedError("not installed") from error
    decord.logging.set_level(decord.logging.QUIET)  # else FFmpeg writes to stderr about every damaged frame
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) != len(index.times):
            raise DecordFailedError(f"it counts {len(reader)} frames")
        for number in indices:  # one frame at a time, but by `get_batch`: reader[number] garbles what that refuses
            yield reader.get_batch([int(number)]).asnumpy()[0]
    except (decord.DECORDError, RuntimeError, OSError, IndexError) as error:  # DECORDError is not a RuntimeError
        raise DecordFailedError(first_line(error)) from error


_kept: list[_Video] = []
"""The video that was read last stays open: the frames behind are often wanted next, and not every video has entries."""


def _opened(path: Path) -> _Video:
    """The video that was kept, if it is this one and still the same."""
    with suppress(IndexError, OSError):
        video = _kept.pop()
        if (video.path, video.state) == (path, _state(path)):
            return video
    index = index_video(path)
    return _Video(path, index)


def _state(path: Path) -> tuple[int, ...]:
    """What differs once somebody has written to the file, and in a forked process."""
    found = path.stat()
    return os.getpid(), found.st_ino, found.st_size, found.st_mtime_ns


class _Video:
    """PyAV's reader of one video, which goes on from where it stands."""

    def __init__(self, path: Path, index: VideoIndex) -> None:
        from av.video.reformatter import VideoReformatter

        self.path, self.index, self.state = path, index, _state(path)
        self.damaged = 0
        """Packets so far that could not be decoded."""
        self._reformatter = VideoReformatter()  # one for every frame would take twice the time
        self._container: Any = None
        self._stream: Any = None
        self._shown: Iterator[tuple[int, Any]] = iter(())
        self._next = 0

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

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
                    return _upright(self._reformatter.reformat(frame, format="rgb24").to_ndarray(), _matrix(frame))
                if place > number:
                    break
        except (av.FFmpegError, OSError, ValueError) as error:
            raise DataError(f"{self.path} cannot be decoded ({first_line(error)}); replace or remove it") from error
        raise DataError(f"{self.path} cannot be decoded at frame {number}; replace or remove it")

    def shown_from_start(self) -> Iterator[tuple[int, Any]]:
        """All frames with their numbers."""
        self._restart()
        return self._shown

    def _approach(self, number: int) -> None:
        """Goes to the last entry up to that frame, where it does not lie closer ahead already."""
        place = bisect_right(self.index.entries, number, key=lambda entry: entry.number)
        entry = self.index.entries[place - 1] if place else None
        begin = entry.number if entry else 0
        if self._container is not None and begin <= self._next <= number:
            return
        if entry is None or begin == 0 or not self._seek(entry):
            self._restart()

    def _restart(self) -> None:
        self.close()
        self._container = open_video(self.path)
        self._stream = self._container.streams[self.index.stream]
        self._stream.codec_context.thread_count = 1  # other cores have processes of their own
        self._next, self._shown = 0, self._numbered(self._container.demux(self._stream))

    def _seek(self, entry: Entry) -> bool:
        """Whether that led to the entry or to one before it: formats differ in what they take a time for."""
        import av

        if self._container is None:
            self._restart()
        numbers = {each.pts: each.number for each in self.index.entries if each.number <= entry.number}
        for time in (entry.pts, entry.dts):
            with suppress(av.FFmpegError):
                self._container.seek(entry.pts if time is None else time, stream=self._stream)
                packets = self._container.demux(self._stream)
                for packet in packets:
                    if packet.is_keyframe and packet.pts in numbers:
                        self._next, self._shown = numbers[packet.pts], self._numbered(chain([packet], packets))
                        return True
        return False

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
        """As ffmpeg does: what cannot be decoded is left out, and a file that breaks off ends there."""
        import av

        packets = iter(packets)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                packet = None
            if packet is not None and not packet.size:
                continue  # an AVI repeats a frame, or the last packet, which carries nothing
            try:
                yield from self._stream.decode(packet)
            except av.FFmpegError:
                self.damaged += 1
            if packet is None:
                return


def _matrix(frame: Any) -> np.ndarray | None:
    """int32 [3, 3]: how the file says that the picture is to be turned."""
    found = frame.side_data.get("DISPLAYMATRIX")
    return None if found is None else np.frombuffer(bytes(found), np.int32).reshape(3, 3)


def _upright(pixels_HWC: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Turned and mirrored as ffmpeg does: a stored point (x, y, 1) is shown at (x, y, 1) @ matrix.

    Raises:
        ValueError: for a turn by no multiple of 90 degrees.
    """
    if matrix is None or not matrix[:2, :2].any():
        return pixels_HWC
    (a, b), (c, d) = matrix[:2, :2].tolist()
    sideways = abs(b) + abs(c) > abs(a) + abs(d)
    if sideways:
        pixels_HWC, a, d, b, c = pixels_HWC.swapaxes(0, 1), c, b, a, d
    if max(abs(b), abs(c)) > 0.02 * min(abs(a), abs(d)):
        raise ValueError("its display matrix turns it by no multiple of 90 degrees; let ffmpeg write it anew")
    return pixels_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
