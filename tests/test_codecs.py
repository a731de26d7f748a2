"""Which files come back right: codecs, pixel formats, sizes and timings, each encoded here and read back; and damaged
ones by name.

The picture is smooth (two ramps and a level that rises by six a frame), so a lossy codec stays near it, and a wrong
order, orientation, colour matrix or frame number does not.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered_videos import same_priority

from reco_tune.data.clips import decode, list_clips
from reco_tune.data.reading import facts_of
from reco_tune.data.video import count_frames, read_frames, write_video
from reco_tune.errors import DataError
from reco_tune.settings import Data

FRAMES = 40


def picture(height: int = 96, width: int = 128, gray: bool = False) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    frames = np.empty((FRAMES, height, width, 3), np.uint8)
    frames[..., 0] = 20 + columns * 200 // width
    frames[..., 1] = 20 + rows * 200 // height
    frames[..., 2] = np.arange(FRAMES)[:, None, None] * 6
    return np.repeat(frames.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1) if gray else frames


def encode(
    path: Path, frames: np.ndarray, codec: str, pixels: str, times: list[int] | None = None, **container_options: str
) -> None:
    """`times` are milliseconds of the frames; by default 25 a second."""
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"PyAV has no encoder {codec} here")
    with same_priority(), av.open(str(path), "w", options=container_options) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels_HWC in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24").reformat(format=pixels)
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


MATRIX = {
    "H.264": ("a.mp4", "libx264", "yuv420p", 3),
    "H.264 without subsampling": ("a.mp4", "libx264", "yuv444p", 3),
    "H.264, 10 bits": ("a.mp4", "libx264", "yuv420p10le", 3),
    "HEVC": ("a.mp4", "libx265", "yuv420p", 4),
    "HEVC, 10 bits": ("a.mkv", "libx265", "yuv420p10le", 4),
    "AV1": ("a.mp4", "libsvtav1", "yuv420p", 4),
    "AV1, 10 bits": ("a.webm", "libsvtav1", "yuv420p10le", 4),
    "VP8": ("a.webm", "libvpx", "yuv420p", 6),
    "VP9": ("a.webm", "libvpx-vp9", "yuv420p", 4),
    "VP9 with alpha": ("a.webm", "libvpx-vp9", "yuva420p", 4),
    "MPEG-4 part 2, as UCF101": ("a.avi", "mpeg4", "yuv420p", 10),
    "MPEG-2": ("a.mpg", "mpeg2video", "yuv420p", 14),
    "Motion JPEG": ("a.avi", "mjpeg", "yuvj420p", 8),
    "WMV": ("a.avi", "wmv2", "yuv420p", 12),
    "ProRes with alpha, 10 bits": ("a.mov", "prores_ks", "yuva444p10le", 3),
    "PNG with alpha": ("a.mov", "png", "rgba", 0.1),
    "GIF": ("a.gif", "gif", "rgb8", 30),
    "FFV1": ("a.mkv", "ffv1", "bgr0", 0.1),
}


def difference(path: Path, expected: np.ndarray) -> float:
    """Of the worst frame, as the mean over its pixels."""
    assert count_frames(path) == len(expected)
    found = read_frames(path, range(len(expected)))
    assert found.shape == expected.shape
    return float(np.abs(found.astype(int) - expected).mean(axis=(1, 2, 3)).max())


@pytest.mark.parametrize("name", MATRIX)
def test_what_people_have_comes_back_right(tmp_path: Path, name: str) -> None:
    file, codec, pixels, tolerance = MATRIX[name]
    encode(tmp_path / file, picture(), codec, pixels)
    assert difference(tmp_path / file, picture()) <= tolerance
    alone = read_frames(tmp_path / file, [7, 23])
    assert np.array_equal(alone, read_frames(tmp_path / file, range(FRAMES))[[7, 23]]), "seeking gives the same frames"


@pytest.mark.parametrize(
    ("file", "codec", "pixels"),
    [
        ("a.mp4", "libx264", "yuv444p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "ffv1", "bgr0"),
        ("a.mov", "png", "rgb24"),
    ],
    ids=["H.264", "VP9", "FFV1", "PNG"],
)
def test_odd_sizes(tmp_path: Path, file: str, codec: str, pixels: str) -> None:
    frames = picture(97, 131)
    encode(tmp_path / file, frames, codec, pixels)
    assert difference(tmp_path / file, frames) < 4


@pytest.mark.parametrize(
    ("codec", "pixels", "file"),
    [("libx264", "yuv420p", "a.mp4"), ("ffv1", "gray", "a.avi"), ("mjpeg", "yuvj420p", "a.avi")],
)
def test_grey(tmp_path: Path, codec: str, pixels: str, file: str) -> None:
    frames = picture(gray=True)
    encode(tmp_path / file, frames, codec, pixels)
    assert difference(tmp_path / file, frames) < 4


@pytest.mark.parametrize("file", ["a.mp4", "a.mkv"])
def test_frames_of_uneven_times_are_counted_as_they_are_stored(tmp_path: Path, file: str) -> None:
    """Variable rate: a clip's stride counts frames, not seconds, and no frame is doubled or dropped."""
    times = np.cumsum(np.random.default_rng(0).choice([10, 20, 40, 120], FRAMES)).tolist()
    encode(tmp_path / file, picture(), "libx264", "yuv420p", times)
    assert difference(tmp_path / file, picture()) < 3


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("zero bytes", "is empty"),
        ("text", "is not a readable video"),
        ("folder", "is a folder without images, not a video file"),
        ("only sound", "has no video stream"),
        ("cut before its index", "is not a readable video"),
        ("no file", "does not exist"),
    ],
)
def test_what_is_no_video_is_named(tmp_path: Path, kind: str, words: str) -> None:
    path = tmp_path / "a.mp4"
    if kind == "zero bytes":
        path.touch()
    elif kind == "text":
        path.write_text("no video\n" * 100)
    elif kind == "folder":
        path.mkdir()
    elif kind == "only sound":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    elif kind == "cut before its index":
        write_video(path, picture())
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (count_frames, facts_of):
        with pytest.raises(DataError, match=rf"a\.mp4 {words}.*; (replace or remove it|restore it, .*)$"):
            read(path)


