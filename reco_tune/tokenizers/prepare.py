"""From a folder of videos to a token cache: render, list, decode once, fit, encode, write.

Finished parts are found by their fingerprints and reused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from reco_tune import settings
from reco_tune.data.clips import Clip, Skipped, decode, list_clips
from reco_tune.data.layouts import SPLITS, Split, data_fingerprint, list_videos
from reco_tune.data.synthetic import render_digits, rendering_settings
from reco_tune.data.token_cache import MANIFEST, TokenCache, TokenCacheWriter, add_pieces, create_array
from reco_tune.errors import DataError
from reco_tune.progress import Progress, quiet
from reco_tune.tokenizers.base import Tokenizer, load_parts
from reco_tune.tokenizers.kmeans import KIND as KMEANS
from reco_tune.tokenizers.kmeans import KMeansTokenizer, fit_kmeans
from reco_tune.tokenizers.vector_quantized import KIND as VQ
from reco_tune.tokenizers.vector_quantized import VectorQuantizedTokenizer, fit_vector_quantized

_BATCH_CLIPS = 64


class _Encoder(NamedTuple):
    """A tokenizer, where it runs, and how the clips it gets are cut."""

    tokenizer: Tokenizer
    data: settings.Data
    device: str

    def codes(self, video_BFCHW: torch.Tensor) -> np.ndarray:
        """int32 [B, T]."""
        return self.tokenizer.encode(video_BFCHW.to(self.device)).flatten(1).to(torch.int32).cpu().numpy()

    def pieces(self, video_BFCHW: torch.Tensor, blocks: int) -> np.ndarray:
        """int32 [B, P, tokens]: the sub-clips from frame j * temporal_stride on, each encoded as a clip of its own."""
        step = self.tokenizer.temporal_stride
        frames = 1 + (blocks - 1) * step
        starts = range(0, video_BFCHW.shape[1] - frames + 1, step)
        return np.stack([self.codes(video_BFCHW[:, start : start + frames]) for start in starts], axis=1)


def fit_tokenizer(tokenizer: settings.Tokenizer, clips: np.ndarray, progress: Progress = quiet, device: str = "cpu") -> Tokenizer:
    """Fits the kind that `tokenizer` names to uint8 `clips` [N, F, 3, H, W]; `vq` trains on `device`."""
    if tokenizer.kind == KMEANS:
        return fit_kmeans(tokenizer, clips, progress)
    return fit_vector_quantized(tokenizer, clips, progress, device)


def load_tokenizer(path: Path) -> Tokenizer:
    """A saved tokenizer of any kind.

    Raises:
        DataError: if it is missing, foreign or damaged.
    """
    kind, values, weights = load_parts(Path(path))
    if kind not in (KMEANS, VQ):
        raise DataError(f"{path} holds a tokenizer of unknown kind {kind}; delete the folder {Path(path).name} and run again")
    try:
        return (KMeansTokenizer if kind == KMEANS else VectorQuantizedTokenizer).from_parts(values, weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"the tokenizer {path} is damaged ({error}); delete the folder {Path(path).name} and run again") from error


def prepare_tokens(experiment: settings.Experiment, progress: Progress = quiet, piece_blocks: Sequence[int] = ()) -> TokenCache:
    """The token cache of `experiment`, made where it does not exist, with pieces of each length in `piece_blocks`.

    Raises:
        DataError: if no usable clip is left, or something in the cache folder is damaged or foreign.
    """
    data = _with_root(experiment)
    if data.layout == "digits":
        assert data.root is not None
        render_digits(data.root, data, progress)
    videos = list_videos(data)
    source = data_fingerprint(videos, data)
    tokenizer_path = experiment.cache_dir / "tokenizers" / _hash(source, experiment.tokenizer.model_dump_json())
    device = experiment.device_type if torch.cuda.is_available() else "cpu"
    kept_clips = max(experiment.evaluation.reference_clips, experiment.evaluation.validation_clips, experiment.tokenizer.fit_clips)
    if tokenizer_path.exists():
        tokenizer = load_tokenizer(tokenizer_path)
        path = _cache_path(experiment, source, tokenizer, kept_clips)
        if path.exists():
            cache = _opened(path, source, tokenizer)
            _add_missing_pieces(cache, _Encoder(tokenizer, data, device), piece_blocks, progress)
            return cache
    listed = list_clips(data, videos, progress)
    clips: dict[Split, list[Clip]] = {"train": listed.train, "test": listed.test}
    skipped = list(listed.skipped)
    with TokenCacheWriter(experiment.cache_dir / "tokens") as writer:
        for split in SPLITS:
            clips[split] = _decode_first(writer, split, clips[split], data, kept_clips, skipped, progress)
        if not tokenizer_path.exists():
            pixels = np.load(writer.folder / "train.clips.npy", mmap_mode="r")
            fitted = fit_tokenizer(experiment.tokenizer, pixels[: experiment.tokenizer.fit_clips], progress, device)
            _save_whole(fitted, tokenizer_path)
        tokenizer = load_tokenizer(tokenizer_path)
        encoder = _Encoder(tokenizer, data, device)
        for split in SPLITS:
            clips[split] = _encode_all(writer, split, clips[split], encoder, experiment.grid, piece_blocks, skipped, progress)
        path = _cache_path(experiment, source, tokenizer, kept_clips)
        cache = writer.finish(
            path,
            fingerprint=path.name,
            data_fingerprint=source,
            tokenizer_fingerprint=tokenizer.fingerprint,
            tokenizer_path=tokenizer_path,
            grid=experiment.grid,
            num_codes=tokenizer.num_codes,
            class_names=listed.class_names,
            clips=clips,
            skipped=skipped,
        )
    _add_missing_pieces(cache, encoder, piece_blocks, progress)  # none, unless another process finished the same cache first
    return cache


def _with_root(experiment: settings.Experiment) -> settings.Data:
    """The data settings with an absolute root: a cache names its videos, and is read from any working folder."""
    data = experiment.data
    root = data.root
    if root is None and data.layout == "digits":
        root = experiment.cache_dir / "videos" / f"digits-{_hash(json.dumps(rendering_settings(data)))}"
    return data.model_copy(update={"root": root and root.absolute()})


def _cache_path(experiment: settings.Experiment, source: str, tokenizer: Tokenizer, kept_clips: int) -> Path:
    return experiment.cache_dir / "tokens" / _hash(source, tokenizer.fingerprint, str(kept_clips))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _opened(path: Path, source: str, tokenizer: Tokenizer) -> TokenCache:
    cache = TokenCache.open(path)
    if (cache.data_fingerprint, cache.tokenizer_fingerprint) != (source, tokenizer.fingerprint):
        raise DataError(f"{path / MANIFEST} belongs to other data or another tokenizer; delete the folder {path.name} and run again")
    return cache


def _save_whole(tokenizer: Tokenizer, path: Path) -> None:
    """Saves beside the final place and renames, so that a half-written tokenizer is never found."""
    temporary = path.with_name(f".writing-{uuid.uuid4().hex[:12]}")
    try:
        tokenizer.save(temporary)
        temporary.rename(path)
    except OSError:
        if not path.exists():  # else another process finished the same fit first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decode_first(
    writer: TokenCacheWriter, split: Split, clips: list[Clip], data: settings.Data, kept: int, skipped: list[Skipped], progress: Progress
) -> list[Clip]:
    """Keeps the pixels of the first `kept` clips; returns the clips without those that could not be decoded."""
    first = clips[:kept]
    shape = (len(first), data.clip_frames, 3, data.size_px, data.size_px)
    pixels = writer.create(f"{split}.clips", shape, np.uint8)
    good: list[int] = []
    for part in decode(first, data):
        pixels[part.rows] = part.video_BFCHW
        good += part.rows
        _report(part.failed, first, skipped)
        progress(len(good), len(first), f"decoding {split} clips")
    if not good:
        raise DataError(f"none of the {len(first)} {split} clips of {data.root} can be decoded; the first: {skipped[-1].reason}")
    if len(good) < len(first):
        writer.keep_rows(f"{split}.clips", sorted(good))
    return [first[row] for row in sorted(good)] + clips[kept:]


def _encode_all(
    writer: TokenCacheWriter,
    split: Split,
    clips: list[Clip],
    encoder: _Encoder,
    grid: settings.TokenGrid,
    piece_blocks: Sequence[int],
    skipped: list[Skipped],
    progress: Progress,
) -> list[Clip]:
    """Codes and pieces of all clips: the kept ones from their pixels, the others decoded now; returns the clips that have codes."""
    tokens = writer.create(f"{split}.tokens", (len(clips), grid.num_tokens), np.int32)
    pieces = {
        blocks: writer.create(f"{split}.pieces-{blocks}", (len(clips), grid.blocks - blocks + 1, blocks * grid.tokens_per_block), np.int32)
        for blocks in dict.fromkeys(piece_blocks)
    }
    pixels = np.load(writer.folder / f"{split}.clips.npy", mmap_mode="r")
    good: list[int] = []
    for rows, video in _videos(pixels, clips, encoder.data, skipped):
        tokens[rows] = encoder.codes(video)
        for blocks, array in pieces.items():
            array[rows] = encoder.pieces(video, blocks)
        good += rows
        progress(len(good), len(clips), f"encoding {split} clips")
    if len(good) < len(clips):
        for name in (f"{split}.tokens", *(f"{split}.pieces-{blocks}" for blocks in pieces)):
            writer.keep_rows(name, sorted(good))
    kept = [clips[row] for row in sorted(good)]
    writer.create(f"{split}.labels", (len(kept),), np.int64)[:] = [clip.label for clip in kept]
    return kept


def _videos(pixels: np.ndarray, clips: list[Clip], data: settings.Data, skipped: list[Skipped]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Rows and pixels of all clips, first those that `pixels` holds."""
    for start in range(0, len(pixels), _BATCH_CLIPS):
        batch = np.array(pixels[start : start + _BATCH_CLIPS])
        yield list(range(start, start + len(batch))), torch.from_numpy(batch)
    rest = clips[len(pixels) :]
    for part in decode(rest, data, _BATCH_CLIPS):
        _report(part.failed, rest, skipped)
        if part.rows:
            yield [len(pixels) + row for row in part.rows], torch.from_numpy(part.video_BFCHW)


