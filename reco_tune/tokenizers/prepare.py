"""From a folder of videos to a token cache: render, list, decode once, fit, encode, write.

What is finished is found by its fingerprint and reused. The work is cut into numbered parts of clips that depend on the list of clips
alone; each is written and noted when it is done, so a killed run goes on there and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from reco_tune import settings
from reco_tune.data.clips import PART_CLIPS, Clip, Failure, Skipped, check_enough, decode, list_clips, list_facts, parts
from reco_tune.data.layouts import SPLITS, Split, Video, data_fingerprint, list_videos
from reco_tune.data.processes import Lost, Processes
from reco_tune.data.reading import Facts
from reco_tune.data.synthetic import render_digits, rendering_settings
from reco_tune.data.token_arrays import read_coded_clips, token_files
from reco_tune.data.token_cache import MANIFEST, NO_TOKENIZER, TokenCache, TokenCacheWriter, add_pieces, piece_name
from reco_tune.errors import DataError, TooFewClipsError
from reco_tune.files import publish
from reco_tune.progress import Progress, quiet
from reco_tune.tokenizers.base import Tokenizer
from reco_tune.tokenizers.kinds import fit_tokenizer, load_tokenizer, open_pretrained, weight_files
from reco_tune.tokenizers.pretrained import NEEDED, given, is_hub_name


class PartTask(NamedTuple):
    """What encoding one part needs, on any machine that sees the same files."""

    number: int
    rows: list[int]
    """Places of the clips in the cache."""
    clips: list[Clip]
    data: settings.Data
    tokenizer_path: Path
    device: str
    piece_blocks: tuple[int, ...]
    readers: int
    """Processes that decode."""


class EncodedPart(NamedTuple):
    """Codes of the clips of one part that could be decoded."""

    number: int
    rows: list[int]
    codes_BT: np.ndarray
    """int32."""
    pieces: dict[int, np.ndarray]
    """int32 [B, P, tokens] by length in blocks."""
    failed: list[Failure]
    equal: list[tuple[Path, int, int]]


Spread = Callable[[Callable[[PartTask], EncodedPart], list[PartTask]], Iterable[EncodedPart]]
"""Calls a function of a module with every task, anywhere and in any order."""


def encode_part(task: PartTask) -> EncodedPart:
    """Decodes and encodes a part, with the bits that the process which asked would get.

    Raises:
        DataError: if the videos or the tokenizer cannot be seen from here.
    """
    root = task.data.root
    assert root is not None
    for path in (root, task.tokenizer_path):
        if not path.exists():
            raise DataError(
                f"{path} cannot be seen from {socket.gethostname()}; put data.root and data.cache_dir on storage that every node sees"
            )
    device = task.device if torch.cuda.is_available() else "cpu"
    with Processes(task.data.decode_seconds, task.readers) as processes:
        (part,) = decode(task.clips, task.data, parts(task.clips, len(task.clips)), processes=processes)
    order = np.argsort(part.rows)
    failed = [failure._replace(place=task.rows[failure.place]) for failure in part.failed]
    rows = [task.rows[part.rows[place]] for place in order]
    video = torch.from_numpy(part.video_BFCHW[order])
    encoder = _Encoder(_kept_tokenizer(task.tokenizer_path), task.data, device)
    return encoder.encoded(_Part(task.number, rows, video, failed, part.equal), task.piece_blocks)


@lru_cache(maxsize=1)
def _kept_tokenizer(path: Path) -> Tokenizer:
    """Loaded once by a process that encodes part after part."""
    return load_tokenizer(path)


class _Encoder(NamedTuple):
    """A tokenizer, where it runs, and how the clips it gets are cut."""

    tokenizer: Tokenizer
    data: settings.Data
    device: str

    def codes(self, video_BFCHW: torch.Tensor) -> np.ndarray:
        """int32 [B, T]."""
        return self.tokenizer.encode(video_BFCHW.to(self.device)).flatten(1).to(torch.int32).cpu().numpy()

    def encoded(self, part: _Part, piece_blocks: Sequence[int]) -> EncodedPart:
        if not part.rows:
            return EncodedPart(part.number, [], np.zeros((0, 0), np.int32), {}, part.failed, part.equal)
        pieces = {blocks: self.pieces(part.video_BFCHW, blocks) for blocks in piece_blocks}
        return EncodedPart(part.number, part.rows, self.codes(part.video_BFCHW), pieces, part.failed, part.equal)

    def pieces(self, video_BFCHW: torch.Tensor, blocks: int) -> np.ndarray:
        """int32 [B, P, tokens]: the sub-clips from frame j * temporal_stride on, each encoded as a clip of its own."""
        step = self.tokenizer.temporal_stride
        frames = 1 + (blocks - 1) * step
        starts = range(0, video_BFCHW.shape[1] - frames + 1, step)
        return np.stack([self.codes(video_BFCHW[:, start : start + frames]) for start in starts], axis=1)


def prepare_tokenizer(experiment: settings.Experiment, progress: Progress = quiet, piece_blocks: Sequence[int] = ()) -> Path:
    """The folder of the tokenizer of `experiment`, fitted where it does not exist; what was decoded for it waits for `prepare_tokens`.

    Raises:
        DataError: if no usable clip is left, or something in the cache folder is damaged or foreign.
    """
    if experiment.data.layout == "tokens":
        raise DataError("data.layout tokens brings codes along, so there is no tokenizer to fit; leave --fit out")
    job = _job(experiment, progress, piece_blocks)
    if not job.tokenizer_path.exists():
        with job.writer() as writer:
            _make(job, writer, fit_only=True)
    load_tokenizer(job.tokenizer_path)
    return job.tokenizer_path


def check_weights(experiment: settings.Experiment) -> None:
    """Looks where a pretrained tokenizer's files are; opens none. Weights that were copied into the cache folder before are not missed.

    Raises:
        SettingsError: where they are not given, or neither on this machine nor the name of a model on the hub.
    """
    tokenizer = experiment.tokenizer
    if not tokenizer.pretrained or _tokenizer_path(experiment, source="").exists():
        return
    for key in NEEDED[tokenizer.kind]:
        name = given(getattr(tokenizer, key), key, tokenizer.kind, "what it is, docs/tokenizers.md says")
        is_hub_name(name, tokenizer.kind, key)


def prepare_tokens(
    experiment: settings.Experiment, progress: Progress = quiet, piece_blocks: Sequence[int] = (), spread: Spread | None = None
) -> TokenCache:
    """The token cache of `experiment`, made where it does not exist, with pieces of each length in `piece_blocks`.

    Args:
        spread: encodes parts elsewhere; by default this process does. The bytes are the same.

    Raises:
        DataError: if no usable clip is left, or something in the cache folder is damaged or foreign.
    """
    if experiment.data.layout == "tokens":
        data = _with_root(experiment)
        return _enough(_adopt(experiment, data), data)
    job = _job(experiment, progress, piece_blocks)._replace(spread=spread)
    cache = _existing(job)
    if cache is None:
        with job.writer() as writer:
            cache = _existing(job)  # another process may have made it while this one waited
            if cache is None:
                cache = _make(job, writer)
            else:
                writer.discard()
    assert cache is not None
    _add_missing_pieces(_enough(cache, job.data), job)
    return cache


def _enough(cache: TokenCache, data: settings.Data) -> TokenCache:
    """The cache, which may have been made while `data.min_clips` was lower."""
    for split in SPLITS:
        check_enough(len(cache.tokens(split)), data, split, cache.skipped)
    return cache


def _job(experiment: settings.Experiment, progress: Progress, piece_blocks: Sequence[int]) -> _Job:
    data = _with_root(experiment)
    if data.layout == "digits":
        assert data.root is not None
        render_digits(data.root, data, progress)
    videos = list_videos(data)
    if experiment.tokenizer.pretrained:  # whatever is wrong with it shows before all the data are read
        _copy_pretrained(experiment.tokenizer, _tokenizer_path(experiment, source=""))
    source = data_fingerprint(videos, data)
    tokenizer_path = _tokenizer_path(experiment, source)
    device = experiment.device_type if torch.cuda.is_available() else "cpu"
    return _Job(experiment, data, videos, source, tokenizer_path, device, tuple(dict.fromkeys(piece_blocks)), progress)


class _Job(NamedTuple):
    """What a token cache is made of."""

    experiment: settings.Experiment
    data: settings.Data
    """With an absolute root."""
    videos: list[Video]
    source: str
    """Fingerprint of the data."""
    tokenizer_path: Path
    device: str
    piece_blocks: tuple[int, ...]
    progress: Progress
    spread: Spread | None = None

    def writer(self) -> TokenCacheWriter:
        """The one that every run of the same work goes on with."""
        key = _hash(self.source, self.experiment.tokenizer.model_dump_json(), str(self.experiment.kept_clips), str(self.piece_blocks))
        return TokenCacheWriter(self.experiment.cache_dir / "tokens", key, self.progress)

    def encoder(self) -> _Encoder:
        return _Encoder(load_tokenizer(self.tokenizer_path), self.data, self.device)

    def path(self, tokenizer: Tokenizer) -> Path:
        return self.experiment.cache_dir / "tokens" / _hash(self.source, tokenizer.fingerprint, str(self.experiment.kept_clips))


def _existing(job: _Job) -> TokenCache | None:
    if not job.tokenizer_path.exists():
        return None
    tokenizer = load_tokenizer(job.tokenizer_path)
    path = job.path(tokenizer)
    return _opened(path, job.source, tokenizer) if path.exists() else None


def _make(job: _Job, writer: TokenCacheWriter, fit_only: bool = False) -> TokenCache | None:
    """Goes on where `writer` stands and finishes the cache, or stops when there is a tokenizer."""
    data = job.data
    skipped: list[Skipped] = []
    try:
        known = writer.remember("facts", lambda: [[*facts] for facts in list_facts(job.videos, data.decode_seconds, job.progress)])
        # A list of two: frames and suspicion, or reason and whether it was fatal.
        facts = [Facts(*values) if isinstance(values[0], int) else Lost(*values) for values in known]
        listed = list_clips(data, job.videos, job.progress, facts)
        skipped += listed.skipped
        clips: dict[Split, list[Clip]] = {"train": listed.train, "test": listed.test}
        dead: dict[Path, str] = {}
        pixel_rows: dict[Split, list[int]] = {}
        with Processes(data.decode_seconds) as processes:
            for split in SPLITS:
                pixel_rows[split] = _decode_first(job, writer, split, clips[split], dead, processes, skipped)
                first = clips[split][: job.experiment.kept_clips]
                clips[split] = [first[row] for row in pixel_rows[split]] + clips[split][job.experiment.kept_clips :]
                check_enough(len(clips[split]), data, split, skipped)
            if not job.tokenizer_path.exists():
                _fit(job, writer, pixel_rows["train"])
            if fit_only:
                return None
            if (cache := _existing(job)) is not None:  # its tokenizer alone had been lost
                writer.discard()
                return cache
            encoder = job.encoder()
            for split in SPLITS:
                clips[split] = _encode_all(job, writer, encoder, split, clips[split], pixel_rows[split], dead, processes, skipped)
                check_enough(len(clips[split]), data, split, skipped)
    except TooFewClipsError as error:
        where = writer.write_list("skipped", skipped or error.skipped)
        raise TooFewClipsError(f"{error}; all are listed in {where}") from error
    for split in SPLITS:
        writer.keep_rows(f"{split}.clips", pixel_rows[split])
    path = job.path(encoder.tokenizer)
    return writer.finish(
        path,
        fingerprint=path.name,
        data_fingerprint=job.source,
        tokenizer_fingerprint=encoder.tokenizer.fingerprint,
        tokenizer_path=job.tokenizer_path,
        grid=job.experiment.grid,
        num_codes=encoder.tokenizer.num_codes,
        class_names=listed.class_names,
        clips=clips,
        skipped=skipped,
        suspicious=[*listed.suspicious, *_equal_runs(writer)],
        clip_settings=data.model_dump(mode="json", exclude={"root", "cache_dir"}),
    )


def _adopt(experiment: settings.Experiment, data: settings.Data) -> TokenCache:
    """The cache of codes that somebody made elsewhere; it holds no pixels."""
    grid, num_codes = experiment.grid, experiment.tokenizer.num_codes
    source = data_fingerprint(token_files(data), data)
    made_elsewhere = _hash("made elsewhere", str(num_codes), str(tuple(grid)))
    path = experiment.cache_dir / "tokens" / _hash(source, made_elsewhere)
    if path.exists():
        return TokenCache.open(path)
    found, class_names = read_coded_clips(data, grid, num_codes)
    clips: dict[Split, list[Clip]] = {}
    with TokenCacheWriter(path.parent) as writer:
        for number, (split, (file, tokens, labels)) in enumerate(found.items()):
            check_enough(len(tokens), data, split, [])
            cap = data.train_clips if split == "train" else data.test_clips
            order = np.random.default_rng([data.seed, number]).permutation(len(tokens))[:cap]
            array = writer.create(f"{split}.tokens", (len(order), grid.num_tokens), np.int32)
            for start in range(0, len(order), PART_CLIPS):
                rows = order[start : start + PART_CLIPS]
                array[start : start + len(rows)] = tokens[rows].reshape(len(rows), -1)
            writer.create(f"{split}.labels", (len(order),), np.int64)[:] = labels[order]
            writer.create(f"{split}.clips", (0, data.clip_frames, 3, data.size_px, data.size_px), np.uint8)
            assert data.root is not None
            clips[split] = [Clip(file.relative_to(data.root), row, int(labels[row])) for row in order.tolist()]
        return writer.finish(
            path,
            fingerprint=path.name,
            data_fingerprint=source,
            tokenizer_fingerprint=made_elsewhere,
            tokenizer_path=experiment.cache_dir / "tokenizers" / NO_TOKENIZER,
            grid=grid,
            num_codes=num_codes,
            class_names=class_names,
            clips=clips,
            skipped=[],
            clip_settings=data.model_dump(mode="json", exclude={"root", "cache_dir"}),
        )


def _with_root(experiment: settings.Experiment) -> settings.Data:
    """The data settings with an absolute root: a cache names its videos, and is read from any working folder."""
    data = experiment.data
    root = data.root
    if root is None and data.layout == "digits":
        root = experiment.cache_dir / "videos" / f"digits-{_hash(json.dumps(rendering_settings(data)))}"
    return data.model_copy(update={"root": root and root.absolute()})


def _tokenizer_path(experiment: settings.Experiment, source: str) -> Path:
    """A fitted tokenizer belongs to its data and settings, a pretrained one to its settings alone."""
    later = {"quantizer"} if experiment.tokenizer.quantizer == "vq" else None  # came later: at its default it changes no name
    what = experiment.tokenizer.model_dump_json(exclude_none=True, exclude=later)
    return experiment.cache_dir / "tokenizers" / (_hash(what) if experiment.tokenizer.pretrained else _hash(source, what))


def _copy_pretrained(tokenizer: settings.Tokenizer, path: Path) -> None:
    """Weights are copied beside the token caches once, so that these go on working wherever they are.

    Raises:
        DataError: if the weights were replaced after they were copied.
    """
    if not path.exists():
        publish(path, open_pretrained(tokenizer).save)
        return
    copied = path.stat().st_mtime
    for file in weight_files(tokenizer):
        if file.stat().st_mtime > copied:
            raise DataError(f"{file} is newer than the copy of it in {path}; delete the folder {path.name} to take the new weights")


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _opened(path: Path, source: str, tokenizer: Tokenizer) -> TokenCache:
    cache = TokenCache.open(path)
    if (cache.data_fingerprint, cache.tokenizer_fingerprint) != (source, tokenizer.fingerprint):
        raise DataError(f"{path / MANIFEST} belongs to other data or another tokenizer; delete the folder {path.name} and run again")
    return cache


def _decode_first(
    job: _Job,
    writer: TokenCacheWriter,
    split: Split,
    clips: list[Clip],
    dead: dict[Path, str],
    processes: Processes,
    skipped: list[Skipped],
) -> list[int]:
    """Keeps the pixels of the first clips; returns the rows of those that could be decoded."""
    stage, first, data = f"{split}.clips", clips[: job.experiment.kept_clips], job.data
    wanted = parts(first)
    left = [number for number in range(len(wanted)) if number not in writer.done(stage)]
    if left:
        pixels = writer.create(stage, (len(first), data.clip_frames, 3, data.size_px, data.size_px), np.uint8)
        decoded = decode(first, data, [wanted[number] for number in left], dead, processes)
        for done, (number, part) in enumerate(zip(left, decoded, strict=True), start=1):
            pixels[part.rows] = part.video_BFCHW
            writer.note(stage, number, part.failed, part.equal)
            job.progress(min((len(wanted) - len(left) + done) * PART_CLIPS, len(first)), len(first), f"decoding {split} clips")
    failed = _settle(writer.failed(stage), first, dead, skipped)
    return [row for row in range(len(first)) if row not in failed]


def _fit(job: _Job, writer: TokenCacheWriter, rows: list[int]) -> None:
    pixels = np.load(writer.folder / "train.clips.npy", mmap_mode="r")
    count = min(job.experiment.tokenizer.fit_clips, len(rows))
    whole = rows[:count] == list(range(count))
    fitted = fit_tokenizer(job.experiment.tokenizer, pixels[:count] if whole else pixels[rows[:count]], job.progress, job.device)
    publish(job.tokenizer_path, fitted.save)


def _encode_all(
    job: _Job,
    writer: TokenCacheWriter,
    encoder: _Encoder,
    split: Split,
    clips: list[Clip],
    pixel_rows: list[int],
    dead: dict[Path, str],
    processes: Processes,
    skipped: list[Skipped],
) -> list[Clip]:
    """Codes and pieces of all clips: the kept ones from their pixels, the others decoded now; returns the clips that have codes."""
    grid, stage = job.experiment.grid, f"{split}.tokens"
    shapes: dict[str, tuple[int, ...]] = {f"{split}.tokens": (len(clips), grid.num_tokens)}
    for blocks in job.piece_blocks:
        shapes[piece_name(split, blocks)] = (len(clips), grid.blocks - blocks + 1, blocks * grid.tokens_per_block)
    pixels = np.load(writer.folder / f"{split}.clips.npy", mmap_mode="r")
    work = _Videos(writer.done(stage), pixels, pixel_rows, clips, job.data, dead, processes)
    if work.left:
        arrays = {name: writer.create(name, shape, np.int32) for name, shape in shapes.items()}
        here = (encoder.encoded(part, job.piece_blocks) for part in work)
        for done, part in enumerate(
            job.spread(encode_part, work.tasks(job)) if job.spread else here, start=work.parts - len(work.left) + 1
        ):
            if part.rows:
                arrays[stage][part.rows] = part.codes_BT
                for blocks, codes_BPT in part.pieces.items():
                    arrays[piece_name(split, blocks)][part.rows] = codes_BPT
            writer.note(stage, part.number, part.failed, part.equal)
            job.progress(min(done * PART_CLIPS, len(clips)), len(clips), f"encoding {split} clips")
    failed = _settle(writer.failed(stage), clips, dead, skipped)
    good = [row for row in range(len(clips)) if row not in failed]
    for name in shapes:
        writer.keep_rows(name, good)
    kept = [clips[row] for row in good]
    writer.create(f"{split}.labels", (len(kept),), np.int64)[:] = [clip.label for clip in kept]
    return kept


class _Part(NamedTuple):
    """Some clips, ready to be encoded together."""

    number: int
    rows: list[int]
    video_BFCHW: torch.Tensor
    failed: list[Failure]
    equal: list[tuple[Path, int, int]]


class _Videos:
    """The parts of a list of clips that are not done yet: first the clips whose pixels are kept, then the others, decoded now."""

    def __init__(
        self,
        done: set[int],
        pixels: np.ndarray,
        pixel_rows: Sequence[int],
        clips: list[Clip],
        data: settings.Data,
        dead: dict[Path, str],
        processes: Processes,
    ) -> None:
        self._pixels, self._data, self._dead, self._processes = pixels, data, dead, processes
        self._kept = [list(pixel_rows[start : start + PART_CLIPS]) for start in range(0, len(pixel_rows), PART_CLIPS)]
        self._rest, self._first = clips[len(pixel_rows) :], len(pixel_rows)
        self._parts = parts(self._rest)
        self._clips = clips
        self.parts = len(self._kept) + len(self._parts)
        self.left = [number for number in range(self.parts) if number not in done]

    def tasks(self, job: _Job) -> list[PartTask]:
        """The same parts for other machines, which read the kept clips from their videos too."""
        tasks = []
        for number in self.left:
            start, kept = number * PART_CLIPS, len(self._kept)
            rows = (
                list(range(start, start + len(self._kept[number])))
                if number < kept
                else [self._first + place for place in self._parts[number - kept]]
            )
            clips = [self._clips[row] for row in rows]
            cpus, device = job.experiment.resources.cpus_per_worker, job.experiment.device_type
            tasks.append(PartTask(number, rows, clips, self._data, job.tokenizer_path, device, job.piece_blocks, cpus))
        return tasks

    def __iter__(self) -> Iterator[_Part]:
        before = len(self._kept)
        for number in self.left:
            if number < before:
                start, rows = number * PART_CLIPS, self._kept[number]
                video = np.array(self._pixels[rows])
                yield _Part(number, list(range(start, start + len(rows))), torch.from_numpy(video), [], [])
        later = [number for number in self.left if number >= before]
        decoded = decode(self._rest, self._data, [self._parts[number - before] for number in later], self._dead, self._processes)
        for number, part in zip(later, decoded, strict=True):
            failed = [failure._replace(place=self._first + failure.place) for failure in part.failed]
            yield _Part(number, [self._first + row for row in part.rows], torch.from_numpy(part.video_BFCHW), failed, part.equal)


def _settle(failures: list[Failure], clips: list[Clip], dead: dict[Path, str], skipped: list[Skipped]) -> set[int]:
    """Lists every broken video once with each reason; returns the places that have no pixels."""
    known = set(skipped)
    for failure in failures:
        path = clips[failure.place].path
        if failure.fatal:
            dead[path] = failure.reason
        video = Skipped(path, failure.reason)
        if video not in known:
            known.add(video)
            skipped.append(video)
    return {failure.place for failure in failures}


def _equal_runs(writer: TokenCacheWriter) -> list[Skipped]:
    """The longest run of equal frames of every video that has a suspicious one."""
    longest: dict[Path, tuple[int, int]] = {}
    for path, first, last in writer.equal():
        begin, end = longest.get(path, (0, -1))
        if last - first > end - begin:
            longest[path] = (first, last)
    return [Skipped(path, f"its frames {first} to {last} are equal") for path, (first, last) in sorted(longest.items())]


def _add_missing_pieces(cache: TokenCache, job: _Job) -> None:
    """Pieces of other lengths, for a cache that was made without them."""
    for blocks in job.piece_blocks:
        if not cache.has_pieces(blocks):
            with TokenCacheWriter(cache.path, f"pieces-{blocks}", job.progress) as writer:
                if not cache.has_pieces(blocks):
                    for split in SPLITS:
                        _write_pieces(cache, job, writer, split, blocks)
                    add_pieces(cache, writer, blocks)
                else:
                    writer.discard()


def _write_pieces(cache: TokenCache, job: _Job, writer: TokenCacheWriter, split: Split, blocks: int) -> None:
    stage, encoder = piece_name(split, blocks), job.encoder()
    pixels, clips = cache.clips(split), cache.sources(split)
    with Processes(job.data.decode_seconds) as processes:
        array = writer.create(stage, cache.piece_shape(split, blocks), np.int32)
        for part in _Videos(writer.done(stage), pixels, range(len(pixels)), clips, job.data, {}, processes):
            if part.failed:
                raise DataError(f"a clip of {cache.path} can no longer be decoded: {part.failed[0].reason}")
            array[part.rows] = encoder.pieces(part.video_BFCHW, blocks)
            writer.note(stage, part.number)
            job.progress(min((part.number + 1) * PART_CLIPS, len(clips)), len(clips), f"encoding {split} pieces of {blocks} blocks")
