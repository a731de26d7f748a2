"""Compares our cached sampling with `transformers`' generate: same shape, same number of new tokens, same sampling
method, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from reco_tune.benchmarks.peers import MISSING, available, llama
from reco_tune.benchmarks.shapes import BenchOptions, Shape
from reco_tune.benchmarks.tables import Column, Row, Table, ratio_to_ours
from reco_tune.cost.timing import device_clock, in_rounds
from reco_tune.errors import SettingsError
from reco_tune.model import VideoTransformer
from reco_tune.model.sampling import Drawing, Noise, Sampler, StaticSampler, sampler_for
from reco_tune.training.distributed import prepare_device

_COLUMNS = (
    Column("shape", "shape"),
    Column("batch", "clips at once", "d"),
    Column("tokens", "new tokens each", "d"),
    Column("ours", "ours, s", ".3f"),
    Column("seconds", "generate, s", ".3f"),
    Column("ratio", "its time / ours", ".2f"),
    Column("ratio_low", "95% from", ".2f"),
    Column("ratio_high", "to", ".2f"),
    Column("rounds", "rounds", "d"),
)


def bench_sampling(shapes: Sequence[Shape], batches: Sequence[int], greedy: bool, bench: BenchOptions) -> Table:
    """One row per shape and number of clips. Both sides sample whole clips from one first input and draw from the
    full softmax.

    Raises:
        SettingsError: if transformers is not installed.
    """
    if "llama" not in available():
        raise SettingsError(MISSING)
    rows: list[Row] = []
    for shape in shapes:
        device = prepare_device(bench.experiment(shape, "full"))
        ours, peer = our_sampling(shape, greedy, bench, device), _peer(shape, greedy, bench, device)
        for batch in batches:
            bench.progress(len(rows), len(shapes) * len(batches), "sampling")
            for make in (ours, peer):
                made = make(batch)
                assert made.shape == (batch, shape.num_tokens), made.shape
            jobs = [partial(ours, batch), partial(peer, batch)]
            times_RJ = in_rounds(
                jobs, device_clock(device), bench.seconds, bench.progress, f"{shape.name}, {batch} at once"
            )
            head: Row = {
                "shape": shape.name,
                "batch": batch,
                "tokens": shape.num_tokens,
                "ours": float(np.median(times_RJ[:, 0])),
            }
            rows.append(head | ratio_to_ours(times_RJ[:, 1], times_RJ[:, 0]) | {"rounds": len(times_RJ)})
    bench.progress(len(rows), len(rows), "sampling")
    drawn = "the most likely code" if greedy else "sampled from the softmax"
    return Table("generate", f"Sampling whole clips beside transformers' generate, {drawn}", _COLUMNS, rows)


def our_sampling(
    shape: Shape, greedy: bool, bench: BenchOptions, device: torch.device
) -> Callable[[int], torch.Tensor]:
    """The sampler of `reco_tune.generation`. On a GPU the step is recorded, as there, before timing starts."""
    generator = torch.Generator().manual_seed(0)
    model = VideoTransformer(**asdict(shape.model), generator=generator).to(device)

    @lru_cache(maxsize=1)  # holds only one KV cache at a time
    def sampler(batch: int) -> Sampler | StaticSampler:
        return sampler_for(model, Drawing(temperature=0.0 if greedy else 1.0), batch, bfloat16=bench.gpu)

    return lambda batch: sampler(batch)(torch.zeros(batch, dtype=torch.long, device=device), Noise.of(None, batch))


def _peer(shape: Shape, greedy: bool, bench: BenchOptions, device: torch.device) -> Callable[[int], torch.Tensor]:
    model: Any = llama(shape.model, wide=False).to(device, bench.dtype).eval()
    drawing = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

    def make(batch: int) -> torch.Tensor:
        first = torch.zeros(batch, 1, dtype=torch.long, device=device)
        wanted = {
            "max_new_tokens": shape.num_tokens,
            "min_new_tokens": shape.num_tokens,
            "pad_token_id": 0,
            "use_cache": True,
        }
        made: torch.Tensor = model.generate(first, attention_mask=torch.ones_like(first), **wanted, **drawing)[:, 1:]
        return made

    return make
