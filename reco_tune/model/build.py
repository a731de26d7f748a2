"""The decoder that the settings name: its shape, before anything of it exists, and itself."""

from __future__ import annotations

import torch

from reco_tune import settings
from reco_tune.model.decoder import Decoder
from reco_tune.model.shape import DecoderSettings, ModelSettings
from reco_tune.model.transformer import VideoTransformer


def shape_of(model: settings.Model, num_codes: int, num_tokens: int, num_classes: int) -> DecoderSettings:
    """What the decoder will say of itself."""
    return ModelSettings(
        num_codes=num_codes,
        num_tokens=num_tokens,
        num_classes=num_classes,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
    )


def build_decoder(
    model: settings.Model,
    shape: DecoderSettings,
    seed: int = 0,
    attention: str = "auto",
    residual: str = "float32",
) -> Decoder:
    """A decoder on the CPU with the weights that training begins with; the same settings and seed give the same ones.

    Args:
        attention, residual: of the built-in transformer.
    """
    return VideoTransformer(
        shape.num_codes,
        shape.num_tokens,
        shape.num_classes,
        model.width,
        model.depth,
        model.heads,
        generator=torch.Generator().manual_seed(seed),
        attention=attention,
        residual=residual,
    )
