"""Finds the frames of a video file from its packets, without decoding pictures. Knows nothing of pixels.

ffmpeg is the reference, both for the choice among several streams and for the frames that are shown (an edit list
hides some). File extensions are ignored. If the packets do not tell which frames are shown, `times` is None, and the
frames must be decoded to find out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reco_tune.errors import DataError

_ONE_FRAME_A_PACKET = frozenset({"h264", "hevc", "vp9", "av1", "ffv1"})
"""Codecs with predicted frames whose packets show one frame each. In other codecs a packet may show no frame (VP8),
or a frame that came in an earlier packet (MPEG-4 in AVI).
"""
_START_CODE = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)
_PROGRESSIVE = 1
"""`field_order` of whole frames. Interlaced video may have one packet per field."""
_DEFAULT_SCORE = 5_000_000
"""What ffmpeg adds to a default stream when it chooses among streams by their pixels."""
_JUMP = 2.5
"""A time step longer than this many usual steps (their 90% quantile) is a jump: at least two frames are lost."""


class Entry(NamedTuple):
    """A key frame. Decoding from it gives the same frames as decoding from the start."""

    number: int
    pts: int
    dts: int | None


class VideoIndex(NamedTuple):
    """The frames of a video, as far as its packets tell."""

    stream: int
    """Index among all streams of the file."""
    times: np.ndarray | None
    """int64, rising: time stamps of the shown frames, in the stream's time base. None if they are uncertain."""
    entries: tuple[Entry, ...]
    """In rising order; empty if `times` is None."""
    decord: bool
    """Whether it is an AVI without predicted frames, in which decord seeks correctly."""
    suspicion: str
    """Empty, or a sign of damage: the header and the packets disagree, or time jumps."""


def open_video(path: Path) -> Any:
    """Opens a PyAV container. Playlists may name local files, but nothing on a network.

    Raises:
        DataError: if the file is missing or empty.
        av.FFmpegError, OSError, ValueError: if it cannot be opened.
    """
    import av

    _refuse_non_files(path)
    return av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="ignore")


def index_video(path: Path) -> VideoIndex:
    """
    Reads the packets of a video file.

    Raises:
        DataError: if it is not a video.
    """
    import av

    try:
        with open_video(path) as container:
            streams = _video_streams(path, container)
            packets: dict[int, list[_Packet]] = {stream.index: [] for stream in streams}
            unbroken = True
            try:
                for packet in container.demux(streams):
                    if packet.size or packet.dts is not None:  # the last packet is empty and has no time stamp
                        packets[packet.stream_index].append(_told_by(packet))
            except av.FFmpegError:  # ffmpeg shows the frames before the error
                unbroken = False
            for stream in streams:
                if any(packet.size for packet in packets[stream.index]):
                    return _index(container.format.name, stream, packets[stream.index], unbroken)
            raise DataError(f"{path} has no video frame; replace or remove it")
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise DataError(f"{path} is not a readable video ({first_line(error)}); replace or remove it") from error


def jump_in_time(seconds: Sequence[float] | np.ndarray) -> str:
    """A sentence about a jump in the times of neighbouring frames, or an empty string."""
    steps = np.diff(seconds)
    if len(steps) < 2:
        return ""
    back, jump = int(np.argmin(steps)), int(np.argmax(steps))
    if steps[back] < 0:
        return f"its time goes back by {-steps[back]:.3g} s after frame {back}"
    if steps[jump] > _JUMP * np.quantile(steps, 0.9):
        return f"its time jumps by {steps[jump]:.3g} s after frame {jump}, where {np.median(steps):.3g} s is usual"
    return ""


def first_line(error: BaseException) -> str:
    """The first line of an error, short enough for a list."""
    text = getattr(error, "strerror", None) or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:120] if lines else type(error).__name__


class _Packet(NamedTuple):
    """The fields of a packet that are used here."""

    size: int
    pts: int | None
    dts: int | None
    entry: bool
    shown: bool
    corrupt: bool


def _told_by(packet: Any) -> _Packet:
    entry, corrupt = packet.is_keyframe, packet.is_corrupt
    context = packet.stream.codec_context
    nal = _NAL.get(context.codec.canonical_name)
    if nal is not None and packet.size:
        kind = _picture_kind(memoryview(packet), context.extradata, nal)
        entry, corrupt = entry and kind in nal.entries, corrupt or kind is None
    return _Packet(packet.size, packet.pts, packet.dts, entry, not packet.is_discard, corrupt)


