"""ReCo's scheme: a window with gradient, after a prefix without."""

import numpy as np

from reco_tune.model import Decoder
from reco_tune.training.objectives import LossTerms
from reco_tune.training.resampling import Draws, resampled
from reco_tune.training.schemes.base import Batch, Scheme
from reco_tune.windows import WindowSchedule, WindowSpan


class Window(Scheme):
    """Draws a window from the stride grid. Only the window is computed with gradient, and all of it has a loss."""

    def _windows(self) -> WindowSchedule:
        window, training = self.experiment.window, self.experiment.training
        assert window.length_tokens is not None and window.stride_tokens is not None
        return WindowSchedule(
            self.experiment.grid.num_tokens,
            window.length_tokens,
            window.stride_tokens,
            window.first_frame_probability,
            training.seed,
            training.steps,
            window.schedule,
            window.full_fraction,
        )

    def computed(self, span: WindowSpan) -> WindowSpan:
        return span

    def judged(self, span: WindowSpan) -> WindowSpan:
        return span

    # A prefix in which the model resamples some tokens

    def tokens_drawn(self, span: WindowSpan | int) -> int:
        """Number of tokens of a prefix that the model resamples, in each clip."""
        return round(self.experiment.window.prefix_resampled * self.span(span).start)

    def draws(self, clips: int, span: WindowSpan, draws: np.random.Generator) -> Draws | None:
        count = self.tokens_drawn(span)
        return Draws.of(clips, span.start, count, draws) if count else None

    def loss(self, model: Decoder, batch: Batch, span: WindowSpan | int) -> LossTerms:
        if batch.draws is not None:
            batch = batch._replace(inputs_BT=resampled(model, *batch.read, self.span(span).start, batch.draws))
        return super().loss(model, batch, span)

    def flops(self, span: WindowSpan | int) -> int:
        return super().flops(span) + self._drawing_flops(span)

    def prefix_flops(self, span: WindowSpan | int) -> int:
        return super().prefix_flops(span) + self._drawing_flops(span)

    def attention_flops(self, span: WindowSpan | int) -> int:
        return super().attention_flops(span) + self._drawing_pairs(span) * self.model_settings.costs.pair

    def _drawing_inputs(self, span: WindowSpan | int) -> int:
        """Number of inputs of the pass that resamples: the prefix, and a text's words before input 0."""
        read = self.span(span).start + self.model_settings.condition_tokens - 1
        return read if self.tokens_drawn(span) else 0

    def _drawing_pairs(self, span: WindowSpan | int) -> int:
        read = self._drawing_inputs(span)
        return read * (read + 1) // 2

    def _drawing_flops(self, span: WindowSpan | int) -> int:
        """FLOPs of one forward of the prefix, and of the logits of resampled tokens."""
        costs, pairs = self.model_settings.costs, self._drawing_pairs(span)
        return costs.token * self._drawing_inputs(span) + costs.pair * pairs + costs.head * self.tokens_drawn(span)
