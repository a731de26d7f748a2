"""Reading and writing single files: lossless round trips first, then what decord cannot read, then files that are no
videos.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest

from reco_tune.data import video
from reco_tune.data.video import count_frames, iterate_frames, read_frames, write_video
from reco_tune.data.video_index import index_video
from reco_tune.errors import DataError


def _noise(frames: int, height: int, width: int, gray: bool = False, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 1 if gray else 3), dtype=np.uint8)
    return np.repeat(values, 3, axis=-1) if gray else values


@pytest.mark.parametrize("gray", [True, False], ids=["gray", "colour"])
@pytest.mark.parametrize("side", [32, 64, 96, 160])
def test_lossless_files_come_back_bit_by_bit(tmp_path: Path, side: int, gray: bool) -> None:
    frames = _noise(9, side, side, gray)
    write_video(tmp_path / "a.avi", frames, lossless=True)
    assert np.array_equal(read_frames(tmp_path / "a.avi", range(9)), frames)
    assert count_frames(tmp_path / "a.avi") == 9


def test_frames_decord_refuses_are_read_by_pyav(tmp_path: Path) -> None:
    """decord gives up on 12 x 12 px with a DECORDError, which is no RuntimeError."""
    frames = _noise(9, 12, 12)
    write_video(tmp_path / "small.avi", frames, lossless=True)
    with pytest.raises(video.DecordFailedError):
        list(video.decord_frames(tmp_path / "small.avi", index_video(tmp_path / "small.avi"), [0, 1]))
    assert np.array_equal(read_frames(tmp_path / "small.avi", [1, 4, 8]), frames[[1, 4, 8]])


def test_decord_and_pyav_agree_and_either_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = _noise(40, 64, 96)
    path = tmp_path / "a.avi"
    write_video(path, frames, lossless=True)
    wanted = [0, 3, 17, 18, 39]
    assert np.array_equal(np.stack(list(video.decord_frames(path, index_video(path), wanted))), frames[wanted])
    monkeypatch.setitem(sys.modules, "decord", None)  # an import now raises ImportError
    assert np.array_equal(read_frames(path, wanted), frames[wanted])


def test_frames_come_one_by_one(tmp_path: Path) -> None:
    """A long video never lies in memory as a whole, and one that is left in its middle is read on or anew."""
    frames = _noise(40, 32, 32)
    write_video(tmp_path / "a.avi", frames, lossless=True)
    coming = iterate_frames(tmp_path / "a.avi", range(40))
    assert np.array_equal(next(coming), frames[0]) and np.array_equal(next(coming), frames[1])
    coming.close()
    assert np.array_equal(np.stack(list(iterate_frames(tmp_path / "a.avi", range(3, 40)))), frames[3:])


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    """One video stays open for whoever reads on; it is not the one that stood there before."""
    for seed in range(2):
        frames = _noise(9, 32, 48, seed=seed)
        write_video(tmp_path / "a.avi", frames, lossless=True)
        assert np.array_equal(read_frames(tmp_path / "a.avi", range(4)), frames[:4])
    assert np.array_equal(read_frames(tmp_path / "a.avi", range(4, 9)), frames[4:])


@pytest.mark.parametrize(("height", "width"), [(64, 48), (33, 47)], ids=["even", "odd sides are padded"])
def test_sample_videos_play_everywhere(tmp_path: Path, height: int, width: int) -> None:
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, None, :, None]
    frames = np.broadcast_to(ramp, (8, height, width, 3))
    write_video(tmp_path / "a.mp4", frames, fps=8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, float(stream.average_rate)) == ("h264", "yuv420p", 8)
        assert (stream.height, stream.width) == (height + height % 2, width + width % 2)
    decoded = read_frames(tmp_path / "a.mp4", range(8))[:, :height, :width].astype(int)
    assert np.abs(decoded - frames).mean() < 4  # lossy: a smooth ramp at crf 18


def _broken(path: Path, kind: str) -> None:
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a video\n" * 50, encoding="utf-8")
    elif kind == "folder":
        path.mkdir()
    elif kind == "cut off":
        write_video(path, _noise(20, 64, 64))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


@pytest.mark.parametrize("kind", ["empty", "text", "folder", "cut off", "missing"])
def test_files_that_are_no_videos_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "broken.mp4"
    _broken(path, kind)
    for read in (lambda: count_frames(path), lambda: read_frames(path, [0])):
        with pytest.raises(
            DataError, match=r"broken\.mp4 .*(replace or remove it|remove it from the list that names it)$"
        ):
            read()


def test_frames_behind_the_end_are_an_error(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", _noise(5, 32, 32), lossless=True)
    with pytest.raises(DataError, match=r"a\.avi cannot be decoded"):
        read_frames(tmp_path / "a.avi", [3, 5])
