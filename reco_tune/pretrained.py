"""Where the weights of a pretrained network are, so that others never pass for them: a folder, pinned by its content,
or a name on Hugging Face's hub, pinned by its commit.

    /data/llama                 a folder
    /data/llama@4f9a1c2b3d4e    the same, with the hash of its configuration and weights
    org/llama                   a name on the hub; `org/llama@COMMIT` once it is pinned

And the packages that read them, which an extra installs. Knows files and names; refuses to know what network they are
of.
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
    """What `from_pretrained` of transformers is given."""

    path: str
    revision: str | None


def package_of_extra(package: str, extra: str, needed_by: str, names: Sequence[str] = ()) -> Any:
    """The package, imported.

    Args:
        extra: of this project, which installs it.
        needed_by: what needs it, in words.
        names: what it must have.

    Raises:
        SettingsError: where it, or one of the names, is missing.
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
    """The path with what it holds now; one that is pinned already is checked.

    Args:
        key: the setting that gave it.
        files: patterns of the files whose content is pinned.

    Raises:
        SettingsError: where nothing is there, or something else than what it is pinned to.
    """
    if _PINNED.fullmatch(path):
        source_of(path, revision, key, files)
        return path
    if Path(path).expanduser().is_dir():
        return f"{path}@{_digest(path, files, key)}"
    return f"{path}@{_commit(path, revision, key)}"


def source_of(path: str, revision: str | None, key: str, files: Sequence[str] = MODEL) -> Source:
    """
    Raises:
        SettingsError: for a folder that holds something else than what it is pinned to.
    """
    found = _PINNED.fullmatch(path)
    if found is None:
        return Source(str(Path(path).expanduser()) if Path(path).expanduser().is_dir() else path, revision)
    name, pin = found.groups()
    if len(pin) == 40:
        return Source(name, pin)
    if not Path(name).expanduser().is_dir():
        raise SettingsError(f"{key}: {name} is no folder here, but its weights are needed; bring it back")
    if (now := _digest(name, files, key)) != pin:
        raise SettingsError(
            f"{key}: {name} holds the weights {now}, but these settings were made with {pin}; bring those back, or"
            f" begin anew with {name} alone"
        )
    return Source(str(Path(name).expanduser()), None)


def _digest(path: str, files: Sequence[str], key: str) -> str:
    """Of names and contents of the files of a folder."""
    folder = Path(path).expanduser()
    found = sorted({file for pattern in files for file in folder.glob(pattern) if file.is_file()})
    if not found:
        raise SettingsError(f"{key}: {path} holds no config.json; give the folder that save_pretrained has written")
    digest = hashlib.sha256()
    for file in found:
        told = file.stat()
        digest.update(f"{file.name} {_digest_of_file(file.resolve(), told.st_size, told.st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=256)
def _digest_of_file(file: Path, size: int, changed_ns: int) -> str:
    """Read once a process as long as it does not change: every run of a study asks."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _commit(name: str, revision: str | None, key: str) -> str:
    """Of a repository on the hub, or of the copy of it that this machine keeps."""
    try:
        from huggingface_hub import hf_hub_download

        found = Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    except Exception as error:  # its errors have no common class, those of the connection among them
        said = " ".join(str(error).split())[:200]
        raise SettingsError(
            f"{key} ({name}) is no folder, and the hub does not give it ({said}); correct it"
        ) from error
    if not re.fullmatch(r"[0-9a-f]{40}", found):
        raise SettingsError(f"{key} ({name}): the hub names no commit of it; give a folder")
    return found
