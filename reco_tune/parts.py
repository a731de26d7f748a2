"""Loads every kind of part: models, tokenizers, layouts, schemes, losses, measures, samplers. A part is a built-in
name, a name that an installed package announces (entry points `reco_tune.models`, ...), or an import path.

    transformer                          built in
    their_name                           a package's entry point; recorded as its import path
    mypkg.models:MyDecoder               an import path of anything that Python can import
    mypkg.models:MyDecoder@1.2+4f9a1c2b  the same, pinned to its package's version and the hash of its source

Settings record pinned names. So changed code gets another hash, and its runs never mix with old runs. Only `load` and
`pinned` import code; reading records never does. Knows no settings and no particular part.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from reco_tune.errors import SettingsError

BUILT_IN: dict[str, dict[str, str]] = {
    "models": {
        "transformer": "reco_tune.model.transformer:VideoTransformer",
        "huggingface": "reco_tune.model.huggingface:HuggingFaceDecoder",
    },
    "tokenizers": {
        "kmeans": "reco_tune.tokenizers.kmeans:KMeansTokenizer",
        "vq": "reco_tune.tokenizers.vector_quantized:VectorQuantizedTokenizer",
        "vidtok": "reco_tune.tokenizers.vidtok:VidTokTokenizer",
        "cosmos": "reco_tune.tokenizers.cosmos:CosmosTokenizer",
        "omnitokenizer": "reco_tune.tokenizers.omnitokenizer:OmniTokenizer",
        "larp": "reco_tune.tokenizers.larp:LarpTokenizer",
    },
    "layouts": {
        "digits": "reco_tune.data.layouts:ucf101",
        "ucf101": "reco_tune.data.layouts:ucf101",
        "class_folders": "reco_tune.data.layouts:folders",
        "flat": "reco_tune.data.layouts:folders",
        "faceforensics": "reco_tune.data.layouts:folders",
        "skytimelapse": "reco_tune.data.layouts:folders",
        "taichi": "reco_tune.data.layouts:folders",
        "frames": "reco_tune.data.layouts:folders",
        "csv": "reco_tune.data.layouts:listed",
        "msrvtt": "reco_tune.data.msrvtt:msrvtt",
        "tokens": "reco_tune.data.token_arrays:token_files",
    },
    "losses": {},
    "measures": {},
    "schemes": {
        "window": "reco_tune.training.schemes.window:Window",
        "full": "reco_tune.training.schemes.full:Full",
        "masked_full": "reco_tune.training.schemes.masked_full:MaskedFull",
        "chunked_full": "reco_tune.training.schemes.chunked_full:ChunkedFull",
        "stale_prefix": "reco_tune.training.schemes.stale_prefix:StalePrefix",
        "fewer_frames": "reco_tune.training.schemes.fewer_frames:FewerFrames",
        "fewer_frames_tokens": "reco_tune.training.schemes.fewer_frames_tokens:FewerFramesTokens",
    },
    "samplers": {
        "tpe": "reco_tune.study.samplers:tpe",
        "gp": "reco_tune.study.samplers:gp",
        "nsga2": "reco_tune.study.samplers:nsga2",
        "sobol": "reco_tune.study.samplers:sobol",
        "random": "reco_tune.study.samplers:random",
        "grid": "reco_tune.study.samplers:random",
    },
}
"""Import paths of the built-in parts by group and name."""

IMPORT_PATH = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)(?:@([^\s@]+))?")

_PINNED = re.compile(r"(.+)@(?:\S+\+)?[0-9a-f]{12,40}")

OUR_FOLDERS = ("events.jsonl", "history.parquet", "state.json", "model.json", "tokenizer.json", "clips.csv")
"""Files that identify folders written by this program. Code inside such a folder is never imported."""


def is_own(name: str) -> bool:
    """Whether a name is an import path, pinned or not."""
    return ":" in name


def names(group: str) -> list[str]:
    """All names in a group, built-in ones first."""
    return [*BUILT_IN[group], *(name for name in _announced(group) if name not in BUILT_IN[group])]


def check_name(group: str, name: str) -> str:
    """Checks a name without importing anything, and returns it.

    Raises:
        SettingsError: for an unknown name, or a malformed import path.
    """
    if is_own(name):
        if not IMPORT_PATH.fullmatch(name):
            raise SettingsError("an import path looks like package.module:Class; correct it")
    elif name not in (known := names(group)):
        raise SettingsError(
            f"no part of that name; {nearest(name, known)}, or give an import path (package.module:Class)"
        )
    return name


def pinned(group: str, name: str) -> str:
    """The name as settings record it. A built-in name is unchanged. Any other part becomes its import path with
    version and hash of its source.

    Raises:
        SettingsError: if it cannot be imported, or is pinned to different code.
    """
    if name in BUILT_IN[group]:
        return name
    load(group, name)
    path = _path(group, name)
    return f"{path}@{_identity(path.partition(':')[0])}"


def unpinned(value: Any) -> Any:
    """A setting's value without the pin at its end, if it has one."""
    found = _PINNED.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else found[1]


