"""Frames of one video file, in and out. Knows nothing of clips, folders or classes.

decord reads first; PyAV reads what decord cannot (GIF, AV1, some small frames, and MPEG streams, in which decord seeks
to wrong frames without a word). A reader is opened for every call and never shared: over a fork it hangs, over threads
it raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from reco_tune.errors import DataError

EXTENSIONS = frozenset({".avi", ".mp4", ".m4v", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".gif"})
"""Names that count as videos."""
_WITHOUT_INDEX = frozenset({".mpg", ".mpeg"})
CHUNK_FRAMES = 16
"""Frames decoded at once at full size, which bounds the memory of a 4K video to 400 MB."""


def count_frames(path: Path) -> int:
    """Frames that the file really holds (headers lie), counted without decoding.

    Raises:
        DataError: if the file is no readable video.
    """
    return examine(path)[0]


def examine(path: Path) -> tuple[int, int]:
    """`count_frames`, and the number of frames that the header names (0 where it names none).

    Raises:
        DataError: if the file is no readable video.
    """
    import av

    _refuse_non_files(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream; replace or remove it")
            named = container.streams.video[0].frames
            frames = sum(1 for packet in container.demux(video=0) if packet.size)
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise DataError(
            f"{path} is not a video that can be read ({_first_line(error)}); replace or remove it"
        ) from error
    if not frames:
        raise DataError(f"{path} holds no video frame; replace or remove it")
    return frames, named


def read_frames(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Frames `indices` (rising) as uint8 [F, H, W, 3], RGB.

    Raises:
        DataError: if neither decord nor PyAV can give all of them.
    """
    return np.concatenate(list(iterate_frames(path, indices)))


def iterate_frames(path: Path, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """`read_frames` in pieces of at most `CHUNK_FRAMES` frames, so that a long video never lies in memory at
    full size."""
    _refuse_non_files(path)
    chunks = [list(indices[start : start + CHUNK_FRAMES]) for start in range(0, len(indices), CHUNK_FRAMES)]
    done = 0
    try:
        for frames in decord_chunks(path, chunks):
            yield frames
            done += 1
    except DecordFailedError:
        try:
            yield from pyav_chunks(path, chunks[done:])
        except PyAVFailedError as error:
            raise DataError(f"{path} cannot be decoded by decord or PyAV ({error}); replace or remove it") from error


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
    """decord is absent or gave up; PyAV is next."""


class PyAVFailedError(Exception):
    """PyAV gave up too."""


def decord_chunks(path: Path, chunks: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """Frames of each chunk of rising numbers by decord alone."""
    if path.suffix.lower() in _WITHOUT_INDEX:
        raise DecordFailedError("no index")
    try:
        import decord
    except (ImportError, OSError) as error:
        raise DecordFailedError("not installed") from error
    decord.logging.set_level(decord.logging.QUIET)  # else FFmpeg writes to stderr about every damaged frame
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        for chunk in chunks:
            if chunk[-1] >= len(reader):
                raise DecordFailedError(f"frame {chunk[-1]} lies behind the last of {len(reader)}")
            yield reader.get_batch(list(chunk)).asnumpy()
    except (decord.DECORDError, RuntimeError, OSError, IndexError) as error:  # DECORDError is not a RuntimeError
        raise DecordFailedError(_first_line(error)) from error


def pyav_chunks(path: Path, chunks: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """The same by PyAV alone."""
    import av

    try:
        with av.open(str(path)) as container:
            decoded: Iterator[tuple[int, Any]] = enumerate(container.decode(video=0))
            for chunk in chunks:
                wanted = set(chunk)
                found: dict[int, np.ndarray] = {}
                while len(found) < len(wanted):
                    number, frame = next(decoded, (-1, None))
                    if frame is None:
                        raise PyAVFailedError(f"it ends before frame {chunk[-1]}")
                    if number in wanted:
                        found[number] = _upright(frame)
                yield np.stack([found[number] for number in chunk])
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise PyAVFailedError(_first_line(error)) from error


def _upright(frame: Any) -> np.ndarray:
    """RGB pixels turned as the file's display matrix says, which decord does by itself."""
    pixels: np.ndarray = frame.to_ndarray(format="rgb24")
    turns, rest = divmod(frame.rotation, 90)
    return np.rot90(pixels, turns) if turns % 4 and not rest else pixels


def _refuse_non_files(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder without images, not a video file; replace or remove it")
    if not path.exists():
        raise DataError(f"{path} is not there; put it back, or take it off the list that names it")
    if not path.is_file():
        raise DataError(f"{path} is no file; replace or remove it")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); replace or remove it")


def _first_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:120] if lines else type(error).__name__
