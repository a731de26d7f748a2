"""Other forms of the window's attention, kept runnable, so that the choice in `model.attention` can be measured again
anywhere.

    masked          one fused call on a rectangle, whose mask hides what lies ahead
    lower right     the same with torch's bias object instead of a mask
    split           a fused call without mask on the prefix and a causal one on the window, merged by their log-sum-exp;
    exact, because
                    backward is written by hand: both parts get the merged output and log-sum-exp, the prefix gives dQ
                    alone (CPU)
    kept            `model.attention.attend`

Merging the two calls and leaving backward to autograd is not among them: its gradients are wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from reco_tune.benchmarks.shapes import BLOCKS, WINDOW_BLOCKS, BenchOptions, Shape
from reco_tune.benchmarks.tables import Column, Row, Table, ratio_to_ours
from reco_tune.cost.timing import device_clock, in_rounds
from reco_tune.model.attention import KeysValues, _fused, _fused_backward, _mask, _query_gradient, attend
from reco_tune.training.distributed import prepare_device

Form = Callable[[Tensor, Tensor, Tensor, KeysValues | None], Tensor]


def masked(queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues | None = None) -> Tensor:
    """One call, one mask."""
    keys, values = _joined(keys, values, prefix)
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=_mask(queries.shape[2], keys.shape[2], queries).to(queries.device)
    )


def lower_right(queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues | None = None) -> Tensor:
    """One call with torch's own bias object."""
    from torch.nn.attention.bias import causal_lower_right

    keys, values = _joined(keys, values, prefix)
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=causal_lower_right(queries.shape[2], keys.shape[2])
    )


def split(queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues | None = None) -> Tensor:
    """Prefix and window apart, merged by their log-sum-exp. CPU only."""
    if prefix is None:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    merged: Tensor = _Split.apply(queries, keys, values, *prefix)  # type: ignore[no-untyped-call]
    return merged


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, prefix_keys: Tensor, prefix_values: Tensor
    ) -> Tensor:
        own, own_sum = _fused(queries, keys, values, 0.0, True)
        earlier, earlier_sum = _fused(queries, prefix_keys, prefix_values, 0.0, False)
        output = torch.lerp(own, earlier, torch.sigmoid(earlier_sum - own_sum)[..., None])
        ctx.save_for_backward(
            queries, keys, values, prefix_keys, prefix_values, output, torch.logaddexp(own_sum, earlier_sum)
        )
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, prefix_keys, prefix_values, output, log_sum = ctx.saved_tensors
        dq, dk, dv = _fused_backward(grad, queries, keys, values, output, log_sum, 0.0, True)
        dq += _query_gradient(grad, queries, output, log_sum, KeysValues(prefix_keys, prefix_values))
        return dq, dk, dv, None, None


FORMS: dict[str, Form] = {"kept": attend, "masked": masked, "lower right": lower_right, "split": split}


def bench_attention(shapes: Sequence[Shape], bench: BenchOptions) -> Table:
    """Forward and backward of one layer's attention by every form, for every start on whole blocks, in turn."""
    rows: list[Row] = []
    forms = {name: form for name, form in FORMS.items() if not (bench.gpu and name == "split")}
    for shape in shapes:
        device = prepare_device(bench.experiment(shape, "full"))
        for block in range(BLOCKS - WINDOW_BLOCKS + 1):
            jobs = [
                partial(_forward_and_backward, form, *_inputs(shape, block * shape.side**2, bench, device))
                for form in forms.values()
            ]
            for job in (*jobs, *jobs):
                job()
            what = f"attention, {shape.name}, block {block}"
            times_RJ = in_rounds(
                jobs, device_clock(device), bench.seconds, bench.progress, what, fewest=5, shuffled=True
            )
            row: Row = {
                "shape": shape.name,
                "start": block * shape.side**2,
                "kept_ms": 1000 * float(np.median(times_RJ[:, 0])),
            }
            for column, name in enumerate(forms):
                row |= {
                    f"{name} {key}": value for key, value in ratio_to_ours(times_RJ[:, column], times_RJ[:, 0]).items()
                }
            rows.append(row)
    others = [column for name in forms if name != "kept" for column in _columns(name)]
    columns = (
        Column("shape", "shape"),
        Column("start", "window from", "d"),
        Column("kept_ms", "kept, ms", ".2f"),
        *others,
    )
    return Table(
        "attention", "Attention of a window after its prefix: time of other forms / the kept one", columns, rows
    )


def _columns(name: str) -> list[Column]:
    return [
        Column(f"{name} ratio", name, ".2f"),
        Column(f"{name} ratio_low", "95% from", ".2f"),
        Column(f"{name} ratio_high", "to", ".2f"),
    ]


def _inputs(
    shape: Shape, start: int, bench: BenchOptions, device: torch.device
) -> tuple[list[Tensor], KeysValues | None]:
    """q, k, v (leaves) of a window and the prefix, laid out like the views of one projection."""
    generator = torch.Generator().manual_seed(start)
    length = WINDOW_BLOCKS * shape.side**2

    def projected(tokens: int, parts: int) -> tuple[Tensor, ...]:
        drawn = torch.randn(
            shape.batch_size, tokens, parts, shape.heads, shape.width // shape.heads, generator=generator
        )
        return drawn.to(device, bench.dtype).permute(2, 0, 3, 1, 4).unbind()

    window = [part.detach().requires_grad_() for part in projected(length, 3)]
    return window, KeysValues(*projected(start, 2)) if start else None


def _forward_and_backward(form: Form, window: list[Tensor], prefix: KeysValues | None) -> None:
    queries, keys, values = window
    output = form(queries, keys, values, prefix)
    torch.autograd.grad(output, window, output.detach())


def _joined(keys: Tensor, values: Tensor, prefix: KeysValues | None) -> tuple[Tensor, Tensor]:
    if prefix is None:
        return keys, values
    return torch.cat([prefix.keys, keys], dim=2), torch.cat([prefix.values, values], dim=2)
