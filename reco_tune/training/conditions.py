"""The condition of each clip of a cache: its class, its caption, or nothing."""

from __future__ import annotations

import numpy as np

from reco_tune.data.layouts import Split
from reco_tune.data.token_cache import TokenCache
from reco_tune.settings import Experiment
from reco_tune.windows import PADDING


def num_conditions(experiment: Experiment, cache: TokenCache) -> int:
    """Number of classes of the model, or of words. The next number means none."""
    if experiment.model.condition == "text":
        return cache.captions(experiment.captions_name).num_words
    return cache.num_classes if sees_classes(experiment) else 1


def sees_classes(experiment: Experiment) -> bool:
    return experiment.model.condition == "class" and experiment.data.class_conditional


def conditions(experiment: Experiment, cache: TokenCache, split: Split) -> np.ndarray:
    """int64 [N] classes, or [N, C] words of each clip's first caption."""
    if experiment.model.condition == "text":
        return cache.captions(experiment.captions_name).words(split)
    labels = np.array(cache.labels(split), dtype=np.int64)
    return labels if sees_classes(experiment) else np.zeros_like(labels)


def without(dropped: np.ndarray, given: np.ndarray, null: int) -> np.ndarray:
    """The conditions. Dropped ones are replaced by none."""
    if given.ndim == 1:
        return np.where(dropped, null, given)
    nothing = np.full_like(given, PADDING)
    nothing[:, -1] = null
    return np.where(dropped[:, None], nothing, given)
