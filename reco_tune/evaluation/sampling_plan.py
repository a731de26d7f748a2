"""Which clips a model is asked for: their classes, their batches and the seed of each batch, the same for every model.

Every batch has a seed of its own, made of the sampling seed and the batch's number, so that it does not matter which
rank draws it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reco_tune.data.token_cache import TokenCache
from reco_tune.evaluation.protocols import first_split, sample_labels
from reco_tune.settings import Experiment


class SamplingBatch(NamedTuple):
    """Clips `start` .. `stop - 1` of one sampling seed."""

    sampling_seed: int
    start: int
    stop: int
    draw_seed: int


def requested_labels(experiment: Experiment, cache: TokenCache) -> NDArray[np.int64]:
    """Classes to ask for, one list for every sampling seed; every beginning of it has the same mixture."""
    count = experiment.evaluation.samples
    if not experiment.data.class_conditional:
        return np.zeros(count, dtype=np.int64)
    reference = cache.labels(first_split(experiment))[: experiment.evaluation.reference_clips]
    return sample_labels(reference, cache.num_classes, count)


def batches_of(samples: int, sampling_seeds: int, batch_size: int) -> Iterator[SamplingBatch]:
    """All batches, sampling seed after sampling seed."""
    for sampling_seed in range(sampling_seeds):
        for number, start in enumerate(range(0, samples, batch_size)):
            yield SamplingBatch(sampling_seed, start, min(start + batch_size, samples), seed_of(sampling_seed, number))


def seed_of(*parts: object) -> int:
    """A seed that differs for every sequence of parts and is the same on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7], "big")
