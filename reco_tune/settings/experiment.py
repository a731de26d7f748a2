"""One experiment: everything that a single training run and its evaluation depend on.

Settings are frozen and checked here, at the door; builders below read them and hand plain numbers to the maths.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import model_validator

from reco_tune.settings.checks import check_combinations, check_shapes, window_in_tokens
from reco_tune.settings.sections import Sections


class Experiment(Sections):
    """Everything one run depends on; its sections go together, and `window` is given in tokens once made."""

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        check_shapes(self)
        object.__setattr__(self, "window", window_in_tokens(self.window, self.grid))
        check_combinations(self)
        return self

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted key, as plain JSON values."""
        return flatten(self.model_dump(mode="json"))

    def result_hash(self) -> str:
        """Hash of the settings that a result depends on: where it runs and where files lie are left out."""
        ignored = ("resources.", "data.root", "data.cache_dir", "evaluation.extractor_path")
        kept = {key: value for key, value in self.flat().items() if not key.startswith(ignored)}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
