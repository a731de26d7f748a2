"""The loss of a training step: cross-entropy of a window and, if selected, the continuity term. Knows no schemes,
optimisers or data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reco_tune.model import Decoder
from reco_tune.training.compiling import compiled

Term = Callable[[Tensor, Tensor], Tensor]
"""(hidden [B, W, D], target codes [B, W]) -> a scalar."""
Reduction = Literal["mean", "sum"]
State = Literal["last_block", "final_norm"]


class LossTerms(NamedTuple):
    """Scalars of one micro-batch; `total` carries the gradient, the others are detached and unweighted."""

    total: Tensor
    """cross_entropy + λ · continuity + norm weight · norm, and the user's own term if there is one."""
    cross_entropy: Tensor
    """Mean over the window's tokens, in nats."""
    continuity: Tensor
    """Mean of ||h_{i+1} - h_i||² over neighbours; 0 if the window has none."""
    norm: Tensor
    """Mean of ||h_i||²."""


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options of computing a window's loss; the same for every micro-batch of a run."""

    continuity_weight: float = 0.0
    """λ."""
    continuity_reduction: Reduction = "mean"
    """Reduction over the width. "sum" is the formula as printed; "mean" divides it by D."""
    continuity_state: State = "last_block"
    """Which h."""
    norm_weight: float = 0.0
    """Weight of mean ||h||², with the same reduction and state."""
    neighbour_distance: int = 1
    """h_i is compared with the state this many tokens later. If it is the number of tokens in a block, the two are
    the same site of adjacent frames.
    """
    chunk_tokens: int | None = None
    """Largest number of tokens that have logits at once; None for all."""
    prefix_tokens: int | None = None
    """As `Decoder.window`."""
    activation_checkpointing: bool = False
    """As `Decoder.window`."""
    compiled: bool = False
    """Whether the head and the loss are compiled."""
    term: Term | None = None
    """The user's own term, of the states and targets of the window."""
    term_weight: float = 0.0

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
    model: Decoder,
    tokens_BT: Tensor,
    labels_B: Tensor,
    start: int,
    length: int,
    continuity_weight: float = 0.0,
    **options: Any,
) -> LossTerms:
    """CE(window) + λ · 1/(W-1) · Σ ||h_{i+1} - h_i||², over tokens `start` .. `start + length - 1`.

    The model reads h only through its final norm, so it can make the term small by shrinking h. The `final_norm` state
    and the `norm_weight` control (λ · mean h², no differences) show how much of the effect that is.

    Args:
        continuity_weight: λ. options: the other fields of `LossOptions`.

    Raises:
        ValueError: for a window outside the clip, a negative weight, λ > 0 on a window of one token, or codes and
            classes that the model does not have.
    """
    model.check_clips(tokens_BT, labels_B, start + length)
    how = LossOptions(continuity_weight=continuity_weight, **options)
    hidden_BWD = hidden_states(model, tokens_BT, labels_B, start, length, how)
    return loss_terms(model, hidden_BWD, tokens_BT[:, start : start + length], how)


def hidden_states(
    model: Decoder, tokens_BT: Tensor, labels_B: Tensor, start: int, length: int, options: LossOptions
) -> Tensor:
    """The states h of a window, for `loss_terms`."""
    return model.hidden(tokens_BT, labels_B, start, length, options.prefix_tokens, options.activation_checkpointing)


def loss_terms(
    model: Decoder, hidden_BSD: Tensor, targets_BW: Tensor, options: LossOptions, first: int = 0
) -> LossTerms:
    """The terms of the W states from `first` on, which predict the targets. All states have logits."""
    weight, distance, length = options.continuity_weight, options.neighbour_distance, targets_BW.shape[1]
    if model.norm_and_head is None and (options.chunk_tokens is not None or options.continuity_state == "final_norm"):
        raise ValueError(
            f"chunk_tokens and the state final_norm need a final norm and a head, but {type(model).__name__} does not"
            " give them (norm_and_head); leave them out"
        )
    if weight > 0 and length <= distance:
        raise ValueError(
            f"continuity_weight needs two tokens at distance {distance}, but the window's length is"
            f" {length}; lengthen it or set the weight to 0"
        )
    judge = compiled(_judge) if options.compiled and options.chunk_tokens is None else _judge
    weights: list[float | Tensor] = [weight, options.norm_weight]
    if options.compiled:  # plain numbers would be compiled in, and each λ would need its own graph
        weights = [hidden_BSD.new_full((), value, dtype=torch.float64) for value in (weight, options.norm_weight)]
    part = None if (first, length) == (0, hidden_BSD.shape[1]) else (first, length)
    targets_N = targets_BW.flatten().long()
    judged = Judged(
        weight > 0, options.norm_weight > 0, options.continuity_reduction, options.continuity_state, distance
    )
    norm, head = model.norm_and_head or (nn.Identity(), model.logits)
    terms = LossTerms(*judge(norm, head, hidden_BSD, targets_N, part, weights, judged, options.chunk_tokens))
    if options.term is None:
        return terms
    own = options.term(hidden_BSD[:, first : first + length], targets_BW)
    return terms._replace(total=terms.total + options.term_weight * own)


