"""Every layout as its users have it on disk, built of real files; the levels of the decoded frames say which frames
were read.

tests/test_layouts.py asks which videos are found; here they are also decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from reco_tune.data.clips import decode, list_clips
from reco_tune.data.layouts import Video, data_fingerprint, list_videos
from reco_tune.data.video import write_video
from reco_tune.errors import DataError
from reco_tune.settings import Data

FRAMES = 6


def film(path: Path, level: int) -> None:
    """FRAMES frames whose gray levels count from `level`, lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.arange(level, level + FRAMES, dtype=np.uint8)
    temporary = path.with_suffix(".avi")
    write_video(temporary, np.broadcast_to(levels[:, None, None, None], (FRAMES, 32, 32, 3)), lossless=True)
    temporary.rename(path)


def frames(folder: Path, level: int, names: str = "{:06d}.png", first: int = 306) -> None:
    """The same as images; JPEG keeps a flat gray to a level."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in reversed(range(FRAMES)):
        Image.new("RGB", (32, 32), (level + number,) * 3).save(folder / names.format(first + number), quality=95)


def ucf101(root: Path) -> None:
    """The trap: the folder is HandstandPushups, its files are v_HandStandPushups_*; lists have CRLF and, for train,
    class numbers.
    """
    lists: dict[str, list[str]] = {"trainlist01.txt": [], "testlist01.txt": []}
    for place, (folder, stem) in enumerate([("Basketball", "Basketball"), ("HandstandPushups", "HandStandPushups")]):
        for group, (split, number) in enumerate([("testlist01.txt", ""), ("trainlist01.txt", f" {place + 1}")]):
            name = f"{folder}/v_{stem}_g{1 + 7 * group:02d}_c01.avi"
            film(root / "UCF-101" / name, 10 + 40 * (2 * place + group))
            lists[split].append(name + number)
    (root / "ucfTrainTestlist").mkdir()
    (root / "ucfTrainTestlist" / "classInd.txt").write_text("1 Basketball\r\n2 HandstandPushups\r\n")
    for name, lines in lists.items():
        (root / "ucfTrainTestlist" / name).write_bytes("\r\n".join([*lines, ""]).encode())


def class_folders(root: Path) -> None:
    for place, name in enumerate(
        ["train/Archery/a b.mp4", "train/Surfing/1.AVI", "test/Archery/c.mkv", "test/Surfing/ü.mov"]
    ):
        film(root / name, 10 + 40 * place)


def flat(root: Path) -> None:
    for place, name in enumerate(["train/1.mp4", "train/2.avi", "test/1.mp4", "test/3.avi"]):
        film(root / name, 10 + 40 * place)


def faceforensics(root: Path) -> None:
    for place, name in enumerate(["train/images/000", "train/images/001", "test/images/002", "test/images/003"]):
        frames(root / "preprocess_ffs" / name, 10 + 40 * place, "{:06d}.jpg")
    film(root / "preprocess_ffs/train/videos/000.mp4", 0)  # the same clips once more: not read twice


def skytimelapse(root: Path) -> None:
    for place, name in enumerate(
        [
            "sky_train/07U1fSrk9oI/07U1fSrk9oI_1",
            "sky_train/07U1fSrk9oI/07U1fSrk9oI_2",
            "sky_test/a_B/a_B_1",
            "sky_test/xY/xY_1",
        ]
    ):
        frames(
            root / "sky_timelapse" / name, 10 + 40 * place, name.split("/")[1] + "_frames_{}.jpg", first=8
        )  # 8, 9, 10: not by letters
    (root / "sky_timelapse/sky_train/07U1fSrk9oI/07U1fSrk9oI_3").mkdir()


def taichi(root: Path) -> None:
    for place, name in enumerate(["train/a#000164#000351.mp4", "train/b#1#9.mp4", "test/c#1#9.mp4", "test/d#2#8.mp4"]):
        frames(root / "frames" / name, 10 + 40 * place, "{:07d}.png", first=0)


def frame_folders(root: Path) -> None:
    for place, name in enumerate(["train/Cat/v1", "train/Dog/v2", "test/Cat/v3", "test/Dog/v4"]):
        frames(root / name, 10 + 40 * place, "f{}.png", first=8)


def csv_list(root: Path) -> None:
    """As a spreadsheet saves it: a byte-order mark, CRLF, a column that nobody asked for; a film and folders of images
    together.
    """
    lines = [
        "path,class,split,caption",
        "deep/er/1.mp4,cat,train,a",
        '"f, 2",dog,train,b',
        "f3,cat,test,c",
        "4.avi,dog,test,d",
    ]
    film(root / "deep/er/1.mp4", 10)
    frames(root / "f, 2", 50)
    frames(root / "f3", 90)
    film(root / "4.avi", 130)
    (root / "videos.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())


class Tree(NamedTuple):
    layout: str
    build: Callable[[Path], None]
    classes: tuple[str, ...]
    train: set[tuple[int, int]]
    """First level and label of every clip."""
    test: set[tuple[int, int]]


LABELLED = {(10, 0), (50, 1)}, {(90, 0), (130, 1)}
ONE_CLASS = {(10, 0), (50, 0)}, {(90, 0), (130, 0)}
TREES = [
    Tree("ucf101", ucf101, ("Basketball", "HandstandPushups"), {(50, 0), (130, 1)}, {(10, 0), (90, 1)}),
    Tree("class_folders", class_folders, ("Archery", "Surfing"), *LABELLED),
    Tree("flat", flat, ("all",), *ONE_CLASS),
    Tree("faceforensics", faceforensics, ("all",), *ONE_CLASS),
    Tree("skytimelapse", skytimelapse, ("all",), *ONE_CLASS),
    Tree("taichi", taichi, ("all",), *ONE_CLASS),
    Tree("frames", frame_folders, ("Cat", "Dog"), *LABELLED),
    Tree("csv", csv_list, ("cat", "dog"), *LABELLED),
]


@pytest.fixture(scope="module", params=TREES, ids=lambda tree: tree.layout)
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, Data]:
    root = tmp_path_factory.mktemp(request.param.layout)
    request.param.build(root)
    return request.param, Data(layout=request.param.layout, root=root, clip_frames=5, size_px=32)


def test_clips_are_the_frames_of_the_users_files_in_time(tree: tuple[Tree, Data]) -> None:
    expected, data = tree
    clips = list_clips(data)
    assert clips.class_names == expected.classes
    for found, wanted in ((clips.train, expected.train), (clips.test, expected.test)):
        seen = set()
        for part in decode(found, data):
            assert not part.failed
            levels = part.video_BFCHW.mean(axis=(2, 3, 4))
            assert np.allclose(levels - levels[:, :1], np.arange(5), atol=0.6), "rising by one: the order of time"
            seen |= {(round(float(level[0])), found[row].label) for row, level in zip(part.rows, levels, strict=True)}
        assert seen == wanted
    assert {video.path.name for video in list_videos(data)}.isdisjoint({"classInd.txt", "videos.csv"})


def test_without_lists_every_video_is_divided_by_time(tree: tuple[Tree, Data]) -> None:
    expected, data = tree
    if expected.layout in ("class_folders", "flat"):
        pytest.skip("their videos then lie directly in the root")
    videos = list_videos(data.model_copy(update={"split": "time"}))
    assert {video.split for video in videos} == {None}
    assert len(videos) == 4 + (expected.layout == "skytimelapse")  # and an empty folder


def test_the_fingerprint_follows_every_frame(tree: tuple[Tree, Data]) -> None:
    _, data = tree
    before = data_fingerprint(list_videos(data), data)
    path = list_videos(data)[0].path
    file = path if path.is_file() else sorted(path.iterdir())[-1]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert data_fingerprint(list_videos(data), data) != before
    file.write_bytes(content)
    assert data_fingerprint(list_videos(data), data) == before


def test_empty_and_short_folders_are_listed(tmp_path: Path) -> None:
    skytimelapse(tmp_path)
    short = tmp_path / "sky_timelapse/sky_test/xY/xY_9"
    short.mkdir()
    Image.new("RGB", (32, 32)).save(short / "xY_frames_1.jpg")
    skipped = {
        path.name: reason
        for path, reason in list_clips(Data(layout="skytimelapse", root=tmp_path, clip_frames=5, size_px=32)).skipped
    }
    assert set(skipped) == {"07U1fSrk9oI_3", "xY_9"}
    assert (
        "folder without images" in skipped["07U1fSrk9oI_3"]
        and "it has 1 frames for test, but a clip spans 5" in skipped["xY_9"]
    )


@pytest.mark.parametrize(
    ("layout", "inner"),
    [("faceforensics", "preprocess_ffs"), ("skytimelapse", "sky_timelapse"), ("taichi", "frames")],
)
def test_the_root_may_be_the_folder_or_the_one_above(tmp_path: Path, layout: str, inner: str) -> None:
    {tree.layout: tree.build for tree in TREES}[layout](tmp_path)
    above = list_videos(Data(layout=layout, root=tmp_path))
    assert above and list_videos(Data(layout=layout, root=tmp_path / inner)) == above


def test_faceforensics_reads_films_where_there_are_no_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        film(tmp_path / split / "videos" / "000.mp4", 3)
    assert [video.path.name for video in list_videos(Data(layout="faceforensics", root=tmp_path))] == ["000.mp4"] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video,split\na.mp4,train\n", "has no column path; name it in the first line"),
        ("path\na.mp4\n", "has no column split; add it or set data.split to time"),
        ("path,split\na.mp4,valid\n", "line 2 of .* has split 'valid'; write train or test"),
        ("path,split\n../a.mp4,train\n", r"line 2 of .* names '../a.mp4', which lies outside"),
        ("path,split\nb/../../a.mp4,train\n", "lies outside"),
        ("path,split\n/etc/passwd,train\n", "lies outside"),
        ("path,split\n,train\n", "lies outside"),
        ("path,split\na.mp4,train\na.mp4,test\n", "line 3 of .* lists a.mp4 again"),
        (b"path,split\n\xff.mp4,train\n", "cannot be read"),
        ("path,split\n", "has no video"),
        (None, r"videos\.csv cannot be read"),
    ],
    ids=[
        "no path",
        "no split",
        "other split",
        "above",
        "inside and out",
        "absolute",
        "no name",
        "twice",
        "not UTF-8",
        "empty",
        "missing",
    ],
)
def test_lists_that_cannot_be_are_one_sentence(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "videos.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as error:
        list_videos(Data(layout="csv", root=tmp_path))
    assert "\n" not in str(error.value)


def test_a_split_list_of_ucf101_cannot_leave_its_folder(tmp_path: Path) -> None:
    ucf101(tmp_path)
    path = tmp_path / "ucfTrainTestlist" / "trainlist01.txt"
    path.write_text("../../secret.avi 1\n")
    with pytest.raises(DataError, match=r"names '../../secret.avi', which lies outside"):
        list_videos(Data(root=tmp_path))


def test_videos_of_a_list_that_are_not_there_are_reported_not_dropped(tmp_path: Path) -> None:
    csv_list(tmp_path)
    (tmp_path / "4.avi").unlink()
    data = Data(layout="csv", root=tmp_path, clip_frames=5, size_px=32)
    assert Video(tmp_path / "4.avi", "dog", "test") in list_videos(data)
    assert (
        dict(list_clips(data).skipped)[Path("4.avi")]
        == "does not exist; restore it, or remove it from the list that names it"
    )
