"""The base class of schemes, which trains on full sequences. A scheme overrides what it does differently. The training
loop and the calibration use the same object, so the timed step is the trained step. Knows models, windows and losses;
knows nothing of optimisers, devices and the order of batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reco_tune import parts
from reco_tune.data.layouts import Split
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import SettingsError
from reco_tune.model import Decoder
from reco_tune.model.build import build_decoder, shape_of
from reco_tune.model.flops import attention_flops, backward_flops, prefix_flops, step_flops
from reco_tune.settings import Experiment
from reco_tune.training.objectives import LossOptions, LossTerms, Term, hidden_states, loss_terms
from reco_tune.training.parameters import Parameters
from reco_tune.training.resampling import Draws
from reco_tune.windows import WindowSchedule, WindowSpan, prefix_inputs


class Batch(NamedTuple):
    """Clips (or pieces) of one micro-batch."""

    tokens_BT: Tensor
    """int32 codes; T is the scheme's `model_settings.num_tokens`."""
    labels_B: Tensor
    """Classes [B], or words of texts [B, C]. Dropped conditions are the null class."""
    inputs_BT: Tensor | None = None
    """int32 codes that the model reads in place of `tokens_BT`. The targets are still `tokens_BT`."""
    draws: Draws | None = None
    """Draws for tokens of the prefix that the model resamples itself."""

    @property
    def read(self) -> tuple[Tensor, Tensor]:
        """The codes and classes that the model reads."""
        return self.tokens_BT if self.inputs_BT is None else self.inputs_BT, self.labels_B

    def moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors moved."""
        return Batch(
            move(self.tokens_BT),
            move(self.labels_B),
            None if self.inputs_BT is None else move(self.inputs_BT),
            None if self.draws is None else self.draws.moved(move),
        )


class Scheme:
    """A scheme: the model that it trains, the spans that it draws and the loss of a micro-batch."""

    trains_pieces: ClassVar[bool] = False
    """Whether the model sees only pieces of clips, W tokens long, instead of whole clips."""
    continues_by: ClassVar[Literal["frame", "block"] | None] = None
    """How sampling makes a clip of pieces. "frame": the next piece begins with the last decoded frame, encoded again.
    "block": it begins with the last block as it is. None: the model samples whole clips."""

    def __init__(self, experiment: Experiment, num_codes: int, num_classes: int) -> None:
        window, grid, objective = experiment.window, experiment.grid, experiment.objective
        assert window.length_tokens is not None
        self.experiment = experiment
        self.loss_tokens = window.length_tokens
        """W, the length of the window, the piece or the clip. With a schedule of lengths, windows may be longer."""
        self.piece_blocks = window.length_tokens // grid.tokens_per_block if self.trains_pieces else grid.blocks
        """k, the number of blocks that the model sees."""
        num_tokens = window.length_tokens if self.trains_pieces else grid.num_tokens
        self.model_settings = shape_of(experiment.model, num_codes, num_tokens, num_classes)
        self._check_layers()
        self.windows = self._windows()
        """Starts and lengths of windows; None if every step is the same, from token 0."""
        self.options = LossOptions(
            continuity_weight=objective.continuity_weight,
            continuity_reduction=objective.continuity_reduction,
            continuity_state=objective.continuity_state,
            norm_weight=objective.norm_weight,
            neighbour_distance=grid.tokens_per_block if objective.continuity_neighbours == "sites" else 1,
            chunk_tokens=experiment.training.loss_chunk_tokens,
            prefix_tokens=window.prefix_tokens,
            activation_checkpointing=experiment.training.activation_checkpointing,
            compiled=experiment.training.compile,
            term=self._term(),
            term_weight=objective.term_weight,
        )

    def _check_layers(self) -> None:
        _, _, layers = self.model_settings.parameter_counts
        training, resources = self.experiment.training, self.experiment.resources
        for key, asked in (
            ("training.activation_checkpointing", training.activation_checkpointing),
            ("resources.shard_state", resources.shard_state),
        ):
            if asked and not layers:
                raise SettingsError(
                    f"{key} (true) goes layer by layer, but model.kind {self.experiment.model.kind} names no layers"
                    " (Decoder.layers); name them, or leave it out"
                )

    def _term(self) -> Term | None:
        objective = self.experiment.objective
        if objective.term is None:
            return None
        part = parts.load("losses", objective.term)
        term: Term = part(**dict(parts.options_of(part, objective.options, "objective.options")))
        return term

    @property
    def name(self) -> str:
        return self.experiment.window.scheme

    # Where windows lie

    def draw(self, step: int = 0) -> WindowSpan:
        """Draws the span of the next micro-batch, at this step of the run."""
        return self.windows.draw(step) if self.windows is not None else WindowSpan(0, self.loss_tokens)

    def span(self, span: WindowSpan | int) -> WindowSpan:
        """The span for a start. A plain start means a window of W tokens, here and below."""
        return span if isinstance(span, tuple) else WindowSpan(span, self.loss_tokens)

    def distribution(self) -> dict[WindowSpan, float]:
        """Share of each span in the run."""
        return self.windows.distribution() if self.windows is not None else {WindowSpan(0, self.loss_tokens): 1.0}

    def kinds_of_spans(self) -> list[WindowSpan]:
        """Spans of the run that represent all others: for each length the first one with no prefix, with one input,
        and with more.
        """
        kinds: dict[tuple[int, int], WindowSpan] = {}
        for span in sorted(self.distribution()):
            start, length = self.computed(span)
            kinds.setdefault((min(prefix_inputs(start, self.options.prefix_tokens), 2), length), span)
        return list(kinds.values())

    def computed(self, span: WindowSpan) -> WindowSpan:
        """The tokens of the model's sequence that a step with this span computes with gradient."""
        return WindowSpan(0, self.model_settings.num_tokens)

    def judged(self, span: WindowSpan) -> WindowSpan:
        """The tokens of `computed` that have a loss."""
        return WindowSpan(0, self.model_settings.num_tokens)

    def _windows(self) -> WindowSchedule | None:
        return None

    steps_of_a_batch: int = 1
    """Number of consecutive steps that train on the same clips."""

    def state(self, clips: int, device: torch.device) -> dict[str, Tensor]:
        """Tensors, by name, that a step passes to the next one besides the weights. They are no copies. A checkpoint
        holds them.

        Args:
            clips: number of clips in a micro-batch.
        """
        return {}

    # What a step costs

    def tokens_predicted(self, span: WindowSpan | int) -> int:
        """Number of tokens of a clip that have a loss in a step with this span."""
        return self.judged(self.span(span)).length

    def tokens_seen(self, span: WindowSpan | int) -> int:
        """Number of tokens of a clip that a step with this span reads, with or without gradient."""
        start, length = self.computed(self.span(span))
        return prefix_inputs(start, self.options.prefix_tokens) + length

    def flops(self, span: WindowSpan | int) -> int:
        """FLOPs of forward and backward of one clip with this span."""
        return step_flops(self.model_settings, *self.computed(self.span(span)), self.options.prefix_tokens)

    def backward_flops(self, span: WindowSpan | int) -> int:
        """The part of `flops` that is backward."""
        return backward_flops(self.model_settings, *self.computed(self.span(span)), self.options.prefix_tokens)

    def prefix_flops(self, span: WindowSpan | int) -> int:
        """The part of `flops` that makes keys and values of the prefix."""
        start = self.computed(self.span(span)).start
        return prefix_flops(self.model_settings, prefix_inputs(start, self.options.prefix_tokens))

    def attention_flops(self, span: WindowSpan | int) -> int:
        """The part of `flops` that is attention."""
        start, length = self.computed(self.span(span))
        return attention_flops(self.model_settings, prefix_inputs(start, self.options.prefix_tokens), length)

    def expected_flops(self) -> float:
        """Expected FLOPs of one clip, over the spans of the whole run."""
        return sum(share * self.flops(span) for span, share in self.distribution().items())

    # What it is trained on

    @property
    def encoded_piece_blocks(self) -> tuple[int, ...]:
        """Lengths in blocks of the sub-clips that must be encoded by themselves."""
        return ()

    def tokens(self, cache: TokenCache, split: Split) -> np.ndarray:
        """int32 [N, ...]: each clip's codes, or the codes of all its pieces, one after another."""
        return cache.tokens(split)

    def draws(self, clips: int, span: WindowSpan, draws: np.random.Generator) -> Draws | None:
        """Draws for tokens before a window that the model resamples itself; None if there are none."""
        return None

    def redrawn(self, batch: Batch, span: WindowSpan) -> Batch:
        """The batch for a step with this span, whatever step it was made for."""
        return batch._replace(draws=self.draws(len(batch.labels_B), span, np.random.default_rng(0)))

    def piece_columns(self, first_C: np.ndarray) -> np.ndarray:
        """Columns [C, tokens of a piece] of `tokens`, for pieces that begin at these columns."""
        return first_C[:, None] + np.arange(self.model_settings.num_tokens)

    def piece_starts(self, clips: int, span: WindowSpan, draws: np.random.Generator) -> np.ndarray:
        """Columns [clips] of `tokens` at which the pieces of a micro-batch begin."""
        raise NotImplementedError(f"scheme {type(self).__name__} trains whole clips")

    def piece_start(self, number: np.ndarray) -> np.ndarray:
        """Columns at which the pieces with these numbers begin. A clip has `grid.blocks - piece_blocks + 1` pieces."""
        raise NotImplementedError(f"scheme {type(self).__name__} trains whole clips")

    # The step

    def build_model(self, start: bool = True) -> Decoder:
        """The model that training begins with, on the CPU; the same settings and seed give the same weights.

        Args:
            start: whether to load the weights that training begins with. If not, the model has fresh weights.
        """
        experiment = self.experiment
        return build_decoder(
            experiment.model,
            self.model_settings,
            experiment.training.seed,
            experiment.resources.attention,
            experiment.training.residual,
            start,
        )

    def loss(self, model: Decoder, batch: Batch, span: WindowSpan | int) -> LossTerms:
        """Loss of one micro-batch with its window at this span."""
        span = self.span(span)
        computed, judged = self.computed(span), self.judged(span)
        hidden_BSD = hidden_states(model, *batch.read, *computed, self.options)
        targets_BW = batch.tokens_BT[:, judged.start : judged.start + judged.length]
        return loss_terms(model, hidden_BSD, targets_BW, self.options, judged.start - computed.start)

    def graph(self, model: Decoder, batch: Batch, span: WindowSpan | int) -> tuple[object, int]:
        """An object that holds what a step with this span keeps for backward, and the number of bytes kept besides."""
        return self.loss(model, batch, span), 0

    def compiled_loss(self, parameters: Parameters) -> Callable[[Decoder, Batch, WindowSpan], LossTerms]:
        """`loss`, compiled: the blocks of the parameters' model, and the head with the loss (`options.compiled`)."""
        parameters.compile_blocks()
        return self.loss
