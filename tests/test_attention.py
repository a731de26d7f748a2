"""Attention after a prefix: every form equals the plain one written out, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reco_tune.model.attention import KeysValues, attend

TOLERANCE = 1e-12
"""float64; the forms add in different orders."""


def plain(queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues | None = None) -> Tensor:
    """The definition, with the whole score matrix in memory."""
    if prefix is not None:
        keys, values = torch.cat([prefix.keys, keys], 2), torch.cat([prefix.values, values], 2)
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    row, column = torch.arange(queries.shape[2])[:, None], torch.arange(keys.shape[2])[None]
    visible = column <= row + keys.shape[2] - queries.shape[2]
    return scores.masked_fill(~visible, -torch.inf).softmax(-1) @ values


def heads(length: int, before: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], KeysValues | None]:
    """Random q, k, v (leaves) and a prefix, laid out like the views of one projection."""
    generator = torch.Generator().manual_seed(length + before)
    window = torch.randn(2, length, 3, 3, 8, dtype=dtype, generator=generator).permute(2, 0, 3, 1, 4)
    earlier = torch.randn(2, before, 2, 3, 8, dtype=dtype, generator=generator).permute(2, 0, 3, 1, 4)
    return [part.detach().requires_grad_() for part in window], KeysValues(*earlier) if before else None


@pytest.mark.parametrize("before", [0, 1, 9, 150])
@pytest.mark.parametrize("length", [1, 18, 32, 33, 45, 64, 127, 128, 130, 200])
def test_value_and_gradient_are_those_of_the_definition(length: int, before: int) -> None:
    inputs, prefix = heads(length, before)
    upstream = torch.randn(2, 3, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, reference = attend(*inputs, prefix), plain(*inputs, prefix)
    torch.testing.assert_close(ours, reference, rtol=0, atol=TOLERANCE)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(reference, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE)


def test_upstream_gradients_of_any_layout_are_taken() -> None:
    """The gradient of a sum is one number seen many times, with strides of 0, unlike those of a projection."""
    inputs, prefix = heads(70, 5)
    ours = torch.autograd.grad(attend(*inputs, prefix).sum(), inputs)
    reference = torch.autograd.grad(plain(*inputs, prefix).sum(), inputs)
    torch.testing.assert_close(ours, reference, rtol=0, atol=TOLERANCE)


def test_float32_is_as_good_as_the_plain_form() -> None:
    inputs, prefix = heads(130, 64, torch.float32)
    torch.testing.assert_close(attend(*inputs, prefix), plain(*inputs, prefix), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [18, 70])
def test_bfloat16_stays_bfloat16(length: int) -> None:
    inputs, prefix = heads(length, 20, torch.bfloat16)
    ours = attend(*inputs, prefix)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, plain(*inputs, prefix), rtol=0.02, atol=0.02)  # 8 bits of mantissa


def test_merging_two_fused_calls_by_their_log_sums_gives_wrong_gradients() -> None:
    """The trap: values are exact, so nothing looks wrong, but the fused kernel does not differentiate its log-sum-exp.

    The weights with which the two parts are mixed depend on it, and that dependence is lost. Backward must give each
    part the output and log-sum-exp of all keys, as `attend` does.
    """
    inputs, prefix = heads(40, 24)
    queries, keys, values = inputs
    assert prefix is not None
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    own, own_sum = fused(queries, keys, values, 0.0, True)
    earlier, earlier_sum = fused(queries, *prefix, 0.0, False)
    naive = torch.lerp(own, earlier, torch.sigmoid(earlier_sum - own_sum)[..., None])
    reference, ours = plain(*inputs, prefix), attend(*inputs, prefix)
    torch.testing.assert_close(naive, reference, rtol=0, atol=TOLERANCE)
    upstream = torch.randn(naive.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact, wrong, right = (torch.autograd.grad(output, inputs, upstream)[0] for output in (reference, naive, ours))
    assert (wrong - exact).norm() > 0.1 * exact.norm()
    torch.testing.assert_close(right, exact, rtol=0, atol=TOLERANCE)
