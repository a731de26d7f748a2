"""What one micro-batch of each scheme computes: on which tokens, from which start, with which loss.

The training loop and the calibration drive the same object, so what is timed is what is trained. Knows schemes; refuses
to know optimisers, devices, the order of batches and files.

    scheme                 model sees             loss on                 start
    full                   the clip, T tokens     all T                   0
    window                 prefix and window      the window, W tokens    drawn (`windows.WindowSchedule`)
    masked_full            the clip, T tokens     the window, W tokens    drawn; a control: same loss, nothing saved
    fewer_frames           a piece of k blocks    all of the piece        0; pieces are sub-clips encoded by themselves
    fewer_frames_tokens    a piece of k blocks    all of a piece at 0,    drawn; the piece is cut out of the clip's own
    tokens there;
                                                  else all but block 0    its block 0 is then a later block that
                                                  sampling is given

A window's length is W, or follows `window.schedule` over the steps of the run; what is asked of an arm at a
`WindowSpan` holds for that length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError
from reco_tune.model import ModelSettings, VideoTransformer, WindowOutput
from reco_tune.model.flops import backward_flops, step_flops
from reco_tune.settings import Experiment
from reco_tune.training.objectives import LossTerms, forward, loss_terms, window_loss
from reco_tune.windows import WindowSchedule, WindowSpan, prefix_inputs


class Batch(NamedTuple):
    """Clips (or pieces) of one micro-batch."""

    tokens_BT: Tensor
    """int32 codes; T is the arm's `model_settings.num_tokens`."""
    labels_B: Tensor
    """Classes; the null class where dropped."""


class Arm:
    """One scheme with its settings: the model it trains, the starts it draws and the loss of a micro-batch."""

    def __init__(self, experiment: Experiment, num_codes: int, num_classes: int) -> None:
        window, grid = experiment.window, experiment.grid
        assert window.length_tokens is not None and window.stride_tokens is not None
        self.experiment = experiment
        self.scheme = window.scheme
        self.trains_pieces = window.scheme in ("fewer_frames", "fewer_frames_tokens")
        self.piece_blocks = window.length_tokens // grid.tokens_per_block if self.trains_pieces else grid.blocks
        """k, the blocks that the model sees; all of the clip's where no pieces are trained."""
        self.loss_tokens = grid.num_tokens if window.scheme == "full" else window.length_tokens
        """W, the length of the piece, or of the clip; a schedule of lengths may go beyond it."""
        self.model_settings = ModelSettings(
            num_codes=num_codes,
            num_tokens=window.length_tokens if self.trains_pieces else grid.num_tokens,
            num_classes=num_classes,
            width=experiment.model.width,
            depth=experiment.model.depth,
            heads=experiment.model.heads,
        )
        self.windows: WindowSchedule | None = None
        """Starts and lengths; None where every step is the same, from token 0."""
        tokens, length, seed = grid.num_tokens, window.length_tokens, experiment.training.seed
        if window.scheme in ("window", "masked_full"):
            how = window.first_frame_probability, seed, experiment.training.steps, window.schedule, window.full_fraction
            self.windows = WindowSchedule(tokens, length, window.stride_tokens, *how)
        elif window.scheme == "fewer_frames_tokens":
            self.windows = WindowSchedule(tokens, length, grid.tokens_per_block, "uniform", seed)

    def draw(self, step: int = 0) -> WindowSpan:
        """Where the next micro-batch lies, which belongs to this step of the run."""
        return self.windows.draw(step) if self.windows is not None else WindowSpan(0, self.loss_tokens)

    def span(self, span: WindowSpan | int) -> WindowSpan:
        """The span itself; a start alone, here and below, is a window of W tokens."""
        return span if isinstance(span, tuple) else WindowSpan(span, self.loss_tokens)

    def distribution(self) -> dict[WindowSpan, float]:
        """Share of every span in the run."""
        return self.windows.distribution() if self.windows is not None else {WindowSpan(0, self.loss_tokens): 1.0}

    def tokens_predicted(self, span: WindowSpan | int) -> int:
        """Tokens of a clip that have a loss in a step there."""
        start, length = self.span(span)
        return length - (self.experiment.grid.tokens_per_block if self.trains_pieces and start else 0)

    def tokens_seen(self, span: WindowSpan | int) -> int:
        """Tokens of a clip that a step there reads, with gradient or without."""
        start, length = self.span(span)
        return (
            prefix_inputs(start, self._prefix_tokens) + length
            if self.scheme == "window"
            else self.model_settings.num_tokens
        )

    def flops(self, span: WindowSpan | int) -> int:
        """Forward and backward of one clip there."""
        if self.scheme == "window":
            return step_flops(self.model_settings, *self.span(span), self._prefix_tokens)
        return step_flops(self.model_settings, 0, self.model_settings.num_tokens)

    def backward_flops(self, span: WindowSpan | int) -> int:
        """The part of `flops` that is backward."""
        if self.scheme == "window":
            return backward_flops(self.model_settings, *self.span(span), self._prefix_tokens)
        return backward_flops(self.model_settings, 0, self.model_settings.num_tokens)

    def expected_flops(self) -> float:
        """Of one clip, over the spans of the whole run."""
        return sum(share * self.flops(span) for span, share in self.distribution().items())

    def build_model(self) -> VideoTransformer:
        """A fresh model on the CPU; the same settings and seed give the same weights."""
        generator = torch.Generator().manual_seed(self.experiment.training.seed)
        shape = self.model_settings
        return VideoTransformer(
            shape.num_codes,
            shape.num_tokens,
            shape.num_classes,
            shape.width,
            shape.depth,
            shape.heads,
            generator=generator,
        )

    def loss(self, model: VideoTransformer, batch: Batch, span: WindowSpan | int) -> LossTerms:
        """Loss of one micro-batch whose window lies there."""
        start, length = self.span(span)
        objective, training, grid = self.experiment.objective, self.experiment.training, self.experiment.grid
        chunk, again = training.loss_chunk_tokens, training.activation_checkpointing
        judge = (
            objective.continuity_weight,
            objective.continuity_reduction,
            objective.continuity_state,
            objective.norm_weight,
            grid.tokens_per_block if objective.continuity_neighbours == "sites" else 1,
            chunk,
        )
        if self.scheme == "window":
            return window_loss(
                model, batch.tokens_BT, batch.labels_B, start, length, *judge, self._prefix_tokens, again
            )
        whole = forward(model, *batch, 0, self.model_settings.num_tokens, chunk, activation_checkpointing=again)
        predicted = self.tokens_predicted(span)
        first = self.model_settings.num_tokens - predicted if self.trains_pieces else start
        window = slice(first, first + predicted)
        judged = WindowOutput(whole.logits_BWV[:, window], whole.hidden_BWD[:, window])
        return loss_terms(model, judged, batch.tokens_BT[:, window], *judge)

    @property
    def _prefix_tokens(self) -> int | None:
        return self.experiment.window.prefix_tokens


def build_arm(experiment: Experiment, cache: TokenCache) -> Arm:
    """The arm of an experiment on a token cache.

    Raises:
        DataError: where the cache was made for clips of another shape.
    """
    if tuple(cache.grid) != tuple(experiment.grid):
        raise DataError(
            f"the token cache {cache.path} holds clips of {'x'.join(map(str, cache.grid))} tokens, but data and"
            f" tokenizer settings give {'x'.join(map(str, experiment.grid))}; prepare the tokens again with these"
            " settings"
        )
    return Arm(experiment, cache.num_codes, cache.num_classes if experiment.data.class_conditional else 1)
