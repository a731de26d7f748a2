"""Lists the videos of a folder, with class and split. It opens no video and knows nothing of frames.

`ucf101` and `digits`   UCF-101/<Class>/*.avi in the root, or the class folders directly; ucfTrainTestlist/ in the root
or beside it
`class_folders`         <Class>/*, or train/<Class>/* and test/<Class>/*
`flat`                  *, or train/* and test/*; one class
`faceforensics`         {train,test}/images/<video>/*.jpg, or {train,test}/videos/*; in the root or in preprocess_ffs;
one class
`skytimelapse`          sky_{train,test}/<video>/<part>/*.jpg; in the root or in sky_timelapse; one class
`taichi`                {train,test}/<video>/*.png or *.jpg; in the root, in frames or in taichi-256/frames; one class
`frames`                <video>/*.jpg or <Class>/<video>/*.jpg, or the same in train and test
`csv`                   videos.csv with a header: path (of a video or a folder of images), and if needed class, split
                        and caption
`msrvtt`                video*.mp4 of MSR-VTT, and its JSON with videos and sentences (`msrvtt`)

Any file can be a video, unless its extension says that it is something else (text, picture, sound, archive). Opening
it decides. In the layouts of frames every folder is a video, whatever its name (Taichi-HD's are called
`<id>#<first>#<last>.mp4`), even if it is empty. A class remains a class even if nothing in its folder can be used.
Everything that is left out is reported with the reason. Paths in a list must stay inside the root; symbolic links are
followed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from reco_tune import parts
from reco_tune.data.frame_folders import has_images, is_image
from reco_tune.data.frame_names import order_is_new
from reco_tune.data.video import READER
from reco_tune.errors import DataError
from reco_tune.settings import Data

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
LIST_FILE = "videos.csv"
SCALING = "pillow bilinear"
"""How frames are scaled down; part of the fingerprint."""
FRAME_ORDER = "by all numbers"
"""How the images of a folder are ordered. Part of the fingerprint where older caches may hold another order."""
_BESIDE = (
    ".txt .csv .tsv .json .jsonl .xml .yaml .yml .md .pdf .html .log .nfo .svg .ico .db .ini .lnk"
    " .wav .mp3 .flac .m4a .aac .srt .vtt .ass .zip .tar .gz .tgz .bz2 .xz .7z .rar .md5 .sha256"
    " .py .ipynb .sh .mat .npy .npz .pkl .pt .pth .h5 .parquet"
)
"""Extensions of files, other than images, that often lie beside videos. They are skipped without a report."""
_KNOWN_BY = {
    "faceforensics": ("preprocess_ffs", "train/images", "train/videos"),
    "skytimelapse": ("sky_timelapse", "sky_train"),
    "taichi": ("taichi-256", "frames/train"),
}
"""Folder names that identify published data sets."""
_LOOKED_INTO = 20
"""Number of folders that are inspected to guess a layout."""
_NAMED_LIKE_VIDEOS = frozenset({".avi", ".mp4", ".m4v", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".gif"})
"""The only extensions that counted as videos in earlier versions."""
_NO_CLASSES = frozenset({"ucfTrainTestlist", "__MACOSX"})
"""Folders beside the class folders that are not classes."""
_HASHED_WHOLE_BYTES = 2 << 30
_HEAD_BYTES = 1 << 16
_NOT_HASHED = {"root", "cache_dir", "layout", "min_clips", "decode_seconds", "caption_rule"}
"""Settings that change no clip, except through the list of videos, which is hashed itself."""
_HASHED_IF_SET = {"grid", "clips_per_video", "short_videos", "horizontal_flip", "options"}
"""Settings added in later versions. At their defaults they do not change the fingerprint of a data set."""


class Video(NamedTuple):
    """A video file or a folder of images. `split` is None if every video is split in time."""

    path: Path
    class_name: str
    """Empty for a file outside the class folders, which cannot be used."""
    split: Split | None
    refused: str = ""
    """Why it cannot be used, if this is known without opening it."""


def existing_root(data: Data) -> Path:
    """
    The folder `data.root`.

    Raises:
        DataError: if it does not exist.
    """
    if data.root is None:
        raise DataError("data.root is missing; give the folder of the videos")
    if not data.root.is_dir():
        raise DataError(f"data.root ({data.root}) is not a folder; give the folder of the videos")
    return data.root


class Guess(NamedTuple):
    """The layout that a folder seems to have."""

    layout: str
    split: Literal["lists", "time"]


def guess_layout(root: Path) -> Guess:
    """Guesses the layout and the split of a folder from the names in it.

    Raises:
        DataError: if it does not exist, or nothing in it looks like videos.
    """
    existing_root(Data(root=root))
    if (root / LIST_FILE).is_file():
        with (root / LIST_FILE).open(newline="", encoding="utf-8-sig", errors="replace") as file:
            return Guess("csv", "lists" if "split" in next(csv.reader(file), []) else "time")
    lists = any((above / "ucfTrainTestlist").is_dir() for above in (root, root.parent))
    if (root / "UCF-101").is_dir() or lists:
        return Guess("ucf101", "lists" if lists else "time")
    for layout, names in _KNOWN_BY.items():
        if any((root / name).is_dir() for name in names):
            return Guess(layout, "lists")
    divided = all((root / split).is_dir() for split in SPLITS)
    return Guess(_plain_layout(root / "train" if divided else root), "lists" if divided else "time")


def _plain_layout(folder: Path) -> str:
    """The layout of a folder that holds one split, or all of them."""
    inside = _subfolders(folder)
    if any(path.is_file() for path in _visible(folder)):
        return "flat"
    if any(has_images(path) or any(map(has_images, _subfolders(path))) for path in inside[:_LOOKED_INTO]):
        return "frames"
    if any(below.is_file() for path in inside[:_LOOKED_INTO] for below in _visible(path)):
        return "class_folders"
    raise DataError(f"{folder} has no videos and no folders of videos or images; give another folder")


def list_videos(data: Data) -> list[Video]:
    """All videos under `data.root` in a fixed order.

    Raises:
        DataError: if the folder has no videos, lacks the lists that `data.split` needs, or has a list with paths
            outside of it.
    """
    root = existing_root(data)
    layout = parts.load("layouts", data.layout)
    if data.layout in parts.BUILT_IN["layouts"]:
        videos: list[Video] = layout(root, data)
    else:
        options = parts.options_of(layout, data.options, "data.options")
        videos = [_of_somebodys(video, root, data) for video in layout(**dict(options))(root)]
    if all(video.refused for video in videos):
        kinds = "files" if data.layout in ("ucf101", "digits", "class_folders", "flat") else "folders of images"
        reason = f"{videos[0].path} {videos[0].refused}; " if videos else ""
        raise DataError(
            f"{root} has no video in data.layout {data.layout} ({kinds}); {reason}change data.root or data.layout"
        )
    return videos


def data_fingerprint(videos: list[Video], data: Data, earlier: bool = False) -> str:
    """Hash of the videos and of how clips are cut from them: relative names, splits, contents and settings.

    If the data are larger than 2 GiB, it does not read them in full. It then uses the sizes of all files, and the
    first bytes of every video file and of the first image of every folder.

    Args:
        earlier: gives the hash of earlier versions, which found, read or ordered some videos differently.
    """
    assert data.root is not None
    used = [video for video in videos if not video.refused]
    empty_classes = sorted({video.class_name for video in videos} - {video.class_name for video in used} - {""})
    if earlier:
        videos = [video for video in used if video.path.is_dir() or video.path.suffix.lower() in _NAMED_LIKE_VIDEOS]
    else:
        videos = used
    left_out = _NOT_HASHED | {name for name in _HASHED_IF_SET if getattr(data, name) == Data.model_fields[name].default}
    files = [_files(video.path) for video in videos]
    whole = sum(size for members in files for _, size in members) < _HASHED_WHOLE_BYTES
    digest = hashlib.sha256(json.dumps(data.model_dump(mode="json", exclude=left_out), sort_keys=True).encode())
    if data.layout != "digits":  # digits are scaled by whole factors
        digest.update(SCALING.encode())
    if empty_classes and not earlier:
        digest.update(f"\nno video of {empty_classes}".encode())
    for video, members in zip(videos, files, strict=True):
        head = f"\n{video.path.relative_to(data.root).as_posix()} {video.class_name} {video.split}"
        if video.path.is_dir():
            names = [path.name for path, _ in members]
            new = names and not earlier and order_is_new(names, video.path)
            head += f" folder {FRAME_ORDER}" if new else " folder"
        else:
            members = members or [(video.path, -1)]
            if data.layout != "digits" and not earlier:  # digits were always read correctly
                head += f" {READER}"
        digest.update(head.encode())
        for number, (path, size) in enumerate(members):
            digest.update(f"{'' if path == video.path else ' ' + path.name} {size} ".encode())
            if size > 0 and (whole or number == 0):
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256") if whole else hashlib.sha256(file.read(_HEAD_BYTES))
                digest.update(content.digest())
    return digest.hexdigest()


def inside(root: Path, name: str, where: str) -> Path:
    """root / name, for a name from a list file. The result must lie inside the root.

    Raises:
        DataError: if it lies outside the root.
    """
    given = PurePosixPath(name)
    if given.is_absolute() or ".." in given.parts or not given.parts:
        raise DataError(
            f"{where} names {name!r}, which lies outside {root}; give paths relative to that folder, without .."
        )
    return root / given


def _of_somebodys(video: Video, root: Path, data: Data) -> Video:
    """Checks one video of a custom layout.

    Raises:
        DataError: if its path lies outside the root, or its split does not fit `data.split`.
    """
    given = Video(*video)
    if not given.path.is_relative_to(root):
        raise DataError(f"data.layout {data.layout} names {given.path}, which lies outside {root}; leave it out")
    if given.split not in (SPLITS if data.split == "lists" else (None,)) and not given.refused:
        raise DataError(
            f"data.layout {data.layout} gives {given.path.name} the split {given.split!r}, but data.split is"
            f" {data.split}: give train or test (None if data.split is time)"
        )
    return given


def _files(path: Path) -> list[tuple[Path, int]]:
    """The files of a video with their sizes, by name: the file itself, or the images of the folder."""
    if path.is_file():
        return [(path, path.stat().st_size)]
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted((path / entry.name, entry.stat().st_size) for entry in entries if is_image(entry.name))


def ucf101(root: Path, data: Data) -> list[Video]:
    folder = root / "UCF-101" if (root / "UCF-101").is_dir() else root
    found = list(_class_folders(folder, None))
    if data.split == "time":
        return found
    places = [above / "ucfTrainTestlist" for above in (root, root.parent)]
    lists = next((path for path in places if path.is_dir()), None)
    if lists is None:
        raise DataError(
            f"{root} has no ucfTrainTestlist folder in it or beside it, but data.split is lists; add the folder or set"
            " data.split to time"
        )
    by_name = {f"{video.class_name}/{video.path.name}": video for video in found}
    videos = []
    for split in SPLITS:
        path = lists / f"{split}list{data.split_list:02d}.txt"
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read; restore UCF101's split lists or set data.split to time") from error
        names = [line.split()[0] for line in lines if line.strip()]
        if not names:
            raise DataError(f"{path} lists no video; restore UCF101's split lists or set data.split to time")
        # The class is the folder's: files of HandstandPushups are called v_HandStandPushups_*.
        for name in names:
            missing = Video(inside(folder, name, str(path)), name.split("/")[0], split)
            videos.append(by_name.get(name, missing)._replace(split=split))
    if videos and not any(video.path.is_file() for video in videos):
        raise DataError(f"none of the {len(videos)} videos in {lists} exists in {folder}; change data.root")
    return videos


def listed(root: Path, data: Data) -> list[Video]:
    path = root / LIST_FILE
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            wanted = ["path", "split"] if data.split == "lists" else ["path"]
            lacking = [column for column in wanted if column not in (reader.fieldnames or [])]
            if lacking:
                way_out = "name it in the first line" if lacking[0] == "path" else "add it or set data.split to time"
                raise DataError(f"{path} has no column {lacking[0]}; {way_out}")
            return list(_rows(path, reader, data))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); data.layout csv needs that file, in UTF-8") from error


def _rows(path: Path, reader: csv.DictReader[str], data: Data) -> Iterator[Video]:
    seen: set[Path] = set()
    for row in reader:
        where = f"line {reader.line_num} of {path}"
        video = inside(path.parent, (row["path"] or "").strip(), where)
        if video in seen:
            raise DataError(f"{where} lists {row['path']} again; list every video once")
        seen.add(video)
        split = (row["split"] or "").strip() if data.split == "lists" else None
        if split not in (*SPLITS, None):
            raise DataError(f"{where} has split {split!r}; write train or test, or set data.split to time")
        yield Video(video, (row.get("class") or "").strip() or "all", split)


def folders(root: Path, data: Data) -> list[Video]:
    """Lists the videos of layouts in which each split is a folder."""
    members, homes, splits = {
        "class_folders": (_class_folders, ("",), SPLITS),
        "flat": (_files_in, ("",), SPLITS),
        "faceforensics": (_faceforensics, ("", "preprocess_ffs"), SPLITS),
        "skytimelapse": (_parts_of_videos, ("", "sky_timelapse"), ("sky_train", "sky_test")),
        "taichi": (_frame_folders, ("", "frames", "taichi-256/frames"), SPLITS),
        "frames": (_frames, ("",), SPLITS),
    }[data.layout]
    home = next((root / name for name in homes if any((root / name / split).is_dir() for split in splits)), root)
    folders = [home / split for split in splits]
    if data.split == "lists":
        if not all(folder.is_dir() for folder in folders):
            raise DataError(
                f"{root} has no {splits[0]} and {splits[1]} folders, but data.split is lists; add them or set"
                " data.split to time"
            )
        return [video for split, folder in zip(SPLITS, folders, strict=True) for video in members(folder, split)]
    plain = data.layout in ("class_folders", "flat") or not any(folder.is_dir() for folder in folders)
    return [video for folder in ([home] if plain else folders) if folder.is_dir() for video in members(folder, None)]


def _class_folders(folder: Path, split: Split | None) -> Iterator[Video]:
    for path in _subfolders(folder):
        if path.name not in _NO_CLASSES:
            members = list(_files_in(path, split))
            yield from (video._replace(class_name=path.name) for video in members)
            if all(video.refused for video in members):
                yield Video(path, path.name, split, "has no video; put videos of the class there, or remove it")
    yield from _left_out(folder, split, "lies beside the folders of the classes; put it into one")


def _files_in(folder: Path, split: Split | None) -> Iterator[Video]:
    """Everything that may be a video. Broken files and folders are included, so that they are reported."""
    for path in _visible(folder):
        if path.suffix.lower() in _NAMED_LIKE_VIDEOS or path.is_file():
            yield Video(path, "all", split)
        else:
            yield Video(
                path, "all", split, "is a folder among video files and is not searched; move its videos up one level"
            )


def _left_out(folder: Path, split: Split | None, reason: str) -> Iterator[Video]:
    """Files that may be videos, in a place where the layout expects none."""
    yield from (Video(path, "", split, reason) for path in _visible(folder) if path.is_file())


def _visible(folder: Path) -> list[Path]:
    """Folders, and files that may be videos."""
    with os.scandir(folder) as entries:
        return sorted(
            folder / entry.name
            for entry in entries
            if not entry.name.startswith(".") and (entry.is_dir() or _may_be_video(entry.name))
        )


def _may_be_video(name: str) -> bool:
    return not is_image(name) and Path(name).suffix.lower() not in _BESIDE.split()


def _faceforensics(folder: Path, split: Split | None) -> Iterator[Video]:
    if (folder / "images").is_dir():
        yield from _frame_folders(folder / "images", split)
    elif (folder / "videos").is_dir():
        yield from _files_in(folder / "videos", split)


def _parts_of_videos(folder: Path, split: Split | None) -> Iterator[Video]:
    for path in _subfolders(folder):
        yield from _frame_folders(path, split)


def _frame_folders(folder: Path, split: Split | None) -> Iterator[Video]:
    for path in _subfolders(folder):
        yield Video(path, "all", split)
    yield from _left_out(folder, split, "is a file, but data.layout expects folders of images; use another layout")


def _frames(folder: Path, split: Split | None) -> Iterator[Video]:
    """A folder that contains folders is a class; any other is a video."""
    for path in _subfolders(folder):
        members = list(_frame_folders(path, split))
        if all(video.refused for video in members):
            yield Video(path, "all", split)
        else:
            yield from (video._replace(class_name=video.class_name and path.name) for video in members)


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
