"""From videos to training batches: how fast clips are decoded, encoded, written and read, compared with plain loops
over decord and PyAV.

The videos are the user's own, or the benchmark renders them: moving colours at 320 x 240, as H.264 in MP4 and as
MPEG-4 with B-frames in AVI (the format of UCF101). All candidates run in turn, round after round, on the same clips.
Rates use wall-clock time, because several processes work. CPU time is given too, because other load on the machine
distorts it less. For each reader, the table also gives the share of clips with the right frames.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
from reco_tune.data.reading import VideoFacts, facts_of, resize_frames
from reco_tune.data.token_cache import TokenCacheWriter
from reco_tune.errors import DataError
from reco_tune.settings import Data, Tokenizer
from reco_tune.tokenizers import fit_tokenizer
from reco_tune.training import fit

VIDEOS, FRAMES = 8, 136
"""Largest number of videos to read, and the number of frames in each rendered video."""
ENCODED_CLIPS, CODED_CLIPS = 16, 4096
"""Number of clips to encode, and number of clips whose codes are written. Encoding is slow; writing is too fast to
time with few clips.
"""
KINDS = {"H.264, MP4": ("mp4", "libx264", {}), "MPEG-4, AVI": ("avi", "mpeg4", {"bf": "2", "g": "25", "b": "2M"})}
"""Videos to render: container, encoder and its options."""
_SAME = 3
"""Grey levels, averaged over a clip. Colour conversions differ by less than this, different frames by more."""
STEPS = 60
"""Steps of the training run whose wait for data is measured."""
_RATES = (
    Column("videos", "videos"),
    Column("work", "work"),
    Column("processes", "processes", "d"),
    Column("rate", "clips/s", ",.1f"),
    Column("low", "lowest", ",.1f"),
    Column("high", "highest", ",.1f"),
    Column("cpu_ms", "CPU ms per clip", ",.2f"),
    Column("right", "clips with the right frames", ".0%"),
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
    """One candidate to time."""

    videos: str
    name: str
    processes: int
    """Number of working processes, without the one that waits for them."""
    clips: int
    run: Callable[[], object]
    right: float | None = None
    """Share of clips whose frames equal those of decoding from the start."""


def bench_data(root: Path | None, size_px: int, bench: BenchOptions) -> Table:
    """Clips per second, and CPU time per clip, of every stage between video files and a token cache.

    Args:
        root: a folder of videos, or a folder with one folder of videos per class; None renders some.
        size_px: height and width of the clips.

    Raises:
        DataError: if `root` gives no clip, or decord is not installed.
    """
    try:
        import decord  # noqa: F401
    except ImportError as error:
        raise DataError("this benchmark compares decoding with decord, which is not installed; install it") from error
    work: list[_Work] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="reco-bench-")))
        one, all_cores = (stack.enter_context(Processes(Data().decode_seconds, limit)) for limit in (1, None))
        for kind in KINDS if root is None else ("yours",):
            data = stack.enter_context(videos_or_rendered(root, size_px, kind))
            clips, pixels_NFCHW = _readable_clips(data)
            work += _ways_of_reading(kind, clips, pixels_NFCHW, data, one, all_cores)
        work += _later_stages(pixels_NFCHW, folder)
        cpu_seconds: list[list[float]] = [[] for _ in work]
        jobs = [partial(_clocked, each.run, one, spent) for each, spent in zip(work, cpu_seconds, strict=True)]
        for job in jobs:  # warm-up: processes start, and files enter the page cache
            job()
        times_RJ = in_rounds(jobs, time.perf_counter, bench.seconds, bench.progress, "data")
    rows: list[Row] = []
    for number, each in enumerate(work):
        rates = each.clips / times_RJ[:, number]
        cpu_ms = 1e3 * float(np.median(cpu_seconds[number][1:])) / each.clips if each.processes == 1 else None
        head: Row = {"videos": each.videos, "work": each.name, "processes": each.processes, "right": each.right}
        speed: Row = {"rate": float(np.median(rates)), "low": float(rates.min()), "high": float(rates.max())}
        rows.append(head | speed | {"cpu_ms": cpu_ms, "rounds": len(rates)})
    videos = {clip.path for clip in clips}
    return Table(
        "data",
        f"{len(clips)} clips of {data.clip_frames} frames at {size_px} px, cut from {len(videos)} videos",
        _RATES,
        rows,
    )


def _ways_of_reading(
    kind: str, clips: list[Clip], pixels_NFCHW: np.ndarray, data: Data, one: Processes, all_cores: Processes
) -> list[_Work]:
    assert data.root is not None
    paths = [data.root / path for path in dict.fromkeys(clip.path for clip in clips)]

    def right(found_NFCHW: np.ndarray) -> float:
        off = np.abs(found_NFCHW.astype(np.int16) - pixels_NFCHW).mean(axis=(1, 2, 3, 4))
        return float((off < _SAME).mean())

    ours, decord = partial(_decode, clips, data), partial(_plain_decord, clips, data)
    return [
        _Work(kind, "decode", usable_cores(), len(clips), partial(ours, all_cores), right(ours(all_cores))),
        _Work(kind, "decode", 1, len(clips), partial(ours, one), right(ours(one))),
        _Work(kind, "count frames", 1, len(clips), lambda: list(one.map(facts_of, paths))),
        _Work(kind, "plain decord loop", 1, len(clips), decord, right(decord())),
        _Work(
            kind, "plain PyAV loop", 1, len(clips), partial(_plain_pyav, clips, data), right(_plain_pyav(clips, data))
        ),
    ]


def bench_reading(shapes: Sequence[Shape], bench: BenchOptions) -> Table:
    """How long training waits for data, from the cost ledger of a run at each shape. Small caches are held in memory,
    large ones are memory-mapped.
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
def videos_or_rendered(root: Path | None, size_px: int, kind: str) -> Iterator[Data]:
    """Data settings for the videos under `root`, or for temporary rendered videos of a kind."""
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
            _render(Path(folder) / str(number), moving.repeat(16, axis=1).repeat(16, axis=2), *KINDS[kind])
        yield Data(**wanted, root=Path(folder))


