"""A custom tokenizer. It is fitted like the built-in ones, and its weights are stored beside its codes.

class MyTokenizer:
    def __init__(self, num_codes, spatial_stride, temporal_stride, **options): ...
    def fit(self, clips, seed): ...            uint8 [N, F, 3, H, W]; optional
    def encode(self, video): ...               uint8 [B, F, 3, H, W] -> int64 [B, blocks, rows, columns]
    def decode(self, codes): ...               the inverse of encode
    def state_dict(self): ...                  tensors by name, as in torch modules
    def load_state_dict(self, tensors): ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from reco_tune import parts, settings
from reco_tune.errors import SettingsError
from reco_tune.tokenizers.base import PixelRange, SavedParts, check_frames, fingerprint, save_parts


class OwnTokenizer:
    """A user's class as a `Tokenizer`."""

    pixels = PixelRange(0, 255)

    def __init__(self, kind: str, numbers: dict[str, Any]) -> None:
        """
        Args:
            numbers: num_codes, spatial_stride, temporal_stride and options.
        """
        part = parts.load("tokenizers", kind)
        sizes = {name: numbers[name] for name in ("num_codes", "spatial_stride", "temporal_stride")}
        self.kind, self._numbers = kind, numbers
        self.own = part(**sizes, **dict(parts.options_of(part, numbers["options"], "tokenizer.options", sizes)))
        self.num_codes, self.spatial_stride, self.temporal_stride = sizes.values()
        self.take()

    def take(self) -> None:
        """Copies the current weights from the user's object."""
        self.fingerprint = fingerprint(self.kind, self._numbers, self.own.state_dict())

    @torch.no_grad()
    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        blocks = check_frames(video_BFCHW.shape[1], self.temporal_stride)
        codes: torch.Tensor = self.own.encode(video_BFCHW)
        height, width = (side // self.spatial_stride for side in video_BFCHW.shape[3:])
        expected = (len(video_BFCHW), blocks, height, width)
        if codes.shape != expected or codes.dtype != torch.int64:
            raise SettingsError(
                f"tokenizer.kind {self.kind} encodes to {codes.dtype} {tuple(codes.shape)}, but must give int64"
                f" {expected}; correct its encode method"
            )
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_codes:
            raise SettingsError(
                f"tokenizer.kind {self.kind} gives codes from {int(codes.min())} to {int(codes.max())}, outside"
                f" 0..{self.num_codes - 1}; set tokenizer.num_codes"
            )
        return codes

    @torch.no_grad()
    def decode(self, codes_Btrc: torch.Tensor) -> torch.Tensor:
        video: torch.Tensor = self.own.decode(codes_Btrc)
        return video

    def save(self, path: Path) -> None:
        save_parts(path, self.kind, self._numbers, self.own.state_dict(), self.pixels)

    @classmethod
    def from_parts(cls, saved: SavedParts) -> OwnTokenizer:
        found = cls(saved.kind, saved.settings)
        found.own.load_state_dict(saved.weights)
        found.take()
        return found


def fit_own(tokenizer: settings.Tokenizer, clips: np.ndarray) -> OwnTokenizer:
    """Fits a custom tokenizer to the clips, uint8 [N, F, 3, H, W], if it has a `fit` method."""
    numbers = {name: getattr(tokenizer, name) for name in ("num_codes", "spatial_stride", "temporal_stride", "options")}
    made = OwnTokenizer(tokenizer.kind, numbers)
    if hasattr(made.own, "fit"):
        made.own.fit(torch.from_numpy(np.array(clips)), tokenizer.seed)
        made.take()
    return made
