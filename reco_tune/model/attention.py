"""Attention of a window to its prefix and, causally, to itself.

Knows only queries, keys and values. All forms compute the same numbers up to rounding and differ only in speed. Which
one runs was chosen by measurement.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from reco_tune.model.split_attention import aten, split_attention

LONGEST_IN_ONE_CALL = 128
"""Largest window on the CPU for which one call is faster than blocks of rows."""

ROWS = 64
"""Number of query rows in a block on the CPU."""


class KeysValues(NamedTuple):
    """Keys and values of one layer, which later inputs read: two tensors [B, H, S, K]."""

    keys: Tensor
    values: Tensor


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix: KeysValues | None = None,
    form: str = "auto",
    seen: Tensor | None = None,
) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V; all [B, H, W, K]. Each query sees the whole prefix, and the window up to itself.

    The prefix gets no gradient, even if it requires one. Pass a prefix without a graph.

    Args:
        form: how attention is computed on a GPU or when compiled. "auto": `split_attention` with the kernel that a full
            sequence gets. A name of `split_attention.KERNELS`: `split_attention` with this kernel, also for full
            sequences. "lower_right" and "flex": one call on prefix and window joined.
        seen: bool [B, 1, W, prefix + W], if queries do not see all earlier inputs (`beside_padding`). Prefix and window
            are then joined for one call.
    """
    if seen is not None:
        return F.scaled_dot_product_attention(queries, *joined(keys, values, prefix), attn_mask=seen)
    if form == "auto" and queries.device.type == "cpu" and not torch.compiler.is_compiling():
        return _on_cpu(queries, keys, values, prefix)
    if form in SINGLE_CALLS:
        return SINGLE_CALLS[form](queries, keys, values, prefix)
    if form == "auto" and prefix is None:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    output: Tensor = split_attention(queries, keys, values, *(prefix or (None, None)), form)[0]
    return output


def _on_cpu(queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues | None) -> Tensor:
    length = queries.shape[2]
    if queries.dtype in (torch.float32, torch.float64) and length > LONGEST_IN_ONE_CALL:
        before = prefix or (keys[:, :, :0], values[:, :, :0])
        attended: Tensor = _RowBlocks.apply(queries, keys, values, *before, ROWS)  # type: ignore[no-untyped-call]
        return attended
    if prefix is None:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    keys, values = joined(keys, values, prefix)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=causal_mask(length, keys.shape[2], queries))


def attend_with_gradient(queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues | None = None) -> Tensor:
    """As `attend`, but with a gradient for the prefix."""
    if prefix is None:
        return attend(queries, keys, values)
    if queries.device.type == "cuda":
        return lower_right(queries, keys, values, prefix)
    keys, values = joined(keys, values, prefix)
    mask = causal_mask(queries.shape[2], keys.shape[2], queries)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


def lower_right(queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues | None = None) -> Tensor:
    """One call on joined keys, with torch's bias object. Unlike a mask, this object allows the flash kernel."""
    from torch.nn.attention.bias import causal_lower_right  # the import takes a second

    keys, values = joined(keys, values, prefix)
    bias = causal_lower_right(queries.shape[2], keys.shape[2])
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)


def flex(queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues | None = None) -> Tensor:
    """One call of torch's generated kernel on joined keys. It skips blocks that are masked for every query."""
    keys, values = joined(keys, values, prefix)
    mask = _flex_mask(queries.shape[2], keys.shape[2], str(queries.device))
    output: Tensor = _compiled_flex()(queries, keys, values, block_mask=mask)
    return output


