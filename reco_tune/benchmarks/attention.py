"""Times every implementation of the window's attention in turn, to check the choice in `model.attention` on any
machine.

On a CPU:

    kept            `model.attention.attend`, in blocks of rows
    masked          one fused call on a rectangle, with a mask that hides later tokens
    lower right     the same, with torch's bias object instead of a mask
    split           `model.split_attention`: a call without a mask on the prefix, and a causal call on the window

On a GPU:

    kept            `split` with the kernel that full sequences use
    cudnn, flash, efficient     `split` with that kernel
    flash 3         `split` with FlashAttention 3, if it is installed
    lower right     one call on prefix and window joined, with torch's bias object
    flex            the same with torch's generated kernel

One form is left out because its gradients are wrong: merging the two calls of `split` and leaving backward to
autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reco_tune.benchmarks.shapes import BLOCKS, WINDOW_BLOCKS, BenchOptions, Shape
from reco_tune.benchmarks.tables import Column, Row, Table, ratio_to_ours
from reco_tune.cost.timing import device_clock, in_rounds
from reco_tune.model.attention import KeysValues, attend, causal_mask, joined, lower_right
from reco_tune.training.distributed import prepare_device
from reco_tune.training.numerics import flash3, has_flash3

Form = Callable[[Tensor, Tensor, Tensor, KeysValues | None], Tensor]


def masked(queries: Tensor, keys: Tensor, values: Tensor, prefix: KeysValues | None = None) -> Tensor:
    """One fused call with a mask."""
    keys, values = joined(keys, values, prefix)
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=causal_mask(queries.shape[2], keys.shape[2], queries)
    )


CPU_FORMS: dict[str, Form] = {
    "kept": attend,
    "masked": masked,
    "lower right": lower_right,
    "split": partial(attend, form="cpu"),
}
GPU_FORMS: dict[str, Form] = {
    "kept": attend,
    "cudnn": partial(attend, form="cudnn"),
    "flash": partial(attend, form="flash"),
    "efficient": partial(attend, form="efficient"),
    "lower right": lower_right,
    "flex": partial(attend, form="flex"),
}


def bench_attention(shapes: Sequence[Shape], bench: BenchOptions) -> Table:
    """Times forward and backward of one layer's attention with every form, in turn, for every start on whole
    blocks.
    """
    rows: list[Row] = []
    forms = GPU_FORMS if bench.gpu else CPU_FORMS
    for shape in shapes:
        device = prepare_device(bench.experiment(shape, "full"))
        for block in range(BLOCKS - WINDOW_BLOCKS + 1):
            start = block * shape.side**2
            given = projections(shape, start, bench, device)
            times = _medians_and_ratios(forms, given, device, bench, f"attention, {shape.name}, block {block}")
            if bench.gpu and has_flash3():  # it replaces flash in the whole process, so it runs in its own round
                with flash3():
                    again = {"kept": attend, "flash 3": GPU_FORMS["flash"]}
                    times = _medians_and_ratios(again, given, device, bench, "flash 3") | times
            rows.append({"shape": shape.name, "start": start, **times})
    others = [name for name in (*forms, "flash 3") if name != "kept" and f"{name} ratio" in rows[0]]
    columns = (
        Column("shape", "shape"),
        Column("start", "window from", "d"),
        Column("kept_ms", "kept, ms", ".2f"),
        *(column for name in others for column in _columns(name)),
    )
    return Table(
        "attention", "Attention of a window after its prefix: time of other forms / the kept one", columns, rows
    )


def _medians_and_ratios(
    forms: dict[str, Form],
    given: tuple[list[Tensor], KeysValues | None],
    device: torch.device,
    bench: BenchOptions,
    what: str,
) -> Row:
    jobs = [partial(forward_and_backward, form, *given) for form in forms.values()]
    for job in (*jobs, *jobs):
        job()
    times_RJ = in_rounds(jobs, device_clock(device), bench.seconds, bench.progress, what, fewest=5, shuffled=True)
    row: Row = {"kept_ms": 1000 * float(np.median(times_RJ[:, 0]))}
    for column, name in enumerate(forms):
        row |= {f"{name} {key}": value for key, value in ratio_to_ours(times_RJ[:, column], times_RJ[:, 0]).items()}
    return row


def _columns(name: str) -> list[Column]:
    return [
        Column(f"{name} ratio", name, ".2f"),
        Column(f"{name} ratio_low", "95% from", ".2f"),
        Column(f"{name} ratio_high", "to", ".2f"),
    ]


def projections(
    shape: Shape, start: int, bench: BenchOptions, device: torch.device
) -> tuple[list[Tensor], KeysValues | None]:
    """q, k, v (leaf tensors) of a window and the prefix, in the memory layout of views of one projection."""
    generator = torch.Generator().manual_seed(start)
    length = WINDOW_BLOCKS * shape.side**2

    def projected(tokens: int, parts: int) -> tuple[Tensor, ...]:
        drawn = torch.randn(
            shape.batch_size, tokens, parts, shape.heads, shape.width // shape.heads, generator=generator
        )
        return drawn.to(device, bench.dtype).permute(2, 0, 3, 1, 4).unbind()

    window = [part.detach().requires_grad_() for part in projected(length, 3)]
    return window, KeysValues(*projected(start, 2)) if start else None


def forward_and_backward(form: Form, window: list[Tensor], prefix: KeysValues | None) -> None:
    queries, keys, values = window
    output = form(queries, keys, values, prefix)
    torch.autograd.grad(output, window, output.detach())
