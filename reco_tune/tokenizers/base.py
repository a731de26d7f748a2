"""What every tokenizer is: pixels to codes on a causal grid, and back. Knows no particular one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from reco_tune.errors import DataError

SCHEMA = 1
_JSON, _WEIGHTS = "tokenizer.json", "tokenizer.safetensors"


class Tokenizer(Protocol):
    """Block 0 of a clip is its first frame alone; every later block is `temporal_stride` frames; a block has (H / s) x (W / s) codes.

    Block 0 depends on the first frame only, so a single frame and any clip of 1 + k * `temporal_stride` frames can be encoded.
    """

    num_codes: int
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
    """Blocks of a clip of `frames` frames.

    Raises:
        ValueError: if the frames after the first are not whole blocks.
    """
    if frames < 1 or (frames - 1) % temporal_stride:
        raise ValueError(f"{frames} frames are not 1 more than a multiple of the tokenizer's temporal stride {temporal_stride}")
    return 1 + (frames - 1) // temporal_stride


def fingerprint(kind: str, settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> str:
    """Hash of a tokenizer's kind, settings and weights, bit by bit."""
    digest = hashlib.sha256(json.dumps([kind, settings], sort_keys=True).encode())
    for name in sorted(weights):
        array = weights[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_parts(path: Path, kind: str, settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """One JSON and one safetensors file in the folder `path`."""
    path.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(weights, path / _WEIGHTS)
    text = {"schema": SCHEMA, "kind": kind, "settings": settings, "fingerprint": fingerprint(kind, settings, weights)}
    (path / _JSON).write_text(json.dumps(text, indent=1), encoding="utf-8")


def load_parts(path: Path) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """Kind, settings and weights of a saved tokenizer.

    Raises:
        DataError: if it is missing, of another version, or its bits are not those that were saved.
    """
    way_out = f"delete the folder {path.name} and run again"
    if not (path / _JSON).is_file():
        raise DataError(f"{path} holds no tokenizer ({_JSON} is missing); {way_out}")
    try:
        text = json.loads((path / _JSON).read_text(encoding="utf-8"))
        if text["schema"] != SCHEMA:
            raise DataError(f"{path} holds a tokenizer of version {text['schema']}, this program reads {SCHEMA}; {way_out}")
        kind, settings = text["kind"], text["settings"]
        weights = load_file(path / _WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"the tokenizer {path} is damaged and cannot be read; {way_out}") from error
    if fingerprint(kind, settings, weights) != text.get("fingerprint"):
        raise DataError(f"the tokenizer {path} is damaged (its weights are not those of its fingerprint); {way_out}")
    return kind, settings, weights
