"""Windows in order, after the keys and values of earlier steps, as Transformer-XL trains (arXiv 1901.02860)."""

from __future__ import annotations

import torch
from torch import Tensor

from reco_tune.model import Decoder, VideoTransformer
from reco_tune.model.attention import KeysValues
from reco_tune.model.chunks import chunk_spans
from reco_tune.model.flops import attention_flops, forward_flops
from reco_tune.settings import Experiment
from reco_tune.training.objectives import LossTerms, loss_terms
from reco_tune.training.schemes.base import Batch, Scheme
from reco_tune.windows import WindowSpan


class StalePrefix(Scheme):
    """Trains on the same clips for T/W steps, window after window. The next steps, which have newer weights, read the
    keys and values of the earlier ones. So no pass over a prefix is needed.
    """

    def __init__(self, experiment: Experiment, num_codes: int, num_classes: int) -> None:
        super().__init__(experiment, num_codes, num_classes)
        self.spans = chunk_spans(self.model_settings.num_tokens, self.loss_tokens)
        self.steps_of_a_batch = len(self.spans)
        self._past: Tensor | None = None
        """[layers, 2, B, H, T, K]: keys and values of the clips so far."""
        self._made: tuple[WindowSpan, list[KeysValues]] | None = None
        """Keys and values of the last window. They are written later, because its own backward still reads the earlier
        ones.
        """

    def draw(self, step: int = 0) -> WindowSpan:
        return self.spans[step % len(self.spans)]

    def distribution(self) -> dict[WindowSpan, float]:
        steps = self.experiment.training.steps
        counts = [len(range(number, steps, len(self.spans))) for number in range(len(self.spans))]
        return {span: count / steps for span, count in zip(self.spans, counts, strict=True) if count}

    def span(self, span: WindowSpan | int) -> WindowSpan:
        return span if isinstance(span, tuple) else next(own for own in self.spans if own.start == span)

    def computed(self, span: WindowSpan) -> WindowSpan:
        return span

    def judged(self, span: WindowSpan) -> WindowSpan:
        return span

    def tokens_seen(self, span: WindowSpan | int) -> int:
        """The window's tokens only. The keys and values of the prefix are read from memory."""
        return self.span(span).length

    def flops(self, span: WindowSpan | int) -> int:
        return 3 * forward_flops(self.model_settings, *self.span(span))

    def backward_flops(self, span: WindowSpan | int) -> int:
        return 2 * forward_flops(self.model_settings, *self.span(span))

    def prefix_flops(self, span: WindowSpan | int) -> int:
        return 0

    def attention_flops(self, span: WindowSpan | int) -> int:
        start, length = self.span(span)
        return attention_flops(self.model_settings, start, length) - attention_flops(self.model_settings, start, 0)

    def state(self, clips: int, device: torch.device) -> dict[str, Tensor]:
        past = self._room(clips, torch.float32, device)
        self._remember()
        return {"stale_prefix": past}

    def loss(self, model: Decoder, batch: Batch, span: WindowSpan | int) -> LossTerms:
        assert isinstance(model, VideoTransformer)  # settings say so
        past = self._room(len(batch.labels_B), model.head.weight.dtype, batch.labels_B.device)
        self._remember()
        start, length = span = self.span(span)
        hidden_BWD = model.inputs(*batch.read, start, start + length).embedded_BSD
        made = []
        for number, block in enumerate(model.blocks):
            before = KeysValues(*past[number, :, :, :, :start].unbind()) if start else None
            hidden_BWD, own = block.after(hidden_BWD, before)
            made.append(KeysValues(own.keys.detach(), own.values.detach()))
        self._made = span, made
        return loss_terms(model, hidden_BWD, batch.tokens_BT[:, start : start + length], self.options)

    def graph(self, model: Decoder, batch: Batch, span: WindowSpan | int) -> tuple[object, int]:
        """The bytes are the keys and values of whole clips."""
        terms = self.loss(model, batch, span)
        assert self._past is not None
        return terms, self._past.numel() * self._past.element_size()

    def _remember(self) -> None:
        """Writes the keys and values of the last window."""
        if self._made is None or self._past is None:
            return
        (start, length), made = self._made
        for number, layer in enumerate(made):
            for part, own in enumerate(layer):
                self._past[number, part, :, :, start : start + length] = own
        self._made = None

    def _room(self, clips: int, weights: torch.dtype, device: torch.device) -> Tensor:
        """Memory for keys and values of that many whole clips, in the type of a step. Zeros at first."""
        if self._past is None:
            model, half = self.experiment.model, self.experiment.training.precision == "bfloat16"
            shape = model.depth, 2, clips, model.heads, self.model_settings.num_tokens, model.width // model.heads
            self._past = torch.zeros(shape, dtype=torch.bfloat16 if half else weights, device=device)
        return self._past