def load(group: str, name: str) -> Any:
    """Imports the class or function.

    Raises:
        SettingsError: if it cannot be imported, or is pinned to different code.
    """
    check_name(group, name)
    path = _path(group, name)
    module_name, _, attribute = path.partition(":")
    if name not in BUILT_IN[group]:
        _refuse_our_folders(name, module_name)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's code may fail in any way
        said = " ".join(str(error).split())[:200]
        raise SettingsError(
            f"{name} cannot be imported ({type(error).__name__}: {said}); install its package, or put its folder on"
            " PYTHONPATH"
        ) from error
    if not hasattr(module, attribute):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SettingsError(f"{name}: {module_name} has no {attribute}; {nearest(attribute, known)}")
    pin = (IMPORT_PATH.fullmatch(name) or [None] * 4)[3]
    if pin is not None and (found := _identity(module_name)) != pin:
        raise SettingsError(
            f"{path} is now code {found}, but these settings were made with {pin}; restore that code, or begin a new"
            f" study with {path}"
        )
    return getattr(module, attribute)


def options_of(part: Any, given: Mapping[str, Any], key: str, beside: Iterable[str] = ("seed",)) -> Any:
    """Checks the options of a part by its pydantic model `Options`, or else by its signature.

    Args:
        key: the setting that holds the options.
        beside: other arguments that a part without `Options` gets.

    Raises:
        SettingsError: for an unknown option or an invalid value.
    """
    model = getattr(part, "Options", None) or _options_of_signature(part, beside)
    for name in given:
        if name not in model.model_fields:
            known = [*model.model_fields]
            way_out = nearest(name, known) if known else "it has no options; leave it out"
            raise SettingsError(f"{key}.{name} is not an option of {part.__name__}; {way_out}")
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise SettingsError(f"{key}.{name} ({first.get('input')!r}) of {part.__name__}: {first['msg']}") from error


def nearest(key: str, known: Iterable[str]) -> str:
    """A hint with the nearest known key."""
    known = list(known)
    close = (
        difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        or [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:1]
    )
    return f"did you mean {close[0]}?" if close else f"known ones are {', '.join(known[:40])}"


def _path(group: str, name: str) -> str:
    """Import path of a part, without a pin."""
    if is_own(name):
        return name.partition("@")[0]
    return BUILT_IN[group].get(name) or _announced(group)[name]


@cache
def _announced(group: str) -> dict[str, str]:
    """Import paths of the parts that installed packages announce, by name.

    Raises:
        SettingsError: if two packages announce the same name.
    """
    found: dict[str, str] = {}
    for entry in entry_points(group=f"reco_tune.{group}"):
        if found.setdefault(entry.name, entry.value) != entry.value and entry.name not in BUILT_IN[group]:
            raise SettingsError(
                f"two packages announce {entry.name} as one of reco_tune.{group} ({found[entry.name]} and"
                f" {entry.value}); uninstall one, or give the import path"
            )
    return found


@cache
def _identity(module_name: str) -> str:
    """Version of the package with that name, if one is installed, and the hash of its source."""
    top = module_name.partition(".")[0]
    spec = importlib.util.find_spec(top)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    if not folders and spec is not None and spec.origin is not None:
        files = [Path(spec.origin)]
    digest = hashlib.sha256()
    for file in files:
        inside = next((file.relative_to(folder) for folder in folders if file.is_relative_to(folder)), Path(file.name))
        digest.update(f"{inside.as_posix()}\n".encode() + file.read_bytes())
    return "+".join([*_versions(top), digest.hexdigest()[:12]])


def _versions(top: str) -> list[str]:
    try:
        return [version(top)]
    except PackageNotFoundError:
        return []


def _refuse_our_folders(name: str, module_name: str) -> None:
    """Refuses modules inside folders that this program wrote. It locates the module without importing it."""
    spec = importlib.util.find_spec(module_name.partition(".")[0])
    places = [] if spec is None else [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])]
    for place in map(Path, places):
        for folder in place.resolve().parents:
            if any((folder / file).is_file() for file in OUR_FOLDERS):
                raise SettingsError(
                    f"{name} is in {folder}, which ReCo-Tune wrote, and code from there is never run; move it elsewhere"
                )


def _options_of_signature(part: Any, beside: Iterable[str]) -> type[BaseModel]:
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    given = [one for one in inspect.signature(part).parameters.values() if one.kind in named and one.name not in beside]
    fields: Any = {one.name: (Any, one.default) for one in given if one.default is not inspect.Parameter.empty}
    return create_model(part.__name__, **fields)
