"""Shapes of a clip's tokens."""

from __future__ import annotations

from typing import NamedTuple


class TokenGrid(NamedTuple):
    """Shape of a clip's tokens: `blocks` latent frames of `rows` x `columns` sites."""

    blocks: int
    rows: int
    columns: int

    @property
    def tokens_per_block(self) -> int:
        return self.rows * self.columns

    @property
    def num_tokens(self) -> int:
        return self.blocks * self.rows * self.columns

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a clip's codes on disk: blocks, rows, columns. For a holistic tokenizer: the number of tokens
        alone.
        """
        return tuple(self) if self.blocks * self.rows > 1 else (self.columns,)


class HolisticClip(NamedTuple):
    """The clip size that a tokenizer without a frame grid requires, and its number of tokens."""

    frames: int
    size_px: int
    tokens: int


HOLISTIC = {"larp": HolisticClip(frames=16, size_px=128, tokens=1024)}
"""Tokenizers whose codes represent the whole clip, not single frames."""
