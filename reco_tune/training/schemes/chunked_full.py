"""The baseline's gradient in the memory of a window: exact, and slower than the baseline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reco_tune.model import Decoder, VideoTransformer
from reco_tune.model.chunks import chunk_spans, compute_chunk, gradient_in_chunks, read_chunks
from reco_tune.model.flops import attention_flops, prefix_flops
from reco_tune.settings import Experiment
from reco_tune.training.objectives import LossTerms, loss_terms
from reco_tune.training.schemes.base import Batch, Scheme
from reco_tune.windows import WindowSpan


class ChunkedFull(Scheme):
    """Computes the whole clip, T tokens, with a loss on all of them, W tokens at a time (`model.chunks`)."""

    def __init__(self, experiment: Experiment, num_codes: int, num_classes: int) -> None:
        super().__init__(experiment, num_codes, num_classes)
        self.spans = chunk_spans(self.model_settings.num_tokens, self.loss_tokens)
        self.loss_tokens = self.model_settings.num_tokens

    def flops(self, span: WindowSpan | int) -> int:
        """FLOPs of the baseline and of the first pass, which costs as much as the prefix of the last chunk."""
        return super().flops(span) + self.prefix_flops(span)

    def prefix_flops(self, span: WindowSpan | int) -> int:
        return prefix_flops(self.model_settings, self.spans[-1].start)

    def attention_flops(self, span: WindowSpan | int) -> int:
        return super().attention_flops(span) + attention_flops(self.model_settings, self.spans[-1].start, 0)

    def loss(self, model: Decoder, batch: Batch, span: WindowSpan | int) -> LossTerms:
        """Computes the gradient together with the loss terms; backward returns it. The continuity term has no weight
        here. It is taken over neighbours in the same chunk.
        """
        assert isinstance(model, VideoTransformer)  # settings say so
        return LossTerms(*_InChunks.apply(self, model, batch, *model.parameters()))  # type: ignore[no-untyped-call]

    def graph(self, model: Decoder, batch: Batch, span: WindowSpan | int) -> tuple[object, int]:
        """The graph of the longer of the last two chunks. The bytes are the keys and values that chunks read, their
        gradients, and the weights' gradient.
        """
        assert isinstance(model, VideoTransformer)
        largest = max(self.spans[:-3:-1], key=lambda span: span.length)
        kept = read_chunks(model, *batch.read, self.spans[:-1])
        hidden_BCD, *rest = compute_chunk(model, *batch.read, largest, kept)
        terms = self._judge(model, batch, hidden_BCD, largest)
        sums = [(part.numel(), part.element_size()) for layer in kept for part in layer]
        weights = sum(own.numel() * own.element_size() for own in model.parameters())
        return (terms, rest), sum(count * (size + max(size, 4)) for count, size in sums) + weights

    def _judge(self, model: Decoder, batch: Batch, hidden_BCD: Tensor, span: WindowSpan) -> LossTerms:
        targets_BC = batch.tokens_BT[:, span.start : span.start + span.length]
        return loss_terms(model, hidden_BCD, targets_BC, self.options)

    def terms_and_gradient(self, model: VideoTransformer, batch: Batch) -> tuple[LossTerms, list[Tensor]]:
        """Loss terms of whole clips, and the gradient for each parameter."""
        tokens, distance = self.loss_tokens, self.options.neighbour_distance
        pairs = sum(max(0, span.length - distance) for span in self.spans)
        shares = []

        def judge(hidden_BCD: Tensor, span: WindowSpan) -> Tensor:
            own, part = self._judge(model, batch, hidden_BCD, span), span.length / tokens
            neighbours = max(0, span.length - distance) / max(1, pairs)
            shares.append(
                torch.stack(
                    [own.total.detach() * part, own.cross_entropy * part, own.continuity * neighbours, own.norm * part]
                )
            )
            return own.total * part

        gradient = gradient_in_chunks(model, *batch.read, self.spans, judge)
        return LossTerms(*torch.stack(shares).sum(dim=0)), gradient


class _InChunks(torch.autograd.Function):
    """Loss terms of whole clips, whose gradient is known before backward asks for it."""

    @staticmethod
    def forward(
        ctx: Any, scheme: ChunkedFull, model: VideoTransformer, batch: Batch, *parameters: nn.Parameter
    ) -> tuple[Tensor, ...]:
        same = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        with same:  # hooks on saved tensors must not see those of the chunks, whose graphs are freed here
            terms, gradient = scheme.terms_and_gradient(model, batch)
        ctx.save_for_backward(*gradient)
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(gradient.mul_(grad) for gradient in ctx.saved_tensors)
