"""What FVD compares with: the extractor and the features of the real clips. Both are computed once and cached under a
fingerprint of their inputs.

Knows settings, token caches and the cache folder, not the evaluated models.

    cache_dir/extractors/<fingerprint>/{extractor.safetensors, extractor.json}
    cache_dir/references/<fingerprint>/{reference.safetensors, reference.json}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from reco_tune.data.layouts import Split
from reco_tune.data.token_cache import TokenCache
from reco_tune.device import exact_float32, in_halves
from reco_tune.errors import DataError, SettingsError
from reco_tune.evaluation import video_features
from reco_tune.evaluation.clip_score import clip_protocol
from reco_tune.evaluation.flow import CLIPS as FLOW_CLIPS
from reco_tune.evaluation.flow import flow_changes, require_flow, unexplained
from reco_tune.evaluation.frechet import Divisor, FeatureStatistics, Interval, frechet_interval
from reco_tune.evaluation.i3d import I3D, load_i3d
from reco_tune.evaluation.memorising import Memory
from reco_tune.evaluation.motion import motion_distance, motion_features
from reco_tune.evaluation.video_features import (
    NO_CLASSES,
    ClipDescription,
    Extractor,
    Protocol,
    fit_extractor,
    load_extractor,
)
from reco_tune.files import publish
from reco_tune.progress import Progress, quiet
from reco_tune.settings import Experiment
from reco_tune.settings.protocols import I3D_SHA256, PUBLISHED
from reco_tune.tokenizers import Tokenizer, load_tokenizer
from reco_tune.training import Group

VERSION = 1
"""Version of the reference files: raise it whenever the same real clips would give other numbers."""
DIVISOR: Divisor = "n-1"
"""Divisor of every covariance of a native protocol. Published protocols define their own."""
BATCH_CLIPS = 64


@dataclass(frozen=True)
class EvaluationReference:
    """Everything that a model's clips are compared with."""

    protocol: str
    """Name of the protocol. Two FVDs are comparable only if they have the same name."""
    extractor: Extractor | I3D
    classifier: Extractor | None
    """Predicts the classes of clips and frames, under any protocol. None where the data have no classes."""
    features_MD: NDArray[np.float64]
    """Features of the real clips."""
    motion_MD: NDArray[np.float64]
    """`motion_features` of the real clips."""
    statistics: FeatureStatistics
    facts: dict[str, Any]
    """About the reference: the number of clips, the class accuracy on them, and the floor (the FVD of held-out real
    clips).
    """
    folders: tuple[Path, ...]
    """Folders of these files in the cache folder."""
    memory: Memory | None = None
    """Tells copies of training clips from new clips. None unless FVD compares with both splits."""


