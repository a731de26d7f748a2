"""Captions of the clips: where each layout keeps them. Knows nothing of models.

`digits`    the rendered digit and how it moves
`csv`       the column `caption` of videos.csv
`msrvtt`    the sentences of its JSON
`tokens`    train.captions.txt and test.captions.txt beside the codes, one line per clip
A custom layout has a method `captions(root)` that returns lists of captions by path.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from reco_tune import parts
from reco_tune.data.clips import Clip
from reco_tune.data.layouts import LIST_FILE, SPLITS, Split, inside
from reco_tune.data.msrvtt import read_notes
from reco_tune.data.synthetic import digit_captions
from reco_tune.data.token_arrays import read_headers
from reco_tune.data.token_sets import is_token_set
from reco_tune.errors import DataError, SettingsError
from reco_tune.settings import Data, TokenGrid


def captions_of(data: Data, clips: Mapping[Split, Sequence[Clip]], grid: TokenGrid) -> dict[Split, list[list[str]]]:
    """One or more captions of every clip, chosen by `data.caption_rule`.

    Raises:
        SettingsError: if the layout has no captions.
        DataError: if a clip has no caption.
    """
    if data.layout == "tokens":
        found = _lines(data, grid, clips)
    else:
        known = _by_path(data)
        found = {split: [known.get(clip.path.as_posix(), []) for clip in clips[split]] for split in SPLITS}
    for split in SPLITS:
        for clip, given in zip(clips[split], found[split], strict=True):
            if not given:
                raise DataError(f"{clip.path} in {data.root} has no caption, which model.condition text needs; add one")
    return {
        split: [_by_rule(given, clip, data) for clip, given in zip(clips[split], found[split], strict=True)]
        for split in SPLITS
    }


def _by_rule(captions: list[str], clip: Clip, data: Data) -> list[str]:
    if data.caption_rule == "all":
        return captions
    if data.caption_rule == "first":
        return captions[:1]
    name = hashlib.sha256(f"{data.seed} {clip.path.as_posix()} {clip.start} caption".encode()).digest()
    return [captions[int(np.random.default_rng(int.from_bytes(name[:16], "big")).integers(len(captions)))]]


def _by_path(data: Data) -> dict[str, list[str]]:
    """Captions by the path of the video below the root."""
    assert data.root is not None
    if data.layout == "digits":
        return {f"UCF-101/{file}": [caption] for file, caption in digit_captions(data).items()}
    if data.layout == "csv":
        return _column(data.root)
    if data.layout == "msrvtt":
        named = read_notes(data.root).captions
        return {clip.as_posix(): captions for clip, captions in _of_videos(data, named)}
    if parts.is_own(data.layout) or data.layout not in parts.BUILT_IN["layouts"]:
        part = parts.load("layouts", data.layout)
        layout = part(**dict(parts.options_of(part, data.options, "data.options")))
        if hasattr(layout, "captions"):
            own = layout.captions(data.root).items()
            return {Path(path).relative_to(data.root).as_posix(): list(captions) for path, captions in own}
    raise SettingsError(
        f"model.condition (text) needs captions, but data.layout {data.layout} has none; set data.layout to csv (with a"
        " column caption), msrvtt, digits or tokens, or model.condition to class"
    )


def _of_videos(data: Data, named: Mapping[str, list[str]]) -> list[tuple[Path, list[str]]]:
    assert data.root is not None
    videos = parts.load("layouts", data.layout)(data.root, data)
    return [(video.path.relative_to(data.root), named.get(video.path.stem, [])) for video in videos]


def _column(root: Path) -> dict[str, list[str]]:
    path = root / LIST_FILE
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if "caption" not in (reader.fieldnames or []):
            raise DataError(f"{path} has no column caption, which model.condition text needs; add it")
        return {
            inside(root, row["path"].strip(), str(path)).relative_to(root).as_posix(): [caption]
            for row in reader
            if (caption := (row["caption"] or "").strip())
        }


def _lines(data: Data, grid: TokenGrid, clips: Mapping[Split, Sequence[Clip]]) -> dict[Split, list[list[str]]]:
    assert data.root is not None
    if is_token_set(data):
        raise SettingsError(
            "model.condition (text) needs a caption for each clip, and recordings of tokens have none; cut them into"
            " clips yourself, or set model.condition to class"
        )
    lines = {split: _file(codes.path, codes.shape[0]) for split, (codes, _) in read_headers(data, grid).items()}
    if "test" not in lines:
        cut = len(lines["train"]) - max(1, round(len(lines["train"]) * data.test_fraction))
        lines = {"train": lines["train"][:cut], "test": lines["train"][cut:]}
    return {
        split: [[line] if (line := lines[split][clip.start].strip()) else [] for clip in clips[split]]
        for split in SPLITS
    }


def _file(codes: Path, clips: int) -> list[str]:
    """The captions in the file, one line per clip."""
    path = codes.with_name(f"{codes.stem}.captions.txt")
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read; model.condition text needs it: write it in UTF-8, one caption per line"
        ) from error
    if len(lines) != clips:
        raise DataError(f"{path} has {len(lines)} lines for {clips} clips of {codes.name}; write one caption a line")
    return lines
