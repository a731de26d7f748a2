"""Chooses the frames of each clip and decodes them. Knows nothing of tokens.

Videos are opened in separate processes (`processes`). If a video crashes its decoder or makes it hang, only that
video is lost.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reco_tune.data.layouts import SPLITS, Split, Video, list_videos
from reco_tune.data.processes import FailedCall, Processes
from reco_tune.data.reading import FrameRequest, VideoFacts, facts_of, read_frames
from reco_tune.errors import TooFewClipsError
from reco_tune.progress import Progress, quiet
from reco_tune.settings import Data

PART_CLIPS = 64
"""Clips that are decoded, encoded and written together."""
REQUEST_BYTES = 32 << 20
"""Neighbouring clips of one video are decoded together while their scaled frames fit into this size."""


class Clip(NamedTuple):
    """`clip_frames` frames of a video, starting at frame `start`."""

    path: Path
    """Relative to the data root, so that a list of clips is valid on any machine."""
    start: int
    label: int
    frames: int | None = None
    """Number of frames, if the video has fewer than the clip spans (`data.short_videos`)."""
    flipped: bool = False
    """Whether the pixels are mirrored horizontally."""


class Skipped(NamedTuple):
    """A video that could not be used, or only in part, with the reason. Also a video that was used but looks
    damaged.
    """

    path: Path
    reason: str


class ClipList(NamedTuple):
    """The clips of both splits, shuffled with the seed and limited to the requested number."""

    train: list[Clip]
    test: list[Clip]
    class_names: tuple[str, ...]
    skipped: list[Skipped]
    suspicious: list[Skipped]


class Failure(NamedTuple):
    """A clip that could not be decoded."""

    place: int
    """Index in the list of clips to decode."""
    reason: str
    fatal: bool
    """Whether the decoder crashed or hung. The later clips of the video are then skipped."""


class Decoded(NamedTuple):
    """The pixels of one part of a list of clips."""

    rows: list[int]
    """Indices, in the list of clips, of those that could be decoded."""
    video_BFCHW: np.ndarray
    """uint8 [B, F, 3, H, W]; B is 0 if all failed."""
    failed: list[Failure]
    equal: list[tuple[Path, int, int]]
    """Videos with a suspiciously long run of equal frames: path, first and last frame of the run."""


def list_facts(videos: Sequence[Video], seconds: float, progress: Progress = quiet) -> list[VideoFacts | FailedCall]:
    """Facts about every video, read before clips are cut."""
    found: list[VideoFacts | FailedCall] = []
    with Processes(seconds) as processes:
        asked = (None if video.refused else video.path for video in videos)
        for video, facts in zip(videos, processes.map(facts_of, asked), strict=True):
            found.append(FailedCall(video.refused, fatal=False) if facts is None else facts)
            if len(found) % 64 == 0 or len(found) == len(videos):
                progress(len(found), len(videos), "listing clips")
    return found


def list_clips(
    data: Data,
    videos: list[Video] | None = None,
    progress: Progress = quiet,
    facts: Sequence[VideoFacts | FailedCall] | None = None,
) -> ClipList:
    """Lists the clips of `data`. Opens videos only to count their frames, unless `facts` are given. Broken videos go
    to `skipped`.

    Raises:
        DataError: if a split has no clip.
    """
    assert data.root is not None
    videos = list_videos(data) if videos is None else videos
    facts = list_facts(videos, data.decode_seconds, progress) if facts is None else facts
    class_names = tuple(sorted({video.class_name for video in videos} - {""})) if data.class_conditional else ("all",)
    labels = {name: label for label, name in enumerate(class_names)}
    clips: dict[Split, list[Clip]] = {"train": [], "test": []}
    skipped: list[Skipped] = []
    suspicious: list[Skipped] = []
    for video, known in zip(videos, facts, strict=True):
        path = video.path.relative_to(data.root)
        if isinstance(known, FailedCall):
            skipped.append(Skipped(path, known.reason.removeprefix(f"{video.path} ")))
            continue
        if known.suspicion:
            suspicious.append(Skipped(path, known.suspicion))
        label = labels[video.class_name] if data.class_conditional else 0
        for split, first, end in _ranges(video, known.frames, data):
            found = _clips_of(path, label, split, first, end, data)
            clips[split] += found
            if not found:
                reason = f"it has {end - first} frames for {split}, but a clip spans {clip_span(data)}"
                skipped.append(Skipped(path, reason))
    for number, split in enumerate(SPLITS):
        check_enough(len(clips[split]), data, split, skipped)
        order = np.random.default_rng([data.seed, number]).permutation(len(clips[split]))
        cap = data.train_clips if split == "train" else data.test_clips
        clips[split] = [clips[split][index] for index in order[:cap]]
    return ClipList(clips["train"], clips["test"], class_names, skipped, suspicious)


def check_enough(clips: int, data: Data, split: Split, skipped: Sequence[Skipped]) -> None:
    """
    Raises:
        DataError: if fewer clips are left than the data settings ask for.
    """
    if clips >= data.min_clips:
        return
    gives = (
        f"only {clips} clips for {split}, fewer than data.min_clips ({data.min_clips})"
        if clips
        else f"no clip for {split}"
    )
    reasons = (
        f"; {len(skipped)} videos could not be used, the first is {skipped[0].path}: {skipped[0].reason}"
        if skipped
        else ""
    )
    raise TooFewClipsError(
        f"{data.root} gives {gives}: check data.root, data.split and data.clip_frames ({data.clip_frames}){reasons}",
        skipped,
    )


def clip_span(data: Data) -> int:
    """Number of source frames from a clip's first frame to its last."""
    return (data.clip_frames - 1) * data.frame_stride + 1


