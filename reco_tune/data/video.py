"""Frames of one video file, in and out. Knows nothing of clips, folders or classes.

A frame's number is its index among the frames that ffmpeg shows. PyAV is the reader (`video_reader`). Only AVI files
without predicted frames (FFV1, Motion JPEG) are read by decord. In other files decord's seeks can silently return
wrong frames, and PyAV is not slower (docs/benchmark).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from fractions import Fraction
from pathlib import Path

import numpy as np

from reco_tune.data.video_index import VideoIndex, first_line, index_video, jump_in_time
from reco_tune.data.video_reader import VideoReader, state_of
from reco_tune.errors import DataError

READER = "by time stamps, else from the start"
"""How frames are found. Part of the fingerprint, so that clips that were cut in another way are not reused."""


def count_frames(path: Path) -> int:
    """The number of frames that ffmpeg shows. It does not trust the header.

    Raises:
        DataError: if the file is not a readable video.
    """
    return examine(path)[0]


def examine(path: Path) -> tuple[int, str]:
    """`count_frames`, and a warning if the file looks damaged (else empty). Pictures are decoded only if the packets
    do not tell how many frames are shown.

    Raises:
        DataError: if the file is not a readable video.
    """
    index = index_video(path)
    if index.times is not None:
        return len(index.times), index.suspicion
    with closing(VideoReader(path, index)) as video:
        seconds = [frame.time for _, frame in video.shown_from_start()]
        if not seconds:
            raise DataError(f"{path} has no frame that can be decoded; replace or remove it")
        damage = f"{video.damaged} of its packets cannot be decoded" if video.damaged else ""
        jump = jump_in_time([time for time in seconds if time is not None])
        return len(seconds), index.suspicion or damage or jump


def read_frames(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Frames `indices` (in rising order) as uint8 [F, H, W, 3], RGB.

    Raises:
        DataError: if one of them cannot be decoded.
    """
    return np.stack(list(iterate_frames(path, indices)))


def iterate_frames(path: Path, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Like `read_frames`, one frame uint8 [H, W, 3] at a time, so that a long video is never in memory at full
    size.
    """
    video, done = _opened(path), 0
    try:
        with suppress(DecordFailedError):
            for frame in decord_frames(path, video.index, indices):
                yield frame
                done += 1
        video.forget_place()
        for number in indices[done:]:
            yield video.frame(number)
    except BaseException:
        video.close()
        raise
    _kept[:] = [video]


def write_video(path: Path, frames: np.ndarray, fps: float = 10, lossless: bool = False) -> None:
    """Writes uint8 [F, H, W, 3] as H.264 in yuv420p, which browsers play (odd sides are padded), or as lossless FFV1
    (`.avi`).

    Lossless grey frames are stored as grey and decode to the same bits. decord reads lossless files only if their
    sides are multiples of 32.
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
            1  # threads cost more than they save at these sizes, and one thread gives the same bytes everywhere
        )
        for frame in frames:
            image = np.ascontiguousarray(frame[..., 0] if gray else frame)
            picture = av.VideoFrame.from_ndarray(image, format="gray" if gray else "rgb24")
            container.mux(stream.encode(picture if gray else picture.reformat(format=pixels)))
        container.mux(stream.encode())


class DecordFailedError(Exception):
    """decord is missing, not applicable or failed. PyAV then reads the video."""


def decord_frames(path: Path, index: VideoIndex, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Opens a new reader for every call. A shared reader hangs after a fork and raises in other threads."""
    if not index.decord or index.times is None:
        raise DecordFailedError("its seeks are unreliable")
    try:
        import decord
    except (ImportError, OSError) as error:
        raise DecordFailedError("not installed") from error
    decord.logging.set_level(decord.logging.QUIET)  # else FFmpeg prints to stderr for every damaged frame
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) != len(index.times):
            raise DecordFailedError(f"it counts {len(reader)} frames")
        for number in indices:  # `get_batch` one frame at a time: where it refuses, reader[number] returns garbage
            yield reader.get_batch([int(number)]).asnumpy()[0]
    except (decord.DECORDError, RuntimeError, OSError, IndexError) as error:  # DECORDError is not a RuntimeError
        raise DecordFailedError(first_line(error)) from error


_kept: list[VideoReader] = []
"""The last video stays open: its next frames are often wanted next, and without key frames a seek starts over."""


def _opened(path: Path) -> VideoReader:
    """The open video, if it is this file and the file has not changed; else a new reader."""
    with suppress(IndexError, OSError):
        video = _kept.pop()
        if (video.path, video.state) == (path, state_of(path)):
            return video
    return VideoReader(path, index_video(path))
