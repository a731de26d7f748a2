"""Attention to a prefix and, causally, to the window, in two calls of one fused kernel. GPUs use this form.

One call without mask attends to the prefix. One causal call attends to the window. Both use the kernel that a full
sequence gets, so no arm has a slower kernel. Nothing is concatenated or masked. The outputs are merged by their
log-sum-exp. Backward calls the kernel's own backward for each part, with the output and the log-sum-exp over ALL keys.
Without these, a part would not give its share of the gradient. dK and dV of the prefix are dropped, because the prefix
carries no gradient.

The compiler sees one operation, `reco_tune::split_attention`, for all lengths. Queries, keys, values and outputs are
[B, H, W, K]. In memory they are [B, W, H, K], the layout of the projections around them. Log-sum-exps are [B, H, W].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

FROM_CHOICE = {1: "flash", 2: "efficient", 3: "cudnn"}
"""Kernel for each number of `torch.nn.attention.SDPBackend`. `plain` replaces all other backends."""

EFFICIENT_ROWS = 32
"""The efficient kernel pads its log-sum-exp to a multiple of this many rows."""


class Kernel(NamedTuple):
    """A fused attention and its backward."""

    forward: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
    """(queries, keys, values, causal) -> output, log-sum-exp. If causal, there are as many keys as queries."""
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor, Tensor]]
    """(gradient, queries, keys, values, output, log-sum-exp, causal) -> dQ, dK and dV of these keys."""


@torch.library.custom_op("reco_tune::split_attention", mutates_args=())
def split_attention(
    queries: Tensor, keys: Tensor, values: Tensor, prefix_keys: Tensor | None, prefix_values: Tensor | None, kernel: str
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp over the prefix, where there is one, and the window.

    Args:
        kernel: one of `KERNELS`, or "auto" for the one that torch chooses for the window's causal attention to itself.
    """
    own = chosen(kernel, queries, keys, values)
    output, log_sum = _part(own, keys).forward(queries, keys, values, True)
    if prefix_keys is None or prefix_values is None:
        return _laid_out(output), log_sum.contiguous()
    earlier, earlier_sum = _part(own, prefix_keys).forward(queries, prefix_keys, prefix_values, False)
    share = torch.sigmoid(earlier_sum - log_sum)[..., None]  # of the prefix; float32, so the sum is taken in float32
    torch.addcmul(earlier * share, output, 1 - share, out=output)
    return _laid_out(output), torch.logaddexp(log_sum, earlier_sum).contiguous()


