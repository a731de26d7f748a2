"""Whether the frames that are read are the frames that are shown: first every window of what encoders and containers
make of a numbered video, then what only some files have, then the split that wrong frames once spoiled.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import copy_packets, ffmpeg, numbers_in, shown_by_ffmpeg, windows, write_numbered

from reco_tune.data import video
from reco_tune.data.clips import decode, list_clips
from reco_tune.data.reading import facts_of
from reco_tune.data.video import read_frames
from reco_tune.data.video_index import index_video
from reco_tune.errors import DataError
from reco_tune.settings import Data

FRAMES = 60
CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "video"

CODINGS: dict[str, tuple[str, str, dict[str, str], tuple[str, ...]]] = {
    "H.264": ("libx264", "yuv420p", {"g": "25"}, ("mp4", "mkv", "avi", "ts", "flv")),
    "H.264 without B-frames": ("libx264", "yuv420p", {"g": "25", "bf": "0"}, ("mp4", "avi")),
    "H.264, open GOP": (
        "libx264",
        "yuv420p",
        {"x264-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3:b-adapt=0:scenecut=0"},
        ("mp4", "mkv", "ts"),
    ),
    "H.264, intra refresh": ("libx264", "yuv420p", {"x264-params": "keyint=25:intra-refresh=1"}, ("mp4", "ts", "avi")),
    "H.264, B-pyramid": (
        "libx264",
        "yuv420p",
        {"x264-params": "keyint=40:bframes=8:b-pyramid=normal:b-adapt=0:ref=6"},
        ("mp4",),
    ),
    "H.264, 4:4:4": ("libx264", "yuv444p", {"g": "25"}, ("mp4", "mkv")),
    "H.264, interlaced": ("libx264", "yuv420p", {"x264-params": "keyint=25:tff=1"}, ("mp4", "ts")),
    "HEVC, open GOP": ("libx265", "yuv420p", {"x265-params": "keyint=25:log-level=0"}, ("mp4", "mkv", "ts")),
    "HEVC, closed GOP, 10 bits": (
        "libx265",
        "yuv420p10le",
        {"x265-params": "keyint=25:open-gop=0:log-level=0"},
        ("mov",),
    ),
    "VP8": ("libvpx", "yuv420p", {"g": "25", "auto-alt-ref": "1", "lag-in-frames": "16"}, ("webm",)),
    "VP9": ("libvpx-vp9", "yuv420p", {"g": "25", "auto-alt-ref": "1", "lag-in-frames": "25"}, ("webm", "mp4")),
    "AV1": ("libsvtav1", "yuv420p", {"g": "25"}, ("mp4", "webm")),
    "MPEG-4 with B-frames": ("mpeg4", "yuv420p", {"g": "25", "bf": "2", "q": "3"}, ("avi", "mp4", "mkv", "3gp")),
    "MPEG-2": ("mpeg2video", "yuv420p", {"g": "12", "bf": "2", "b": "4M"}, ("mpg", "mkv", "ts")),
    "WMV": ("wmv2", "yuv420p", {"g": "25", "b": "2M"}, ("wmv",)),
    "Flash": ("flv1", "yuv420p", {"g": "25", "b": "2M"}, ("flv",)),
    "Theora": ("libtheora", "yuv420p", {"g": "25", "b": "2M"}, ("ogv",)),
    "Motion JPEG": ("mjpeg", "yuvj420p", {"b": "8M"}, ("avi", "mov")),
    "FFV1": ("ffv1", "bgr0", {"g": "12"}, ("avi", "mkv")),
}


def assert_right(path: Path, expected: list[int]) -> None:
    """Frames are counted rightly, and every window, in whatever order they are asked for, holds its frames."""
    assert facts_of(path).frames == len(expected)
    for window in windows(len(expected)):
        assert numbers_in(read_frames(path, window)) == [expected[place] for place in window], window
    apart = range(3, len(expected), 11)
    assert numbers_in(read_frames(path, apart)) == [expected[place] for place in apart]


@pytest.mark.parametrize("coding", CODINGS)
def test_every_window_holds_its_frames(tmp_path: Path, coding: str) -> None:
    codec, pixels, options, containers = CODINGS[coding]
    for container in containers:
        assert_right(write_numbered(tmp_path / f"a.{container}", FRAMES, codec, pixels, **options), list(range(FRAMES)))


@pytest.mark.parametrize("coding", ["FFV1", "Motion JPEG"])
def test_decord_gives_the_bits_that_pyav_gives_where_it_reads(
    tmp_path: Path, coding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, pixels, options, _ = CODINGS[coding]
    path = write_numbered(tmp_path / "a.avi", FRAMES, codec, pixels, **options)
    index = index_video(path)
    for window in windows(FRAMES)[:20]:
        by_decord = np.stack(list(video.decord_frames(path, index, window)))
        monkeypatch.setitem(sys.modules, "decord", None)  # an import now raises ImportError
        assert np.array_equal(by_decord, read_frames(path, window))
        monkeypatch.undo()


@pytest.mark.parametrize(
    "path",
    sorted(CASES.glob("*.*4")) + sorted(CASES.glob("*.avi")) + sorted(CASES.glob("*.mkv")),
    ids=lambda path: path.name,
)
def test_files_that_once_came_out_wrong(path: Path) -> None:
    shown = shown_by_ffmpeg(path)
    assert facts_of(path).frames == len(shown)
    for window in windows(len(shown)):
        if len(shown) > 100 and window[0] % 4:  # for time's sake
            continue
        found = read_frames(path, window)
        assert found.shape == shown[window].shape and np.abs(found - shown[window].astype(int)).mean() < 3, window


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "a.bin"])
@pytest.mark.parametrize("coding", ["MPEG-2", "H.264"])
def test_a_name_counts_for_nothing(tmp_path: Path, coding: str, name: str) -> None:
    codec, pixels, options, _ = CODINGS[coding]
    path = write_numbered(tmp_path / "a.ts", FRAMES, codec, pixels, **options)
    assert_right(path.rename(tmp_path / name), list(range(FRAMES)))


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "ts", "avi", "flv"])
def test_films_that_were_cut_without_encoding(tmp_path: Path, container: str) -> None:
    """`ffmpeg -ss -c copy` begins at a key frame and hides what comes before the cut, where the container can."""
    codec, pixels, options, _ = CODINGS["H.264"]
    whole = write_numbered(tmp_path / "whole.mp4", 90, codec, pixels, **options)
    path = tmp_path / f"a.{container}"
    ffmpeg("-ss", 1.3, "-i", whole, "-c", "copy", path)
    expected = numbers_in(shown_by_ffmpeg(path))
    assert len(expected) < 90 and expected[-1] == 89
    assert_right(path, expected)


@pytest.mark.parametrize(("container", "mark"), [("mp4", "attached_pic"), ("mkv", "0")])
def test_of_several_streams_the_one_that_ffmpeg_shows(tmp_path: Path, container: str, mark: str) -> None:
    """A cover picture, a small film and a larger one: one and the same is counted and read."""
    codec, pixels, options, _ = CODINGS["H.264"]
    film, small, cover = (tmp_path / name for name in ("film.mp4", "small.mp4", "cover.jpg"))
    write_numbered(film, FRAMES, codec, pixels, **options)
    ffmpeg("-f", "lavfi", "-i", "color=gray:s=48x48:r=25", "-frames:v", 90, small)
    ffmpeg("-f", "lavfi", "-i", "color=red:s=300x300", "-frames:v", 1, cover)
    path = tmp_path / f"a.{container}"
    marks = ("-disposition:v:0", mark, "-disposition:v:1", 0, "-disposition:v:2", "default")
    ffmpeg("-i", cover, "-i", small, "-i", film, "-map", 0, "-map", 1, "-map", 2, "-c", "copy", *marks, path)
    assert_right(path, list(range(FRAMES)))


def test_a_recording_that_changes_its_size_is_scaled_as_ffmpeg_does(tmp_path: Path) -> None:
    codec, pixels, options, _ = CODINGS["H.264"]
    first = write_numbered(tmp_path / "first.ts", 20, codec, pixels, **options)
    ffmpeg("-i", first, "-vf", "scale=96:80", "-c:v", "libx264", tmp_path / "second.ts")
    path = tmp_path / "a.ts"
    path.write_bytes(first.read_bytes() + (tmp_path / "second.ts").read_bytes())
    shown = shown_by_ffmpeg(path)
    assert len(shown) == facts_of(path).frames == 40
    assert np.abs(read_frames(path, range(15, 40)) - shown[15:].astype(int)).mean() < 4


def test_a_cover_alone_is_no_film(tmp_path: Path) -> None:
    cover, song = tmp_path / "cover.jpg", tmp_path / "song.m4a"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=300x300", "-frames:v", 1, cover)
    ffmpeg("-f", "lavfi", "-i", "sine", "-i", cover, "-t", 1, "-c:v", "copy", "-disposition:v", "attached_pic", song)
    with pytest.raises(DataError, match=r"song\.m4a has a cover picture, but no video; replace or remove it"):
        facts_of(song)


@pytest.mark.parametrize("mirrored", [False, True], ids=["turned", "mirrored and turned"])
@pytest.mark.parametrize("quarters", range(4))
def test_films_are_turned_and_mirrored_as_their_display_matrix_says(
    tmp_path: Path, quarters: int, mirrored: bool
) -> None:
    codec, pixels, options, _ = CODINGS["H.264"]
    path = write_numbered(tmp_path / "a.mp4", FRAMES, codec, pixels, **options)
    stored = read_frames(path, [31])[0]
    turn = np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), quarters)  # x, y @ turn: clockwise on the screen
    matrix = np.diag([-1, 1]) @ turn if mirrored else turn
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd") + 4
    place = header + 4 + (32 if content[header] else 20) + 16
    (a, b), (c, d) = (matrix << 16).tolist()
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    expected = np.rot90(stored[:, ::-1] if mirrored else stored, -quarters)
    assert np.array_equal(read_frames(path, [31])[0], expected)
    assert np.abs(shown_by_ffmpeg(path)[31] - expected.astype(int)).mean() < 3


def test_held_out_clips_are_no_training_frames(tmp_path: Path) -> None:
    """`data.split: time` of films with B-frames in AVI, as UCF101 has them: seeks to the second half once gave frames
    of the first, so that every held-out clip was made of training frames, and nothing showed it.
    """
    codec, pixels, options, _ = CODINGS["MPEG-4 with B-frames"]
    for number in range(2):
        write_numbered(tmp_path / f"{number}.avi", FRAMES, codec, pixels, **options)
    data = Data(layout="flat", root=tmp_path, split="time", clip_frames=5, clip_stride=1, size_px=64)
    clips = list_clips(data)
    held_out = {
        number
        for part in decode(clips.test, data)
        for clip in part.video_BFCHW.transpose(0, 1, 3, 4, 2)
        for number in numbers_in(clip)
    }
    assert len(clips.test) == 16 and held_out == set(range(48, FRAMES))


def test_a_film_that_lost_frames_is_suspicious(tmp_path: Path) -> None:
    codec, pixels, options, _ = CODINGS["H.264 without B-frames"]
    whole = write_numbered(tmp_path / "whole.mkv", FRAMES, codec, pixels, **options)
    assert facts_of(whole).suspicion == ""
    lost = copy_packets(whole, tmp_path / "lost.mkv", lambda number, content: None if 30 <= number < 37 else content)
    assert facts_of(lost) == (53, "its time jumps by 0.32 s after frame 29, where 0.04 s is usual")