def prepare_evaluation(experiment: Experiment, cache: TokenCache, progress: Progress = quiet) -> EvaluationReference:
    """Fits the extractor and computes the features of the real clips, or reads both from `experiment.cache_dir`.

    Raises:
        SettingsError: if the protocol needs classes and the data have none, or a package is missing.
        DataError: if there are no pixels or too few clips, a cached file is damaged, or I3D's file is missing or
            has another hash.
    """
    cache.require_pixels()
    exact_float32()
    evaluation = experiment.evaluation
    if evaluation.flow:
        require_flow()
    told = experiment.model.condition != "none"  # without a condition, there is no class to hit
    classified = experiment.data.class_conditional and cache.num_classes >= 2 and told
    kinds = dict.fromkeys(
        ([] if evaluation.protocol in PUBLISHED else [evaluation.protocol]) + (["native"] if classified else [])
    )
    fitted = {kind: _fitted(kind, experiment, cache, progress) for kind in kinds}
    classifier = fitted["native"] if classified else None  # no other extractor learns classes
    extractor = fitted.get(evaluation.protocol) or _i3d(experiment)
    split = first_split(experiment)
    clips = _reference_clips(experiment, cache, split)
    folder, arrays, facts = _reference(experiment, cache, extractor, classifier, split, clips, progress)
    memory, folders = None, [folder]
    if evaluation.reference_split == "both":
        heldout = _reference_clips(experiment, cache, "test")
        folder, others, _ = _reference(experiment, cache, extractor, classifier, "test", heldout, progress)
        folders.append(folder)
        clips = min(
            clips, heldout
        )  # equal counts on both sides: a Fréchet distance depends on the number of real clips
        held_out = FeatureStatistics.of(others["features"][:clips], _divisor(extractor))
        memory = Memory.of(arrays["features"], others["features"], held_out)
        facts |= {"copied_from_clips": len(memory.training_MD), "copy_distance": memory.distance}
        arrays = {name: values[:clips] for name, values in arrays.items()}
    data, departures = experiment.data, deviations(experiment)
    frames = extractor.published.frames if isinstance(extractor, I3D) else data.clip_frames
    shape = f"{frames}x{data.size_px}x{data.size_px}/stride{data.frame_stride}"
    sampled = f"n{evaluation.samples}x{evaluation.sampling_seeds}"
    name = f"{evaluation.protocol}*" if departures else evaluation.protocol
    protocol = (
        f"{name}/{shape}/{evaluation.reference}/{evaluation.reference_split}{clips}/{sampled}/{extractor.hash[:8]}"
    )
    protocol += "/best" if evaluation.checkpoint == "best" else ""
    if experiment.model.condition == "text":
        captions = cache.captions(experiment.captions_name)
        protocol += f"/{captions.rule} caption of {split} {captions.fingerprint[:8]}"
    protocol += f"/{scores}" if (scores := clip_protocol(experiment)) else ""
    statistics = FeatureStatistics.of(arrays["features"], _divisor(extractor))
    facts |= {"protocol_deviations": departures} if evaluation.protocol in PUBLISHED else {}
    folders += [_extractor_folder(kind, experiment, cache) for kind in kinds]
    features, motion = arrays["features"], arrays["motion"]
    return EvaluationReference(
        protocol, extractor, classifier, features, motion, statistics, facts, tuple(folders), memory
    )


def first_split(experiment: Experiment) -> Split:
    """The split that FVD compares with and whose classes are generated. With `both`, it is the training split."""
    split = experiment.evaluation.reference_split
    return "train" if split == "both" else split


def _reference_clips(experiment: Experiment, cache: TokenCache, split: Split) -> int:
    """
    Raises:
        DataError: if there are too few.
    """
    evaluation = experiment.evaluation
    available = len(cache.tokens(split)) if evaluation.reference == "reconstructed" else len(cache.clips(split))
    clips = min(evaluation.reference_clips, available)
    if clips < 2:
        raise DataError(
            f"FVD needs at least 2 real clips, but the {split} split of {cache.path} has {clips}; add videos or take"
            " the other split"
        )
    return clips


def prepare_together(experiment: Experiment, cache: TokenCache, group: Group) -> EvaluationReference:
    """`prepare_evaluation` on all ranks. Rank 0 alone computes what is not cached yet.

    Raises:
        SettingsError, DataError: as `prepare_evaluation`.
    """
    if not group.leads:
        group.barrier()
    reference = prepare_evaluation(experiment, cache)
    if group.leads:
        group.barrier()
    return reference


def check_extractor(experiment: Experiment, classes: bool | None = None) -> None:
    """Opens I3D's file where the protocol needs it. Its first real use comes hours later, after encoding, so check it
    early.

    Args:
        classes: whether the data have classes; None if this is not known.

    Raises:
        DataError: if the file is missing or has another hash.
        SettingsError: if the protocol needs classes and the data have none.
    """
    if experiment.evaluation.protocol in PUBLISHED:
        _i3d(experiment)
    if experiment.evaluation.protocol == "native" and classes is False:
        raise SettingsError(NO_CLASSES)