SINGLE_CALLS = {"lower_right": lower_right, "flex": flex}


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@cache
def _flex_mask(rows: int, columns: int, device: str) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(_: Tensor, __: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return column <= row + columns - rows

    return create_block_mask(visible, None, None, rows, columns, device)


def joined(keys: Tensor, values: Tensor, prefix: KeysValues | None) -> KeysValues:
    """Keys and values of the prefix, followed by those of the window."""
    if prefix is None:
        return KeysValues(keys, values)
    return KeysValues(torch.cat([prefix.keys, keys], dim=2), torch.cat([prefix.values, values], dim=2))


def beside_padding(padding_B: Tensor, rows: int, columns: int) -> Tensor:
    """Mask, bool [B, 1, rows, columns]: what the last `rows` of `columns` inputs see. A clip's first `padding_B` inputs
    are padding.

    Padding sees only itself, so that its states are finite. Nothing reads them.
    """
    column = torch.arange(columns, device=padding_B.device)
    row = column[columns - rows :, None]
    return ((column <= row) & (column >= padding_B[:, None, None]) | (column == row))[:, None]


class _RowBlocks(torch.autograd.Function):
    """Exact attention in blocks of query rows. No block reads keys after its last row.

    The CPU's fused kernel skips masked keys 512 at a time, so a causal window of 512 costs as much as the whole square.
    Here each block of rows reads only the keys up to its last row. Backward splits the keys. Those of the window go
    through the fused backward. Those of the prefix need no gradient, so they take only the three products of dQ, not
    five.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, prefix_keys: Tensor, prefix_values: Tensor, rows: int
    ) -> Tensor:
        length, before = queries.shape[2], prefix_keys.shape[2]
        if before:
            keys, values = torch.cat([prefix_keys, keys], dim=2), torch.cat([prefix_values, values], dim=2)
        mask = causal_mask(rows, before + length, queries)
        outputs, log_sums = [], []
        for begin in range(0, length, rows):
            end = min(begin + rows, length)
            seen = before + end
            output, log_sum = _fused(
                queries[:, :, begin:end],
                keys[:, :, :seen],
                values[:, :, :seen],
                attn_mask=mask[begin - end :, length - end :],
            )
            outputs.append(output.transpose(1, 2))
            log_sums.append(log_sum)
        output = torch.cat(outputs, dim=1).transpose(1, 2)
        ctx.save_for_backward(queries, keys, values, output, mask, *log_sums)
        ctx.rows = rows
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, output, mask, *log_sums = ctx.saved_tensors
        length, before = queries.shape[2], keys.shape[2] - queries.shape[2]
        prefix = KeysValues(keys[:, :, :before], values[:, :, :before])
        keys, values = keys[:, :, before:], values[:, :, before:]
        grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
        grad_queries = []
        for index, begin in enumerate(range(0, length, ctx.rows)):
            end = min(begin + ctx.rows, length)
            part = (grad[:, :, begin:end], queries[:, :, begin:end], output[:, :, begin:end], log_sums[index])
            grad_part, queries_part, output_part, log_sum = part
            # Output and log-sum-exp must be those over ALL keys. Otherwise this call would not give the share of these
            # keys in the gradient.
            dq, dk, dv = _fused_backward(
                grad_part, queries_part, keys[:, :, :end], values[:, :, :end], output_part, log_sum,
                dropout_p=0.0, is_causal=False, attn_mask=mask[begin - end :, before + length - end :],
            )  # fmt: skip
            if before:
                dq += query_gradient(*part, prefix)
            grad_queries.append(dq.transpose(1, 2))
            grad_keys[:, :, :end] += dk
            grad_values[:, :, :end] += dv
        return torch.cat(grad_queries, dim=1).transpose(1, 2), grad_keys, grad_values, None, None, None


_fused = aten._scaled_dot_product_flash_attention_for_cpu.default
_fused_backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def query_gradient(grad: Tensor, queries: Tensor, output: Tensor, log_sum: Tensor, part: KeysValues) -> Tensor:
    """The share of some keys in dQ: P ∘ (dO V^T - <dO, O>) K / sqrt(K), P = exp(Q K^T / sqrt(K) - log-sum-exp)."""
    scale = queries.shape[-1] ** -0.5
    weights = torch.matmul(queries * scale, part.keys.transpose(-1, -2)).sub_(log_sum[..., None]).exp_()
    weights *= torch.matmul(grad, part.values.transpose(-1, -2)).sub_((grad * output).sum(dim=-1, keepdim=True))
    return torch.matmul(weights, part.keys).mul_(scale)


def causal_mask(rows: int, columns: int, like: Tensor) -> Tensor:
    """Mask of the last `rows` of `columns` inputs: 0 where a row may look, -inf elsewhere. Row i sees columns up to
    columns - rows + i.
    """
    return like.new_full((rows, columns), -torch.inf).triu_(columns - rows + 1)
