"""Which clips to generate: their classes, their batches and the seed of each batch. The plan is the same for every
model.

Each batch has its own seed, made from the sampling seed and the batch's number. So it does not matter which rank
generates it.
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
from reco_tune.training import sees_classes


class SamplingBatch(NamedTuple):
    """Clips `start` .. `stop - 1` of one sampling seed."""

    sampling_seed: int
    start: int
    stop: int
    draw_seed: int


class Asked(NamedTuple):
    """What the clips of one sampling seed should show. It is the same for every model and seed, and every prefix of
    the list has the same mixture.
    """

    labels_N: NDArray[np.int64]
    """Classes."""
    given_N: NDArray[np.int64]
    """Conditions for the model: classes [N], or the words of prompts [N, C]."""
    prompts_N: tuple[str, ...] | None
    """Prompts, if the model is conditioned on text. Metrics that compare clips with text use them."""

    def part(self, batch: SamplingBatch) -> Asked:
        """The part that belongs to the batch."""
        own = slice(batch.start, batch.stop)
        return Asked(self.labels_N[own], self.given_N[own], None if self.prompts_N is None else self.prompts_N[own])


def asked_for(experiment: Experiment, cache: TokenCache) -> Asked:
    """Classes with the frequencies of the reference clips, or the captions of these clips in their order."""
    count, split = experiment.evaluation.samples, first_split(experiment)
    reference = cache.labels(split)[: experiment.evaluation.reference_clips]
    if experiment.model.condition == "text":
        captions = cache.captions(experiment.captions_name)
        prompts = captions.prompts(split, len(reference), count)
        clips, texts = np.array([clip for clip, _ in prompts]), tuple(text for _, text in prompts)
        return Asked(reference[clips], captions.encoded(texts), texts)
    if not sees_classes(experiment):
        nothing = np.zeros(count, dtype=np.int64)
        return Asked(nothing, nothing, None)
    labels = sample_labels(reference, cache.num_classes, count)
    return Asked(labels, labels, None)


def batches_of(samples: int, sampling_seeds: int, batch_size: int) -> Iterator[SamplingBatch]:
    """All batches, one sampling seed after another."""
    for sampling_seed in range(sampling_seeds):
        for number, start in enumerate(range(0, samples, batch_size)):
            yield SamplingBatch(sampling_seed, start, min(start + batch_size, samples), seed_of(sampling_seed, number))


def seed_of(*parts: object) -> int:
    """A seed that differs for every sequence of parts and is the same on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7], "big")
