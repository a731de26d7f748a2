"""Locates the weights of a pretrained network and pins them, so that changed weights are noticed. A source is a
folder, pinned by its content, or a name on Hugging Face's hub, pinned by its commit.

    /data/llama                 a folder
    /data/llama@4f9a1c2b3d4e    the same, with the hash of its configuration and weights
    org/llama                   a name on the hub; `org/llama@COMMIT` once it is pinned

Also imports the optional packages that read weights. Knows files and names, not networks.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from reco_tune.errors import SettingsError

_PINNED = re.compile(r"(.+)@([0-9a-f]{40}|[0-9a-f]{12})")
CONFIGURATION = ("config.json", "adapter_config.json", "preprocessor_config.json")
"""Files of a folder, by pattern. A pin counts these and those that the network needs."""
MODEL = (*CONFIGURATION, "*.safetensors", "*.bin", "*.index.json")
"""With weights."""
MODEL_AND_WORDS = (
    *MODEL,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""With weights and a text tokenizer."""


class Source(NamedTuple):
    """Arguments for `from_pretrained` of transformers."""

    path: str
    revision: str | None


def package_of_extra(package: str, extra: str, needed_by: str, names: Sequence[str] = ()) -> Any:
    """Imports an optional package.

    Args:
        extra: the extra of this project that installs it.
        needed_by: what needs the package, for the message.
        names: attributes that the package must have.

    Raises:
        SettingsError: if the package, or one of the names, is missing.
    """
    try:
        found = importlib.import_module(package)
        for name in names:
            if not hasattr(found, name):
                raise ImportError(f"it has no {name}")
        return found
    except ImportError as error:
        raise SettingsError(
            f"{needed_by} needs {package}, which cannot be imported ({error}); install the `{extra}` extra:"
            f" pip install 'reco-tune[{extra}]'"
        ) from error


def pinned_source(path: str, revision: str | None, key: str, files: Sequence[str] = MODEL) -> str:
    """The path pinned to its current content. If it is already pinned, the pin is checked.

    Args:
        key: the setting that holds the path.
        files: patterns of the files whose content is pinned.

    Raises:
        SettingsError: if nothing is there, or the content differs from the pin.
    """
    if _PINNED.fullmatch(path):
        source_of(path, revision, key, files)
        return path
    if Path(path).expanduser().is_dir():
        return f"{path}@{_digest(path, files, key)}"
    return f"{path}@{_commit(path, revision, key)}"


def source_of(path: str, revision: str | None, key: str, files: Sequence[str] = MODEL) -> Source:
    """Splits a path into source and revision, and checks its pin.

    Raises:
        SettingsError: if a folder's content differs from its pin.
    """
    found = _PINNED.fullmatch(path)
    if found is None:
        return Source(str(Path(path).expanduser()) if Path(path).expanduser().is_dir() else path, revision)
    name, pin = found.groups()
    if len(pin) == 40:
        return Source(name, pin)
    if not Path(name).expanduser().is_dir():
        raise SettingsError(f"{key}: the folder {name} does not exist, but its weights are needed; restore it")
    if (now := _digest(name, files, key)) != pin:
        raise SettingsError(
            f"{key}: {name} holds the weights {now}, but these settings were made with {pin}; restore those, or"
            f" begin a new study with {name} alone"
        )
    return Source(str(Path(name).expanduser()), None)


def _digest(path: str, files: Sequence[str], key: str) -> str:
    """Hash of the names and contents of a folder's files."""
    folder = Path(path).expanduser()
    found = sorted({file for pattern in files for file in folder.glob(pattern) if file.is_file()})
    if not found:
        raise SettingsError(f"{key}: {path} has no config.json; give the folder that save_pretrained has written")
    digest = hashlib.sha256()
    for file in found:
        told = file.stat()
        digest.update(f"{file.name} {_digest_of_file(file.resolve(), told.st_size, told.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=256)
def _digest_of_file(file: Path, size: int, changed_ns: int) -> str:
    """Cached per process until the file changes, because every run of a study asks for it."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _commit(name: str, revision: str | None, key: str) -> str:
    """Commit of a repository on the hub, or of its copy in the local cache."""
    try:
        from huggingface_hub import hf_hub_download

        found = Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    except Exception as error:  # the hub's errors have no common base class
        said = " ".join(str(error).split())[:200]
        raise SettingsError(
            f"{key} ({name}) is not a folder, and the hub does not provide it ({said}); correct it"
        ) from error
    if not re.fullmatch(r"[0-9a-f]{40}", found):
        raise SettingsError(f"{key} ({name}): the hub gives no commit for it; give a folder")
    return found
