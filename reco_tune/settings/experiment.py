"""One experiment: everything that a single training run and its evaluation depend on.

Settings are frozen and checked here. Other code reads them and passes plain numbers on.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import model_validator

from reco_tune.settings.checks import check_combinations, check_shapes, training_in_steps, window_in_tokens
from reco_tune.settings.sections import Sections

WHERE = ("resources.", "data.root", "data.cache_dir", "evaluation.extractor_path", "training.checkpoint_minutes")
"""Key prefixes of settings that affect no result: where a run works, and where and how often it writes files."""
LATER = {
    "data.grid": None,
    "data.caption_rule": "first",
    "model.condition": "class",
    "model.text_tokens": 32,
    "model.text_tokenizer": "words",
    "training.residual": "float32",
    "training.keep_best": False,
    "training.epochs": None,
    "training.token_dropout": 0.0,
    "training.warmup_fraction": 0.0,
    "sampling.cache_precision": "model",
    "sampling.cache_blocks": None,
    "window.prefix_resampled": 0.0,
    "evaluation.checkpoint": "last",
    "evaluation.measure": None,
    "evaluation.clip": None,
    "evaluation.clip_frames": "all",
    "evaluation.clip_scale": "percent",
    "model.kind": "transformer",
    "objective.term": None,
    "objective.term_weight": 0.0,
}
"""Settings added after the first release, with their defaults. At its default such a setting does not enter a hash,
so the hashes of old runs stay the same.
"""
COSTLESS = frozenset(
    f"training.{key}"
    for key in (
        "steps",
        "epochs",
        "learning_rate",
        "schedule",
        "warmup_steps",
        "warmup_fraction",
        "weight_decay",
        "beta1",
        "beta2",
        "gradient_clip",
        "class_dropout",
        "token_dropout",
        "rungs",
        "keep_best",
        "checkpoint_minutes",
        "seed",
    )
)
"""Training settings that do not change the cost of an optimiser step. Any other may."""


class Experiment(Sections):
    """All settings of one run. Its sections fit together, and `window` is in tokens."""

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        check_shapes(self)
        object.__setattr__(self, "window", window_in_tokens(self.window, self.grid))
        object.__setattr__(self, "training", training_in_steps(self))
        check_combinations(self)
        return self

    def flat(self) -> dict[str, Any]:
        """Every setting by dotted key, as plain JSON values."""
        return flatten(self.model_dump(mode="json"))

    def result_settings(self) -> dict[str, Any]:
        """The settings that affect results, by dotted key: all but `WHERE`."""
        return {key: value for key, value in self.flat().items() if not key.startswith(WHERE)}

    def where_settings(self) -> dict[str, Any]:
        """The settings that affect no result: where the run works and where its files are."""
        return {key: value for key, value in self.flat().items() if key.startswith(WHERE)}

    def step_settings(self) -> dict[str, Any]:
        """The settings, by dotted key, that may change the cost of an optimiser step and may differ between two runs of
        a study.
        """
        return {key: value for key, value in self.flat().items() if step_cost(key)}

    def result_hash(self) -> str:
        """Hash of the settings that affect results."""
        kept = {key: value for key, value in self.result_settings().items() if key not in LATER or LATER[key] != value}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def step_cost(key: str) -> bool:
    """Whether a setting may change the cost of an optimiser step and may differ between two runs of a study."""
    return key.startswith(("model.", "window.", "objective.", "training.")) and key not in COSTLESS


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
