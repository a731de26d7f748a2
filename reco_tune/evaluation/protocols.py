"""What FVD is measured against: the extractor and the real clips' features, each fitted or computed once and cached by what they depend on.

Knows settings, token caches and the cache folder; nothing of models that are judged.

    cache_dir/extractors/<fingerprint>/{extractor.safetensors, extractor.json}
    cache_dir/references/<fingerprint>/{reference.safetensors, reference.json}
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from reco_tune.data.layouts import Split
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError
from reco_tune.evaluation import video_features
from reco_tune.evaluation.frechet import Divisor, FeatureStatistics, Interval, frechet_interval
from reco_tune.evaluation.motion import motion_distance, motion_features
from reco_tune.evaluation.video_features import Extractor, fit_extractor, load_extractor
from reco_tune.progress import Progress, quiet
from reco_tune.settings import Experiment
from reco_tune.tokenizers import Tokenizer, load_tokenizer

VERSION = 1
"""Of the reference files: raised whenever the same real clips would give other numbers."""
DIVISOR: Divisor = "n-1"
"""Of every covariance."""
BATCH_CLIPS = 64


@dataclass(frozen=True)
class Prepared:
    """Everything that a model's clips are compared with."""

    protocol: str
    """Name of all that must be equal for two FVDs to be comparable."""
    extractor: Extractor
    features_MD: NDArray[np.float64]
    """Of the real clips."""
    motion_MD: NDArray[np.float64]
    """`motion_features` of the real clips."""
    statistics: FeatureStatistics
    facts: dict[str, Any]
    """About the reference: clips, class accuracy on it, and the floor: what held-out real clips score by the same measure."""


def prepare_evaluation(experiment: Experiment, cache: TokenCache, progress: Progress = quiet) -> Prepared:
    """Fits the extractor and describes the real clips, or reads what an earlier call left in `experiment.cache_dir`.

    Raises:
        SettingsError: where the protocol needs classes and the data have none.
        DataError: where there are no pixels or too few clips, or a cached file is damaged.
    """
    cache.require_pixels()
    extractor = _extractor(experiment, cache, progress)
    evaluation = experiment.evaluation
    split: Split = evaluation.reference_split
    available = len(cache.tokens(split)) if evaluation.reference == "reconstructed" else len(cache.clips(split))
    clips = min(evaluation.reference_clips, available)
    if clips < 2:
        raise DataError(
            f"FVD needs at least 2 real clips, but the {split} split of {cache.path} has {clips}; add videos or take the other split"
        )
    arrays, facts = _reference(experiment, cache, extractor, split, clips, progress)
    data = experiment.data
    shape = f"{data.clip_frames}x{data.size_px}x{data.size_px}/stride{data.frame_stride}"
    sampled = f"n{evaluation.samples}x{evaluation.sampling_seeds}"
    protocol = f"{evaluation.protocol}/{shape}/{evaluation.reference}/{split}{clips}/{sampled}/{extractor.hash[:8]}"
    statistics = FeatureStatistics.of(arrays["features"], DIVISOR)
    return Prepared(protocol, extractor, arrays["features"], arrays["motion"], statistics, facts)


def sample_labels(reference_labels_M: NDArray[np.int64], num_classes: int, count: int) -> NDArray[np.int64]:
    """Classes of `count` clips to generate: the reference's frequencies, as evenly mixed as can be, the same list for every model.

    Each place goes to the class that is farthest behind its share, so that every beginning of the list is balanced too.
    """
    shares = np.bincount(reference_labels_M, minlength=num_classes) / len(reference_labels_M)
    given = np.zeros(num_classes)
    labels = np.empty(count, dtype=np.int64)
    for place in range(count):
        labels[place] = chosen = int(np.argmax(np.where(shares > 0, shares * (place + 1) - given, -np.inf)))
        given[chosen] += 1
    return labels


def _extractor(experiment: Experiment, cache: TokenCache, progress: Progress) -> Extractor:
    protocol = experiment.evaluation.protocol
    clips, heldout = cache.clips("train"), cache.clips("test")
    key = [video_features.VERSION, protocol, cache.data_fingerprint, list(clips.shape), cache.num_classes]
    folder = experiment.cache_dir / "extractors" / _fingerprint(key)
    if not folder.exists():
        extractor = fit_extractor(
            protocol,
            clips,
            cache.labels("train")[: len(clips)],
            cache.num_classes,
            heldout,
            cache.labels("test")[: len(heldout)],
            progress,
            _device(experiment),
        )
        _publish(folder, extractor.save)
    return load_extractor(folder)


