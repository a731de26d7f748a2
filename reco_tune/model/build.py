"""Builds the decoder that the settings name, or computes its shape without building it."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import torch

from reco_tune import parts, settings
from reco_tune.errors import SettingsError
from reco_tune.model.decoder import Decoder
from reco_tune.model.shape import DecoderSettings, ModelSettings
from reco_tune.model.transformer import VideoTransformer

BUILT_IN = "transformer"
"""The built-in kind, whose shape is given by `width`, `depth` and `heads`."""

SIZES = ("num_codes", "num_tokens", "num_classes", "condition_tokens")
"""Arguments that every decoder gets besides its options. `condition_tokens` is given only for a text."""


def shape_of(model: settings.Model, num_codes: int, num_tokens: int, num_classes: int) -> DecoderSettings:
    """The decoder's shape. No weights are allocated.

    Raises:
        SettingsError: if it cannot be built.
    """
    if model.kind == BUILT_IN:
        return ModelSettings(
            num_codes=num_codes,
            num_tokens=num_tokens,
            num_classes=num_classes,
            width=model.width,
            depth=model.depth,
            heads=model.heads,
            condition_tokens=model.condition_tokens,
        )
    sizes = num_codes, num_tokens, num_classes, model.condition_tokens
    return _counted(model.kind, json.dumps(model.options, sort_keys=True), *sizes)


def build_decoder(
    model: settings.Model,
    shape: DecoderSettings,
    seed: int = 0,
    attention: str = "auto",
    residual: str = "float32",
    start: bool = True,
) -> Decoder:
    """A decoder on the CPU; the same settings and seed give the same weights.

    Args:
        attention, residual: options of the built-in transformer.
        start: whether to load the weights that training begins with. If not, it has fresh weights, to be replaced.

    Raises:
        SettingsError: if it cannot be built.
    """
    if model.kind == BUILT_IN:
        return VideoTransformer(
            num_codes=shape.num_codes,
            num_tokens=shape.num_tokens,
            num_classes=shape.num_classes,
            width=model.width,
            depth=model.depth,
            heads=model.heads,
            generator=torch.Generator().manual_seed(seed),
            attention=attention,
            residual=residual,
            condition_tokens=shape.condition_tokens,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _made(model.kind, model.options, *(getattr(shape, size) for size in SIZES))
        if start:
            made.start()
    return made


@lru_cache(maxsize=64)
def _counted(
    kind: str, options: str, num_codes: int, num_tokens: int, num_classes: int, condition_tokens: int
) -> DecoderSettings:
    with torch.device("meta"):
        return _made(kind, json.loads(options), num_codes, num_tokens, num_classes, condition_tokens).settings


def _made(
    kind: str, options: dict[str, Any], num_codes: int, num_tokens: int, num_classes: int, condition_tokens: int
) -> Decoder:
    part = parts.load("models", kind)
    if not (isinstance(part, type) and issubclass(part, Decoder)):
        raise SettingsError(f"model.kind ({kind}) is not a reco_tune.model.Decoder; derive it from that class")
    checked = parts.options_of(part, options, "model.options", SIZES)
    text = {"condition_tokens": condition_tokens} if condition_tokens > 1 else {}
    try:
        made = part.build(num_codes, num_tokens, num_classes, checked, **text)
    except (ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        if text and isinstance(error, TypeError) and "condition_tokens" in said:
            raise SettingsError(
                f"model.condition (text) needs a decoder that reads several words, but model.kind ({kind}) takes no"
                " condition_tokens; pass it to Decoder.__init__ and read the words in labels_B, or set model.condition"
                " to class"
            ) from error
        raise SettingsError(f"model.kind ({kind}) cannot be built from model.options {options}: {said}") from error
    asked = num_codes, num_tokens, condition_tokens
    says = made.shape.num_codes, made.shape.num_tokens, made.shape.condition_tokens
    if says != asked:
        raise SettingsError(
            f"model.kind ({kind}) was asked for num_codes, num_tokens and condition_tokens {asked}, but has {says};"
            " pass them to Decoder.__init__ unchanged"
        )
    return made