def _video_streams(path: Path, container: Any) -> list[Any]:
    """Streams in ffmpeg's order of choice. It shows the next one if the first has no packet."""
    from av.stream import Disposition

    if container.format.name == "tty":  # ffmpeg would render the text as a video
        raise DataError(f"{path} is text, not a video; replace or remove it")
    films = [stream for stream in container.streams.video if Disposition.attached_pic not in stream.disposition]
    streams = [stream for stream in films if stream.codec_context is not None]
    if not streams:
        what = "a cover picture, but no video" if container.streams.video else "no video stream"
        raise DataError(f"{path} has {'no video in a known codec' if films else what}; replace or remove it")

    def score(stream: Any) -> int:
        return int(stream.width * stream.height + _DEFAULT_SCORE * (Disposition.default in stream.disposition))

    return sorted(streams, key=score, reverse=True)  # a stable sort: of equals, the first stays first


def _index(container: str, stream: Any, packets: list[_Packet], unbroken: bool) -> VideoIndex:
    context = stream.codec_context
    full = [packet for packet in packets if packet.size]
    missing = stream.frames - len(packets)
    suspicion = f"it has {len(packets)} frames, but its header says {stream.frames}" if missing > 0 else ""
    if not (unbroken and _are_sure(full, context)):
        return VideoIndex(stream.index, None, (), False, suspicion)
    times = np.sort(np.array([packet.pts for packet in full], np.int64))
    entries = tuple(
        Entry(int(np.searchsorted(times, packet.pts)), packet.pts, packet.dts)
        for packet in full
        if packet.entry and packet.pts is not None
    )
    alone = context.codec.intra_only or context.codec.canonical_name == "ffv1"
    suspicion = suspicion or jump_in_time(times * float(stream.time_base))
    return VideoIndex(stream.index, times, entries, container == "avi" and alone, suspicion)


def _are_sure(packets: Sequence[_Packet], context: Any) -> bool:
    """Whether every packet shows one frame, and the frames are shown in the order of their time stamps."""
    name = context.codec.canonical_name
    pts = [packet.pts for packet in packets if packet.pts is not None]
    dts = [packet.dts for packet in packets if packet.dts is not None]
    return (
        (context.codec.intra_only or name in _ONE_FRAME_A_PACKET)
        and (name != "h264" or context.field_order == _PROGRESSIVE)
        and not any(packet.corrupt for packet in packets)
        and all(packet.shown for packet in packets)  # decoders differ in which frames they hide
        and len(set(pts)) == len(packets)
        and packets[0].entry
        and pts[0] == min(pts)  # else the frames shown before it depend on missing frames
        and all(one < two for one, two in pairwise(dts))
        and all(packet.dts is None or packet.dts <= time for packet, time in zip(packets, pts, strict=True))
        and not (context.has_b_frames and pts == sorted(pts))  # else pts holds decoding times
    )


class _Nal(NamedTuple):
    """How to tell the kind of a NAL unit in one codec, and which kinds are pictures."""

    length_byte: int
    """Index of the byte, in the avcC or hvcC box, that gives the size of the length fields."""
    shift: int
    mask: int
    pictures: range
    entries: range
    """Kinds of key frames that no later picture refers behind. Recovery points and plain I frames are not among
    them.
    """


_NAL = {"h264": _Nal(4, 0, 31, range(1, 6), range(5, 6)), "hevc": _Nal(21, 1, 63, range(32), range(16, 22))}


def _picture_kind(content: memoryview, extradata: bytes | None, nal: _Nal) -> int | None:
    """Kind of the first unit that is (part of) a picture. None if there is none, as in a file that was only partly
    copied.
    """
    if extradata and extradata[0] == 1 and len(extradata) > nal.length_byte:
        headers = _after_lengths(content, 1 + (extradata[nal.length_byte] & 3))
    else:
        headers = (match[1][0] for match in _START_CODE.finditer(content))
    kinds = (header >> nal.shift & nal.mask for header in headers)
    return next((kind for kind in kinds if kind in nal.pictures), None)


def _after_lengths(content: memoryview, size: int) -> Iterator[int]:
    place = 0
    while place + size < len(content):
        yield content[place + size]
        place += size + max(1, int.from_bytes(content[place : place + size], "big"))


def _refuse_non_files(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder without images, not a video file; replace or remove it")
    if not path.exists():
        raise DataError(f"{path} does not exist; restore it, or remove it from the list that names it")
    if not path.is_file():
        raise DataError(f"{path} is not a regular file; replace or remove it")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); replace or remove it")
