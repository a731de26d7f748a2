"""Builds an experiment's tokenizer, of any kind, and loads a saved one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reco_tune import parts, settings
from reco_tune.errors import DataError
from reco_tune.progress import Progress, quiet
from reco_tune.tokenizers.base import Tokenizer, load_parts
from reco_tune.tokenizers.kmeans import fit_kmeans
from reco_tune.tokenizers.own import OwnTokenizer, fit_own
from reco_tune.tokenizers.pretrained import Pretrained, same_as_settings
from reco_tune.tokenizers.vector_quantized import fit_vector_quantized


def fit_tokenizer(
    tokenizer: settings.Tokenizer, clips: np.ndarray, progress: Progress = quiet, device: str = "cpu"
) -> Tokenizer:
    """Fits the kind in `tokenizer.kind` to uint8 `clips` [N, F, 3, H, W]. `vq` trains on `device`."""
    if tokenizer.kind == "kmeans":
        return fit_kmeans(tokenizer, clips, progress)
    if parts.is_own(tokenizer.kind):
        return fit_own(tokenizer, clips)
    return fit_vector_quantized(tokenizer, clips, progress, device)


def open_pretrained(tokenizer: settings.Tokenizer) -> Pretrained:
    """The pretrained tokenizer that the settings name.

    Raises:
        SettingsError: if its weights or code are not given or contradict the settings, or a package is missing.
        DataError: if a file of it is damaged or holds more than weights.
    """
    opened: Pretrained = parts.load("tokenizers", tokenizer.kind).open(tokenizer)
    same_as_settings(opened, tokenizer)
    return opened


def weight_files(tokenizer: settings.Tokenizer) -> list[Path]:
    """Local files that hold a pretrained tokenizer's weights. Empty for names on the hub."""
    given = tokenizer.checkpoint if tokenizer.kind in ("omnitokenizer", "larp") else tokenizer.path
    path = Path(given).expanduser() if given else None
    if path is None or not path.exists():
        return []
    return [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a saved tokenizer of any kind.

    Raises:
        DataError: if it is missing, damaged or of an unknown kind, or the code that it needs has moved.
    """
    path = Path(path)
    saved = load_parts(path)
    if not parts.is_own(saved.kind) and saved.kind not in parts.BUILT_IN["tokenizers"]:
        raise DataError(
            f"{path} has a tokenizer of unknown kind {saved.kind}; delete the folder {path.name} and run again"
        )
    if saved.code is not None:
        _check_code(path, saved.code)
    try:
        if parts.is_own(saved.kind):
            return OwnTokenizer.from_parts(saved)
        found: Tokenizer = parts.load("tokenizers", saved.kind).from_parts(saved)
        return found
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(
            f"the tokenizer {path} is damaged ({error}); delete the folder {path.name} and run again"
        ) from error


def _check_code(path: Path, code: Path) -> None:
    """Refuses code from inside a cache: a copied cache must never bring code that runs."""
    cache = path.resolve().parent.parent
    if not code.is_absolute() or code.resolve().is_relative_to(cache):
        raise DataError(
            f"{path} names code inside its own cache ({code}), which is not allowed to run; delete the folder"
            f" {path.name} and run again"
        )
    if not code.is_dir():
        raise DataError(
            f"the code that the tokenizer {path} needs is no longer at {code}; restore it, or write its new path to"
            f" `code` in {path / 'tokenizer.json'}"
        )
