"""Which frames of which video make a clip, and their pixels. Knows nothing of tokens."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from reco_tune.data.layouts import SPLITS, Split, Video, list_videos
from reco_tune.data.video import count_frames, iterate_frames
from reco_tune.errors import DataError
from reco_tune.progress import Progress, quiet
from reco_tune.settings import Data

_GROUP_FRAMES = 512
"""Neighbouring clips of one video are decoded together up to this many (small) frames."""


class Clip(NamedTuple):
    """`clip_frames` frames of a video from frame `start` on."""

    path: Path
    start: int
    label: int


class Skipped(NamedTuple):
    """A video that could not be used, or only in part, and why."""

    path: Path
    reason: str


class ClipList(NamedTuple):
    """The clips of both splits, shuffled with the seed and capped."""

    train: list[Clip]
    test: list[Clip]
    class_names: tuple[str, ...]
    skipped: list[Skipped]


class Decoded(NamedTuple):
    """Some clips' pixels: `rows` are their places in the list that was asked for."""

    rows: list[int]
    video_BFCHW: np.ndarray
    """uint8 [B, F, 3, H, W]; B is 0 where all failed."""
    failed: list[tuple[int, str]]
    """Places that could not be decoded, with the reason."""


def list_clips(data: Data, videos: list[Video] | None = None, progress: Progress = quiet) -> ClipList:
    """The clips of `data`, videos opened to count their frames only; broken ones are listed in `skipped`.

    Raises:
        DataError: if a split has no clip.
    """
    videos = list_videos(data) if videos is None else videos
    class_names = tuple(sorted({video.class_name for video in videos})) if data.class_conditional else ("all",)
    labels = {name: label for label, name in enumerate(class_names)}
    clips: dict[Split, list[Clip]] = {"train": [], "test": []}
    skipped: list[Skipped] = []
    for done, video in enumerate(videos, start=1):
        try:
            frames = count_frames(video.path)
        except DataError as error:
            skipped.append(Skipped(video.path, str(error)))
            continue
        label = labels[video.class_name] if data.class_conditional else 0
        for split, first, end in _parts(video, frames, data):
            starts = clip_starts(first, end, data)
            clips[split] += [Clip(video.path, start, label) for start in starts]
            if not starts:
                skipped.append(
                    Skipped(video.path, f"its {end - first} frames for {split} are fewer than the {clip_span(data)} that a clip spans")
                )
        if done % 64 == 0 or done == len(videos):
            progress(done, len(videos), "listing clips")
    for number, split in enumerate(SPLITS):
        if not clips[split]:
            raise DataError(_no_clips(data, split, skipped))
        order = np.random.default_rng([data.seed, number]).permutation(len(clips[split]))
        cap = data.train_clips if split == "train" else data.test_clips
        clips[split] = [clips[split][index] for index in order[:cap]]
    return ClipList(clips["train"], clips["test"], class_names, skipped)


def clip_span(data: Data) -> int:
    """Source frames from a clip's first to its last."""
    return (data.clip_frames - 1) * data.frame_stride + 1


def clip_starts(first: int, end: int, data: Data) -> list[int]:
    """Starts of the clips that lie within the source frames first..end-1."""
    return list(range(first, end - clip_span(data) + 1, data.clip_stride or clip_span(data)))


def decode(clips: Sequence[Clip], data: Data, batch_size: int = 64) -> Iterator[Decoded]:
    """Pixels of `clips`, video by video, in batches of about `batch_size`; the order is the same on every machine.

    Videos are read by as many threads as the process has cores; each thread opens its own reader.
    """
    groups = _groups(clips, data)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows: list[int] = []
    parts: list[np.ndarray] = []
    failed: list[tuple[int, str]] = []
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[list[int], Future[np.ndarray]]] = deque()
        for group in [*groups, None]:
            if group is not None:
                waiting.append((group, pool.submit(_decode_group, [clips[row] for row in group], data)))
            while waiting and (group is None or len(waiting) > 4 * workers):
                members, result = waiting.popleft()
                try:
                    parts.append(result.result())
                    rows += members
                except DataError as error:
                    failed += [(row, str(error)) for row in members]
                if len(rows) >= batch_size:
                    yield Decoded(rows, np.concatenate(parts), failed)
                    rows, parts, failed = [], [], []
    if rows or failed:
        empty = np.zeros((0, data.clip_frames, 3, data.size_px, data.size_px), np.uint8)
        yield Decoded(rows, np.concatenate(parts) if parts else empty, failed)


def resize_frames(frames_FHWC: np.ndarray, size_px: int, resize: str) -> np.ndarray:
    """uint8 [F, 3, size, size]: centre square or whole frame, scaled.

    Whole factors average k x k blocks, which gives back enlarged frames bit by bit; other factors use an antialiased bilinear filter.
    """
    height, width = frames_FHWC.shape[1:3]
    if resize == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        frames_FHWC = frames_FHWC[:, top : top + side, left : left + side]
        height = width = side
    frames = torch.from_numpy(np.ascontiguousarray(frames_FHWC.transpose(0, 3, 1, 2)))
    if height == width == size_px:
        return frames.numpy()
    if height == width and height % size_px == 0:
        return torch.nn.functional.avg_pool2d(frames.float(), height // size_px).round_().to(torch.uint8).numpy()
    scaled = torch.nn.functional.interpolate(frames.float(), (size_px, size_px), mode="bilinear", antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8).numpy()


def _parts(video: Video, frames: int, data: Data) -> list[tuple[Split, int, int]]:
    """(split, first frame, end frame): the whole video, or its two parts in time."""
    if video.split is not None:
        return [(video.split, 0, frames)]
    cut = frames - max(1, round(frames * data.test_fraction))
    return [("train", 0, cut), ("test", cut, frames)]


def _no_clips(data: Data, split: Split, skipped: list[Skipped]) -> str:
    reasons = f"; {len(skipped)} videos could not be used, the first because {skipped[0].reason}" if skipped else ""
    return f"{data.root} gives no clip for {split}: check data.root, data.split and data.clip_frames ({data.clip_frames}){reasons}"


def _groups(clips: Sequence[Clip], data: Data) -> list[list[int]]:
    """Places of the clips, those of one video together and by start, cut where a group would grow too long."""
    order = sorted(range(len(clips)), key=lambda row: (clips[row].path, clips[row].start))
    groups: list[list[int]] = []
    for row in order:
        head = clips[groups[-1][0]] if groups else None
        if head is not None and head.path == clips[row].path and clips[row].start + clip_span(data) - head.start <= _GROUP_FRAMES:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _decode_group(clips: Sequence[Clip], data: Data) -> np.ndarray:
    """uint8 [B, F, 3, H, W] of clips of one video; every frame is decoded and scaled once."""
    offsets = np.arange(data.clip_frames) * data.frame_stride
    wanted = np.stack([clip.start + offsets for clip in clips])
    indices, where = np.unique(wanted, return_inverse=True)
    small = [resize_frames(chunk, data.size_px, data.resize) for chunk in iterate_frames(clips[0].path, indices.tolist())]
    return np.concatenate(small)[where.reshape(wanted.shape)]