def _report(failed: list[tuple[int, str]], clips: list[Clip], skipped: list[Skipped]) -> None:
    known = {(video, reason) for video, reason in skipped}
    for row, reason in failed:
        if (clips[row].path, reason) not in known:
            known.add((clips[row].path, reason))
            skipped.append(Skipped(clips[row].path, reason))


def _add_missing_pieces(cache: TokenCache, encoder: _Encoder, piece_blocks: Sequence[int], progress: Progress) -> None:
    missing = [blocks for blocks in dict.fromkeys(piece_blocks) if not cache.has_pieces(blocks)]
    for blocks in missing:
        temporary: dict[Split, Path] = {split: cache.path / f".writing-{uuid.uuid4().hex[:12]}.npy" for split in SPLITS}
        try:
            for split in SPLITS:
                _write_pieces(cache, encoder, split, blocks, temporary[split], progress)
            add_pieces(cache, blocks, temporary)
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)


def _write_pieces(cache: TokenCache, encoder: _Encoder, split: Split, blocks: int, path: Path, progress: Progress) -> None:
    array = create_array(path, cache.piece_shape(split, blocks), np.int32)
    skipped: list[Skipped] = []
    done = 0
    for rows, video in _videos(cache.clips(split), cache.sources(split), encoder.data, skipped):
        array[rows] = encoder.pieces(video, blocks)
        done += len(rows)
        progress(done, len(array), f"encoding {split} pieces of {blocks} blocks")
    if skipped:
        raise DataError(f"a clip of {cache.path} can no longer be decoded: {skipped[0].reason}")