def _render(path: Path, frames: np.ndarray, container: str, codec: str, options: dict[str, str]) -> None:
    import av

    with av.open(str(path.with_suffix(f".{container}")), "w") as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")))
        file.mux(stream.encode())


def _readable_clips(data: Data) -> tuple[list[Clip], np.ndarray]:
    """The clips of a few videos that decord can also read (others would stop its loop), and their pixels decoded from
    the start: uint8 [N, F, 3, H, W].
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
    if not readable:
        raise DataError(
            f"none of {len(videos)} videos in {data.root} gives a clip of {data.clip_frames} frames; give a folder of"
            " longer videos"
        )
    return readable, _plain_pyav(readable, data)


def _clocked(run: Callable[[], object], reader: Processes, spent: list[float]) -> None:
    """Runs, and appends the CPU seconds that this process and the reader spent on it."""
    before = _cpu_seconds(reader)
    run()
    spent.append(_cpu_seconds(reader) - before)


def _cpu_seconds(reader: Processes) -> float:
    (spent,) = reader.map(_own_cpu_seconds, [0])
    assert isinstance(spent, float)
    return time.process_time() + spent


def _own_cpu_seconds(_: int) -> float:
    return time.process_time()


def _decode(clips: list[Clip], data: Data, processes: Processes) -> np.ndarray:
    """uint8 [N, F, 3, H, W], like the plain loops below. A clip that cannot be decoded stays black."""
    found = np.zeros((len(clips), data.clip_frames, 3, data.size_px, data.size_px), np.uint8)
    for part in decode(clips, data, processes=processes):
        found[part.rows] = part.video_BFCHW
    return found


def _plain_decord(clips: list[Clip], data: Data) -> np.ndarray:
    """The usual hand-written loop: for each clip, open its video, get its frames, scale them."""
    import decord

    assert data.root is not None
    found = []
    for clip in clips:
        video = decord.VideoReader(str(data.root / clip.path), num_threads=1)
        frames = video.get_batch(frame_indices(clip, data).tolist()).asnumpy()
        found.append(resize_frames(frames, data.size_px, data.resize))
    return np.stack(found)


def _plain_pyav(clips: list[Clip], data: Data) -> np.ndarray:
    """One loop over the frames of each video, which scales the frames of its clips."""
    import av

    assert data.root is not None
    found = np.zeros((len(clips), data.clip_frames, 3, data.size_px, data.size_px), np.uint8)
    for path in dict.fromkeys(clip.path for clip in clips):
        wanted = defaultdict(list)
        for row, clip in enumerate(clips):
            for place, index in enumerate(frame_indices(clip, data) if clip.path == path else ()):
                wanted[int(index)].append((row, place))
        with av.open(str(data.root / path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    small = resize_frames(frame.to_ndarray(format="rgb24")[None], data.size_px, data.resize)[0]
                    for row, place in wanted[number]:
                        found[row, place] = small
    return found


def _later_stages(pixels_NFCHW: np.ndarray, folder: Path) -> list[_Work]:
    """Encoding with a small trained tokenizer (`vq`), and writing the arrays of a cache."""
    settings = Tokenizer(kind="vq", spatial_stride=8, temporal_stride=4, fit_steps=2, fit_batch_size=2, width=16)
    tokenizer = fit_tokenizer(settings, pixels_NFCHW[:ENCODED_CLIPS])
    video = torch.from_numpy(pixels_NFCHW[:ENCODED_CLIPS])
    codes_NT = tokenizer.encode(video).flatten(1).to(torch.int32).numpy()
    many = codes_NT[np.arange(CODED_CLIPS) % len(codes_NT)]
    return [
        _Work("", f"encode (vq, width {settings.width})", 1, len(video), partial(tokenizer.encode, video)),
        _Work("", "write pixels", 1, len(pixels_NFCHW), partial(_write, folder, pixels_NFCHW)),
        _Work("", "write codes", 1, len(many), partial(_write, folder, many)),
    ]


def _write(folder: Path, values: np.ndarray) -> None:
    """Writes an array of a cache to disk, part by part as tokenizing does."""
    with TokenCacheWriter(folder, "written") as writer:
        array = writer.create("values", values.shape, values.dtype.type)
        for part, start in enumerate(range(0, len(values), PART_CLIPS)):
            array[start : start + PART_CLIPS] = values[start : start + PART_CLIPS]
            writer.note("values", part)
        writer.discard()
