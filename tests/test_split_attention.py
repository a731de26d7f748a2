"""Attention of GPUs: its algebra with kernels that run here, and how it calls those that do not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_device import fake_device
from torch import Tensor

from reco_tune.model import attention, split_attention
from reco_tune.model.attention import KeysValues, attend
from reco_tune.model.split_attention import KERNELS, chosen

TOLERANCE = 1e-12
"""float64; parts add in another order."""
HEADS, WIDTH = 3, 8

LENGTHS = [(1, 0), (1, 1), (18, 0), (18, 1), (18, 9), (33, 64), (130, 150)]
"""Window and prefix."""


def inputs(length: int, before: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], KeysValues | None]:
    """q, k, v (leaves) and a prefix, laid out like the views of one projection."""
    generator = torch.Generator().manual_seed(length + before)

    def projected(tokens: int, parts: int) -> tuple[Tensor, ...]:
        drawn = torch.randn(2, tokens, parts, HEADS, WIDTH, generator=generator, dtype=dtype)
        return drawn.permute(2, 0, 3, 1, 4).unbind()

    window = [part.detach().requires_grad_() for part in projected(length, 3)]
    return window, KeysValues(*projected(before, 2)) if before else None


def defined(queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues | None) -> Tensor:
    """The definition, with the whole score matrix in memory."""
    keys, values = attention.joined(keys, values, prefix)
    rows, columns = queries.shape[2], keys.shape[2]
    hidden = torch.ones(rows, columns, dtype=torch.bool).triu_(columns - rows + 1)
    scores = (queries @ keys.transpose(-1, -2) / WIDTH**0.5).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ values


def check(form: str, length: int, before: int, tolerance: float = TOLERANCE) -> None:
    """Value and gradients of a form are those of the definition."""
    window, prefix = inputs(length, before)
    upstream = torch.randn(2, HEADS, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, reference = attend(*window, prefix, form), defined(*window, prefix)
    torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance)
    for one, other in zip(
        torch.autograd.grad(ours, window, upstream), torch.autograd.grad(reference, window, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("length", "before"), LENGTHS)
@pytest.mark.parametrize("kernel", ["cpu", "plain"])
def test_value_and_gradient_are_those_of_the_definition(kernel: str, length: int, before: int) -> None:
    check(kernel, length, before)


@pytest.mark.parametrize("kernel", ["cpu", "plain"])
@pytest.mark.parametrize(("length", "before"), [(18, 9), (130, 150)])
def test_bfloat16_is_as_near_to_float64_as_one_call_is(kernel: str, length: int, before: int) -> None:
    """Against one fused call in bfloat16 on prefix and window joined; both round to 8 bits of mantissa."""
    window, prefix = inputs(length, before)
    assert prefix is not None
    narrow = [part.detach().bfloat16().requires_grad_() for part in window]
    narrow_prefix = KeysValues(*(part.bfloat16() for part in prefix))
    exact = [part.detach().double().requires_grad_() for part in narrow]
    reference = defined(*exact, KeysValues(*(part.double() for part in narrow_prefix)))
    mask = attention.causal_mask(length, before + length, narrow[0])
    one_call = F.scaled_dot_product_attention(
        narrow[0], *attention.joined(narrow[1], narrow[2], narrow_prefix), attn_mask=mask
    )
    ours = attend(*narrow, narrow_prefix, kernel)
    assert ours.dtype == torch.bfloat16
    upstream = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = [reference, *torch.autograd.grad(reference, exact, upstream.double())]
    found = [ours, *torch.autograd.grad(ours, narrow, upstream)]
    beside = [one_call, *torch.autograd.grad(one_call, narrow, upstream)]
    for mine, other, truth in zip(found, beside, expected, strict=True):
        error, usual = ((some.double() - truth).norm() / truth.norm() for some in (mine, other))
        assert error < 1.5 * usual + 1e-3 and error < 0.01


@pytest.mark.parametrize("before", [0, 5])
def test_torch_finds_nothing_wrong_with_the_operation(before: int) -> None:
    """Schema, gradient registration, shapes without data and traces with lengths left open."""
    window, prefix = inputs(18, before, torch.float32)
    torch.library.opcheck(split_attention.split_attention, (*window, *(prefix or (None, None)), "cpu"))


@pytest.mark.parametrize("kernel", ["cpu", "plain"])
def test_outputs_and_gradients_lie_in_memory_as_projections_want_them(kernel: str) -> None:
    window, prefix = inputs(18, 9, torch.float32)
    output = attend(*window, prefix, kernel)
    gradients = torch.autograd.grad(output, window, torch.ones_like(output))
    assert all(part.transpose(1, 2).is_contiguous() for part in (output, *gradients))


class Emulated:
    """torch's kernels for GPUs with their own conventions, computed here; arguments must fit torch's own schemas."""

    def __init__(self, sums_have_a_width: bool = True) -> None:
        self.called: list[tuple[str, bool, int]] = []
        self._width = sums_have_a_width

    def __getattr__(self, name: str) -> Callable[..., Any]:
        schema = getattr(torch.ops.aten, name).default._schema
        kernel = next(part for part in ("cudnn", "flash", "efficient") if part in name)
        run = getattr(self, f"{kernel}_{'backward' if name.endswith('backward') else 'forward'}")

        def call(*arguments: Any) -> Any:
            wanted = [argument for argument in schema.arguments if not argument.kwarg_only]
            assert len(arguments) <= len(wanted)
            assert all(argument.has_default_value() for argument in wanted[len(arguments) :]), "an argument is missing"
            given = {argument.name.rstrip("_"): value for argument, value in zip(wanted, arguments, strict=False)}
            for argument, value in zip(wanted, arguments, strict=False):
                kind = str(argument.type)
                assert not kind.startswith("Tensor") or value is None or isinstance(value, Tensor)
                assert kind != "bool" or isinstance(value, bool)
            given = {argument.name: argument.default_value for argument in wanted} | given
            self.called.append((name, given["is_causal"], given["key"].shape[2]))
            return run(SimpleNamespace(**given))

        return call

    def cudnn_forward(self, given: Any) -> tuple[Any, ...]:
        assert given.compute_log_sumexp and given.key.shape[2] > 1, "cuDNN does not take a single key"
        output, sums = KERNELS["plain"].forward(given.query, given.key, given.value, given.is_causal)
        sums = sums[..., None] if self._width else sums
        return output, sums, None, None, given.query.shape[2], given.key.shape[2], None, None, None

    def cudnn_backward(self, given: Any) -> tuple[Tensor, ...]:
        assert (given.max_q, given.max_k) == (given.query.shape[2], given.key.shape[2])
        assert given.logsumexp.dim() == 3 + self._width, "backward takes what forward gives"
        return self._backward(given, given.logsumexp.reshape(given.query.shape[:3]))

    def flash_forward(self, given: Any) -> tuple[Any, ...]:
        output, sums = KERNELS["plain"].forward(given.query, given.key, given.value, given.is_causal)
        return output, sums, None, None, given.query.shape[2], given.key.shape[2], None, None, None

    def flash_backward(self, given: Any) -> tuple[Tensor, ...]:
        assert (given.max_q, given.max_k) == (given.query.shape[2], given.key.shape[2])
        return self._backward(given, given.logsumexp)

    def efficient_forward(self, given: Any) -> tuple[Any, ...]:
        assert given.compute_log_sumexp
        output, sums = KERNELS["plain"].forward(given.query, given.key, given.value, given.is_causal)
        return output, F.pad(sums, (0, -sums.shape[2] % 32), value=torch.inf), None, None

    def efficient_backward(self, given: Any) -> tuple[Any, ...]:
        length = given.query.shape[2]
        assert given.logsumexp.shape[2] % 32 == 0 and given.logsumexp[:, :, length:].isposinf().all()
        return *self._backward(given, given.logsumexp[:, :, :length]), None

    @staticmethod
    def _backward(given: Any, sums: Tensor) -> tuple[Tensor, ...]:
        gradient = given.grad_out
        return KERNELS["plain"].backward(
            gradient, given.query, given.key, given.value, given.out, sums, given.is_causal
        )


@pytest.mark.parametrize(("length", "before"), LENGTHS)
@pytest.mark.parametrize("kernel", ["cudnn", "cudnn without width", "flash", "efficient"])
def test_each_kernel_is_called_as_torch_wants_it(
    kernel: str, length: int, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, rest = kernel.partition(" ")
    emulated = Emulated(sums_have_a_width=not rest)
    monkeypatch.setattr(split_attention, "aten", emulated)
    split_attention._cudnn_sums_have_a_width.cache_clear()
    check(name, length, before)
    split_attention._cudnn_sums_have_a_width.cache_clear()
    calls = [(causal, keys) for called, causal, keys in emulated.called if not called.endswith("backward")]
    wanted = [(True, length), (False, before)] if before else [(True, length)]
    taken = [call for call in wanted if not (name == "cudnn" and call[1] == 1)]
    assert [call for call in calls if call[1] != 8] == [call for call in taken if call[1] != 8]


@pytest.mark.parametrize("kernel", ["cudnn", "flash", "efficient"])
@pytest.mark.parametrize("before", [0, 9])
def test_torch_takes_the_calls_where_nothing_is_computed(kernel: str, before: int) -> None:
    """The real operations, on a device without arithmetic: schemas, shapes and types."""
    with fake_device() as device:
        window = [torch.empty(2, HEADS, 18, WIDTH, device=device, dtype=torch.bfloat16) for _ in range(3)]
        prefix = [torch.empty(2, HEADS, before, WIDTH, device=device, dtype=torch.bfloat16) for _ in range(2)]
        parts = [(window[1], window[2], True)] + ([(*prefix, False)] if before else [])
        for keys, values, causal in parts:
            output, sums = KERNELS[kernel].forward(window[0], keys, values, causal)
            assert output.shape == window[0].shape and sums.shape == (2, HEADS, 18) and sums.dtype == torch.float32
            gradients = KERNELS[kernel].backward(output, window[0], keys, values, output, sums.contiguous(), causal)
            assert [part.shape for part in gradients] == [window[0].shape, keys.shape, values.shape]
            assert {part.device for part in (output, sums, *gradients)} == {device}


class Seen:
    """As much of a CUDA tensor as the choice looks at."""

    device = torch.device("cuda")

    def __init__(self, width: int) -> None:
        self.shape = (2, HEADS, 18, width)

    def detach(self) -> Seen:
        return self

    def requires_grad_(self) -> str:
        return "wants a gradient"


@pytest.mark.parametrize(
    ("choice", "width", "kernel"),
    [(3, 64, "cudnn"), (1, 64, "flash"), (2, 64, "efficient"), (0, 64, "plain"), (3, 60, "plain")],
)
def test_windows_get_the_kernel_of_the_full_sequence(
    choice: int, width: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch prefers cuDNN for a causal square on Hopper, and flash for any other mask: 2x slower there."""

    def choose(queries: object, keys: object, values: object, is_causal: bool) -> int:
        assert queries == "wants a gradient" and is_causal
        return choice

    monkeypatch.setattr(torch, "_fused_sdp_choice", choose)
    seen: Any = Seen(width)
    assert chosen("auto", seen, seen, seen) == kernel
    assert chosen("flash", seen, seen, seen) == "flash", "what a setting asks for is taken"