@torch.library.custom_op("reco_tune::split_attention_backward", mutates_args=())
def split_attention_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix_keys: Tensor | None,
    prefix_values: Tensor | None,
    output: Tensor,
    log_sum: Tensor,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ over prefix and window; dK and dV of the window."""
    own = chosen(kernel, queries, keys, values)
    dq, dk, dv = _part(own, keys).backward(grad, queries, keys, values, output, log_sum, True)
    if prefix_keys is not None and prefix_values is not None:
        part = _part(own, prefix_keys)
        dq = dq + part.backward(grad, queries, prefix_keys, prefix_values, output, log_sum, False)[0]
    return _laid_out(dq), _laid_out(dk), _laid_out(dv)


def chosen(kernel: str, queries: Tensor, keys: Tensor, values: Tensor) -> str:
    """`kernel`, or for "auto" the one that torch chooses for a causal call on these tensors that needs a gradient."""
    if kernel != "auto":
        return kernel
    if queries.device.type == "cpu":
        return "cpu"
    if queries.device.type != "cuda" or queries.shape[-1] % 8:  # torch would pad such heads; `plain` does not
        return "plain"
    wanted = queries.detach().requires_grad_()
    return FROM_CHOICE.get(torch._fused_sdp_choice(wanted, keys, values, is_causal=True), "plain")


def _part(kernel: str, keys: Tensor) -> Kernel:
    """cuDNN does not accept a single key."""
    return KERNELS["plain" if kernel == "cudnn" and keys.shape[2] == 1 else kernel]


def _laid_out(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


@split_attention.register_fake
def _(
    queries: Tensor, keys: Tensor, values: Tensor, prefix_keys: Tensor | None, prefix_values: Tensor | None, kernel: str
) -> tuple[Tensor, Tensor]:
    narrow = queries.dtype in (torch.bfloat16, torch.float16)
    sums = queries.new_empty(queries.shape[:3], dtype=torch.float32 if narrow else queries.dtype)
    return _empty(queries), sums


@split_attention_backward.register_fake
def _(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix_keys: Tensor | None,
    prefix_values: Tensor | None,
    output: Tensor,
    log_sum: Tensor,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(queries), _empty(keys), _empty(values)


def _empty(like: Tensor) -> Tensor:
    batch, heads, length, width = like.shape
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.kernel = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *split_attention_backward(grad, *ctx.saved_tensors, ctx.kernel), None, None, None


split_attention.register_autograd(_differentiate, setup_context=_keep)


def _cudnn(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    output, sums, *_ = aten._scaled_dot_product_cudnn_attention(queries, keys, values, None, True, 0.0, causal, False)
    return output, sums.reshape(queries.shape[:3])


def _cudnn_backward(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, output: Tensor, log_sum: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    seed = queries.new_empty((), dtype=torch.int64)  # for dropout, which is off
    sums = log_sum[..., None] if _cudnn_sums_have_a_width(queries.device) else log_sum
    return aten._scaled_dot_product_cudnn_attention_backward(
        grad, queries, keys, values, output, sums, seed, seed, None, None, None,
        queries.shape[2], keys.shape[2], 0.0, causal,
    )  # fmt: skip


@cache
def _cudnn_sums_have_a_width(device: torch.device) -> bool:
    """Whether log-sum-exps are [B, H, W, 1]. Versions of torch differ. Backward takes the form that forward gives."""
    some = torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16, device=device)
    return aten._scaled_dot_product_cudnn_attention(some, some, some, None, True)[1].dim() == 4


def _flash(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    output, sums, *_ = aten._scaled_dot_product_flash_attention(queries, keys, values, 0.0, causal, False)
    return output, sums


def _flash_backward(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, output: Tensor, log_sum: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    state = queries.new_empty(2, dtype=torch.uint64)  # for dropout, which is off
    return aten._scaled_dot_product_flash_attention_backward(
        grad, queries, keys, values, output, log_sum, None, None,
        queries.shape[2], keys.shape[2], 0.0, causal, state, state[0],
    )  # fmt: skip


def _efficient(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    output, sums, *_ = aten._scaled_dot_product_efficient_attention(queries, keys, values, None, True, 0.0, causal)
    return output, sums[:, :, : queries.shape[2]]


def _efficient_backward(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, output: Tensor, log_sum: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    seed = queries.new_empty((), dtype=torch.int64)  # for dropout, which is off
    sums = F.pad(log_sum, (0, -log_sum.shape[2] % EFFICIENT_ROWS), value=torch.inf)  # as forward pads them
    return aten._scaled_dot_product_efficient_attention_backward(
        grad, queries, keys, values, None, output, sums, seed, seed, 0.0, [True, True, True, False], causal
    )[:3]


def _cpu(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    output, sums = aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values, 0.0, causal)
    return output, sums


def _cpu_backward(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, output: Tensor, log_sum: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, queries, keys, values, output, log_sum, 0.0, causal
    )


def _plain(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    scores = _scores(queries, keys, causal)
    sums = scores.logsumexp(dim=-1)
    return ((scores - sums[..., None]).exp() @ values.to(scores.dtype)).to(queries.dtype), sums


def _plain_backward(
    grad: Tensor, queries: Tensor, keys: Tensor, values: Tensor, output: Tensor, log_sum: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dS = P ∘ (dO V^T - <dO, O>) with P = exp(S - log-sum-exp)."""
    weights = (_scores(queries, keys, causal) - log_sum[..., None]).exp()
    exact, scale = weights.dtype, queries.shape[-1] ** -0.5
    grad, output = grad.to(exact), output.to(exact)
    dv = weights.transpose(-1, -2) @ grad
    weights *= grad @ values.to(exact).transpose(-1, -2) - (grad * output).sum(dim=-1, keepdim=True)
    dq, dk = weights @ keys.to(exact) * scale, weights.transpose(-1, -2) @ queries.to(exact) * scale
    return dq.to(queries.dtype), dk.to(queries.dtype), dv.to(queries.dtype)


def _scores(queries: Tensor, keys: Tensor, causal: bool) -> Tensor:
    """Q K^T / sqrt(K), in float32 at least; -inf where a query may not look."""
    exact = torch.promote_types(queries.dtype, torch.float32)
    scores = queries.to(exact) @ keys.to(exact).transpose(-1, -2) * queries.shape[-1] ** -0.5
    if causal:
        scores.masked_fill_(torch.ones_like(scores[0, 0], dtype=torch.bool).triu_(1), -torch.inf)
    return scores


KERNELS = {
    "cudnn": Kernel(_cudnn, _cudnn_backward),
    "flash": Kernel(_flash, _flash_backward),
    "efficient": Kernel(_efficient, _efficient_backward),
    "cpu": Kernel(_cpu, _cpu_backward),
    "plain": Kernel(_plain, _plain_backward),
}
