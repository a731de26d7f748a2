"""Cutting and decoding: known frames come out at known places, splits share no frame, broken videos lose
nothing else."""

from __future__ import annotations

from pathlib import Path

import hostile_readers
import numpy as np
import pytest
from numbered_videos import copy_packets, write_numbered

from reco_tune.data.clips import Clip, clip_starts, decode, list_clips, parts
from reco_tune.data.processes import Processes
from reco_tune.data.reading import resize_frames
from reco_tune.data.video import write_video
from reco_tune.errors import DataError
from reco_tune.settings import Data


def _numbered(path: Path, frames: int, side: int = 32) -> None:
    """Frame i is gray level i, so a decoded clip says which frames it holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(
        path,
        np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, side, side, 3)),
        lossless=True,
    )


@pytest.fixture
def numbered(tmp_path: Path) -> Data:
    for name, frames in (("A/1.avi", 100), ("A/2.avi", 40), ("B/3.avi", 61)):
        _numbered(tmp_path / name, frames)
    return Data(
        layout="class_folders",
        root=tmp_path,
        split="time",
        clip_frames=5,
        size_px=16,
        clip_stride=2,
        test_fraction=0.25,
    )


def _levels(clips: list[Clip], data: Data) -> np.ndarray:
    levels = np.full((len(clips), data.clip_frames), -1)
    for part in decode(clips, data, parts(clips, 7)):
        assert part.video_BFCHW.shape[1:] == (data.clip_frames, 3, data.size_px, data.size_px)
        assert not part.failed
        levels[part.rows] = part.video_BFCHW[:, :, 0, 0, 0]
    return levels


@pytest.mark.parametrize("frame_stride", [1, 3])
def test_every_clip_holds_exactly_its_frames(numbered: Data, frame_stride: int) -> None:
    data = numbered.model_copy(update={"frame_stride": frame_stride})
    clips = list_clips(data)
    for part in (clips.train, clips.test):
        expected = np.array([clip.start + frame_stride * np.arange(5) for clip in part])
        assert np.array_equal(_levels(part, data), expected)


def test_no_frame_is_shared_between_train_and_test(numbered: Data) -> None:
    clips = list_clips(numbered)
    frames = [
        {(clip.path, int(level)) for clip, row in zip(part, _levels(part, numbered), strict=True) for level in row}
        for part in clips[:2]
    ]
    assert frames[0] and frames[1] and not frames[0] & frames[1]
    assert (
        max(clip.start + 4 for clip in clips.train if clip.path.name == "1.avi")
        < 75
        <= min(c.start for c in clips.test if c.path.name == "1.avi")
    )


@pytest.mark.parametrize(
    ("changes", "first", "end", "expected"),
    [
        ({}, 0, 14, [0, 5]),
        ({}, 0, 15, [0, 5, 10]),
        ({"clip_stride": 4}, 10, 24, [10, 14, 18]),
        ({"frame_stride": 2}, 0, 18, [0, 9]),
        ({}, 0, 4, []),
    ],
    ids=["a rest is left", "exact fit", "overlapping", "strided frames", "too short"],
)
def test_starts_by_hand(changes: dict[str, int], first: int, end: int, expected: list[int]) -> None:
    assert clip_starts(first, end, Data(clip_frames=5, **changes)) == expected


def test_caps_draw_with_the_seed(numbered: Data) -> None:
    everything = list_clips(numbered)
    capped = list_clips(numbered.model_copy(update={"train_clips": 9, "test_clips": 4}))
    assert capped.train == everything.train[:9] and capped.test == everything.test[:4]
    other = list_clips(numbered.model_copy(update={"train_clips": 9, "seed": 1}))
    assert other.train != capped.train
    assert {clip.path.name for clip in everything.train} == {"1.avi", "2.avi", "3.avi"}


def test_unconditional_clips_have_one_class(numbered: Data) -> None:
    assert list_clips(numbered).class_names == ("A", "B")
    clips = list_clips(numbered.model_copy(update={"class_conditional": False}))
    assert clips.class_names == ("all",) and {clip.label for clip in clips.train} == {0}


def test_a_class_is_read_whatever_its_files_are_called_and_stays_one_where_none_can_be(numbered: Data) -> None:
    assert numbered.root is not None
    for name in "CDE":
        (numbered.root / name).mkdir()
    write_numbered(numbered.root / "C/film.wmv", 60, "wmv2").rename(numbered.root / "C/film")
    (numbered.root / "D/film.xyz").write_text("no video")
    clips = list_clips(numbered)
    assert clips.class_names == ("A", "B", "C", "D", "E")
    assert {clip.label for clip in clips.train} == {clip.label for clip in clips.test} == {0, 1, 2}
    assert [path.as_posix() for path, _ in clips.skipped] == ["D/film.xyz", "E"]
    assert clips.skipped[1].reason == "has no video; put videos of the class there, or remove it"


def test_broken_videos_are_listed_and_the_good_ones_used(numbered: Data) -> None:
    assert numbered.root is not None
    before = list_clips(numbered)
    folder = numbered.root / "A"
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video")
    (folder / "folder.mp4").mkdir()
    _numbered(folder / "short.avi", 3)
    write_video(folder / "cut.mp4", np.zeros((30, 64, 64, 3), np.uint8))
    (folder / "cut.mp4").write_bytes((folder / "cut.mp4").read_bytes()[:600])
    clips = list_clips(numbered)
    assert (clips.train, clips.test) == (before.train, before.test)
    reasons = {path.name: reason for path, reason in clips.skipped}
    assert set(reasons) == {"empty.mp4", "text.mp4", "folder.mp4", "short.avi", "cut.mp4"}
    assert reasons["empty.mp4"] == "is empty (0 bytes); replace or remove it", "the list names the video once"
    assert (
        "0 bytes" in reasons["empty.mp4"]
        and "folder" in reasons["folder.mp4"]
        and "a clip spans 5" in reasons["short.avi"]
    )


def test_a_video_that_breaks_in_the_middle_is_reported_while_decoding(numbered: Data) -> None:
    """Its container is whole, so it is listed; its pictures are not, so only decoding can tell."""
    assert numbered.root is not None
    whole = write_numbered(numbered.root / "whole.webm", 40, "libvpx-vp9")
    copy_packets(whole, numbered.root / "A/4.webm", lambda number, content: content if number < 20 else content[:3])
    clips = list_clips(numbered).train
    assert any(clip.path == Path("A/4.webm") for clip in clips)
    good, failed = [], []
    for part in decode(clips, numbered, parts(clips, 8)):
        good += part.rows
        failed += part.failed
    assert {clips[failure.place].path for failure in failed} == {Path("A/4.webm")}
    assert all(failure.reason.startswith("cannot be decoded") for failure in failed), "the list names the video once"
    assert sorted(good + [failure.place for failure in failed]) == list(range(len(clips)))


def test_nothing_usable_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"gives no clip for train.*1 videos could not be used.*text\.mp4"):
        list_clips(Data(layout="class_folders", root=tmp_path, split="time"))


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_enlarged_frames_scale_back_bit_by_bit(factor: int) -> None:
    small = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), dtype=np.uint8)
    large = small.repeat(factor, axis=1).repeat(factor, axis=2)
    for resize in ("crop", "stretch"):
        assert np.array_equal(resize_frames(large, 12, resize), small.transpose(0, 3, 1, 2))


def test_crop_takes_the_middle_and_stretch_everything() -> None:
    """A frame whose left third is white: outside the middle square, so only stretch sees it."""
    frames = np.zeros((1, 30, 90, 3), np.uint8)
    frames[:, :, :30] = 255
    assert resize_frames(frames, 10, "crop").max() == 0
    assert abs(resize_frames(frames, 10, "stretch").mean() - 85) < 1  # a third of 255


def test_random_starts_are_drawn_by_seed_and_name_alone(numbered: Data) -> None:
    """So the same seed gives the same clips on any machine, whatever other videos lie beside."""
    data = numbered.model_copy(update={"clip_stride": None, "clips_per_video": 6})
    before = list_clips(data)
    counts = {name: sum(clip.path.name == name for clip in before.train) for name in ("1.avi", "2.avi", "3.avi")}
    assert counts == {"1.avi": 6, "2.avi": 6, "3.avi": 6} and len(set(before.train)) == 18
    assert all(clip.start + 4 < 75 for clip in before.train if clip.path.name == "1.avi")
    assert any(clip.start % 5 for clip in before.train), "not the even grid"
    assert data.root is not None
    _numbered(data.root / "A" / "0.avi", 50)
    after = list_clips(data)
    assert {clip for clip in after.train if clip.path.name != "0.avi"} == set(before.train)
    assert set(list_clips(data.model_copy(update={"seed": 1})).train) != set(after.train)
    everything = list_clips(data.model_copy(update={"clips_per_video": 1000}))
    assert sorted(clip.start for clip in everything.train if clip.path.name == "2.avi") == list(range(26)), (
        "all there are, each once"
    )


@pytest.mark.parametrize(
    ("policy", "train", "test"),
    [
        ("skip", None, None),
        ("repeat_last", [0, 1, 2, 3, 3], [4, 4, 4, 4, 4]),
        ("loop", [0, 1, 2, 3, 0], [4, 4, 4, 4, 4]),
    ],
)
def test_short_videos(tmp_path: Path, policy: str, train: list[int] | None, test: list[int] | None) -> None:
    """What is repeated comes from the video's own part, so no frame is in both splits."""
    _numbered(tmp_path / "short.avi", 5)
    _numbered(tmp_path / "long.avi", 60)
    clips = list_clips(Data(layout="flat", root=tmp_path, split="time", clip_frames=5, size_px=16, short_videos=policy))
    found = [[clip for clip in part if clip.path.name == "short.avi"] for part in (clips.train, clips.test)]
    data = Data(layout="flat", root=tmp_path, split="time", clip_frames=5, size_px=16, short_videos=policy)
    if policy == "skip":
        assert found == [[], []] and {path.name for path, _ in clips.skipped} == {"short.avi"}
    else:
        assert not clips.skipped
        assert [_levels(part, data).tolist() for part in found] == [[train], [test]]