def clip_starts(first: int, end: int, data: Data) -> list[int]:
    """Evenly spaced starts of the clips within source frames first..end-1."""
    return list(range(first, end - clip_span(data) + 1, data.clip_stride or clip_span(data)))


def frame_indices(clip: Clip, data: Data) -> np.ndarray:
    """Source frames of a clip, int64 [F]."""
    offsets = np.arange(data.clip_frames) * data.frame_stride
    if clip.frames is not None:
        offsets = np.minimum(offsets, clip.frames - 1) if data.short_videos == "repeat_last" else offsets % clip.frames
    return clip.start + offsets


def parts(clips: Sequence[Clip], size: int = PART_CLIPS) -> list[list[int]]:
    """Indices of the clips in parts of `size`, sorted by video and start. A part is a unit of work, the same on every
    machine.
    """
    order = sorted(range(len(clips)), key=lambda place: (clips[place].path, clips[place].start))
    return [order[start : start + size] for start in range(0, len(order), size)]


def decode(
    clips: Sequence[Clip],
    data: Data,
    wanted: Sequence[Sequence[int]] | None = None,
    dead: dict[Path, str] | None = None,
    processes: Processes | None = None,
) -> Iterator[Decoded]:
    """Yields the pixels of `clips`, part by part. The result does not depend on the number of processes.

    Args:
        wanted: the parts to decode; by default all `parts` of the list.
        dead: videos to skip, with the reason. Videos whose decoder crashes or hangs are added to it.
        processes: decoder processes; by default new ones that end with this call.
    """
    root = data.root
    assert root is not None
    wanted = parts(clips) if wanted is None else wanted
    dead = {} if dead is None else dead
    asked: deque[_SharedRequest] = deque()

    def requests() -> Iterator[FrameRequest | None]:
        for part in wanted:
            for shared in _shared_requests(part, clips, data):
                asked.append(shared)
                path = clips[shared.rows[0]].path
                yield None if path in dead else FrameRequest(root / path, shared.indices, data.size_px, data.resize)

    with nullcontext(processes) if processes else Processes(data.decode_seconds) as readers:
        answers = readers.map(read_frames, requests())
        for part in wanted:
            found = Decoded(
                [], np.empty((len(part), data.clip_frames, 3, data.size_px, data.size_px), np.uint8), [], []
            )
            left = len(part)
            while left:
                answer = next(answers)
                rows, indices = asked.popleft()
                left -= len(rows)
                path = clips[rows[0]].path
                if isinstance(answer, FailedCall) and answer.fatal:
                    dead[path] = answer.reason
                if (
                    path in dead
                ):  # also after an earlier request: the result must not depend on how far ahead others have read
                    found.failed.extend(Failure(row, dead[path], True) for row in rows)
                elif isinstance(answer, FailedCall):
                    reason = answer.reason.removeprefix(f"{root / path} ")
                    found.failed.extend(Failure(row, reason, False) for row in rows)
                else:
                    assert answer is not None
                    for row in rows:
                        frames_FCHW = answer.frames_FCHW[..., ::-1] if clips[row].flipped else answer.frames_FCHW
                        for place, index in enumerate(np.searchsorted(indices, frame_indices(clips[row], data))):
                            found.video_BFCHW[len(found.rows), place] = frames_FCHW[index]
                        found.rows.append(row)
                    if answer.equal is not None and data.layout != "digits":  # a digit may stand still
                        found.equal.append((path, *answer.equal))
            yield found._replace(video_BFCHW=found.video_BFCHW[: len(found.rows)])


