"""Which files each layout finds; no file is opened, so empty ones do."""

from __future__ import annotations

from pathlib import Path

import pytest

from reco_tune.data.layouts import Video, data_fingerprint, list_videos
from reco_tune.errors import DataError
from reco_tune.settings import Data


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def _names(videos: list[Video], root: Path) -> list[tuple[str, str, str | None]]:
    return [(video.path.relative_to(root).as_posix(), video.class_name, video.split) for video in videos]


UCF101 = {
    "UCF-101/Basketball/v_Basketball_g01_c01.avi": "a",
    "UCF-101/Basketball/v_Basketball_g08_c01.avi": "b",
    "UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.avi": "c",
    "UCF-101/HandstandPushups/v_HandStandPushups_g08_c01.avi": "d",
    "ucfTrainTestlist/classInd.txt": "1 Basketball\n2 HandstandPushups\n",
    "ucfTrainTestlist/trainlist01.txt": (
        "Basketball/v_Basketball_g08_c01.avi 1\r\nHandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n"
    ),
    "ucfTrainTestlist/testlist01.txt": (
        "Basketball/v_Basketball_g01_c01.avi\nHandstandPushups/v_HandStandPushups_g01_c01.avi\n\n"
    ),
}


def test_ucf101_takes_the_class_from_the_folder(tmp_path: Path) -> None:
    """The folder is HandstandPushups, its files are v_HandStandPushups_*: a class taken from file names would be one
    too many.
    """
    videos = list_videos(Data(root=_tree(tmp_path, UCF101)))
    assert _names(videos, tmp_path) == [
        ("UCF-101/Basketball/v_Basketball_g08_c01.avi", "Basketball", "train"),
        ("UCF-101/HandstandPushups/v_HandStandPushups_g08_c01.avi", "HandstandPushups", "train"),
        ("UCF-101/Basketball/v_Basketball_g01_c01.avi", "Basketball", "test"),
        ("UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.avi", "HandstandPushups", "test"),
    ]


def test_ucf101_splits_by_time_without_the_lists(tmp_path: Path) -> None:
    videos = list_videos(Data(root=_tree(tmp_path, UCF101), split="time"))
    assert {video.split for video in videos} == {None} and len(videos) == 4


def test_class_folders_may_lie_directly_in_the_root(tmp_path: Path) -> None:
    _tree(
        tmp_path,
        {"Hugging/a.mp4": "", "Hugging/notes.txt": "", "Archery/b.AVI": "", ".hidden/c.avi": "", "README.md": ""},
    )
    expected = [("Archery/b.AVI", "Archery", None), ("Hugging/a.mp4", "Hugging", None)]
    for layout in ("ucf101", "class_folders"):
        assert _names(list_videos(Data(layout=layout, root=tmp_path, split="time")), tmp_path) == expected
    with pytest.raises(DataError, match=r"has no ucfTrainTestlist folder.*set data.split to time"):
        list_videos(Data(root=tmp_path))


def test_nothing_vanishes_without_a_word(tmp_path: Path) -> None:
    """Only names that were known once counted, so that a class of `.wmv` files vanished and later labels moved."""
    files = ["A/1.wmv", "A/2.flv", "A/3", "A/notes.txt", "A/cover.jpg", "B/1.ogv", "B/deep/2.mp4", "C/readme.md"]
    _tree(tmp_path, dict.fromkeys([*files, "ucfTrainTestlist/classInd.txt", "lost.mp4", ".cache/x.mp4"], ""))
    (tmp_path / "D").mkdir()
    for layout in ("ucf101", "class_folders"):
        videos = list_videos(Data(layout=layout, root=tmp_path, split="time"))
        used = [video for video in videos if not video.refused]
        assert [name for name, _, _ in _names(used, tmp_path)] == ["A/1.wmv", "A/2.flv", "A/3", "B/1.ogv"]
        refused = {video.path.relative_to(tmp_path).as_posix(): video for video in videos if video.refused}
        assert set(refused) == {"B/deep", "C", "D", "lost.mp4"}
        assert "is a folder among video files" in refused["B/deep"].refused and "has no video" in refused["C"].refused
        assert {video.class_name for video in videos} - {""} == {"A", "B", "C", "D"}


