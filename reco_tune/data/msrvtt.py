"""MSR-VTT (Xu et al., CVPR 2016) as it is published: 10,000 videos in the official split, about 20 captions each.

    video0.mp4 ... video9999.mp4    in the root, or in one of its folders `videos`, `videos/all`, `TrainValVideo`, ...
    *.json                          in the root or in `annotation`: "videos": [{"video_id", "split", "category"}, ...]
                                    and "sentences": [{"video_id", "caption"}, ...]; train and test may have one each

The split has 6,513 videos for training, 497 for validation and 2,990 for test. The 497 are not used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from reco_tune.data.layouts import SPLITS, Video, inside
from reco_tune.errors import DataError
from reco_tune.settings import Data

HOMES = (".", "videos", "videos/all", "video", "TrainValVideo", "TestVideo")
"""Folders of the videos."""
NOTES = (".", "annotation", "annotations")
"""Folders of the JSON."""


class Notes(NamedTuple):
    """The contents of all JSON files together."""

    videos: dict[str, dict[str, Any]]
    """Entries by `video_id`."""
    captions: dict[str, list[str]]


def msrvtt(root: Path, data: Data) -> list[Video]:
    notes, found = read_notes(root), []
    homes = [root / home for home in HOMES if (root / home).is_dir()]
    there = {path.name: path for home in reversed(homes) for path in home.glob("video*.mp4")}
    for name, video in notes.videos.items():
        path = there.get(f"{name}.mp4", inside(homes[0], f"{name}.mp4", "the JSON of MSR-VTT"))
        category = f"category {video['category']}" if "category" in video else "all"
        split = next((split for split in SPLITS if split == video["split"]), None)
        validation = split is None and data.split == "lists"
        refused = "is one of the validation videos, which are not used" if validation else ""
        found.append(Video(path, category, split if data.split == "lists" else None, refused))
    if not any(video.path.is_file() for video in found):
        raise DataError(f"none of the {len(found)} videos of MSR-VTT lies under {root}; change data.root")
    return sorted(found)


def read_notes(root: Path) -> Notes:
    """Reads the JSON files.

    Raises:
        DataError: if no JSON has videos and sentences, or one is damaged.
    """
    notes = Notes({}, {})
    for path in sorted(path for place in NOTES for path in (root / place).glob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict) or not {"videos", "sentences"} <= values.keys():
                continue
            for video in values["videos"]:
                notes.videos[str(video["video_id"])] = {"split": str(video["split"]), **video}
            for sentence in values["sentences"]:
                given = notes.captions.setdefault(str(sentence["video_id"]), [])
                if (caption := str(sentence["caption"]).strip()) and caption not in given:
                    given.append(caption)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is not a readable JSON of MSR-VTT ({error!r}); copy it again") from error
    if not notes.videos:
        raise DataError(
            f"{root} has no JSON with videos and sentences, neither in it nor in annotation; data.layout msrvtt needs"
            " it: add MSR-VTT's"
        )
    return notes