@pytest.mark.parametrize("flip", ["none", "random", "both"])
def test_training_clips_are_mirrored_and_held_out_ones_never(tmp_path: Path, flip: str) -> None:
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, None, :, None], (60, 32, 32, 3))
    write_video(tmp_path / "a.avi", ramp, lossless=True)
    data = Data(
        layout="flat", root=tmp_path, split="time", clip_frames=5, size_px=32, clip_stride=1, horizontal_flip=flip
    )
    clips = list_clips(data)
    plain = list_clips(data.model_copy(update={"horizontal_flip": "none"}))
    mirrored = sum(clip.flipped for clip in clips.train)
    assert clips.test == plain.test and not any(clip.flipped for clip in clips.test)
    assert {clip.start for clip in clips.train} == {clip.start for clip in plain.train}
    if flip == "both":
        assert (len(clips.train), mirrored) == (2 * len(plain.train), len(plain.train))
    else:
        assert len(clips.train) == len(plain.train) and (
            0.2 < mirrored / len(clips.train) < 0.8 if flip == "random" else mirrored == 0
        )
    assert list_clips(data).train == clips.train
    for part in decode(clips.train, data):
        for row, pixels in zip(part.rows, part.video_BFCHW, strict=True):
            assert np.array_equal(
                pixels[0, 0, 0], ramp[0, 0, ::-1, 0] if clips.train[row].flipped else ramp[0, 0, :, 0]
            )