def deviations(experiment: Experiment) -> list[str]:
    """Settings that differ from the protocol in `evaluation.protocol`, whose name then gets a star. Empty for native
    protocols.
    """
    published, layout = PUBLISHED.get(experiment.evaluation.protocol), experiment.data.layout
    if published is None:
        return []
    expected = {
        "data.frame_stride": published.frame_stride(layout),
        "data.resize": published.crop,
        "evaluation.samples": published.samples,
        "evaluation.reference_clips": published.reference_clips,
        "evaluation.reference_split": "train",
        "evaluation.reference": "raw",
        "evaluation.extractor_sha256": I3D_SHA256,
    }
    given = experiment.flat()
    why = {"data.frame_stride": f" with data.layout {layout}"} if len(published.frame_strides) > 1 else {}
    return [
        f"{key} {given[key]} instead of {value}{why.get(key, '')}"
        for key, value in expected.items()
        if given[key] != value
    ]


def sample_labels(reference_labels_M: NDArray[np.int64], num_classes: int, count: int) -> NDArray[np.int64]:
    """Classes of `count` clips to generate: the class frequencies of the reference, mixed evenly. The list is the
    same for every model.

    Each place goes to the class that is farthest behind its share. So every prefix of the list is balanced, too.
    """
    shares = np.bincount(reference_labels_M, minlength=num_classes) / len(reference_labels_M)
    given = np.zeros(num_classes)
    labels = np.empty(count, dtype=np.int64)
    for place in range(count):
        labels[place] = chosen = int(np.argmax(np.where(shares > 0, shares * (place + 1) - given, -np.inf)))
        given[chosen] += 1
    return labels


def _fitted(protocol: str, experiment: Experiment, cache: TokenCache, progress: Progress) -> Extractor:
    """The extractor of a native protocol, fitted once to the raw clips of the data set."""
    clips, heldout = cache.clips("train"), cache.clips("test")
    folder = _extractor_folder(protocol, experiment, cache)
    if not folder.exists():
        extractor = fit_extractor(
            cast(Protocol, protocol),
            clips,
            cache.labels("train")[: len(clips)],
            cache.num_classes,
            heldout,
            cache.labels("test")[: len(heldout)],
            progress,
            _device(experiment),
        )
        publish(folder, extractor.save)
    return load_extractor(folder)


def _extractor_folder(protocol: str, experiment: Experiment, cache: TokenCache) -> Path:
    key = [
        video_features.VERSION,
        protocol,
        cache.data_fingerprint,
        list(cache.clips("train").shape),
        cache.num_classes,
    ]
    return experiment.cache_dir / "extractors" / _fingerprint(key)


def _i3d(experiment: Experiment) -> I3D:
    evaluation = experiment.evaluation
    assert evaluation.extractor_path is not None  # settings are checked when they are made
    return load_i3d(
        evaluation.extractor_path, evaluation.extractor_sha256, evaluation.protocol, PUBLISHED[evaluation.protocol]
    )


def _divisor(extractor: Extractor | I3D) -> Divisor:
    return extractor.published.divisor if isinstance(extractor, I3D) else DIVISOR


