"""What the adapters of pretrained tokenizers share: pixels in the range a network was trained on, one clip at a time,
and back; weights and code of others. Knows no particular one.

Weights are read as tensors and plain values only (safetensors, or `torch.load` with `weights_only`): no pickle of a
user's file runs. Networks that cannot be built without their authors' code run it from the folder that `tokenizer.path`
names, and from nowhere else.
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
"""Keys of `tokenizer` that a kind cannot do without."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Pretrained(ABC):
    """A network of others behind the tokenizer protocol; subclasses say how it encodes and decodes float clips."""

    kind: str
    pixels: PixelRange
    num_codes: int
    spatial_stride: int
    temporal_stride: int
    fingerprint: str

    def grid(self, frames: int, height: int, width: int) -> TokenGrid:
        """Codes of a clip.

        Raises:
            ValueError: if the frames after the first are not whole blocks.
        """
        return TokenGrid(
            check_frames(frames, self.temporal_stride), height // self.spatial_stride, width // self.spatial_stride
        )

    @torch.no_grad()
    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        """uint8 [B, F, 3, H, W] -> int64 [B, blocks, rows, columns]; clip by clip, so that no code depends on the
        batch.

        Raises:
            DataError: if the network gives another grid or other codes than its settings promise.
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
        """int64 [B, blocks, rows, columns] -> uint8 [B, F, 3, H, W], clip by clip."""
        return torch.cat([self.pixels.to_uint8(self._decode(codes).transpose(1, 2)) for codes in codes_Btrc.split(1)])

    @abstractmethod
    def save(self, path: Path) -> None: ...

    @abstractmethod
    def _encode(self, video_BCFHW: torch.Tensor) -> torch.Tensor:
        """float in `pixels` -> integers [B, blocks, rows, columns]."""

    @abstractmethod
    def _decode(self, codes_Btrc: torch.Tensor) -> torch.Tensor:
        """The inverse, as well as the network can."""


def given(value: str | None, key: str, kind: str, what: str) -> str:
    """`value`, which the kind cannot do without.

    Raises:
        SettingsError: if it is not given.
    """
    if value is None:
        raise SettingsError(
            f"tokenizer.kind {kind} needs tokenizer.{key}: {what}; give it with --set tokenizer.{key}=..."
        )
    return value


def is_hub_name(name: str, kind: str, key: str) -> bool:
    """False for a file or folder that is there, True for owner/name.

    Raises:
        SettingsError: if it is neither.
    """
    if Path(name).expanduser().exists():
        return False
    if _HUB_NAME.fullmatch(name):
        return True
    raise SettingsError(
        f"tokenizer.{key} ({name}) is neither a folder or file that is there nor the name of a model on the Hugging"
        f" Face hub (owner/name); correct it for tokenizer.kind {kind}"
    )


@contextmanager
def extra(kind: str) -> Iterator[None]:
    """Turns a package that is not installed into one sentence."""
    try:
        yield
    except ImportError as error:
        missing = error.name or str(error)
        raise SettingsError(
            f"tokenizer.kind {kind} needs the package {missing.partition('.')[0]}, which cannot be imported ({error}); "
            f"install it with `pip install 'reco-tune[{kind}]'`"
        ) from error


def load_checkpoint(path: Path, allowed: Sequence[type] = ()) -> dict[str, Any]:
    """A PyTorch checkpoint of tensors, plain values and the classes in `allowed`; nothing in it is run.

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
                f"{path} holds more than tensors and plain values ({found[1]}) and is not loaded, because that could"
                " run anything; where you trust it, load it yourself and save its tensors and plain values alone with"
                " torch.save"
            ) from error
        raise DataError(f"{path} cannot be read as a PyTorch checkpoint; download it again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path} holds no mapping of names to weights; give the checkpoint that the authors publish")
    return loaded


def authors_module(folder: Path, module: str, kind: str, bare: bool = False) -> types.ModuleType:
    """Imports `module` of the authors' code in `folder`.

    Args:
        bare: the package's own `__init__` is not run, so that only what the module itself needs is imported.

    Raises:
        SettingsError: if the folder does not hold it or a package that it needs is missing.
    """
    package = module.partition(".")[0]
    location = Path(folder).expanduser().resolve() / package
    if not (location.parent / f"{module.replace('.', '/')}.py").is_file():
        raise SettingsError(
            f"{folder} does not hold {module.replace('.', '/')}.py, the code of tokenizer.kind {kind}; "
            "name the folder of the authors' repository in tokenizer.path"
        )
    known = sys.modules.get(package)
    if known is None and bare:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(location)]
    if known is not None and [str(location)] != list(getattr(known, "__path__", [])):
        raise SettingsError(
            f"another package named {package} is imported already, so that of {folder} cannot be; start a process of"
            " its own"
        )
    sys.path.insert(0, str(location.parent))
    try:
        with extra(kind):
            return importlib.import_module(module)
    except ReCoTuneError:
        raise
    except Exception as error:  # whatever their modules do when they are imported
        said = " ".join(str(error).split())[:200]
        raise SettingsError(
            f"the code of tokenizer.kind {kind} in {folder} cannot be imported ({type(error).__name__}: {said}); "
            "see that its packages belong to the installed torch"
        ) from error
    finally:
        sys.path.remove(str(location.parent))


def same_as_settings(tokenizer: Pretrained, wanted: settings.Tokenizer) -> None:
    """
    Raises:
        SettingsError: if the weights' codebook or strides are not those of the settings, from which a model is built.
    """
    for name in ("num_codes", "spatial_stride", "temporal_stride"):
        if getattr(tokenizer, name) != getattr(wanted, name):
            raise SettingsError(
                f"tokenizer.{name} ({getattr(wanted, name)}) is not the {getattr(tokenizer, name)} of the weights that"
                f" are given; set tokenizer.{name}={getattr(tokenizer, name)}"
            )
