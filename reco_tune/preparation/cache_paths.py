"""The folders of an experiment: its videos, its tokenizer, its token cache. Folder names are hashes of what
determines the content.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from reco_tune import settings
from reco_tune.data.synthetic import rendering_settings
from reco_tune.errors import DataError
from reco_tune.files import publish
from reco_tune.tokenizers.kinds import open_pretrained, weight_files
from reco_tune.tokenizers.pretrained import NEEDED, given, is_hub_name


def folder_name(*parts: str) -> str:
    """A name of 16 hexadecimal digits, hashed from the parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def absolute_data(experiment: settings.Experiment) -> settings.Data:
    """The data settings with an absolute root: a cache records its videos, and may be read from any working
    directory.
    """
    data = experiment.data
    root = data.root
    if root is None and data.layout == "digits":
        root = experiment.cache_dir / "videos" / f"digits-{folder_name(json.dumps(rendering_settings(data)))}"
    return data.model_copy(update={"root": root and root.absolute()})


def tokenizer_path(experiment: settings.Experiment, source: str) -> Path:
    """Folder of the tokenizer. A fitted tokenizer depends on its data and settings, a pretrained one on its settings
    alone.

    Args:
        source: fingerprint of the data.
    """
    tokenizer = experiment.tokenizer  # later settings at their defaults do not change the name
    later = {name for name, default in (("quantizer", "vq"), ("options", {})) if getattr(tokenizer, name) == default}
    what = experiment.tokenizer.model_dump_json(exclude_none=True, exclude=later)
    return (
        experiment.cache_dir
        / "tokenizers"
        / (folder_name(what) if experiment.tokenizer.pretrained else folder_name(source, what))
    )


def token_cache_path(experiment: settings.Experiment, source: str, tokenizer_fingerprint: str) -> Path:
    """
    Args:
        source: fingerprint of the data.
    """
    return experiment.cache_dir / "tokens" / folder_name(source, tokenizer_fingerprint, str(experiment.kept_clips))


def copy_pretrained(experiment: settings.Experiment) -> None:
    """Copies pretrained weights beside the token caches once, so that the caches work wherever they are moved.

    Raises:
        DataError: if the weights were replaced after they were copied.
    """
    path = tokenizer_path(experiment, source="")
    if not path.exists():
        publish(path, open_pretrained(experiment.tokenizer).save)
        return
    copied = path.stat().st_mtime
    for file in weight_files(experiment.tokenizer):
        if file.stat().st_mtime > copied:
            raise DataError(
                f"{file} is newer than its copy in {path}; delete the folder {path.name} to use the new weights"
            )


def check_weights(experiment: settings.Experiment) -> None:
    """Checks that a pretrained tokenizer's files exist, without opening them. If weights are already copied into the
    cache folder, the originals may be missing.

    Raises:
        SettingsError: if they are not given, or are neither on this machine nor a model name on the hub.
    """
    tokenizer = experiment.tokenizer
    if not tokenizer.pretrained or tokenizer_path(experiment, source="").exists():
        return
    for key in NEEDED[tokenizer.kind]:
        name = given(
            getattr(tokenizer, key), key, tokenizer.kind, "docs/how-to/pretrained-tokenizers.md says what it is"
        )
        is_hub_name(name, tokenizer.kind, key)
