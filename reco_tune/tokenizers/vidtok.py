"""VidTok v1.1 (FSQ, causal) through diffusers: https://arxiv.org/abs/2412.13061.

The `encode` method of diffusers skips the padding of the first frame and gives 4 latents for 17 frames. Its `forward`
in encoder mode pads and gives 5, so that is used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from reco_tune import settings
from reco_tune.errors import SettingsError
from reco_tune.tokenizers.base import PixelRange, SavedParts, fingerprint, save_parts
from reco_tune.tokenizers.pretrained import Pretrained, extra, given, is_hub_name

KIND = "vidtok"
_VERSION = re.compile(r"v?1[._-]1(?!\d)")


class VidTokTokenizer(Pretrained):
    """A `diffusers.AutoencoderVidTok` as a `Tokenizer`."""

    kind = KIND
    pixels = PixelRange(-1, 1)

    def __init__(self, network: Any, config: dict[str, Any]) -> None:
        """
        Args:
            config: the constructor arguments of the network.
        """
        self._network = network.float().eval().requires_grad_(False)
        self._config = config
        self.num_codes = config["codebook_size"]
        self.spatial_stride, self.temporal_stride = (
            2 ** len(network.encoder.spatial_ds),
            network.temporal_compression_ratio,
        )
        self.fingerprint = fingerprint(KIND, config, network.state_dict())

    @classmethod
    def open(cls, tokenizer: settings.Tokenizer) -> VidTokTokenizer:
        """Opens the folder or hub name `tokenizer.path`.

        Raises:
            SettingsError: if it has no VidTok v1.1 weights with discrete codes, or diffusers is missing.
        """
        name = given(
            tokenizer.path, "path", KIND, "the folder or hub name of VidTok v1.1 weights in the format of diffusers"
        )
        is_hub_name(name, KIND, "path")
        if not _VERSION.search(name):
            raise SettingsError(
                f"tokenizer.path ({name}) does not have v1_1 in its name, and VidTok v1.0 weights load without an error"
                " but give wrong codes; use v1.1 and name its folder accordingly, for example"
                " vidtok_fsq_causal_488_32768_v1_1"
            )
        with extra(KIND):
            from diffusers import AutoencoderVidTok
        try:
            network = AutoencoderVidTok.from_pretrained(
                Path(name).expanduser() if Path(name).exists() else name, use_safetensors=True
            )
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise SettingsError(
                f"tokenizer.path ({name}) has no VidTok weights in the format of diffusers ({_first_line(error)}); it"
                " needs config.json and diffusion_pytorch_model.safetensors"
            ) from error
        config = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}
        if config["regularizer"] != "fsq" or not config["is_causal"]:
            raise SettingsError(
                f"tokenizer.path ({name}) is a VidTok with regularizer {config['regularizer']} and is_causal"
                f" {config['is_causal']}; use a causal one with discrete codes (fsq)"
            )
        return cls(network, config)

    @classmethod
    def from_parts(cls, parts: SavedParts) -> VidTokTokenizer:
        with extra(KIND):
            from diffusers import AutoencoderVidTok
        network = AutoencoderVidTok(**parts.settings)
        network.load_state_dict(parts.weights)
        return cls(network, parts.settings)

    def save(self, path: Path) -> None:
        save_parts(path, KIND, self._config, self._network.state_dict(), self.pixels)

    def _encode(self, video_BCFHW: torch.Tensor) -> torch.Tensor:
        codes_Btrc: torch.Tensor = self._network.to(video_BCFHW.device)(video_BCFHW, encoder_mode=True)[1]
        return codes_Btrc

    def _decode(self, codes_Btrc: torch.Tensor) -> torch.Tensor:
        video_BCFHW: torch.Tensor = self._network.to(codes_Btrc.device).decode(codes_Btrc, decode_from_indices=True)
        return video_BCFHW


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
