"""OmniTokenizer's discrete (VQVAE) weights through its authors' code: https://arxiv.org/abs/2406.09399.

The authors' code needs three workarounds. Importing their package loads all of their data sets, so only the network's
module is imported. Building the network downloads a perceptual loss and creates discriminators, so empty modules
replace them. Checkpoints spell `casual_*` where some versions of the code spell `causal_*`, so both names are set.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reco_tune import settings
from reco_tune.errors import DataError, SettingsError
from reco_tune.tokenizers.base import PixelRange, SavedParts, fingerprint, save_parts
from reco_tune.tokenizers.pretrained import Pretrained, authors_module, given, load_checkpoint

KIND = "omnitokenizer"
_MODULE = "OmniTokenizer.omnitokenizer"
_LOSSES = ("LPIPS", "NLayerDiscriminator", "NLayerDiscriminator3D")
_LEFT_OUT = ("perceptual_model.", "video_perceptual_model.", "image_discriminator.", "video_discriminator.")
"""Weights of training losses, which are not needed here."""
_QUIET = {"attn_dropout": 0.0, "ff_dropout": 0.0, "initialize_vit": False, "use_checkpoint": False}
"""Turns dropout off: its attention applies dropout in evaluation too, which would make codes random."""


class OmniTokenizer(Pretrained):
    """The authors' `VQGAN` as a `Tokenizer`."""

    kind = KIND
    pixels = PixelRange(-0.5, 0.5)

    def __init__(self, arguments: dict[str, Any], weights: dict[str, torch.Tensor], code: Path) -> None:
        """
        Args:
            arguments: constructor arguments of the network, as the checkpoint records them.
            code: folder of the authors' repository.
        """
        self._arguments, self._weights, self._code = arguments, weights, code
        self._network = _built(arguments, weights, code)
        self.num_codes = int(arguments["n_codes"])
        self.spatial_stride, self.temporal_stride = int(arguments["patch_size"]), int(arguments["temporal_patch_size"])
        self.fingerprint = fingerprint(KIND, arguments, weights)

    @classmethod
    def open(cls, tokenizer: settings.Tokenizer) -> OmniTokenizer:
        """Opens the repository `tokenizer.path` and the file `tokenizer.checkpoint`.

        Raises:
            SettingsError: if one is missing or wrong, or a package that the code needs is missing.
            DataError: if the checkpoint holds more than weights and settings, or does not fit.
        """
        code = (
            Path(given(tokenizer.path, "path", KIND, "the folder of the authors' repository, whose code will run"))
            .expanduser()
            .resolve()
        )
        path = Path(
            given(tokenizer.checkpoint, "checkpoint", KIND, "the authors' .ckpt file, for example imagenet_k600.ckpt")
        ).expanduser()
        if not path.is_file():
            raise SettingsError(f"tokenizer.checkpoint ({path}) is not a file; give the authors' .ckpt file")
        loaded = load_checkpoint(path, allowed=[argparse.Namespace])
        try:
            recorded = loaded["hyper_parameters"]
            recorded = recorded.get("args", recorded) if isinstance(recorded, dict) else recorded
            recorded = vars(recorded) if isinstance(recorded, argparse.Namespace) else recorded
            weights = {name: value for name, value in loaded["state_dict"].items() if not name.startswith(_LEFT_OUT)}
            arguments = {key: value for key, value in recorded.items() if _is_plain(value)} | _QUIET
            missing = {"n_codes", "patch_size", "temporal_patch_size"} - set(arguments)
        except (KeyError, AttributeError) as error:
            raise DataError(f"{path} is not an OmniTokenizer checkpoint ({error}); use one from its authors") from error
        if missing:
            raise DataError(
                f"{path} is not an OmniTokenizer checkpoint ({min(missing)} is missing); use one from its authors"
            )
        if arguments.get("use_vae"):
            raise SettingsError(
                f"tokenizer.checkpoint ({path}) is the continuous VAE, which has no codes; use the VQVAE of the same"
                " name"
            )
        return cls(arguments, weights, code)

    @classmethod
    def from_parts(cls, parts: SavedParts) -> OmniTokenizer:
        assert parts.code is not None
        return cls(parts.settings, parts.weights, parts.code)

    def save(self, path: Path) -> None:
        save_parts(path, KIND, self._arguments, self._weights, self.pixels, self._code)

    def _encode(self, video_BCFHW: torch.Tensor) -> torch.Tensor:
        codes_Btrc: torch.Tensor = self._network.to(video_BCFHW.device).encode(video_BCFHW, is_image=False)
        return codes_Btrc

    def _decode(self, codes_Btrc: torch.Tensor) -> torch.Tensor:
        video_BCFHW: torch.Tensor = self._network.to(codes_Btrc.device).decode(codes_Btrc, is_image=False)
        return video_BCFHW


def _built(arguments: dict[str, Any], weights: dict[str, torch.Tensor], code: Path) -> Any:
    module = authors_module(code, _MODULE, KIND, bare=True)
    for name in _LOSSES:
        setattr(module, name, _Nothing)
    network = module.VQGAN(argparse.Namespace(**_both_spellings(arguments)))
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise DataError(
            f"the OmniTokenizer checkpoint does not fit the code in {code}: {len(missing)} weights are missing,"
            f" {len(unexpected)} unknown, the first {[*missing, *unexpected][0]}; use the version of the repository"
            " that belongs to the checkpoint"
        )
    codebook = getattr(network, "codebook", None)
    if codebook is not None:
        codebook._need_init = False
    return network.float().eval().requires_grad_(False)


def _both_spellings(arguments: dict[str, Any]) -> dict[str, Any]:
    both = dict(arguments)
    for key, value in arguments.items():
        for one, other in (("casual_", "causal_"), ("causal_", "casual_")):
            if key.startswith(one):
                both.setdefault(other + key.removeprefix(one), value)
    return both


def _is_plain(value: object) -> bool:
    """Whether JSON preserves the value."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


class _Nothing(nn.Module):
    """An empty module in place of a training loss."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()