class Judged(NamedTuple):
    """The part of `LossOptions` for which a graph is made. Weights are arguments of the graph."""

    continuity: bool
    norm: bool
    reduction: Reduction
    state: State
    distance: int


def _judge(
    final_norm: nn.Module,
    head: nn.Module | Callable[[Tensor], Tensor],
    hidden_BSD: Tensor,
    targets_N: Tensor,
    part: tuple[int, int] | None,
    weights: Sequence[float | Tensor],
    judged: Judged,
    chunk_tokens: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total, cross-entropy, continuity and norm; `part` is where the judged states begin and how many they are."""
    own = slice(None) if part is None else slice(part[0], part[0] + part[1])
    if chunk_tokens is None:
        logits_BWV = head(final_norm(hidden_BSD))[:, own]
        cross_entropy = F.cross_entropy(logits_BWV.flatten(0, 1), targets_N)
        hidden_BWD = hidden_BSD[:, own]
    else:
        hidden_BWD = hidden_BSD[:, own]
        assert isinstance(head, nn.Module)
        normed_ND = final_norm(hidden_BWD).flatten(0, 1)
        cross_entropy = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            normed_ND, head.weight, targets_N, chunk_tokens, isinstance(weights[0], Tensor)
        )
    total = cross_entropy
    state_BWD = hidden_BWD if judged.state == "last_block" else final_norm(hidden_BWD)
    with torch.set_grad_enabled(torch.is_grad_enabled() and judged.continuity):
        continuity = continuity_term(state_BWD, judged.reduction, judged.distance)
    with torch.set_grad_enabled(torch.is_grad_enabled() and judged.norm):
        norm = norm_term(state_BWD, judged.reduction)
    for weighed, weight, term in ((judged.continuity, weights[0], continuity), (judged.norm, weights[1], norm)):
        if weighed:
            total = total + (weight.to(term.dtype) if isinstance(weight, Tensor) else weight) * term
    return total, cross_entropy.detach(), continuity.detach(), norm.detach()


def continuity_term(hidden_BWD: Tensor, reduction: Reduction = "mean", distance: int = 1) -> Tensor:
    """1/(W-d) · Σ_i ||h_{i+d} - h_i||², averaged over the batch and, where `reduction` is "mean", over the width; 0
    where W is not above d.

    The paper's d is 1.
    """
    if hidden_BWD.shape[1] <= distance:
        return hidden_BWD.new_zeros(())
    exact_BWD = hidden_BWD.float() if hidden_BWD.dtype in (torch.bfloat16, torch.float16) else hidden_BWD
    return _mean_square(exact_BWD[:, distance:] - exact_BWD[:, :-distance], reduction)


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
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, chunk: int, compile_chunks: bool
    ) -> Tensor:
        count = len(targets_N)
        wanted = any(ctx.needs_input_grad)
        grad_hidden, grad_head = (torch.empty_like(hidden_ND), torch.zeros_like(head_VD)) if wanted else (None, None)
        total = hidden_ND.new_zeros((), dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
        one_chunk = compiled(_one_chunk) if compile_chunks else _one_chunk
        for begin in range(0, count, chunk):
            end = begin + chunk
            found, share_hidden, share_head = one_chunk(
                hidden_ND[begin:end], head_VD, targets_N[begin:end], total.dtype, total.new_full((), count), wanted
            )
            total += found
            if (
                grad_hidden is not None
                and grad_head is not None
                and share_hidden is not None
                and share_head is not None
            ):
                grad_hidden[begin:end] = share_hidden
                grad_head += share_head
        ctx.save_for_backward(grad_hidden, grad_head)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad * grad_hidden, grad * grad_head, None, None, None


def _one_chunk(
    hidden_CD: Tensor, head_VD: Tensor, targets_C: Tensor, exact: torch.dtype, count: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Summed cross-entropy of a chunk, and its share of the gradients of the mean over `count` tokens."""
    logits = F.linear(hidden_CD, head_VD)  # in the type that autocast chooses
    scores = logits.to(exact)
    total = F.cross_entropy(scores, targets_C, reduction="sum")
    if not wanted:
        return total, None, None
    share = scores.softmax(dim=-1)
    share[torch.arange(len(targets_C), device=share.device), targets_C] -= 1
    share = (share / count).to(logits.dtype)
    return total, share @ head_VD.to(share.dtype), share.T @ hidden_CD.to(share.dtype)


def _mean_square(vectors_BWD: Tensor, reduction: Reduction) -> Tensor:
    squared = (
        vectors_BWD.float().square() if vectors_BWD.dtype in (torch.bfloat16, torch.float16) else vectors_BWD.square()
    )
    return squared.mean() if reduction == "mean" else squared.sum(dim=-1).mean()
