"""The milder variant of shorter clips: pieces are cut out of the clip's own tokens."""

import numpy as np

from reco_tune.training.schemes.base import Scheme
from reco_tune.windows import WindowSchedule, WindowSpan


class FewerFramesTokens(Scheme):
    """Pieces of k blocks from a random block, which is the same for all clips of a batch."""

    trains_pieces = True
    continues_by = "block"

    def _windows(self) -> WindowSchedule:
        grid = self.experiment.grid
        return WindowSchedule(
            grid.num_tokens, self.loss_tokens, grid.tokens_per_block, "uniform", self.experiment.training.seed
        )

    def judged(self, span: WindowSpan) -> WindowSpan:
        """Block 0 has no loss if the piece begins inside the clip. It is then a later block of the clip, which sampling
        gets as a prompt.
        """
        given = self.experiment.grid.tokens_per_block if span.start else 0
        return WindowSpan(given, span.length - given)

    def piece_starts(self, clips: int, span: WindowSpan, draws: np.random.Generator) -> np.ndarray:
        return np.full(clips, span.start)

    def piece_start(self, number: np.ndarray) -> np.ndarray:
        return number * self.experiment.grid.tokens_per_block
