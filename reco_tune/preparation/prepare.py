"""From a folder of videos to a token cache: render, list, decode once, fit, encode, write.

Finished work is found by its fingerprint and reused. The work is split into numbered parts that depend on the list of
clips alone. Each part is written and recorded when it is done. So a killed run continues there and ends with the same
bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from reco_tune import settings
from reco_tune.data.clips import PART_CLIPS, Clip, Failure, Skipped, check_enough, decode, list_clips, list_facts, parts
from reco_tune.data.layouts import SPLITS, Split, Video, data_fingerprint, existing_root, list_videos
from reco_tune.data.processes import FailedCall, Processes
from reco_tune.data.reading import VideoFacts
from reco_tune.data.synthetic import render_digits
from reco_tune.data.token_cache import MANIFEST, TokenCache, TokenCacheWriter, add_pieces, piece_name
from reco_tune.device import exact_float32
from reco_tune.errors import DataError, TooFewClipsError
from reco_tune.files import publish
from reco_tune.preparation.cache_paths import (
    absolute_data,
    copy_pretrained,
    folder_name,
    token_cache_path,
    tokenizer_path,
)
from reco_tune.preparation.captioning import add_captions
from reco_tune.preparation.code_import import check_codes_there, import_codes
from reco_tune.preparation.encoding import Encoder, LeftParts, Spread, encode_part
from reco_tune.progress import Progress, quiet
from reco_tune.tokenizers.base import Tokenizer
from reco_tune.tokenizers.kinds import fit_tokenizer, load_tokenizer


def check_data(experiment: settings.Experiment) -> None:
    """Checks that the data exist, without opening a video or reading codes.

    Raises:
        DataError: if they do not exist.
    """
    if experiment.data.layout == "tokens":
        check_codes_there(experiment)
    elif experiment.data.layout != "digits":  # digits are rendered later
        existing_root(experiment.data)


def classes_known(experiment: settings.Experiment) -> bool | None:
    """Whether the videos have at least two classes, judged by names and folders; None if unknown. Opens no video.

    Raises:
        DataError: if there are no videos.
    """
    data = experiment.data
    if data.layout in ("tokens", "digits"):
        return None
    if not data.class_conditional:
        return False
    return len({video.class_name for video in list_videos(data) if not video.refused} - {""}) >= 2


def prepare_tokenizer(
    experiment: settings.Experiment, progress: Progress = quiet, piece_blocks: Sequence[int] = ()
) -> Path:
    """The folder of the experiment's tokenizer, which is fitted if it does not exist. `prepare_tokens` later reuses
    the clips decoded here.

    Raises:
        DataError: if no usable clip is left, or a folder in the cache is damaged or not from ReCo-Tune.
    """
    if experiment.data.layout == "tokens":
        raise DataError("data.layout tokens has codes already, so there is no tokenizer to fit; omit --fit")
    plan = _plan(experiment, progress, piece_blocks)
    if not plan.tokenizer_path.exists():
        with plan.writer() as writer:
            _make(plan, writer, fit_only=True)
    load_tokenizer(plan.tokenizer_path)
    return plan.tokenizer_path


def prepare_tokens(
    experiment: settings.Experiment,
    progress: Progress = quiet,
    piece_blocks: Sequence[int] = (),
    spread: Spread | None = None,
    seen: Collection[str] = (),
) -> TokenCache:
    """The token cache of `experiment`, created if it does not exist, with pieces of each length in `piece_blocks`.

    Args:
        spread: encodes parts on other machines, with the same bytes; by default this process encodes.
        seen: fingerprints of the data that earlier runs used. The data must be the same.

    Raises:
        DataError: if no usable clip is left, if a folder in the cache is damaged or not from ReCo-Tune, or if the
            data have changed.
    """
    if experiment.data.layout == "tokens":
        imported = import_codes(experiment)
        _check_seen(imported.data_fingerprint, seen, experiment.data)
        return _with_captions(_counted(_enough(imported, experiment.data), experiment), experiment, progress)
    plan = _plan(experiment, progress, piece_blocks)._replace(spread=spread)
    _check_seen(plan.source, seen, plan.data)
    cache = _existing(plan)
    if cache is None:
        if (earlier := _earlier_cache(plan)) is not None:
            what = f"the token cache {earlier.name} may hold wrong frames, as earlier versions read some videos; all is"
            progress(1, 1, f"{what} read anew, and that folder can be deleted")
        with plan.writer() as writer:
            cache = _existing(plan)  # another process may have made it during the wait
            if cache is None:
                cache = _make(plan, writer)
            else:
                writer.discard()
    assert cache is not None
    _add_missing_pieces(_enough(cache, plan.data), plan)
    return _with_captions(_counted(cache, experiment), experiment, progress)


def _with_captions(cache: TokenCache, experiment: settings.Experiment, progress: Progress) -> TokenCache:
    if experiment.model.condition == "text":
        add_captions(cache, experiment, progress)
    return cache


def _check_seen(source: str, seen: Collection[str], data: settings.Data) -> None:
    if seen and source not in seen:
        raise DataError(
            f"{data.root} gives other clips than the study's runs used ({source[:9]}, not {min(seen)[:9]}): the data"
            " changed, or an earlier version read some videos wrongly; begin a new study"
        )


def _enough(cache: TokenCache, data: settings.Data) -> TokenCache:
    """Checks the number of clips again: the cache may be older than the current `data.min_clips`."""
    for split in SPLITS:
        check_enough(len(cache.tokens(split)), data, split, cache.skipped)
    return cache


def _counted(cache: TokenCache, experiment: settings.Experiment) -> TokenCache:
    """Checks that the cache has as many clips as were assumed when `training.epochs` was converted to steps."""
    clips, counted, epochs = len(cache.tokens("train")), experiment.data.train_clips, experiment.training.epochs
    if epochs is not None and clips != counted:
        raise DataError(
            f"training.epochs ({epochs:g}) was counted with data.train_clips ({counted}), but there are {clips}"
            f" training clips; set data.train_clips to {clips}"
        )
    return cache


def _plan(experiment: settings.Experiment, progress: Progress, piece_blocks: Sequence[int]) -> _CachePlan:
    data = absolute_data(experiment)
    if data.layout == "digits":
        assert data.root is not None
        render_digits(data.root, data, progress)
    videos = list_videos(data)
    if experiment.tokenizer.pretrained:  # its errors should show before all data are read
        copy_pretrained(experiment)
    source = data_fingerprint(videos, data)
    device = experiment.device_type if torch.cuda.is_available() else "cpu"
    exact_float32()
    return _CachePlan(
        experiment,
        data,
        videos,
        source,
        tokenizer_path(experiment, source),
        device,
        tuple(dict.fromkeys(piece_blocks)),
        progress,
    )


class _CachePlan(NamedTuple):
    """Everything that determines a token cache."""

    experiment: settings.Experiment
    data: settings.Data
    """Data settings with an absolute root."""
    videos: list[Video]
    source: str
    """Fingerprint of the data."""
    tokenizer_path: Path
    device: str
    piece_blocks: tuple[int, ...]
    progress: Progress
    spread: Spread | None = None

    def writer(self) -> TokenCacheWriter:
        """A writer with the key of this work, so that a later run continues it."""
        key = folder_name(
            self.source,
            self.experiment.tokenizer.model_dump_json(),
            str(self.experiment.kept_clips),
            str(self.piece_blocks),
        )
        return TokenCacheWriter(self.experiment.cache_dir / "tokens", key, self.progress)

    def encoder(self) -> Encoder:
        return Encoder(load_tokenizer(self.tokenizer_path), self.data, self.device)

    def path(self, tokenizer: Tokenizer) -> Path:
        return token_cache_path(self.experiment, self.source, tokenizer.fingerprint)


def _existing(plan: _CachePlan) -> TokenCache | None:
    if not plan.tokenizer_path.exists():
        return None
    tokenizer = load_tokenizer(plan.tokenizer_path)
    path = plan.path(tokenizer)
    return _opened(path, plan.source, tokenizer) if path.exists() else None


def _earlier_cache(plan: _CachePlan) -> Path | None:
    """A cache from an earlier version, which ordered or read the frames differently."""
    if not (plan.experiment.cache_dir / "tokens").is_dir():
        return None
    source = data_fingerprint(plan.videos, plan.data, earlier=True)
    tokenizer = tokenizer_path(plan.experiment, source)
    if source == plan.source or not tokenizer.exists():
        return None
    path = token_cache_path(plan.experiment, source, load_tokenizer(tokenizer).fingerprint)
    return path if path.exists() else None


def _make(plan: _CachePlan, writer: TokenCacheWriter, fit_only: bool = False) -> TokenCache | None:
    """Continues the work of `writer` and finishes the cache. With `fit_only`, stops once there is a tokenizer."""
    data = plan.data
    skipped: list[Skipped] = []
    try:
        known = writer.remember(
            "facts", lambda: [[*facts] for facts in list_facts(plan.videos, data.decode_seconds, plan.progress)]
        )
        # Each entry is a list of two: frames and suspicion, or reason and whether it was fatal.
        facts = [VideoFacts(*values) if isinstance(values[0], int) else FailedCall(*values) for values in known]
        listed = list_clips(data, plan.videos, plan.progress, facts)
        skipped += listed.skipped
        clips: dict[Split, list[Clip]] = {"train": listed.train, "test": listed.test}
        dead: dict[Path, str] = {}
        pixel_rows: dict[Split, list[int]] = {}
        with Processes(data.decode_seconds) as processes:
            for split in SPLITS:
                pixel_rows[split] = _decode_first(plan, writer, split, clips[split], dead, processes, skipped)
                first = clips[split][: plan.experiment.kept_clips]
                clips[split] = [first[row] for row in pixel_rows[split]] + clips[split][plan.experiment.kept_clips :]
                check_enough(len(clips[split]), data, split, skipped)
            if not plan.tokenizer_path.exists():
                _fit(plan, writer, pixel_rows["train"])
            if fit_only:
                return None
            if (cache := _existing(plan)) is not None:  # only its tokenizer was missing
                writer.discard()
                return cache
            encoder = plan.encoder()
            for split in SPLITS:
                clips[split] = _encode_all(
                    plan, writer, encoder, split, clips[split], pixel_rows[split], dead, processes, skipped
                )
                check_enough(len(clips[split]), data, split, skipped)
    except TooFewClipsError as error:
        where = writer.write_list("skipped", skipped or error.skipped)
        raise TooFewClipsError(f"{error}; all are listed in {where}") from error
    for split in SPLITS:
        writer.keep_rows(f"{split}.clips", pixel_rows[split])
    path = plan.path(encoder.tokenizer)
    return writer.finish(
        path,
        fingerprint=path.name,
        data_fingerprint=plan.source,
        tokenizer_fingerprint=encoder.tokenizer.fingerprint,
        tokenizer_path=plan.tokenizer_path,
        grid=plan.experiment.grid,
        num_codes=encoder.tokenizer.num_codes,
        class_names=listed.class_names,
        clips=clips,
        skipped=skipped,
        suspicious=[*listed.suspicious, *_equal_runs(writer)],
        clip_settings=data.model_dump(mode="json", exclude={"root", "cache_dir"}),
    )


def _opened(path: Path, source: str, tokenizer: Tokenizer) -> TokenCache:
    cache = TokenCache.open(path)
    if (cache.data_fingerprint, cache.tokenizer_fingerprint) != (source, tokenizer.fingerprint):
        raise DataError(
            f"{path / MANIFEST} belongs to other data or another tokenizer; delete the folder {path.name} and run again"
        )
    return cache


def _decode_first(
    plan: _CachePlan,
    writer: TokenCacheWriter,
    split: Split,
    clips: list[Clip],
    dead: dict[Path, str],
    processes: Processes,
    skipped: list[Skipped],
) -> list[int]:
    """Decodes the first clips and keeps their pixels. Returns the rows of those that could be decoded."""
    stage, first, data = f"{split}.clips", clips[: plan.experiment.kept_clips], plan.data
    wanted = parts(first)
    left = [number for number in range(len(wanted)) if number not in writer.done(stage)]
    if left:
        pixels = writer.create(stage, (len(first), data.clip_frames, 3, data.size_px, data.size_px), np.uint8)
        decoded = decode(first, data, [wanted[number] for number in left], dead, processes)
        for done, (number, part) in enumerate(zip(left, decoded, strict=True), start=1):
            pixels[part.rows] = part.video_BFCHW
            writer.note(stage, number, part.failed, part.equal)
            plan.progress(
                min((len(wanted) - len(left) + done) * PART_CLIPS, len(first)), len(first), f"decoding {split} clips"
            )
    failed = _settle(writer.failed(stage), first, dead, skipped)
    return [row for row in range(len(first)) if row not in failed]


def _fit(plan: _CachePlan, writer: TokenCacheWriter, rows: list[int]) -> None:
    pixels = np.load(writer.folder / "train.clips.npy", mmap_mode="r")
    count = min(plan.experiment.tokenizer.fit_clips, len(rows))
    whole = rows[:count] == list(range(count))
    fitted = fit_tokenizer(
        plan.experiment.tokenizer, pixels[:count] if whole else pixels[rows[:count]], plan.progress, plan.device
    )
    publish(plan.tokenizer_path, fitted.save)


def _encode_all(
    plan: _CachePlan,
    writer: TokenCacheWriter,
    encoder: Encoder,
    split: Split,
    clips: list[Clip],
    pixel_rows: list[int],
    dead: dict[Path, str],
    processes: Processes,
    skipped: list[Skipped],
) -> list[Clip]:
    """Encodes all clips and pieces: the kept clips from their pixels, the others decoded on the fly. Returns the
    clips that have codes.
    """
    grid, stage = plan.experiment.grid, f"{split}.tokens"
    shapes: dict[str, tuple[int, ...]] = {stage: (len(clips), *grid.shape)}
    for blocks in plan.piece_blocks:
        shapes[piece_name(split, blocks)] = (len(clips), grid.blocks - blocks + 1, blocks * grid.tokens_per_block)
    pixels = np.load(writer.folder / f"{split}.clips.npy", mmap_mode="r")
    work = LeftParts(writer.done(stage), pixels, pixel_rows, clips, plan.data, dead, processes)
    if work.left:
        arrays = {name: writer.create(name, shape, np.int32) for name, shape in shapes.items()}
        tokens_NT = arrays[stage].reshape(len(clips), grid.num_tokens)
        here = (encoder.encoded(part, plan.piece_blocks) for part in work)
        for done, part in enumerate(
            (
                plan.spread(encode_part, work.tasks(plan.experiment, plan.tokenizer_path, plan.piece_blocks))
                if plan.spread
                else here
            ),
            start=work.parts - len(work.left) + 1,
        ):
            if part.rows:
                tokens_NT[part.rows] = part.codes_BT
                for blocks, codes_BPT in part.pieces.items():
                    arrays[piece_name(split, blocks)][part.rows] = codes_BPT
            writer.note(stage, part.number, part.failed, part.equal)
            plan.progress(min(done * PART_CLIPS, len(clips)), len(clips), f"encoding {split} clips")
    failed = _settle(writer.failed(stage), clips, dead, skipped)
    good = [row for row in range(len(clips)) if row not in failed]
    for name in shapes:
        writer.keep_rows(name, good)
    kept = [clips[row] for row in good]
    writer.create(f"{split}.labels", (len(kept),), np.int64)[:] = [clip.label for clip in kept]
    return kept


def _settle(failures: list[Failure], clips: list[Clip], dead: dict[Path, str], skipped: list[Skipped]) -> set[int]:
    """Records every broken video once per reason. Returns the indices of clips without pixels."""
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
    """The longest run of equal frames in every video with a suspicious run."""
    longest: dict[Path, tuple[int, int]] = {}
    for path, first, last in writer.equal():
        begin, end = longest.get(path, (0, -1))
        if last - first > end - begin:
            longest[path] = (first, last)
    return [Skipped(path, f"its frames {first} to {last} are equal") for path, (first, last) in sorted(longest.items())]


def _add_missing_pieces(cache: TokenCache, plan: _CachePlan) -> None:
    """Adds pieces of new lengths to an existing cache."""
    for blocks in plan.piece_blocks:
        if not cache.has_pieces(blocks):
            with TokenCacheWriter(cache.path, f"pieces-{blocks}", plan.progress) as writer:
                if not cache.has_pieces(blocks):
                    for split in SPLITS:
                        _write_pieces(cache, plan, writer, split, blocks)
                    add_pieces(cache, writer, blocks)
                else:
                    writer.discard()


def _write_pieces(cache: TokenCache, plan: _CachePlan, writer: TokenCacheWriter, split: Split, blocks: int) -> None:
    stage, encoder = piece_name(split, blocks), plan.encoder()
    pixels, clips = cache.clips(split), cache.sources(split)
    with Processes(plan.data.decode_seconds) as processes:
        array = writer.create(stage, cache.piece_shape(split, blocks), np.int32)
        for part in LeftParts(writer.done(stage), pixels, range(len(pixels)), clips, plan.data, {}, processes):
            if part.failed:
                raise DataError(f"a clip of {cache.path} can no longer be decoded: {part.failed[0].reason}")
            array[part.rows] = encoder.pieces(part.video_BFCHW, blocks)
            writer.note(stage, part.number)
            plan.progress(
                min((part.number + 1) * PART_CLIPS, len(clips)),
                len(clips),
                f"encoding {split} pieces of {blocks} blocks",
            )