def _reference(
    experiment: Experiment,
    cache: TokenCache,
    extractor: Extractor | I3D,
    classifier: Extractor | None,
    split: Split,
    clips: int,
    progress: Progress,
) -> tuple[Path, dict[str, NDArray[np.float64]], dict[str, Any]]:
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
        _divisor(extractor),
        floor_clips,
    ]
    if classifier is not None and classifier is not extractor:  # it is cached with the reference too
        key.append(classifier.hash)
    if experiment.evaluation.flow:
        key.append("flow")
    if isinstance(extractor, I3D):
        key += [extractor.protocol, *extractor.published[:-1]]
    folder = experiment.cache_dir / "references" / _fingerprint(key)
    if not folder.exists():
        device = _device(experiment)
        features, motion, accuracies = _describe(
            cache, extractor, classifier, tokenizer, split, clips, device, progress
        )
        facts = {"reference_clips": clips, **accuracies}
        if experiment.evaluation.flow:
            shown = (
                video_BFCHW for _, video_BFCHW in _real_clips(cache, tokenizer, split, min(clips, FLOW_CLIPS), device)
            )
            facts["reference_flow_unexplained"] = unexplained(
                np.concatenate([flow_changes(video_BFCHW) for video_BFCHW in shown])
            )
        if floor_clips >= 2 and split == "train":
            heldout_features, heldout_motion, _ = _describe(
                cache, extractor, None, tokenizer, "test", floor_clips, device, progress
            )
            labels = cache.labels("test")[:floor_clips]
            floor: Interval = frechet_interval(
                heldout_features, FeatureStatistics.of(features, _divisor(extractor)), labels
            )
            facts |= {
                "floor_clips": floor_clips,
                "fvd_floor": floor.value,
                "motion_floor": motion_distance(heldout_motion, motion),
            }
        arrays = {"features": features, "motion": motion}

        def save(target: Path) -> None:
            target.mkdir(parents=True)
            save_file(arrays, target / "reference.safetensors")
            (target / "reference.json").write_text(
                json.dumps({"key": key, "facts": facts}, indent=1) + "\n", encoding="utf-8"
            )

        publish(folder, save)
    try:
        facts = json.loads((folder / "reference.json").read_text(encoding="utf-8"))["facts"]
        return folder, load_file(folder / "reference.safetensors"), facts
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(
            f"{folder} does not hold reference features that can be read; delete that folder and they are computed"
            " again"
        ) from error


def _describe(
    cache: TokenCache,
    extractor: Extractor | I3D,
    classifier: Extractor | None,
    tokenizer: Tokenizer | None,
    split: Split,
    clips: int,
    device: str,
    progress: Progress,
) -> tuple[NDArray[np.float64], NDArray[np.float64], dict[str, Any]]:
    """Features and motion features of the first real clips, and the classifier's accuracy on them. That accuracy is
    the ceiling for generated clips.
    """
    features, motion, hits, frame_hits = [], [], [], []
    for start, video_BFCHW in _real_clips(cache, tokenizer, split, clips, device):
        described = extractor.describe(video_BFCHW, device)
        features.append(described.features_BD)
        motion.append(motion_features(video_BFCHW))
        if classifier is not None:
            known = classes_of(video_BFCHW, described, extractor, classifier, device)
            labels_B = cache.labels(split)[start : start + len(video_BFCHW)]
            hits.append(known.class_B == labels_B)
            frame_hits.append(known.frame_class_BF == labels_B[:, None])
        progress(start + len(video_BFCHW), clips, f"describing real {split} clips")
    accuracies: dict[str, Any] = {}
    if hits:
        accuracies["reference_class_accuracy"] = float(np.concatenate(hits).mean())
        accuracies["reference_frame_accuracy"] = np.concatenate(frame_hits).mean(axis=0).tolist()
    return np.concatenate(features), np.concatenate(motion), accuracies


def classes_of(
    video_BFCHW: Tensor, described: ClipDescription, extractor: Extractor | I3D, classifier: Extractor, device: str
) -> ClipDescription:
    """The classifier's description of the clips. If the classifier is also the extractor, `described` is reused."""
    return described if classifier is extractor else classifier.describe(video_BFCHW, device)


def _real_clips(
    cache: TokenCache, tokenizer: Tokenizer | None, split: Split, clips: int, device: str
) -> Iterator[tuple[int, Tensor]]:
    """Batches of the first clips, each with the index of its first clip. Decoded from tokens on `device`, or raw if
    there is no tokenizer.
    """
    for start in range(0, clips, BATCH_CLIPS):
        stop = min(start + BATCH_CLIPS, clips)
        if tokenizer is None:
            yield start, torch.from_numpy(np.array(cache.clips(split)[start:stop])).to(device)
        else:
            tokens = torch.from_numpy(np.array(cache.tokens(split)[start:stop])).long()
            with torch.no_grad():
                yield start, in_halves(tokenizer.decode, tokens.view(-1, *cache.grid).to(device))


def _device(experiment: Experiment) -> str:
    """The driver may have no GPU even if its workers do."""
    return "cuda" if experiment.device_type == "cuda" and torch.cuda.is_available() else "cpu"


def _fingerprint(key: list[Any]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
