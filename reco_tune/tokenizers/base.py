"""The protocol of all tokenizers: pixels to codes on a causal grid, and back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from reco_tune.errors import DataError

SCHEMA = 1
_JSON, _WEIGHTS = "tokenizer.json", "tokenizer.safetensors"


class PixelRange(NamedTuple):
    """The float values of bytes 0 and 255."""

    low: float
    high: float

    def to_float(self, video: torch.Tensor) -> torch.Tensor:
        """uint8 -> float32."""
        return video.float() * ((self.high - self.low) / 255) + self.low

    def to_uint8(self, video: torch.Tensor) -> torch.Tensor:
        """Any float -> uint8, rounded and clipped to the range."""
        return ((video.float() - self.low) * (255 / (self.high - self.low))).round_().clamp_(0, 255).to(torch.uint8)


class Tokenizer(Protocol):
    """Converts clips to codes and back.

    Block 0 of a clip is its first frame alone. Every later block covers `temporal_stride` frames. A block has (H / s)
    x (W / s) codes, with s the spatial stride.

    Block 0 depends on the first frame only, so the tokenizer can encode a single frame, and any clip of 1 + k *
    `temporal_stride` frames. Holistic tokenizers are the exception: their codes have no position in the clip, and
    form one block of one row.
    """

    num_codes: int
    pixels: PixelRange
    """The range to which bytes are scaled for the network."""
    spatial_stride: int
    temporal_stride: int
    fingerprint: str
    """Hash of weights and settings."""

    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        """uint8 [B, F, 3, H, W] -> int64 [B, blocks, rows, columns]."""

    def decode(self, codes_Btrc: torch.Tensor) -> torch.Tensor:
        """int64 [B, blocks, rows, columns] -> uint8 [B, F, 3, H, W]."""

    def save(self, path: Path) -> None:
        """Writes a folder that `load_tokenizer` reads."""


def check_frames(frames: int, temporal_stride: int) -> int:
    """Number of blocks in a clip of `frames` frames.

    Raises:
        ValueError: if the frames after the first are not whole blocks.
    """
    if frames < 1 or (frames - 1) % temporal_stride:
        raise ValueError(
            f"{frames} frames are not 1 more than a multiple of the tokenizer's temporal stride {temporal_stride}"
        )
    return 1 + (frames - 1) // temporal_stride


def fingerprint(kind: str, settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> str:
    """Hash of a tokenizer's kind, settings and exact weights."""
    digest = hashlib.sha256(json.dumps([kind, settings], sort_keys=True).encode())
    for name in sorted(weights):
        array = weights[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class SavedParts(NamedTuple):
    """The parts of a saved tokenizer."""

    kind: str
    settings: dict[str, Any]
    weights: dict[str, torch.Tensor]
    code: Path | None
    """Folder of the authors' code that the weights need. The fingerprint ignores where it lies."""


def save_parts(
    path: Path,
    kind: str,
    settings: dict[str, Any],
    weights: dict[str, torch.Tensor],
    pixels: PixelRange,
    code: Path | None = None,
) -> None:
    """Writes one JSON and one safetensors file to the folder `path`."""
    path.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(weights, path / _WEIGHTS)
    text: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": kind,
        "settings": settings,
        "fingerprint": fingerprint(kind, settings, weights),
    }
    text |= {"pixels": list(pixels)} | ({"code": str(code)} if code else {})
    (path / _JSON).write_text(json.dumps(text, indent=1), encoding="utf-8")


def load_parts(path: Path) -> SavedParts:
    """Reads the parts of a saved tokenizer.

    Raises:
        DataError: if it is missing, of another version, or has changed since it was saved.
    """
    way_out = f"delete the folder {path.name} and run again"
    if not (path / _JSON).is_file():
        raise DataError(f"{path} has no tokenizer ({_JSON} is missing); {way_out}")
    try:
        text = json.loads((path / _JSON).read_text(encoding="utf-8"))
        if text["schema"] != SCHEMA:
            raise DataError(
                f"{path} has a tokenizer of version {text['schema']}, but this program reads version {SCHEMA};"
                f" {way_out}"
            )
        kind, settings, code = text["kind"], text["settings"], text.get("code")
        weights = load_file(path / _WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"the tokenizer {path} is damaged and cannot be read; {way_out}") from error
    if fingerprint(kind, settings, weights) != text.get("fingerprint"):
        raise DataError(f"the tokenizer {path} is damaged (its weights do not match its fingerprint); {way_out}")
    return SavedParts(kind, settings, weights, None if code is None else Path(code))
