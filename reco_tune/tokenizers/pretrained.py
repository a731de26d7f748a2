"""Shared code of all adapters to pretrained tokenizers: pixel ranges, encoding one clip at a time, loading weights
and authors' code.

Weights are read as tensors and plain values only (safetensors, or `torch.load` with `weights_only`), so loading never
runs a pickle. Some networks cannot be built without their authors' code. That code runs only from the folder in
`tokenizer.path`.
"""

from __future__ import annotations

import importlib
import re
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from reco_tune import settings
from reco_tune.errors import DataError, ReCoTuneError, SettingsError
from reco_tune.settings import TokenGrid
from reco_tune.tokenizers.base import PixelRange, check_frames

NEEDED = {
    "vidtok": ("path",),
    "cosmos": ("path",),
    "omnitokenizer": ("path", "checkpoint"),
    "larp": ("path", "checkpoint"),
}
"""Keys of `tokenizer` that each kind requires."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Pretrained(ABC):
    """A pretrained network as a `Tokenizer`. Subclasses encode and decode float clips."""

    kind: str
    pixels: PixelRange
    num_codes: int
    spatial_stride: int
    temporal_stride: int
    fingerprint: str

    def grid(self, frames: int, height: int, width: int) -> TokenGrid:
        """The grid of codes of a clip.

        Raises:
            ValueError: if the frames after the first are not whole blocks.
        """
        return TokenGrid(
            check_frames(frames, self.temporal_stride), height // self.spatial_stride, width // self.spatial_stride
        )

    @torch.no_grad()
    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        """uint8 [B, F, 3, H, W] -> int64 [B, blocks, rows, columns]. One clip at a time, so that no code depends on
        the batch.

        Raises:
            DataError: if the grid or the codes contradict the settings.
        """
        _, frames, _, height, width = video_BFCHW.shape
        grid = self.grid(frames, height, width)
        parts = [self._encode(self.pixels.to_float(clip).transpose(1, 2)).long() for clip in video_BFCHW.split(1)]
        codes = torch.cat(parts) if parts else torch.zeros((0, *grid), dtype=torch.long, device=video_BFCHW.device)
        if codes.shape[1:] != torch.Size(grid):
            raise DataError(
                f"tokenizer.kind {self.kind} gives {'x'.join(map(str, codes.shape[1:]))} codes for {frames} frames of"
                f" {height}x{width}, not {'x'.join(map(str, grid))}; set tokenizer.spatial_stride and"
                " tokenizer.temporal_stride to those of the weights"
            )
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_codes:
            raise DataError(
                f"tokenizer.kind {self.kind} gives codes from {int(codes.min())} to {int(codes.max())}, outside"
                f" 0..{self.num_codes - 1}; set tokenizer.num_codes to the size of the weights' codebook"
            )
        return codes

    @torch.no_grad()
    def decode(self, codes_Btrc: torch.Tensor) -> torch.Tensor:
        """int64 [B, blocks, rows, columns] -> uint8 [B, F, 3, H, W]. One clip at a time."""
        return torch.cat([self.pixels.to_uint8(self._decode(codes).transpose(1, 2)) for codes in codes_Btrc.split(1)])

    @abstractmethod
    def save(self, path: Path) -> None: ...

    @abstractmethod
    def _encode(self, video_BCFHW: torch.Tensor) -> torch.Tensor:
        """float in the range `pixels` -> integers [B, blocks, rows, columns]."""

    @abstractmethod
    def _decode(self, codes_Btrc: torch.Tensor) -> torch.Tensor:
        """The network's approximate inverse of `_encode`."""


def given(value: str | None, key: str, kind: str, what: str) -> str:
    """Returns `value`, which the kind requires.

    Raises:
        SettingsError: if it is missing.
    """
    if value is None:
        raise SettingsError(
            f"tokenizer.kind {kind} needs tokenizer.{key}: {what}; give it with --set tokenizer.{key}=..."
        )
    return value


def is_hub_name(name: str, kind: str, key: str) -> bool:
    """False for an existing file or folder, True for owner/name.

    Raises:
        SettingsError: for any other name.
    """
    if Path(name).expanduser().exists():
        return False
    if _HUB_NAME.fullmatch(name):
        return True
    raise SettingsError(
        f"tokenizer.{key} ({name}) does not exist as a file or folder, and is not a model name on the Hugging Face hub"
        f" (owner/name); correct it for tokenizer.kind {kind}"
    )


@contextmanager
def extra(kind: str) -> Iterator[None]:
    """Turns the import error of a missing package into a one-sentence message."""
    try:
        yield
    except ImportError as error:
        missing = error.name or str(error)
        raise SettingsError(
            f"tokenizer.kind {kind} needs the package {missing.partition('.')[0]}, which cannot be imported ({error}); "
            f"install it with `pip install 'reco-tune[{kind}]'`"
        ) from error


def load_checkpoint(path: Path, allowed: Sequence[type] = ()) -> dict[str, Any]:
    """A PyTorch checkpoint of tensors, plain values and the classes in `allowed`. Loading runs no code from it.

    Raises:
        DataError: if it is missing, damaged or holds anything else.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError) as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise DataError(
                f"{path} is not loaded, because it holds more than tensors and plain values ({found[1]}) and could run"
                " any code; if you trust it, load it yourself and save only its tensors and plain values with"
                " torch.save"
            ) from error
        raise DataError(f"{path} cannot be read as a PyTorch checkpoint; download it again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path} does not map names to weights; give a checkpoint from the authors")
    return loaded


def authors_module(folder: Path, module: str, kind: str, bare: bool = False) -> types.ModuleType:
    """Imports `module` of the authors' code in `folder`.

    Args:
        bare: do not run the package's own `__init__`, so that only what the module needs is imported.

    Raises:
        SettingsError: if the folder lacks the module, or a package that it needs is missing.
    """
    package = module.partition(".")[0]
    location = Path(folder).expanduser().resolve() / package
    if not (location.parent / f"{module.replace('.', '/')}.py").is_file():
        raise SettingsError(
            f"{folder} does not have {module.replace('.', '/')}.py, the code of tokenizer.kind {kind}; give the folder"
            " of the authors' repository in tokenizer.path"
        )
    known = sys.modules.get(package)
    if known is None and bare:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(location)]
    if known is not None and [str(location)] != list(getattr(known, "__path__", [])):
        raise SettingsError(
            f"another package named {package} is already imported, so the one in {folder} cannot be; start a new"
            " process"
        )
    sys.path.insert(0, str(location.parent))
    try:
        with extra(kind):
            return importlib.import_module(module)
    except ReCoTuneError:
        raise
    except Exception as error:  # importing the authors' modules can raise anything
        said = " ".join(str(error).split())[:200]
        raise SettingsError(
            f"the code of tokenizer.kind {kind} in {folder} cannot be imported ({type(error).__name__}: {said}); check"
            " that its packages match the installed torch"
        ) from error
    finally:
        sys.path.remove(str(location.parent))


def same_as_settings(tokenizer: Pretrained, wanted: settings.Tokenizer) -> None:
    """Checks the weights against the settings.

    Raises:
        SettingsError: if the weights' codebook or strides differ from the settings.
    """
    for name in ("num_codes", "spatial_stride", "temporal_stride"):
        if getattr(tokenizer, name) != getattr(wanted, name):
            raise SettingsError(
                f"tokenizer.{name} ({getattr(wanted, name)}) does not match the weights, which have"
                f" {getattr(tokenizer, name)}; set tokenizer.{name}={getattr(tokenizer, name)}"
            )
