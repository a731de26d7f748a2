"""Makes a token cache from a user's own codes (`data.layout: tokens`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reco_tune import settings
from reco_tune.data.clips import PART_CLIPS, Clip, check_enough
from reco_tune.data.layouts import Split, data_fingerprint
from reco_tune.data.token_arrays import read_coded_clips, read_headers, token_files
from reco_tune.data.token_cache import NO_TOKENIZER, TokenCache, TokenCacheWriter
from reco_tune.data.token_sets import Windows, is_token_set, read_token_set, token_set_files
from reco_tune.preparation.cache_paths import absolute_data, folder_name


def check_codes_there(experiment: settings.Experiment) -> None:
    """Checks that the codes exist and have the right shape, without reading them.

    Raises:
        DataError: if they do not.
    """
    data, grid = experiment.data, experiment.grid
    if is_token_set(data):
        read_token_set(data, grid, experiment.tokenizer.num_codes)
    else:
        read_headers(data, grid)


def import_codes(experiment: settings.Experiment) -> TokenCache:
    """The token cache of the codes under `data.root`, created if it does not exist. It has no pixels.

    Raises:
        DataError: if the files are missing, of another shape, or too few.
    """
    data = absolute_data(experiment)
    grid, num_codes = experiment.grid, experiment.tokenizer.num_codes
    recorded = is_token_set(data)
    source = data_fingerprint(token_set_files(data) if recorded else token_files(data), data)
    made_elsewhere = folder_name("made elsewhere", str(num_codes), str(tuple(grid)))
    path = experiment.cache_dir / "tokens" / folder_name(source, made_elsewhere)
    if path.exists():
        return TokenCache.open(path)
    parts, class_names = _recorded(data, grid, num_codes) if recorded else _given(data, grid, num_codes)
    clips: dict[Split, list[Clip]] = {}
    with TokenCacheWriter(path.parent) as writer:
        for number, (split, (tokens, labels, place)) in enumerate(parts.items()):
            check_enough(len(tokens), data, split, [])
            cap = data.train_clips if split == "train" else data.test_clips
            order = np.random.default_rng([data.seed, number]).permutation(len(tokens))[:cap]
            array = writer.create(f"{split}.tokens", (len(order), *grid.shape), np.int32)
            for start in range(0, len(order), PART_CLIPS):
                rows = order[start : start + PART_CLIPS]
                array[start : start + len(rows)] = tokens[rows].reshape(len(rows), *grid.shape)
            writer.create(f"{split}.labels", (len(order),), np.int64)[:] = labels[order]
            writer.create(f"{split}.clips", (0, data.clip_frames, 3, data.size_px, data.size_px), np.uint8)
            assert data.root is not None
            places = ((place(row), int(labels[row])) for row in order.tolist())
            clips[split] = [Clip(file.relative_to(data.root), start, label) for (file, start), label in places]
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


class _Part(NamedTuple):
    """Clips of one split: their codes (indexed by an array of rows), their labels, and the source of each."""

    tokens: np.ndarray | Windows
    labels: np.ndarray
    place: Callable[[int], tuple[Path, int]]


def _given(data: settings.Data, grid: settings.TokenGrid, num_codes: int) -> tuple[dict[Split, _Part], tuple[str, ...]]:
    """Clips from arrays of codes that are already cut into clips."""
    found, class_names = read_coded_clips(data, grid, num_codes)
    return {
        split: _Part(own.tokens, own.labels, partial(_row_of, own.path)) for split, own in found.items()
    }, class_names


def _row_of(path: Path, row: int) -> tuple[Path, int]:
    return path, row


def _recorded(
    data: settings.Data, grid: settings.TokenGrid, num_codes: int
) -> tuple[dict[Split, _Part], tuple[str, ...]]:
    """Clips cut from recordings. They have no classes."""
    found = read_token_set(data, grid, num_codes)
    parts = {split: _Part(own, np.zeros(len(own), np.int64), own.place) for split, own in found.items()}
    return parts, ("all",)
