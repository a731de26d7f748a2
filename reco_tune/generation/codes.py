"""Samples codes for many requests: how many clips are sampled together, and which random draws each clip gets.

A request is a batch of clips whose draws come from one seed. So a clip is the same whatever is sampled beside it. A
CPU samples one request at a time. A GPU samples as many clips at once as fit into its free memory, because they share
the cost of reading the weights and of launching a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reco_tune.device import free_bytes, hand_back
from reco_tune.model import Decoder, DecoderSettings
from reco_tune.model.flops import parameter_count
from reco_tune.model.kv_cache import Kept
from reco_tune.model.sampling import (
    Drawing,
    Noise,
    Sampler,
    StaticSampler,
    Stream,
    sampler_for,
    static_bytes_per_clip,
)
from reco_tune.progress import Progress, quiet
from reco_tune.settings import Experiment
from reco_tune.training import scheme_class

Draw = Callable[..., Tensor]
"""(labels_B, prompt_BP=None) -> int64 codes of one piece or clip. Every call continues the same random draws."""

Rollout = Callable[[Draw, Tensor], Tensor]
"""(draw, labels_B) -> one row of output per clip."""

RESERVED_BYTES = 2**30
"""GPU memory set aside for recorded steps, kernel workspaces and the codes themselves."""
SHARE, SHARE_BESIDE_PIXELS = 0.85, 0.5
"""Shares of a GPU's free memory for sampling. The second applies if a tokenizer runs between pieces."""


class Request(NamedTuple):
    """Clips whose draws come from one seed."""

    labels_B: Tensor
    """Classes. The null class samples without a class."""
    seed: int


class Part(NamedTuple):
    """Some clips of a request, or all of them if they fit."""

    request: int
    first: int
    clips: int


def drawing_of(experiment: Experiment) -> Drawing:
    """The experiment's settings for drawing codes."""
    sampling = experiment.sampling
    kept = Kept(sampling.cache_precision == "int8", sampling.cache_blocks, experiment.grid.tokens_per_block)
    return Drawing(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        guidance=sampling.guidance,
        kept=kept,
    )


def made_of(
    rollout: Rollout,
    model: Decoder,
    experiment: Experiment,
    requests: Sequence[Request],
    progress: Progress = quiet,
) -> Iterator[Tensor]:
    """The output of `rollout` for each request, in order. Memory used for sampling is freed after the last one."""
    drawing, device = drawing_of(experiment), model.device
    sizes = [len(request.labels_B) for request in requests]
    bfloat16, on_cpu = experiment.training.precision == "bfloat16", device.type == "cpu"
    free = free_bytes(device, experiment.resources.part_of_a_gpu)
    fit = 1 if on_cpu else clips_at_once(model, experiment, free, sizes)
    ready = largest_sampler(model, drawing, bfloat16, fit)
    packed = packs(sizes, 1 if on_cpu else ready[1], split=not on_cpu)
    yield from _rolled(rollout, ready[0], requests, packed, device, progress)
    del ready
    hand_back(device)


def _rolled(
    rollout: Rollout,
    sampler: Sampler | StaticSampler,
    requests: Sequence[Request],
    packed: Iterator[list[Part]],
    device: torch.device,
    progress: Progress,
) -> Iterator[Tensor]:
    """Samples pack after pack, and yields each request as soon as all of its clips are done."""
    waiting: dict[int, list[Tensor]] = {}
    done, total = 0, sum(len(request.labels_B) for request in requests)
    for pack in packed:
        labels_B = torch.cat([requests[p.request].labels_B[p.first : p.first + p.clips] for p in pack]).to(device)
        noise = Noise([(_stream(requests[part.request], part, device), part.clips) for part in pack])
        made = rollout(lambda labels_B, prompt_BP=None, noise=noise: sampler(labels_B, noise, prompt_BP), labels_B)
        done += len(labels_B)
        progress(done, total, "sampling clips")
        for part, rows in zip(pack, made.split([part.clips for part in pack]), strict=True):
            waiting.setdefault(part.request, []).append(rows)
            if part.first + part.clips == len(requests[part.request].labels_B):
                whole = waiting.pop(part.request)
                yield whole[0] if len(whole) == 1 else torch.cat(whole)


def packs(sizes: Sequence[int], at_once: int, split: bool = True) -> Iterator[list[Part]]:
    """Divides clips into packs that are sampled together: whole requests if they fit, else equal parts of one."""
    pack: list[Part] = []
    for request, size in enumerate(sizes):
        if pack and sum(part.clips for part in pack) + size > at_once:
            yield pack
            pack = []
        if split and size > at_once:
            pieces = -(-size // at_once)
            ends = [size * (piece + 1) // pieces for piece in range(pieces)]
            yield from ([Part(request, first, end - first)] for first, end in zip([0, *ends], ends, strict=False))
        else:
            pack.append(Part(request, 0, size))
    if pack:
        yield pack


def _stream(request: Request, part: Part, device: torch.device) -> Stream:
    return Stream(torch.Generator(device).manual_seed(request.seed), len(request.labels_B), part.first)


def clips_that_fit(settings: DecoderSettings, experiment: Experiment, free: float) -> int:
    """Number of clips that fit into a `StaticSampler`'s share of the memory, at least 1. Used for sampling and for
    planning.

    Args:
        settings: settings of the model that the experiment trains.
        free: free bytes of a worker's GPU, or of its part of a GPU.
    """
    bfloat16 = experiment.training.precision == "bfloat16"
    share = SHARE_BESIDE_PIXELS if scheme_class(experiment).continues_by == "frame" else SHARE
    free -= RESERVED_BYTES + (2 * parameter_count(settings) if bfloat16 else 0)
    return max(1, int(share * free) // static_bytes_per_clip(settings, drawing_of(experiment), bfloat16))


def clips_at_once(model: Decoder, experiment: Experiment, free: int | None, sizes: Sequence[int]) -> int:
    """Number of clips to sample together: whole requests if one fits. If free memory is unknown, the largest
    request.
    """
    largest = max(sizes, default=1)
    if free is None:
        return largest
    fit = clips_that_fit(model.settings, experiment, free)
    return min(fit // largest * largest if fit >= largest else fit, sum(sizes))


def largest_sampler(
    model: Decoder, drawing: Drawing, bfloat16: bool, clips: int
) -> tuple[Sampler | StaticSampler, int]:
    """A sampler for the given number of clips. If memory is too fragmented, it tries half as many, and so on."""
    while True:
        try:
            return sampler_for(model, drawing, clips, bfloat16), clips
        except torch.OutOfMemoryError:
            if clips == 1:
                raise
        clips = -(-clips // 2)
