"""What a training step minimises: cross-entropy of a window and, where asked, the continuity term. Knows no
schemes, optimisers or data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from reco_tune.model import VideoTransformer, WindowOutput

Reduction = Literal["mean", "sum"]
State = Literal["last_block", "final_norm"]


class LossTerms(NamedTuple):
    """Scalars of one micro-batch; `total` carries the gradient, the others are detached and unweighted."""

    total: Tensor
    """cross_entropy + λ · continuity + norm weight · norm."""
    cross_entropy: Tensor
    """Mean over the window's tokens, in nats."""
    continuity: Tensor
    """Mean of ||h_{i+1} - h_i||² over neighbours; 0 where a window has none."""
    norm: Tensor
    """Mean of ||h_i||²."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """How a window is computed and judged; the same for every micro-batch of a run."""

    continuity_weight: float = 0.0
    """λ."""
    continuity_reduction: Reduction = "mean"
    """Over the width; "sum" is the formula as printed, "mean" divides it by D."""
    continuity_state: State = "last_block"
    """Which h."""
    norm_weight: float = 0.0
    """Weight of mean ||h||², same reduction and state."""
    neighbour_distance: int = 1
    """h_i is compared with the state so many tokens later; a block's tokens compare the sites of adjacent frames."""
    chunk_tokens: int | None = None
    """At most this many tokens have logits at once; all where None."""
    prefix_tokens: int | None = None
    """As `VideoTransformer.window`."""
    activation_checkpointing: bool = False
    """As `VideoTransformer.window`."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: for a negative weight.
        """
        if self.continuity_weight < 0 or self.norm_weight < 0:
            raise ValueError(
                f"continuity_weight ({self.continuity_weight}) and norm_weight ({self.norm_weight}) must not be"
                " negative; 0 leaves a term out"
            )


def window_loss(
    model: VideoTransformer,
    tokens_BT: Tensor,
    labels_B: Tensor,
    start: int,
    length: int,
    continuity_weight: float = 0.0,
    **options: Any,
) -> LossTerms:
    """CE(window) + λ · 1/(W-1) · Σ ||h_{i+1} - h_i||², over tokens `start` .. `start + length - 1`.

    The raw h is read by the model through its final norm only, so the term can be made small by shrinking h; the
    `final_norm` state and the `norm_weight` control (λ · mean h², no differences) are there to see how much of an
    effect that is.

    Args:
        continuity_weight: λ. options: the other fields of `LossOptions`.

    Raises:
        ValueError: for a window outside the clip, a negative weight, or λ > 0 on a window of one token.
    """
    how = LossOptions(continuity_weight=continuity_weight, **options)
    output = forward(model, tokens_BT, labels_B, start, length, how)
    return loss_terms(model, output, tokens_BT[:, start : start + length], how)


def forward(
    model: VideoTransformer, tokens_BT: Tensor, labels_B: Tensor, start: int, length: int, options: LossOptions
) -> WindowOutput:
    """A window's output for `loss_terms`; where the loss goes chunk by chunk, without logits (their width is 0)."""
    how = options.prefix_tokens, options.activation_checkpointing
    if options.chunk_tokens is None:
        return model.window(tokens_BT, labels_B, start, length, *how)
    hidden_BWD = model.hidden(tokens_BT, labels_B, start, length, *how)
    return WindowOutput(hidden_BWD.new_empty(*hidden_BWD.shape[:2], 0), hidden_BWD)


def loss_terms(model: VideoTransformer, output: WindowOutput, targets_BW: Tensor, options: LossOptions) -> LossTerms:
    """The same from a model's output, whole or sliced, and the tokens that it predicts."""
    weight, distance = options.continuity_weight, options.neighbour_distance
    if weight > 0 and targets_BW.shape[1] <= distance:
        raise ValueError(
            f"continuity_weight needs two tokens at distance {distance}, but the window's length is"
            f" {targets_BW.shape[1]}; lengthen it or set the weight to 0"
        )
    if options.chunk_tokens is None:
        cross_entropy = F.cross_entropy(output.logits_BWV.flatten(0, 1), targets_BW.flatten().long())
    else:
        normed_ND = model.final_norm(output.hidden_BWD).flatten(0, 1)
        cross_entropy = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            normed_ND, model.head.weight, targets_BW.flatten().long(), options.chunk_tokens
        )
    total = cross_entropy
    hidden_BWD = output.hidden_BWD if options.continuity_state == "last_block" else model.final_norm(output.hidden_BWD)
    with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
        continuity = continuity_term(hidden_BWD, options.continuity_reduction, distance)
    with torch.set_grad_enabled(torch.is_grad_enabled() and options.norm_weight > 0):
        norm = norm_term(hidden_BWD, options.continuity_reduction)
    if weight > 0:
        total = total + weight * continuity
    if options.norm_weight > 0:
        total = total + options.norm_weight * norm
    return LossTerms(total, cross_entropy.detach(), continuity.detach(), norm.detach())


def continuity_term(hidden_BWD: Tensor, reduction: Reduction = "mean", distance: int = 1) -> Tensor:
    """1/(W-d) · Σ_i ||h_{i+d} - h_i||², averaged over the batch and, where `reduction` is "mean", over the width; 0
    where W is not above d.

    The paper's d is 1.
    """
    if hidden_BWD.shape[1] <= distance:
        return hidden_BWD.new_zeros(())
    return _mean_square(hidden_BWD[:, distance:] - hidden_BWD[:, :-distance], reduction)


def norm_term(hidden_BWD: Tensor, reduction: Reduction = "mean") -> Tensor:
    """1/W · Σ_i ||h_i||², reduced like the continuity term."""
    return _mean_square(hidden_BWD, reduction)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softmax(h · head), a few tokens at a time, so that the logits of all tokens never exist at
    once.

    The gradient of a chunk is known as soon as its logits are, (softmax - one-hot) / N, and is taken on to h and the
    head right there: no chunk is computed twice, and what is kept for backward has the size of h and of the head.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        count = len(targets_N)
        wanted = any(ctx.needs_input_grad)
        grad_hidden, grad_head = (torch.empty_like(hidden_ND), torch.zeros_like(head_VD)) if wanted else (None, None)
        total = hidden_ND.new_zeros((), dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
        for begin in range(0, count, chunk):
            hidden, targets = hidden_ND[begin : begin + chunk], targets_N[begin : begin + chunk]
            logits = F.linear(hidden, head_VD)  # in the type that autocast chooses
            exact = logits.to(total.dtype)
            total += F.cross_entropy(exact, targets, reduction="sum")
            if grad_hidden is not None and grad_head is not None:
                share = exact.softmax(dim=-1)
                share[torch.arange(len(targets), device=share.device), targets] -= 1
                share = (share / count).to(logits.dtype)
                grad_hidden[begin : begin + chunk] = share @ head_VD.to(share.dtype)
                grad_head += share.T @ hidden.to(share.dtype)
        ctx.save_for_backward(grad_hidden, grad_head)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad * grad_hidden, grad * grad_head, None, None


def _mean_square(vectors_BWD: Tensor, reduction: Reduction) -> Tensor:
    squared = (
        vectors_BWD.float().square() if vectors_BWD.dtype in (torch.bfloat16, torch.float16) else vectors_BWD.square()
    )
    return squared.mean() if reduction == "mean" else squared.sum(dim=-1).mean()
