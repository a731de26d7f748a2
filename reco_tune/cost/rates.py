"""How fast a device is: operations of training steps and bytes of memory a second; and how long a sampled clip takes.

Sampling computes little for every byte that it reads. Each token of each clip reads all earlier keys and values, and
each step reads the weights. So on a GPU sampling is counted in bytes and in operations, and the slower of the two
decides. On a CPU bandwidth is not the limit, so it is counted in operations only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from reco_tune.cost.memory import clips_of_a_step, clips_sampled_at_once
from reco_tune.device import free_bytes, total_bytes, wait_for
from reco_tune.generation import drawing_of
from reco_tune.model import DecoderSettings, ModelSettings, VideoTransformer
from reco_tune.model.flops import forward_flops, step_flops
from reco_tune.model.sampling import bytes_read_per_clip
from reco_tune.settings import Experiment
from reco_tune.training.distributed import prepare_device
from reco_tune.training.schemes import plan_scheme

PROBE_SECONDS = 0.2
"""Shortest stretch of real work, in seconds, on which a rate is measured."""

CPU_PROBE_FLOPS = 4e9
"""Operations of the step that measures the CPU's rate: a tenth of a second on one core."""
CPU_PROBE_WIDTH, CPU_PROBE_CODES = 2048, 16384
"""Largest width that is measured. Larger matrices reach the same rate, and a plan must not need the memory of a large
model.
"""

GENERATION_RATE = 0.4
"""Rate of cached sampling relative to that of training steps on a CPU (0.46 with 128 clips at once)."""


class Rates(NamedTuple):
    """Speed and memory of one worker's device."""

    flops_per_second: float
    """Operations per second of a training step."""
    bytes_per_second: float | None = None
    """Bytes per second of a GPU's memory; None on a CPU."""
    memory_bytes: float | None = None
    """Bytes of a GPU's memory, or of the worker's part of it; None on a CPU."""


ASSUMED_GPU = Rates(flops_per_second=125e12, bytes_per_second=1.5e12, memory_bytes=80 * 2**30)
"""An A100 of 80 GB: 40% of its bfloat16 peak, three quarters of its bandwidth."""


def seconds_per_clip(experiment: Experiment, rates: Rates) -> float:
    """Seconds to sample one clip, with guidance and all pieces of a clip, but without decoding."""
    scheme, grid, drawing = plan_scheme(experiment), experiment.grid, drawing_of(experiment)
    settings, prompts = scheme.model_settings, [0]
    if scheme.trains_pieces:  # each further piece begins with a given block and adds the others
        added = scheme.piece_blocks - 1
        prompts += [grid.tokens_per_block] * -(-(grid.blocks - scheme.piece_blocks) // added)
    flops = drawing.copies * len(prompts) * forward_flops(settings, 0, settings.num_tokens)
    if rates.bytes_per_second is None or rates.memory_bytes is None:
        return flops / (GENERATION_RATE * rates.flops_per_second)
    bfloat16 = experiment.training.precision == "bfloat16"
    at_once = clips_sampled_at_once(experiment, rates.memory_bytes)
    read = sum(bytes_read_per_clip(settings, drawing, bfloat16, at_once, prompt) for prompt in prompts)
    return max(flops / rates.flops_per_second, read / rates.bytes_per_second)


def measure_rates(experiment: Experiment) -> Rates:
    """Rates of this process's device, from forward and backward of a model of the experiment's width, and from copies
    on a GPU.
    """
    device = prepare_device(experiment)
    flops = _step_rate(experiment, device)
    if device.type == "cpu":
        return Rates(flops)
    whole = total_bytes(device)
    return Rates(flops, copied_bytes_per_second(device), whole and experiment.resources.part_of_a_gpu * whole)


def copied_bytes_per_second(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes. What is copied is larger than any cache."""
    source = torch.zeros(min(2**30, (free_bytes(device) or 2**28) // 4), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return per_second(lambda: target.copy_(source), 2 * len(source), device)


def _step_rate(experiment: Experiment, device: torch.device) -> float:
    shape, clips = probe(experiment, device.type != "cpu")
    shape = replace(shape, condition_tokens=1)  # the rate is measured without the words of a text
    model = VideoTransformer(shape.num_codes, shape.num_tokens, 1, shape.width, shape.depth, shape.heads).to(device)
    tokens_BT = torch.zeros(clips, shape.num_tokens, dtype=torch.int32, device=device)
    labels_B = torch.zeros(clips, dtype=torch.long, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=experiment.training.precision == "bfloat16"):
            logits = model(tokens_BT, labels_B)
        logits.float().mean().backward()

    return per_second(step, clips * step_flops(shape, 0, shape.num_tokens), device)


def probe(experiment: Experiment, on_gpu: bool) -> tuple[ModelSettings, int]:
    """The model's shape and the number of clips of the step that is timed: a full-sequence step, two blocks deep, with
    the experiment's width and codes.

    On a GPU, tokens and clips are those of a real step, so that kernels get realistic work. On the CPU, width and codes
    are capped, and tokens and clips are chosen so that the step takes about a tenth of a second.
    """
    whole = _two_blocks(plan_scheme(experiment).model_settings)
    if on_gpu:
        return whole, max(1, clips_of_a_step(experiment))
    whole = replace(whole, num_codes=min(whole.num_codes, CPU_PROBE_CODES))
    if whole.width > CPU_PROBE_WIDTH:
        whole = replace(whole, width=CPU_PROBE_WIDTH, heads=CPU_PROBE_WIDTH // 128)
    while step_flops(whole, 0, whole.num_tokens) > CPU_PROBE_FLOPS and whole.num_tokens > 32:
        whole = replace(whole, num_tokens=whole.num_tokens // 2)
    clips = int(CPU_PROBE_FLOPS / step_flops(whole, 0, whole.num_tokens))
    return whole, max(1, min(experiment.training.batch_size, clips))


def _two_blocks(shape: DecoderSettings) -> ModelSettings:
    """Sizes of a built-in transformer of this width. A rate belongs to a device, not to a model."""
    if isinstance(shape, ModelSettings):
        return replace(shape, depth=min(shape.depth, 2))
    heads = -(-shape.width // 64)
    return ModelSettings(
        num_codes=shape.num_codes,
        num_tokens=shape.num_tokens,
        num_classes=shape.num_classes,
        width=64 * heads,
        depth=2,
        heads=heads,
    )


def per_second(
    work: Callable[[], object], amount: float, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Work done per second. The stretches of work grow until one takes `PROBE_SECONDS`. The best stretch counts,
    because another process may take the core for a while.
    """
    work()  # the first one is slow
    wait_for(device)
    best, count, elapsed = 0.0, 1, 0.0
    while elapsed < PROBE_SECONDS:
        began = clock()
        for _ in range(count):
            work()
        wait_for(device)
        elapsed = clock() - began
        best = max(best, count * amount / max(elapsed, 1e-9))
        count *= 2
    return best