def _blocks(content: bytes) -> tuple[int, int]:
    """Where the pictures of an MP4 file lie."""
    begin = content.index(b"mdat") + 4
    return begin, begin + int.from_bytes(content[begin - 8 : begin - 4], "big") - 8


def damaged(root: Path) -> None:
    """Films whose damage decodes silently, beside a good one."""
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, 64, 64, 3), dtype=np.uint8)
    encode(root / "good.mp4", noise, "libx264", "yuv420p")
    encode(root / "cut.mp4", noise, "libx264", "yuv420p", movflags="faststart")
    (root / "cut.mp4").write_bytes((root / "cut.mp4").read_bytes()[: (root / "cut.mp4").stat().st_size * 2 // 3])
    encode(root / "cut.avi", noise, "mpeg4", "yuv420p")
    (root / "cut.avi").write_bytes((root / "cut.avi").read_bytes()[: (root / "cut.avi").stat().st_size * 2 // 3])
    still = noise.copy()
    still[15:36] = still[15]
    write_video(root / "still.avi", still, lossless=True)
    content = bytearray((root / "good.mp4").read_bytes())
    begin, end = _blocks(content)
    content[begin + (end - begin) // 2 : end] = bytes(end - begin - (end - begin) // 2)
    (root / "packets.mp4").write_bytes(content)


def test_damage_that_decodes_silently_is_suspicious_and_the_rest_is_used(tmp_path: Path) -> None:
    damaged(tmp_path)
    data = Data(layout="flat", root=tmp_path, split="time", clip_frames=5, size_px=32, test_fraction=0.2)
    listed = list_clips(data)
    suspicious = {path.name: reason for path, reason in listed.suspicious}
    assert set(suspicious) == {"cut.mp4", "cut.avi", "packets.mp4"}
    assert "of its packets cannot be decoded" in suspicious.pop("packets.mp4")
    assert all("frames, but its header says 40" in reason for reason in suspicious.values())
    equal, failed = {}, set()
    for part in decode(listed.train, data):
        equal |= {path.name: (first, last) for path, first, last in part.equal}
        failed |= {listed.train[failure.place].path.name for failure in part.failed}
    assert equal["still.avi"] == (15, 29), "in the 30 frames that training clips hold"
    assert "good.mp4" not in equal and "good.mp4" not in failed
