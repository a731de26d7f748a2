"""LARP's holistic tokens through its authors' code: https://arxiv.org/abs/2410.21264.

1,024 codes represent 16 frames of 128x128 together; no code belongs to a single frame. LARP's quantizer samples codes
at random by default; here it is deterministic. LARP's prior model is left out: it is only needed in training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from reco_tune import settings
from reco_tune.errors import DataError
from reco_tune.settings import HOLISTIC, TokenGrid
from reco_tune.tokenizers.base import PixelRange, SavedParts, fingerprint, save_parts
from reco_tune.tokenizers.pretrained import Pretrained, authors_module, extra, given, is_hub_name, load_checkpoint

KIND = "larp"
_MODULE = "models.larp_tokenizer"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_PRIOR = "prior_model."


class LarpTokenizer(Pretrained):
    """The authors' `LARPTokenizer` as a `Tokenizer`; all codes of a clip form one block of one row."""

    kind = KIND
    pixels = PixelRange(0, 1)

    def __init__(self, config: dict[str, Any], weights: dict[str, torch.Tensor], code: Path) -> None:
        """
        Args:
            config: the arguments of the authors' class.
            code: folder of the authors' repository.
        """
        self._config, self._weights, self._code = config, weights, code
        with extra(KIND):
            module = authors_module(code, _MODULE, KIND)
            self._network = module.LARPTokenizer(**config)
        missing, unexpected = self._network.load_state_dict(weights, strict=False)
        if missing or unexpected:
            raise DataError(
                f"the LARP weights do not fit the code in {code}: {len(missing)} are missing and {len(unexpected)}"
                f" unknown, the first {[*missing, *unexpected][0]}; use weights and repository of the same version"
            )
        self._network.set_vq_eval_deterministic(deterministic=True)
        self._network.float().eval().requires_grad_(False)
        self.num_codes = int(self._network.codebook_size)
        self.spatial_stride = self.temporal_stride = 1
        clip = HOLISTIC[KIND]
        found = (self._network.frame_num, self._network.input_size, self._network.bottleneck_token_num)
        if found != tuple(clip):
            raise DataError(
                f"the LARP weights give {found[2]} codes for {found[0]} frames of {found[1]}x{found[1]}; use weights"
                f" that give {clip.tokens} for {clip.frames} of {clip.size_px}x{clip.size_px}"
            )
        self.fingerprint = fingerprint(KIND, config, weights)

    def grid(self, frames: int, height: int, width: int) -> TokenGrid:
        clip = HOLISTIC[KIND]
        if (frames, height, width) != (clip.frames, clip.size_px, clip.size_px):
            raise ValueError(
                f"larp encodes {clip.frames} frames of {clip.size_px}x{clip.size_px}, not {frames} of {height}x{width}"
            )
        return TokenGrid(1, 1, clip.tokens)

    @classmethod
    def open(cls, tokenizer: settings.Tokenizer) -> LarpTokenizer:
        """Opens the repository `tokenizer.path` and the folder, file or hub name `tokenizer.checkpoint`.

        Raises:
            SettingsError: if one is missing or wrong, or a package that the code needs is missing.
            DataError: if the weights are damaged, hold more than tensors, or do not fit.
        """
        code = (
            Path(given(tokenizer.path, "path", KIND, "the folder of the authors' repository, whose code will run"))
            .expanduser()
            .resolve()
        )
        what = (
            "a .pth file, a folder with config.json and model.safetensors, or a hub name such as"
            " hywang66/LARP-L-long-tokenizer"
        )
        name = given(tokenizer.checkpoint, "checkpoint", KIND, what)
        path = _downloaded(name) if is_hub_name(name, KIND, "checkpoint") else Path(name).expanduser()
        try:
            if path.is_dir():
                config, weights = json.loads((path / _CONFIG).read_text(encoding="utf-8")), load_file(path / _WEIGHTS)
            else:
                saved = load_checkpoint(path)["model"]
                config, weights = dict(saved["args"]), dict(saved["sd"])
            config["prior_model"] = {"name": "none"}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataError(f"tokenizer.checkpoint ({path}) has no LARP weights ({error}); give {what}") from error
        return cls(config, {name: value for name, value in weights.items() if not name.startswith(_PRIOR)}, code)

    @classmethod
    def from_parts(cls, parts: SavedParts) -> LarpTokenizer:
        assert parts.code is not None
        return cls(parts.settings, parts.weights, parts.code)

    def save(self, path: Path) -> None:
        save_parts(path, KIND, self._config, self._weights, self.pixels, self._code)

    def _encode(self, video_BCFHW: torch.Tensor) -> torch.Tensor:
        codes_BT: torch.Tensor = self._network.to(video_BCFHW.device).encode(video_BCFHW)["bottleneck_rep"]
        return codes_BT[:, None, None, :]

    def _decode(self, codes_Btrc: torch.Tensor) -> torch.Tensor:
        video_BCFHW: torch.Tensor = self._network.to(codes_Btrc.device).decode_from_bottleneck(codes_Btrc.flatten(1))
        return video_BCFHW


def _downloaded(name: str) -> Path:
    """The folder of a hub model. Only the two needed files are downloaded."""
    with extra(KIND):
        from huggingface_hub import snapshot_download
    return Path(snapshot_download(name, allow_patterns=[_CONFIG, _WEIGHTS]))
