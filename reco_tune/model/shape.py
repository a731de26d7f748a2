"""The shape of a model, as numbers, and what it costs. Knows no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Costs(NamedTuple):
    """Floating-point operations of a forward pass, 2 per multiply-add. A pair is an input and an input that it attends
    to, itself included.
    """

    token: int
    """Cost of an input in all layers, without its pairs."""
    pair: int
    """Cost of a pair in all layers."""
    head: int
    """Cost of the logits of a token."""
    prefix_token: int
    """Cost of an input of a prefix. Only what later inputs read is computed."""
    prefix_pair: int
    """Cost of a pair in a prefix."""
    frozen: int = 0
    """The part of `token` that is products with frozen weights. The gradient of these weights is never computed."""
    frozen_head: int = 0
    """The same part of `head`."""


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """The shape of any decoder. Its costs can be computed from the shape alone."""

    num_codes: int
    """V."""
    num_tokens: int
    """T."""
    num_classes: int
    """Number of classes without the null class; 1 is unconditional. For a text, the size of its vocabulary."""
    width: int
    """D, the width of the hidden states."""
    condition_tokens: int = 1
    """C, the number of inputs before the first code: 1 for a class, the padded length for a text."""

    @property
    def num_inputs(self) -> int:
        """Number of inputs of a whole clip: its condition and all codes but the last."""
        return self.condition_tokens - 1 + self.num_tokens

    def condition_shape(self, clips: int) -> tuple[int, ...]:
        """Shape of the labels of that many clips."""
        return (clips,) if self.condition_tokens == 1 else (clips, self.condition_tokens)

    @property
    def costs(self) -> Costs:
        raise NotImplementedError

    @property
    def parameter_counts(self) -> tuple[int, int, int]:
        """Number of weights outside the blocks, number of weights of one block, and number of blocks."""
        raise NotImplementedError

    @property
    def frozen_parameters(self) -> int:
        """Number of weights that are not trained. They have no gradient and no moments."""
        return 0

    @property
    def cached_per_token(self) -> int:
        """Number of tensor elements that sampling caches for one input."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ModelSettings(DecoderSettings):
    """The shape of the built-in transformer. Cost arithmetic and checkpoints need nothing else."""

    depth: int
    """Blocks."""
    heads: int
    """H, which divides D."""

    @property
    def costs(self) -> Costs:
        """In the last layer, a prefix costs only the projections to keys and values."""
        layer, pairs, lower = 24 * self.width**2, 4 * self.width, self.depth - 1
        return Costs(
            token=self.depth * layer,
            pair=self.depth * pairs,
            head=2 * self.width * self.num_codes,
            prefix_token=lower * layer + 4 * self.width**2,
            prefix_pair=lower * pairs,
        )

    @property
    def parameter_counts(self) -> tuple[int, int, int]:
        around = 2 * self.num_codes + self.num_classes + 1 + self.num_inputs + 1
        return around * self.width, 12 * self.width**2 + 2 * self.width, self.depth

    @property
    def cached_per_token(self) -> int:
        return 2 * self.depth * self.width


@dataclass(frozen=True, kw_only=True)
class CountedSettings(DecoderSettings):
    """The shape of any other decoder. Its costs are counted once, on tensors without storage (`counting`)."""

    counted: Costs
    parameters: int
    cached: int
    frozen: int = 0
    block: int = 0
    blocks: int = 0

    @property
    def costs(self) -> Costs:
        return self.counted

    @property
    def parameter_counts(self) -> tuple[int, int, int]:
        return self.parameters - self.blocks * self.block, self.block, self.blocks

    @property
    def frozen_parameters(self) -> int:
        return self.frozen

    @property
    def cached_per_token(self) -> int:
        return self.cached