def _reference(
    experiment: Experiment, cache: TokenCache, extractor: Extractor, split: Split, clips: int, progress: Progress
) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    kind = experiment.evaluation.reference
    tokenizer = load_tokenizer(cache.tokenizer_path) if kind == "reconstructed" else None
    floor_clips = min(experiment.evaluation.samples, len(cache.clips("test")))
    key = [
        VERSION,
        extractor.hash,
        cache.data_fingerprint,
        cache.tokenizer_fingerprint if tokenizer else "",
        split,
        clips,
        kind,
        DIVISOR,
        floor_clips,
    ]
    folder = experiment.cache_dir / "references" / _fingerprint(key)
    if not folder.exists():
        device = _device(experiment)
        features, motion, accuracies = _describe(cache, extractor, tokenizer, split, clips, device, progress)
        facts: dict[str, Any] = {"reference_clips": clips, **accuracies}
        if floor_clips >= 2 and split == "train":
            heldout_features, heldout_motion, _ = _describe(cache, extractor, tokenizer, "test", floor_clips, device, progress)
            labels = cache.labels("test")[:floor_clips]
            floor: Interval = frechet_interval(heldout_features, FeatureStatistics.of(features, DIVISOR), labels)
            facts |= {"floor_clips": floor_clips, "fvd_floor": floor.value, "motion_floor": motion_distance(heldout_motion, motion)}
        arrays = {"features": features, "motion": motion}

        def save(target: Path) -> None:
            target.mkdir(parents=True)
            save_file(arrays, target / "reference.safetensors")
            (target / "reference.json").write_text(json.dumps({"key": key, "facts": facts}, indent=1) + "\n", encoding="utf-8")

        _publish(folder, save)
    try:
        return load_file(folder / "reference.safetensors"), json.loads((folder / "reference.json").read_text(encoding="utf-8"))["facts"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(
            f"{folder} does not hold reference features that can be read; delete that folder and they are computed again"
        ) from error


def _describe(
    cache: TokenCache, extractor: Extractor, tokenizer: Tokenizer | None, split: Split, clips: int, device: str, progress: Progress
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
    """Features and motion features of the first real clips, and how well a classifier knows them: the ceiling of generated ones."""
    features, motion, hits, frame_hits = [], [], [], []
    for start, video_BFCHW in _real_clips(cache, tokenizer, split, clips):
        described = extractor.describe(video_BFCHW, device)
        features.append(described.features_BD)
        motion.append(motion_features(video_BFCHW))
        if described.class_B is not None and described.frame_class_BF is not None:
            labels_B = cache.labels(split)[start : start + len(video_BFCHW)]
            hits.append(described.class_B == labels_B)
            frame_hits.append(described.frame_class_BF == labels_B[:, None])
        progress(start + len(video_BFCHW), clips, f"describing real {split} clips")
    accuracies: dict[str, Any] = {}
    if hits:
        accuracies["reference_class_accuracy"] = float(np.concatenate(hits).mean())
        accuracies["reference_frame_accuracy"] = np.concatenate(frame_hits).mean(axis=0).tolist()
    return np.concatenate(features), np.concatenate(motion), accuracies


def _real_clips(cache: TokenCache, tokenizer: Tokenizer | None, split: Split, clips: int) -> Iterator[tuple[int, Tensor]]:
    """Batches of the first clips with the number of their first: decoded from their tokens, or raw without a tokenizer."""
    for start in range(0, clips, BATCH_CLIPS):
        stop = min(start + BATCH_CLIPS, clips)
        if tokenizer is None:
            yield start, torch.from_numpy(np.array(cache.clips(split)[start:stop]))
        else:
            tokens = torch.from_numpy(np.array(cache.tokens(split)[start:stop])).long()
            with torch.no_grad():
                yield start, tokenizer.decode(tokens.view(-1, *cache.grid))


def _device(experiment: Experiment) -> str:
    """The driver may have no GPU where its workers have."""
    return "cuda" if experiment.device_type == "cuda" and torch.cuda.is_available() else "cpu"


def _fingerprint(key: list[Any]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def _publish(folder: Path, save: Callable[[Path], None]) -> None:
    """Saves beside the final place and renames, so that a half-written folder is never found."""
    temporary = folder.with_name(f".writing-{uuid.uuid4().hex[:12]}")
    try:
        save(temporary)
        temporary.rename(folder)
    except OSError:
        if not folder.exists():  # else another process finished the same work first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
