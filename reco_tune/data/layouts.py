"""Which video files a folder holds, of which class and split. Knows nothing of frames: no file is opened.

`ucf101` and `digits`   UCF-101/<Class>/*.avi with ucfTrainTestlist/ beside it, or the class folders directly in the root
`class_folders`         <Class>/*, or train/<Class>/* and test/<Class>/*
`flat`                  *, or train/* and test/*; one class
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal, NamedTuple

from reco_tune.data.video import EXTENSIONS
from reco_tune.errors import DataError
from reco_tune.settings import Data

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
_HASHED_WHOLE_BYTES = 2 << 30
_HEAD_BYTES = 1 << 16


class Video(NamedTuple):
    """One file; `split` is None where every video is divided by time."""

    path: Path
    class_name: str
    split: Split | None


def list_videos(data: Data) -> list[Video]:
    """All videos under `data.root` in a fixed order.

    Raises:
        DataError: for a folder without videos, or without the lists that `data.split` asks for.
    """
    root = data.root
    if root is None:
        raise DataError("data.root is not given; name the folder of the videos")
    if not root.is_dir():
        raise DataError(f"data.root ({root}) is not a folder; name the folder of the videos")
    videos = _ucf101(root, data) if data.layout in ("ucf101", "digits") else _folders(root, data)
    if not videos:
        raise DataError(
            f"{root} holds no video in data.layout {data.layout} ({', '.join(sorted(EXTENSIONS))}); change data.root or data.layout"
        )
    return videos


def data_fingerprint(videos: list[Video], data: Data) -> str:
    """Hash of what the clips are cut from and of how: relative names, splits, contents (sizes and first bytes above 2 GiB) and settings."""
    assert data.root is not None
    sizes = [video.path.stat().st_size if video.path.is_file() else -1 for video in videos]
    whole = sum(sizes) < _HASHED_WHOLE_BYTES
    left_out = {"root", "cache_dir", "layout"}
    digest = hashlib.sha256(json.dumps(data.model_dump(mode="json", exclude=left_out), sort_keys=True).encode())
    for video, size in zip(videos, sizes, strict=True):
        digest.update(f"\n{video.path.relative_to(data.root).as_posix()} {video.class_name} {video.split} {size} ".encode())
        if size > 0:
            with video.path.open("rb") as file:
                digest.update(hashlib.sha256(file.read() if whole else file.read(_HEAD_BYTES)).digest())
    return digest.hexdigest()


def _ucf101(root: Path, data: Data) -> list[Video]:
    folder = root / "UCF-101" if (root / "UCF-101").is_dir() else root
    found = _classes_in(folder, None)
    if data.split == "time":
        return found
    lists = root / "ucfTrainTestlist"
    if not lists.is_dir():
        raise DataError(f"{root} has no ucfTrainTestlist folder, which data.split lists reads; add it or set data.split to time")
    by_name = {f"{video.class_name}/{video.path.name}": video for video in found}
    videos = []
    for split in SPLITS:
        path = lists / f"{split}list{data.split_list:02d}.txt"
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read; restore UCF101's split lists or set data.split to time") from error
        names = [line.split()[0] for line in lines if line.strip()]
        # The class is the folder's: files of HandstandPushups are called v_HandStandPushups_*.
        videos += [by_name.get(name, Video(folder / name, name.split("/")[0], split))._replace(split=split) for name in names]
    if videos and not any(video.path.is_file() for video in videos):
        raise DataError(f"none of the {len(videos)} videos that {lists} names lies under {folder}; change data.root")
    return videos


def _folders(root: Path, data: Data) -> list[Video]:
    listed = _classes_in if data.layout == "class_folders" else _videos_in
    if data.split == "time":
        return listed(root, None)
    if not all((root / split).is_dir() for split in SPLITS):
        raise DataError(f"{root} has no train and test folders, which data.split lists needs; add them or set data.split to time")
    return [video for split in SPLITS for video in listed(root / split, split)]


def _classes_in(folder: Path, split: Split | None) -> list[Video]:
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [video._replace(class_name=path.name) for path in classes for video in _videos_in(path, split)]


def _videos_in(folder: Path, split: Split | None) -> list[Video]:
    """Whatever is named like a video, broken ones and folders too, so that they can be reported."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."))
    return [Video(path, "all", split) for path in paths]
