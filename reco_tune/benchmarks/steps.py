"""The training step: how close each arm comes to its FLOP limit, where the rest of the time goes, and the speed of
the full step in other implementations.

Speed-ups come from the same calibration that studies use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from reco_tune.benchmarks.parts import StepParts, attention_and_rest_kept, measure_parts, prefix_flop_share
from reco_tune.benchmarks.peers import PEERS, PeerScheme, available, llama_options
from reco_tune.benchmarks.shapes import BenchOptions, Shape, random_tokens
from reco_tune.benchmarks.tables import Column, Row, Table, ratio_to_ours
from reco_tune.cost import calibrate
from reco_tune.cost.timing import TimedStep, device_clock, in_rounds
from reco_tune.training.distributed import prepare_device
from reco_tune.training.schemes import build_scheme

_STEPS = (
    Column("shape", "shape"),
    Column("arm", "arm"),
    Column("speedup", "speed-up", ".2f"),
    Column("speedup_low", "95% from", ".2f"),
    Column("speedup_high", "to", ".2f"),
    Column("speedup_limit", "limit", ".2f"),
    Column("limit_fraction", "of limit", ".2f"),
    Column("peak_memory_ratio", "memory", ".2f"),
    Column("attention_share", "attention", ".1%"),
    Column("optimiser_share", "optimiser", ".1%"),
    Column("data_share", "data", ".1%"),
)
_LOSSES = (
    Column("shape", "shape"),
    Column("arm", "arm"),
    Column("lost", "slower than the limit by", "+.1%"),
    Column("lost_attention", "attention", "+.1%"),
    Column("lost_rest", "the rest", "+.1%"),
    Column("lost_optimiser", "optimiser", "+.1%"),
    Column("lost_rates", "unequal rates", "+.1%"),
    Column("prefix_share", "prefix: share of time", ".1%"),
    Column("prefix_flop_share", "prefix: share of FLOPs", ".1%"),
)
_WINDOWS = (
    Column("shape", "shape"),
    Column("decoder", "decoder"),
    Column("speedup", "speed-up", ".2f"),
    Column("speedup_low", "95% from", ".2f"),
    Column("speedup_high", "to", ".2f"),
    Column("speedup_limit", "limit", ".2f"),
    Column("limit_fraction", "of limit", ".2f"),
)
_PEERS = (
    Column("shape", "shape"),
    Column("peer", "full-sequence step of"),
    Column("seconds", "seconds", ".4f"),
    Column("ratio", "its time / ours", ".2f"),
    Column("ratio_low", "95% from", ".2f"),
    Column("ratio_high", "to", ".2f"),
)


def bench_steps(shapes: Sequence[Shape], arms: Sequence[str], bench: BenchOptions) -> list[Table]:
    """One row per shape and arm: speed-up, limit and parts; and what causes the gap to the limit."""
    rows: list[Row] = []
    for shape in shapes:
        with random_tokens(shape) as cache:
            for name in arms:
                bench.progress(len(rows), len(shapes) * len(arms), "arms")
                experiment, baseline = bench.pair(shape, name)
                speed = calibrate(experiment, baseline, cache, bench.seconds, bench.progress)
                device = prepare_device(experiment)
                full, arm = (TimedStep(build_scheme(own, cache), cache, device) for own in (baseline, experiment))
                parts = measure_parts(full, arm, bench.seconds, bench.progress)
                head: Row = {"shape": shape.name, "arm": name}
                rows.append(
                    head
                    | speed
                    | _shares(parts[1])
                    | lost_shares(*parts, speed["speedup_limit"], *attention_and_rest_kept(full, arm))
                    | {"prefix_flop_share": prefix_flop_share(arm)}
                )
    bench.progress(len(rows), len(rows), "arms")
    losses = [row for row in rows if row["arm"] not in ("full", "masked_full")]
    return [
        Table(
            "steps",
            "Speed-up of a training step over the full sequence, and how the step's time divides",
            _STEPS,
            rows,
        ),
        Table("losses", "What causes the gap to the limit, as shares of the ideal step", _LOSSES, losses),
    ]


def bench_peers(shapes: Sequence[Shape], bench: BenchOptions) -> Table:
    """The full-sequence step of other implementations, with the same shape, batch, precision and optimiser, in turn
    with ours.
    """
    rows: list[Row] = []
    for shape in shapes:
        experiment = bench.experiment(shape, "full")
        device = prepare_device(experiment)
        with random_tokens(shape) as cache:
            ours = build_scheme(experiment, cache)
            schemes = [ours, *(PeerScheme(ours, peer) for peer in available())]
            jobs = [partial(TimedStep(scheme, cache, device).run_once, 0) for scheme in schemes]
            for job in (*jobs, *jobs):
                job()
            times_RJ = in_rounds(jobs, device_clock(device), bench.seconds, bench.progress, "peers")
        rows.append({"shape": shape.name, "peer": "this project", "seconds": float(np.median(times_RJ[:, 0]))})
        for column, peer in enumerate(available(), start=1):
            rows.append(
                {"shape": shape.name, "peer": PEERS[peer], **ratio_to_ours(times_RJ[:, column], times_RJ[:, 0])}
            )
    return Table("peers", "Full-sequence step of other implementations at the same shape", _PEERS, rows)


def bench_windows(shapes: Sequence[Shape], bench: BenchOptions) -> Table:
    """Windows of a Llama from transformers (`model.kind: huggingface`), then windows of the built-in transformer: the
    share of its own FLOP limit that each reaches.
    """
    rows: list[Row] = []
    for shape in shapes:
        with random_tokens(shape) as cache:
            for name, model in {"this project": None, "transformers Llama": llama_options(shape.model)}.items():
                experiment, baseline = bench.pair(shape, "reco", model)
                speed = calibrate(experiment, baseline, cache, bench.seconds, bench.progress)
                rows.append({"shape": shape.name, "decoder": name, **speed})
    return Table("windows", "Speed-up of ReCo's windows, compared with a decoder of transformers", _WINDOWS, rows)


def _shares(parts: StepParts) -> Row:
    return {
        "seconds": parts.whole,
        "attention_share": parts.attention / parts.whole,
        "optimiser_share": parts.optimiser / parts.whole,
        "prefix_share": parts.prefix / parts.whole,
        "data_share": parts.data / (parts.data + parts.whole),
    }


def lost_shares(full: StepParts, arm: StepParts, limit: float, attention_kept: float, rest_kept: float) -> Row:
    """How much longer the arm's step takes than the ideal (full step / limit), split by cause. The parts add up.

    Attention has a loss if it takes longer than its time in the full step, scaled by the FLOPs that the arm keeps;
    the same holds for the rest. The optimiser does not shrink with the window, so it loses its share of the full step
    times (limit - 1). `rates` is what remains without these losses: attention and the rest run at different FLOP/s,
    so a FLOP saved in one saves more time than in the other, but the limit counts both alike.

    Args:
        attention_kept: FLOPs of the arm's attention divided by the full step's.
        rest_kept: the same for everything else.
    """
    ideal = full.whole / limit
    attention, rest = full.attention * attention_kept, full.rest * rest_kept
    return {
        "lost": arm.whole / ideal - 1,
        "lost_attention": (arm.attention - attention) / ideal,
        "lost_rest": (arm.rest - rest) / ideal,
        "lost_optimiser": (arm.optimiser - full.optimiser / limit) / ideal,
        "lost_rates": (attention + rest - (full.attention + full.rest) / limit) / ideal,
    }