def _ranges(video: Video, frames: int, data: Data) -> list[tuple[Split, int, int]]:
    """(split, first frame, end frame) of the whole video, or of its two parts in time."""
    if video.split is not None:
        return [(video.split, 0, frames)]
    cut = frames - max(1, round(frames * data.test_fraction))
    return [("train", 0, cut), ("test", cut, frames)]


def _clips_of(path: Path, label: int, split: Split, first: int, end: int, data: Data) -> list[Clip]:
    """Clips of one video, by start. Random draws depend only on the seed, the video's name and the split."""
    if end - first < clip_span(data):
        usable = end > first and data.short_videos != "skip"
        found = [Clip(path, first, label, end - first)] if usable else []
    elif data.clips_per_video is None:
        found = [Clip(path, start, label) for start in clip_starts(first, end, data)]
    else:
        choices = end - first - clip_span(data) + 1
        drawn = _draws(data, path, split, "starts").choice(choices, min(data.clips_per_video, choices), replace=False)
        found = [Clip(path, first + start, label) for start in sorted(drawn.tolist())]
    if split == "test" or data.horizontal_flip == "none":
        return found
    if data.horizontal_flip == "both":
        return [clip._replace(flipped=flipped) for clip in found for flipped in (False, True)]
    mirrored = _draws(data, path, split, "flips").random(len(found)) < 0.5
    return [clip._replace(flipped=bool(flip)) for clip, flip in zip(found, mirrored, strict=True)]


def _draws(data: Data, path: Path, split: Split, purpose: str) -> np.random.Generator:
    name = f"{data.seed} {path.as_posix()} {split} {purpose}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big"))


class _SharedRequest(NamedTuple):
    """Clips of a part that share one decoding request."""

    rows: list[int]
    indices: np.ndarray
    """All frames that they need, each once, in rising order."""


def _shared_requests(part: Sequence[int], clips: Sequence[Clip], data: Data) -> Iterator[_SharedRequest]:
    room = max(data.clip_frames, REQUEST_BYTES // (3 * data.size_px**2))
    rows: list[int] = []
    indices = np.empty(0, np.int64)
    for row in part:
        more = np.unique(frame_indices(clips[row], data))
        joined = np.union1d(indices, more)
        if rows and (clips[rows[0]].path != clips[row].path or len(joined) > room):
            yield _SharedRequest(rows, indices)
            rows, joined = [], more
        rows.append(row)
        indices = joined
    if rows:
        yield _SharedRequest(rows, indices)