def test_a_full_sequence_stays_torchs_own_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the baseline is never slower than what everybody else has."""
    monkeypatch.setattr(attention, "split_attention", None)
    with fake_device() as device:
        window = [torch.empty(2, HEADS, 18, WIDTH, device=device) for _ in range(3)]
        assert attend(*window).shape == window[0].shape


@pytest.mark.parametrize("form", ["auto", "cudnn", "flash", "efficient"])
@pytest.mark.parametrize("before", [1, 9])
def test_windows_train_on_a_device_with_every_kernel(form: str, before: int) -> None:
    with fake_device() as device:
        window = [torch.empty(2, HEADS, 18, WIDTH, device=device, requires_grad=True) for _ in range(3)]
        prefix = KeysValues(*(torch.empty(2, HEADS, before, WIDTH, device=device) for _ in range(2)))
        gradients = torch.autograd.grad(attend(*window, prefix, form).sum(), window)
        assert all(gradient.device == device for gradient in gradients)


@pytest.mark.parametrize("before", [0, 9])
def test_flex_attention_is_the_same_attention(before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention)
    window, prefix = inputs(18, before)
    window = [part.detach() for part in window]  # it has no backward on a CPU
    torch.testing.assert_close(attend(*window, prefix, "flex"), defined(*window, prefix), rtol=0, atol=1e-6)


def test_lower_right_is_the_same_attention() -> None:
    check("lower_right", 18, 9)
