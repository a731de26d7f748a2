"""The shape of a model, as numbers. Knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The shape of a model: all that cost arithmetic and a checkpoint need."""

    num_codes: int
    """V."""
    num_tokens: int
    """T."""
    num_classes: int
    """Classes without the null class; 1 is unconditional."""
    width: int
    """D."""
    depth: int
    """Blocks."""
    heads: int
    """H, which divides D."""
