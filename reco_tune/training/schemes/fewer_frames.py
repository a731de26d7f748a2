"""The baseline of shorter clips: sub-clips encoded by themselves, so their codes depend on no earlier frame."""

import numpy as np

from reco_tune.data.layouts import Split
from reco_tune.data.token_cache import TokenCache
from reco_tune.training.schemes.base import Scheme
from reco_tune.windows import WindowSpan


class FewerFrames(Scheme):
    """Pieces of k blocks. Each begins like a clip, so each clip of a batch draws its own piece."""

    trains_pieces = True
    continues_by = "frame"

    @property
    def encoded_piece_blocks(self) -> tuple[int, ...]:
        return (self.piece_blocks,)

    def tokens(self, cache: TokenCache, split: Split) -> np.ndarray:
        pieces = cache.pieces(split, self.piece_blocks)
        return pieces.reshape(len(pieces), -1)

    def piece_starts(self, clips: int, span: WindowSpan, draws: np.random.Generator) -> np.ndarray:
        pieces = self.experiment.grid.blocks - self.piece_blocks + 1
        return self.piece_start(draws.integers(pieces, size=clips))

    def piece_start(self, number: np.ndarray) -> np.ndarray:
        return number * self.model_settings.num_tokens
