"""From videos to training batches: how fast clips are decoded, encoded, written and read, beside plain loops over
decord and PyAV.

The videos are rendered by the benchmark (moving colours in H.264, 320 x 240), or they are yours. All that is compared
runs in turn, round after round, on the same clips. Rates are by the clock on the wall, because several processes work;
CPU time stands beside them, because neighbours on the machine spoil it less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from reco_tune import quantities as q
from reco_tune.benchmarks.shapes import BenchOptions, Shape, random_tokens
from reco_tune.benchmarks.tables import Column, Row, Table
from reco_tune.cost.timing import in_rounds
from reco_tune.data.clips import PART_CLIPS, Clip, clip_starts, decode, frame_indices, list_facts
from reco_tune.data.layouts import list_videos
from reco_tune.data.processes import Processes, usable_cores
from reco_tune.data.reading import VideoFacts, resize_frames
from reco_tune.data.token_cache import TokenCacheWriter
from reco_tune.data.video import write_video
from reco_tune.errors import DataError
from reco_tune.settings import Data, Tokenizer
from reco_tune.tokenizers import fit_tokenizer
from reco_tune.training import fit

VIDEOS, FRAMES = 8, 136
"""At most so many videos are read; those that are rendered have so many frames."""
ENCODED_CLIPS, CODED_CLIPS = 16, 4096
"""Clips that are encoded, and whose codes are written: the one is slow, the other too fast to time with few."""
STEPS = 60
"""Of the training run whose wait for data is shown."""
_RATES = (
    Column("work", "work"),
    Column("processes", "processes", "d"),
    Column("rate", "clips/s", ",.1f"),
    Column("low", "lowest", ",.1f"),
    Column("high", "highest", ",.1f"),
    Column("cpu_ms", "CPU ms a clip", ",.2f"),
    Column("rounds", "rounds", "d"),
)
_WAIT = (
    Column("shape", "shape"),
    Column("arm", "arm"),
    Column("read", "clips read/s", ",.0f"),
    Column("trained", "clips trained on/s", ",.0f"),
    Column("share", "share of training spent waiting for data", ".2%"),
    Column("steps", "steps", "d"),
)


class _Work(NamedTuple):
    """One thing that is timed."""

    name: str
    processes: int
    """That do the work, the one that waits for them not counted."""
    clips: int
    run: Callable[[], object]


def bench_data(root: Path | None, size_px: int, bench: BenchOptions) -> Table:
    """Clips a second, and CPU time a clip, of every stage between video files and a token cache.

    Args:
        root: a folder of videos, or of one folder of videos a class; None renders some.
        size_px: height and width of the clips.

    Raises:
        DataError: where `root` gives no clip, or decord is not installed.
    """
    try:
        import decord  # noqa: F401
    except ImportError as error:
        raise DataError("decord is not installed, and it is what decoding is compared with; install it") from error
    with videos_or_rendered(root, size_px) as data, TemporaryDirectory(prefix="reco-bench-") as folder:
        clips, pixels_NFCHW = _readable_clips(data)
        with Processes(data.decode_seconds, 1) as one, Processes(data.decode_seconds) as all_cores:
            work = [
                _Work("decode", usable_cores(), len(clips), partial(_decode, clips, data, all_cores)),
                _Work("decode", 1, len(clips), partial(_decode, clips, data, one)),
                _Work("plain decord loop", 1, len(clips), partial(_plain_decord, clips, data)),
                _Work("plain PyAV loop", 1, len(clips), partial(_plain_pyav, clips, data)),
                *_later_stages(pixels_NFCHW, Path(folder)),
            ]
            cpu_seconds: list[list[float]] = [[] for _ in work]
            jobs = [partial(_clocked, each.run, one, spent) for each, spent in zip(work, cpu_seconds, strict=True)]
            for job in jobs:  # processes start, files come into memory
                job()
            times_RJ = in_rounds(jobs, time.perf_counter, bench.seconds, bench.progress, "data")
    rows: list[Row] = []
    for number, each in enumerate(work):
        rates = each.clips / times_RJ[:, number]
        cpu_ms = 1e3 * float(np.median(cpu_seconds[number][1:])) / each.clips if each.processes == 1 else None
        head: Row = {"work": each.name, "processes": each.processes, "cpu_ms": cpu_ms, "rounds": len(rates)}
        rows.append(head | {"rate": float(np.median(rates)), "low": float(rates.min()), "high": float(rates.max())})
    videos = {clip.path for clip in clips}
    return Table(
        "data",
        f"{len(clips)} clips of {data.clip_frames} frames at {size_px} px, cut from {len(videos)} videos",
        _RATES,
        rows,
    )


def bench_reading(shapes: Sequence[Shape], bench: BenchOptions) -> Table:
    """What the ledger of a training run says of its wait for data, at each shape; small caches lie in memory, large
    ones are mapped.
    """
    rows: list[Row] = []
    for shape in shapes:
        for arm in ("full", "reco"):
            experiment = bench.experiment(shape, arm)
            training = experiment.training.model_copy(update={"steps": STEPS, "rungs": 1})
            experiment = experiment.model_copy(update={"training": training})
            with random_tokens(shape) as cache, TemporaryDirectory(prefix="reco-bench-") as folder:
                ledger = fit(experiment, cache, Path(folder), progress=bench.progress).metrics
            share = ledger[q.DATA_WAIT_SHARE.name]
            trained = (
                ledger[q.TOKENS_PER_SECOND.name] * STEPS * experiment.training.batch_size / ledger[q.TOKENS_SEEN.name]
            )
            rows.append(
                {
                    "shape": shape.name,
                    "arm": arm,
                    "read": trained / share,
                    "trained": trained,
                    "share": share,
                    "steps": STEPS,
                }
            )
    return Table("reading", "The wait for data in training", _WAIT, rows)


@contextmanager
def videos_or_rendered(root: Path | None, size_px: int) -> Iterator[Data]:
    """How clips are cut: from the videos under `root`, or from some that are rendered for the while."""
    wanted: dict[str, Any] = {"layout": "flat", "split": "time", "clip_frames": 17, "size_px": size_px}
    if root is not None:
        layout = "flat" if any(path.is_file() for path in root.iterdir()) else "class_folders"
        yield Data(**wanted | {"layout": layout, "root": root.absolute()})
        return
    with TemporaryDirectory(prefix="reco-bench-") as folder:
        generator = np.random.default_rng(0)
        for number in range(VIDEOS):
            coarse = generator.integers(256, size=(15, 20 + FRAMES, 3), dtype=np.uint8)
            moving = np.stack([coarse[:, start : start + 20] for start in range(FRAMES)])
            write_video(Path(folder) / f"{number}.mp4", moving.repeat(16, axis=1).repeat(16, axis=2), fps=25)
        yield Data(**wanted, root=Path(folder))


def _readable_clips(data: Data) -> tuple[list[Clip], np.ndarray]:
    """The clips of a few videos that decord can read too, and their pixels, uint8 [N, F, 3, H, W]: others would stop
    the plain loops.
    """
    import decord

    videos = list_videos(data)
    videos = videos[:: -(-len(videos) // VIDEOS)]
    assert data.root is not None
    clips: list[Clip] = []
    for video, facts in zip(videos, list_facts(videos, data.decode_seconds), strict=True):
        if isinstance(facts, VideoFacts):
            clips += [Clip(video.path.relative_to(data.root), start, 0) for start in clip_starts(0, facts.frames, data)]
    readable: list[Clip] = []
    for clip in clips:
        with suppress(decord.DECORDError):
            _plain_decord([clip], data)
            readable.append(clip)
    found = list(decode(readable, data))
    if not any(part.rows for part in found):
        raise DataError(
            f"no video of {len(videos)} in {data.root} gives a clip of {data.clip_frames} frames; name a folder of"
            " longer ones"
        )
    return [readable[row] for part in found for row in part.rows], np.concatenate([part.video_BFCHW for part in found])


def _clocked(run: Callable[[], object], reader: Processes, spent: list[float]) -> None:
    """Runs, and notes the CPU time that this process and the reader have spent on it."""
    before = _cpu_seconds(reader)
    run()
    spent.append(_cpu_seconds(reader) - before)


def _cpu_seconds(reader: Processes) -> float:
    (spent,) = reader.map(_own_cpu_seconds, [0])
    assert isinstance(spent, float)
    return time.process_time() + spent


def _own_cpu_seconds(_: int) -> float:
    return time.process_time()


def _decode(clips: list[Clip], data: Data, processes: Processes) -> None:
    for _ in decode(clips, data, processes=processes):
        pass


def _plain_decord(clips: list[Clip], data: Data) -> None:
    """What people write: for each clip open its video, get its frames, scale them."""
    import decord

    assert data.root is not None
    for clip in clips:
        frames = (
            decord.VideoReader(str(data.root / clip.path), num_threads=1)
            .get_batch(frame_indices(clip, data).tolist())
            .asnumpy()
        )
        resize_frames(frames, data.size_px, data.resize)


def _plain_pyav(clips: list[Clip], data: Data) -> None:
    """One loop over the frames of each video; those of its clips are scaled."""
    import av

    assert data.root is not None
    for path in dict.fromkeys(clip.path for clip in clips):
        wanted = {int(index) for clip in clips if clip.path == path for index in frame_indices(clip, data)}
        with av.open(str(data.root / path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    resize_frames(frame.to_ndarray(format="rgb24")[None], data.size_px, data.resize)


def _later_stages(pixels_NFCHW: np.ndarray, folder: Path) -> list[_Work]:
    """A small tokenizer of the kind that is trained here, and the arrays of a cache."""
    settings = Tokenizer(kind="vq", spatial_stride=8, temporal_stride=4, fit_steps=2, fit_batch_size=2, width=16)
    tokenizer = fit_tokenizer(settings, pixels_NFCHW[:ENCODED_CLIPS])
    video = torch.from_numpy(pixels_NFCHW[:ENCODED_CLIPS])
    codes_NT = tokenizer.encode(video).flatten(1).to(torch.int32).numpy()
    many = codes_NT[np.arange(CODED_CLIPS) % len(codes_NT)]
    return [
        _Work(f"encode (vq, width {settings.width})", 1, len(video), partial(tokenizer.encode, video)),
        _Work("write pixels", 1, len(pixels_NFCHW), partial(_write, folder, pixels_NFCHW)),
        _Work("write codes", 1, len(many), partial(_write, folder, many)),
    ]


def _write(folder: Path, values: np.ndarray) -> None:
    """Into an array of a cache, part by part as tokenizing does, to the disk."""
    with TokenCacheWriter(folder, "written") as writer:
        array = writer.create("values", values.shape, values.dtype.type)
        for part, start in enumerate(range(0, len(values), PART_CLIPS)):
            array[start : start + PART_CLIPS] = values[start : start + PART_CLIPS]
            writer.note("values", part)
        writer.discard()
