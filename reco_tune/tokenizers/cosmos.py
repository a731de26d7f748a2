"""Cosmos discrete video tokenizers (DV4x8x8 and its variants): a pair of TorchScript files,
https://arxiv.org/abs/2501.03575.

`encoder.jit(video)` gives (indices [B, t, h, w], codes [B, 6, t, h, w], ...), and `decoder.jit(indices)` the video;
both in [-1, 1], BCTHW. The README of Cosmos numbers the indices 1..64,000, its quantizer 0..63,999. So the offset is
measured on the encoder's own codes.

A TorchScript file is a program: use only files from a source that you trust.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from reco_tune import settings
from reco_tune.errors import DataError, SettingsError
from reco_tune.tokenizers.base import PixelRange, SavedParts, fingerprint, save_parts
from reco_tune.tokenizers.pretrained import Pretrained, given

KIND = "cosmos"
_FILES = ("encoder.jit", "decoder.jit")
_LEVELS = (8, 8, 8, 5, 5, 5)
"""Levels of the finite scalar quantizer (64,000 codes). The first digit is the least significant."""


class CosmosTokenizer(Pretrained):
    """The Cosmos encoder and decoder as a `Tokenizer`."""

    kind = KIND
    pixels = PixelRange(-1, 1)

    def __init__(self, programs: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """
        Args:
            programs: the bytes of both files.
            values: `num_codes`, `spatial_stride`, `temporal_stride` and `offset`, the number of the first code.
        """
        self._programs, self._values = programs, values
        self._encoder, self._decoder = (_loaded(programs[name]) for name in _FILES)
        self.num_codes, self._offset = values["num_codes"], values["offset"]
        self.spatial_stride, self.temporal_stride = values["spatial_stride"], values["temporal_stride"]
        self.fingerprint = fingerprint(KIND, values, programs)

    @classmethod
    def open(cls, tokenizer: settings.Tokenizer) -> CosmosTokenizer:
        """Opens the folder `tokenizer.path` with `encoder.jit` and `decoder.jit`.

        Raises:
            SettingsError: if a file is missing.
            DataError: if one is not a TorchScript program, or the encoder's indices do not match its codes.
        """
        folder = Path(
            given(tokenizer.path, "path", KIND, "the folder that holds encoder.jit and decoder.jit")
        ).expanduser()
        programs = {}
        for name in _FILES:
            if not (folder / name).is_file():
                raise SettingsError(
                    f"tokenizer.path ({folder}) has no {name}; give the folder of the Cosmos TorchScript files"
                )
            programs[name] = torch.frombuffer(bytearray((folder / name).read_bytes()), dtype=torch.uint8)
        values = {name: getattr(tokenizer, name) for name in ("num_codes", "spatial_stride", "temporal_stride")}
        made = cls(programs, values | {"offset": 0})
        return cls(programs, values | {"offset": made._measured_offset()})

    @classmethod
    def from_parts(cls, parts: SavedParts) -> CosmosTokenizer:
        return cls(parts.weights, parts.settings)

    def save(self, path: Path) -> None:
        save_parts(path, KIND, self._values, self._programs, self.pixels)

    def _encode(self, video_BCFHW: torch.Tensor) -> torch.Tensor:
        codes_Btrc: torch.Tensor = self._run(self._encoder, video_BCFHW)[0] - self._offset
        return codes_Btrc

    def _decode(self, codes_Btrc: torch.Tensor) -> torch.Tensor:
        video = self._decoder.to(codes_Btrc.device)((codes_Btrc + self._offset).to(torch.int32))
        video_BCFHW: torch.Tensor = video[0] if isinstance(video, tuple) else video
        return video_BCFHW

    def _run(self, program: torch.jit.ScriptModule, video_BCFHW: torch.Tensor) -> Any:
        """Runs a program in the dtype of its weights (bfloat16 as published)."""
        program = program.to(video_BCFHW.device)
        weight = next(program.parameters(), None)
        return program(video_BCFHW if weight is None else video_BCFHW.to(weight.dtype))

    @torch.no_grad()
    def _measured_offset(self) -> int:
        """The encoder's indices minus the indices that its codes spell, measured on noise."""
        side = 16 * self.spatial_stride
        noise = (
            torch.rand(1, 3, 1 + self.temporal_stride, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
        )
        found = self._run(self._encoder, noise)
        if not isinstance(found, tuple) or len(found) < 2 or found[0].is_floating_point():
            raise DataError(
                f"{_FILES[0]} returns no codes because it is a continuous tokenizer; use a discrete one, such as"
                " DV4x8x8"
            )
        indices, codes = found[0].long(), found[1].float()
        if codes.shape[1] != len(_LEVELS) or self.num_codes != 64000:
            return 0  # another quantizer: `encode` still refuses codes outside 0..num_codes - 1
        halves = torch.tensor([level // 2 for level in _LEVELS]).view(1, -1, 1, 1, 1)
        places = torch.tensor([1, 8, 64, 512, 2560, 12800]).view(1, -1, 1, 1, 1)
        spelled = (((codes * halves).round().long() + halves) * places).sum(dim=1)
        offsets = (indices - spelled).unique().tolist()
        if offsets not in ([0], [1]):
            raise DataError(
                f"the indices from {_FILES[0]} differ from its own codes by {', '.join(map(str, offsets[:4]))}, not by"
                " 0 or by 1; use the files of a published Cosmos discrete video tokenizer"
            )
        return int(offsets[0])


def _loaded(program: torch.Tensor) -> torch.jit.ScriptModule:
    try:
        loaded: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(program.numpy().tobytes()), map_location="cpu")
        return loaded.eval()
    except RuntimeError as error:
        raise DataError(f"{' or '.join(_FILES)} is not a TorchScript program; download it again") from error