def test_a_file_among_folders_of_images_is_named(tmp_path: Path) -> None:
    _tree(tmp_path, dict.fromkeys(["A/x/1.jpg", "A/film.mp4", "y/1.jpg", "y/2.bin"], ""))
    videos = list_videos(Data(layout="frames", root=tmp_path, split="time"))
    found = {
        name: (class_name, bool(video.refused))
        for video, (name, class_name, _) in zip(videos, _names(videos, tmp_path), strict=True)
    }
    assert found == {"A/x": ("A", False), "A/film.mp4": ("", True), "y": ("all", False)}


def test_the_fingerprint_follows_the_classes_and_not_what_is_left_out(tmp_path: Path) -> None:
    data = Data(layout="class_folders", root=_tree(tmp_path, {"A/1.mp4": "a", "B/1.mp4": "b"}), split="time")
    first = data_fingerprint(list_videos(data), data)
    _tree(tmp_path, {"lost.mp4": "", "A/deep/1.mp4": ""})
    assert data_fingerprint(list_videos(data), data) == first
    (tmp_path / "AB").mkdir()  # B's label is another one now
    assert data_fingerprint(list_videos(data), data) != first


def test_the_root_may_be_the_folder_of_classes_with_ucf101s_lists_beside_it(tmp_path: Path) -> None:
    above = list_videos(Data(root=_tree(tmp_path, UCF101)))
    assert list_videos(Data(root=tmp_path / "UCF-101")) == above


def test_train_and_test_folders_are_the_lists_of_the_plain_layouts(tmp_path: Path) -> None:
    _tree(tmp_path / "classes", {"train/A/1.mp4": "", "test/A/2.mp4": "", "train/B/3.webm": ""})
    found = _names(list_videos(Data(layout="class_folders", root=tmp_path / "classes")), tmp_path / "classes")
    assert found == [("train/A/1.mp4", "A", "train"), ("train/B/3.webm", "B", "train"), ("test/A/2.mp4", "A", "test")]
    _tree(tmp_path / "flat", {"train/1.mp4": "", "test/2.mp4": ""})
    found = _names(list_videos(Data(layout="flat", root=tmp_path / "flat")), tmp_path / "flat")
    assert found == [("train/1.mp4", "all", "train"), ("test/2.mp4", "all", "test")]


@pytest.mark.parametrize(
    ("layout", "split", "files", "message"),
    [
        ("ucf101", "time", {}, "has no video"),
        ("flat", "time", {"notes.txt": ""}, "has no video"),
        ("class_folders", "lists", {"A/1.mp4": ""}, "no train and test folders.*set data.split to time"),
        ("ucf101", "lists", {k: v for k, v in UCF101.items() if "testlist" not in k}, "testlist01.txt cannot be read"),
        (
            "ucf101",
            "lists",
            UCF101 | {"ucfTrainTestlist/testlist01.txt": "\n"},
            "testlist01.txt lists no video; restore",
        ),
        ("ucf101", "lists", {k: v for k, v in UCF101.items() if "UCF-101" not in k}, "none of the 4 videos"),
    ],
    ids=[
        "empty folder",
        "no video",
        "class folders without split",
        "missing list",
        "empty list",
        "lists without videos",
    ],
)
def test_unusable_folders_are_one_sentence(
    tmp_path: Path, layout: str, split: str, files: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        list_videos(Data(layout=layout, split=split, root=_tree(tmp_path, files)))


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.* is not a folder"):
        list_videos(Data(root=tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"data\.root is missing"):
        list_videos(Data())


def test_the_fingerprint_follows_contents_and_settings_only(tmp_path: Path) -> None:
    data = Data(root=_tree(tmp_path / "a", UCF101))
    first = data_fingerprint(list_videos(data), data)
    moved = Data(root=_tree(tmp_path / "b", UCF101), cache_dir=tmp_path)
    assert data_fingerprint(list_videos(moved), moved) == first, "place and time of writing do not matter"
    for change in ({"seed": 1}, {"clip_frames": 9}, {"train_clips": 5}, {"resize": "stretch"}, {"split": "time"}):
        changed = data.model_copy(update=change)
        assert data_fingerprint(list_videos(changed), changed) != first, change
    (tmp_path / "a" / "UCF-101/Basketball/v_Basketball_g01_c01.avi").write_text("A")  # same length
    assert data_fingerprint(list_videos(data), data) != first