def test_the_number_of_processes_changes_nothing(numbered: Data) -> None:
    clips = list_clips(numbered).train
    found = []
    for limit in (1, 3):
        with Processes(60, limit) as processes:
            found.append(
                [
                    (part.rows, part.video_BFCHW.tobytes())
                    for part in decode(clips, numbered, parts(clips, 8), processes=processes)
                ]
            )
    assert found[0] == found[1]


def test_a_decoder_that_crashes_or_hangs_costs_its_video_alone(numbered: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader really dies of SIGSEGV and really sleeps; the clips before the stretch that kills it stay, those
    behind are not tried.
    """
    assert numbered.root is not None
    good = list_clips(numbered)
    for name in ("crash-open", "hang-open", "crash-read", "hang-read", "crash-read-always"):
        _numbered(numbered.root / "A" / f"{name}.avi", 60)
    monkeypatch.setattr("reco_tune.data.clips.facts_of", hostile_readers.facts_of)
    monkeypatch.setattr("reco_tune.data.clips.read_frames", hostile_readers.read_frames)
    monkeypatch.setattr("reco_tune.data.clips.REQUEST_BYTES", 3 * 16**2 * 20)  # 20 frames
    listed = list_clips(numbered)
    reasons = {path.name: reason for path, reason in listed.skipped}
    assert set(reasons) == {"crash-open.avi", "hang-open.avi"}
    assert (
        "crashes the process that reads it (SIGSEGV)" in reasons["crash-open.avi"]
        and "takes longer than data.decode_seconds (120)" in reasons["hang-open.avi"]
    )
    decoded: set[Clip] = set()
    failed: dict[str, set[str]] = {}
    lost = []
    for part in decode(listed.train, numbered):
        decoded |= {listed.train[row] for row in part.rows}
        for place, reason, fatal in part.failed:
            assert fatal
            lost.append(listed.train[place])
            failed.setdefault(listed.train[place].path.name, set()).add(reason)
    assert decoded | set(lost) == set(listed.train) and not decoded & set(lost)
    assert set(good.train) <= decoded
    assert set(failed) == {"crash-read.avi", "hang-read.avi", "crash-read-always.avi"} and all(
        len(reason) == 1 for reason in failed.values()
    )
    for name in ("crash-read", "hang-read"):
        starts = sorted(clip.start for clip in decoded if clip.path.name == f"{name}.avi")
        assert starts == list(range(0, 2 * len(starts), 2)) and 0 < len(starts) < 21, "the beginning of the video"
    assert "crash-read-always.avi" not in {clip.path.name for clip in decoded}
