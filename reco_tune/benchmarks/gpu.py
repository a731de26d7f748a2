"""Half an hour on one GPU: checks that every form of attention is correct, and measures compilation, speed and
memory.

The parts run in order. Each has a time limit and stands alone. On a GPU each part runs in its own process: if it
fails or takes too long, its error is recorded and the rest continues. The same parts run on a CPU too, to test them
before anyone pays for a GPU. Numbers from a CPU say nothing about a GPU.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reco_tune.benchmarks.attention import CPU_FORMS, GPU_FORMS, Form, forward_and_backward, projections
from reco_tune.benchmarks.sampling import our_sampling
from reco_tune.benchmarks.shapes import BLOCKS, WINDOW_BLOCKS, BenchOptions, Shape, random_tokens
from reco_tune.benchmarks.tables import Column, Row, Table
from reco_tune.cost import calibrate, memory_by_phase
from reco_tune.cost.rates import copied_bytes_per_second
from reco_tune.cost.timing import TimedStep, device_clock, in_rounds, span_strata
from reco_tune.data.token_cache import TokenCache
from reco_tune.device import peak_bytes, reset_peak_bytes, wait_for
from reco_tune.model.attention import KeysValues, attend
from reco_tune.model.sampling import Drawing, bytes_read_per_clip
from reco_tune.progress import quiet
from reco_tune.settings import Experiment
from reco_tune.training.distributed import prepare_device
from reco_tune.training.numerics import flash3, has_flash3
from reco_tune.training.schemes import build_scheme
from reco_tune.windows import WindowSpan

ARMS = ("full", "fewer_frames", "local", "local_balanced", "reco")
"""Arms that are calibrated and compiled."""
FACTOR = 3.0
"""λ of `reco` is multiplied by this, to check that λ changes neither graphs nor speed."""
BAR = 0.95
"""Share of its FLOP limit that each arm has to reach."""
RIGHT = 4.0
"""Largest allowed relative error of an attention form, in units of its precision (`torch.finfo.eps`)."""
CLIPS = 64
"""Clips sampled at once."""
TOP_KERNELS = 12
"""Number of kernels that a profile lists by name."""
ATTENTION_KERNELS = ("flash", "fmha", "mha", "sdp", "attention", "softmax")
COPIES = ("copy", "memcpy", "memset", "::cat", "_to_copy", "contiguous")
"""Substrings of the names of copy kernels, in lower case."""


class Part(NamedTuple):
    """One measurement at a shape."""

    name: str
    most_seconds: float
    """Time limit at the 110M model."""
    seconds: float
    """Time of each of its comparisons (`BenchOptions.seconds`)."""
    measure: Callable[[Shape, BenchOptions], Table]


def bench_gpu(
    shapes: Sequence[Shape],
    minutes: float,
    bench: BenchOptions,
    keep: Callable[[list[Table]], None] = lambda tables: None,
    alone: bool | None = None,
) -> list[Table]:
    """Runs all parts at the first shape, then at the next ones while time is left. The last table lists the outcome
    of each part.

    Args:
        keep: called with all tables so far after each part, so that an interruption loses nothing.
        alone: whether each part runs in its own process, which can be killed; by default on a GPU.
    """
    ends, tables, fates = time.monotonic() + 60 * minutes, [], Table("parts", "What was measured", _PARTS, [])
    alone = bench.gpu if alone is None else alone
    todo = [(shape, part) for shape in shapes for part in PARTS]
    for number, (shape, part) in enumerate(todo):
        bench.progress(number, len(todo), f"{part.name}, {shape.name}")
        began, most = time.monotonic(), min(part.most_seconds, ends - time.monotonic())
        try:
            if most <= 0:
                raise TimeoutError("skipped: no time is left")
            own = bench._replace(seconds=part.seconds if bench.gpu else bench.seconds, progress=quiet)
            tables.append(_in_a_child(part, shape, own, most) if alone else part.measure(shape, own))
            fate = "measured"
        except Exception as error:  # whatever the error is, the other parts are still useful
            fate = _sentence(error)
        fates.rows.append(
            {"part": part.name, "shape": shape.name, "seconds": time.monotonic() - began, "outcome": fate}
        )
        keep([*tables, fates])
    bench.progress(len(todo), len(todo), "parts")
    return [*tables, fates]


def _in_a_child(part: Part, shape: Shape, bench: BenchOptions, seconds: float) -> Table:
    """Runs the part in a fresh process, so that a GPU error ends only this part."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    child = spawn.Process(target=_answer, args=(there, PARTS.index(part), shape, bench), daemon=True)
    child.start()
    there.close()
    try:
        if not here.poll(seconds):
            raise TimeoutError(f"stopped after {seconds:.0f} s")
        found = here.recv()
    except EOFError as error:
        child.join()
        raise RuntimeError(f"its process ended with code {child.exitcode}") from error
    finally:
        child.kill()
        child.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    table: Table = found
    return table


def _answer(pipe: Any, number: int, shape: Shape, bench: BenchOptions) -> None:
    try:
        pipe.send(PARTS[number].measure(shape, bench))
    except Exception as error:
        pipe.send(_sentence(error))


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if type(error) in (RuntimeError, TimeoutError) else f"{type(error).__name__}: {text}"


# Attention


def exactness(shape: Shape, bench: BenchOptions) -> Table:
    """Output and gradients of every form, in the precision of training, against the formula in float64."""
    rows: list[Row] = []
    device = prepare_device(bench.experiment(shape, "full"))
    for start in (0, 1, (BLOCKS - WINDOW_BLOCKS) * shape.side**2):
        window, prefix = projections(shape._replace(batch_size=1), start, bench, device)
        exact = [part.detach().double().requires_grad_() for part in window]
        before = KeysValues(*(part.double() for part in prefix)) if prefix is not None else None
        grad = torch.randn(window[0].shape, generator=torch.Generator().manual_seed(1)).to(device, bench.dtype)
        right = _output_and_gradients(partial(attend, form="plain"), exact, before, grad.double())
        for name, form in _forms(bench).items():
            row: Row = {"form": name, "start": start}
            try:
                with flash3() if name == "flash 3" else nullcontext():
                    found = _output_and_gradients(form, window, prefix, grad)
                errors = [_error(one, other) / torch.finfo(bench.dtype).eps for one, other in zip(found, right)]  # noqa: B905
                row |= dict(zip(("output", "dq", "dk", "dv"), errors, strict=True))
                row["verdict"] = "right" if max(errors) < RIGHT else "WRONG"
            except Exception as error:  # this GPU does not support the form
                row["verdict"] = _sentence(error)
            rows.append(row)
    return Table(
        f"exactness {shape.name}",
        f"Attention in {str(bench.dtype).removeprefix('torch.')} at {shape.name}: relative error against float64, in"
        f" units of the precision; correct if below {RIGHT:g}",
        _EXACTNESS,
        rows,
    )


def attention_alone(shape: Shape, bench: BenchOptions) -> Table:
    """Times forward and backward of one layer's attention with every form, at the four starts on whole blocks."""
    rows: list[Row] = []
    device = prepare_device(bench.experiment(shape, "full"))
    length = WINDOW_BLOCKS * shape.side**2
    for start in (block * shape.side**2 for block in range(BLOCKS - WINDOW_BLOCKS + 1)):
        given, forms = projections(shape, start, bench, device), _forms(bench)
        jobs: dict[str, Callable[[], None]] = {}
        for name, form in forms.items():
            if name == "flash 3":
                continue  # it replaces flash in the whole process
            job = partial(forward_and_backward, form, *given)
            try:
                for _ in range(3):
                    job()
                wait_for(device)
            except Exception as error:
                rows.append({"form": name, "start": start, "outcome": _sentence(error)})
            else:
                jobs[name] = job
        times_RJ = in_rounds(list(jobs.values()), device_clock(device), bench.seconds, fewest=5, shuffled=True)
        times = dict(zip(jobs, np.median(times_RJ, axis=0), strict=True))
        if "flash 3" in forms:
            with flash3():
                again = [partial(forward_and_backward, GPU_FORMS["flash"], *given)]
                times["flash 3"] = float(np.median(in_rounds(again, device_clock(device), bench.seconds, fewest=5)))
        flops = 3 * 4 * shape.batch_size * shape.width * (start * length + length * (length + 1) // 2)
        rows += [
            {"form": name, "start": start, "milliseconds": 1e3 * float(own), "teraflops": flops / float(own) / 1e12}
            for name, own in times.items()
        ]
    return Table(
        f"attention {shape.name}",
        f"Attention of a window alone at {shape.name}, forward and backward, queued between two events",
        _ATTENTION,
        rows,
    )


def _forms(bench: BenchOptions) -> dict[str, Form]:
    if not bench.gpu:
        return CPU_FORMS
    return GPU_FORMS | ({"flash 3": GPU_FORMS["flash"]} if has_flash3() else {})


def _output_and_gradients(
    form: Form, window: list[Tensor], prefix: KeysValues | None, grad: Tensor
) -> tuple[Tensor, ...]:
    queries, keys, values = window
    output = form(queries, keys, values, prefix)
    return output.detach(), *torch.autograd.grad(output, window, grad)


def _error(found: Tensor, right: Tensor) -> float:
    return float(torch.linalg.vector_norm(found.double() - right) / torch.linalg.vector_norm(right))


# Steps


def graphs(shape: Shape, bench: BenchOptions) -> Table:
    """Graphs, graph breaks and compile seconds of every arm, in one process as in a study; and any later
    recompilation.
    """
    from torch._dynamo.utils import counters

    def compiled_so_far() -> tuple[int, int]:
        return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())

    def measured(experiment: Experiment, cache: TokenCache) -> Row:
        began, before, row = time.monotonic(), compiled_so_far(), Row()
        step = TimedStep(build_scheme(experiment, cache), cache, prepare_device(experiment))
        spans = list(span_strata(step.scheme.distribution()))
        for passed in ("", " later"):
            for span in spans:
                step.run_once(span)
            wait_for(step.step.device)
            now = compiled_so_far()
            row |= {f"graphs{passed}": now[0] - before[0], f"breaks{passed}": now[1] - before[1]}
            row.setdefault("seconds", time.monotonic() - began)
            before = now
        return {"starts": len(spans), **row}

    rows = _by_arm(shape, bench, measured, compiled=True)
    return Table(
        f"graphs {shape.name}", f"Compiled graphs at {shape.name}, arm after arm in one process", _GRAPHS, rows
    )


def calibrations(shape: Shape, bench: BenchOptions) -> Table:
    """The calibration that a study makes, for every arm and for one more λ."""
    baseline = bench.experiment(shape, "full")

    def measured(experiment: Experiment, cache: TokenCache) -> Row:
        found = calibrate(experiment, baseline, cache, bench.seconds)
        return {"verdict": "reached" if found["limit_fraction"] >= BAR else f"below {BAR:g}", **found}

    rows = _by_arm(shape, bench, measured)
    usual, other = rows[-2:]
    if "speedup" in usual and "speedup" in other:
        same = usual["speedup_low"] <= other["speedup_high"] and other["speedup_low"] <= usual["speedup_high"]  # type: ignore[operator]
        other["verdict"] = f"{other['verdict']}, {'as' if same else 'NOT AS'} {usual['arm']}"
    return Table(
        f"calibration {shape.name}",
        f"Speed-up of a step at {shape.name} and its share of the FLOP limit; the target is {BAR:g}",
        _CALIBRATION,
        rows,
    )


def profile(shape: Shape, bench: BenchOptions) -> Table:
    """Where the time of a `reco` step with one block of prefix goes: kernels, and gaps between them. Three steps are
    queued, so that the gaps of the first one do not dominate.
    """
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    experiment = bench.experiment(shape, "reco")
    with random_tokens(shape) as cache:
        step = TimedStep(build_scheme(experiment, cache), cache, prepare_device(experiment))
        span = WindowSpan(shape.side**2, step.scheme.loss_tokens)
        for _ in range(3):
            step.run_once(span)
        wait_for(step.step.device)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.gpu else [])]
        with profiler(activities=activities) as found:
            for _ in range(3):
                step.run_once(span)
            wait_for(step.step.device)
    kernels = _kernels(found.events(), bench.gpu)
    begin, end = min(kernel.begin for kernel in kernels), max(kernel.end for kernel in kernels)
    whole, busy = end - begin, _covered(kernels)
    spent: dict[str, float] = {}
    for kernel in kernels:
        spent[kernel.name] = spent.get(kernel.name, 0.0) + kernel.end - kernel.begin
    all_kernels = sum(spent.values())

    def share(names: Sequence[str]) -> float:
        return sum(own for name, own in spent.items() if any(part in name.lower() for part in names)) / all_kernels

    rows: list[Row] = [
        {"what": "three steps", "milliseconds": whole / 1e3, "share": 1.0},
        {"what": "gaps between kernels", "milliseconds": (whole - busy) / 1e3, "share": 1 - busy / whole},
        {"what": "attention, of the kernels", "share": share(ATTENTION_KERNELS)},
        {"what": "copies, of the kernels", "share": share(COPIES)},
    ]
    calls = Counter(kernel.name for kernel in kernels)
    for name, own in sorted(spent.items(), key=lambda one: -one[1])[:TOP_KERNELS]:
        row: Row = {"what": f"`{name[:80]}`", "calls": calls[name], "milliseconds": own / 1e3}
        rows.append(row | {"share": own / all_kernels})
    return Table(f"profile {shape.name}", f"A window's step at {shape.name}, kernel by kernel", _PROFILE, rows)


class _Kernel(NamedTuple):
    name: str
    begin: float
    end: float
    """Microseconds."""


def _kernels(events: Any, gpu: bool) -> list[_Kernel]:
    """Kernels that the device ran. On a CPU: operations that call no others."""
    wanted = "CUDA" if gpu else "CPU"
    return [
        _Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type.name == wanted and not event.cpu_children
    ]


def _covered(kernels: Sequence[_Kernel]) -> float:
    """Microseconds in which at least one kernel ran."""
    covered, reached = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: kernel.begin):
        covered += max(0.0, kernel.end - max(kernel.begin, reached))
        reached = max(reached, kernel.end)
    return covered


def memory(shape: Shape, bench: BenchOptions) -> Table:
    """The allocator's peak in a step of every arm from its last start, compared with the predicted memory."""

    def measured(experiment: Experiment, cache: TokenCache) -> Row:
        device = prepare_device(experiment)
        step = TimedStep(build_scheme(experiment, cache), cache, device)
        last = max(step.scheme.distribution())
        counted = memory_by_phase(experiment, experiment).training
        step.run_once(last)
        wait_for(device)
        reset_peak_bytes(device)
        step.run_once(last)
        wait_for(device)
        held = peak_bytes(device) or None
        row: Row = {"counted": counted / 2**30, "held": held / 2**30 if held else None}
        return row | {"ratio": held / counted if held else None}

    rows = _by_arm(shape, bench, measured)
    return Table(
        f"memory {shape.name}",
        f"Memory of a step at {shape.name}: the allocator's peak / what is counted",
        _MEMORY,
        rows,
    )


def generation(shape: Shape, bench: BenchOptions) -> Table:
    """Time to sample whole clips, compared with the time to read the weights and the cache."""
    device, clips = prepare_device(bench.experiment(shape, "full")), CLIPS if bench.gpu else 2
    sample = our_sampling(shape, False, bench, device)
    sample(clips)  # records the step
    (seconds,) = np.median(in_rounds([partial(sample, clips)], device_clock(device), bench.seconds, fewest=2), axis=0)
    bandwidth = copied_bytes_per_second(device)
    read = clips * bytes_read_per_clip(shape.model, Drawing(), bench.gpu, clips)
    row: Row = {"clips": clips, "seconds": float(seconds), "gigabytes": read / 1e9, "bandwidth": bandwidth / 1e9}
    return Table(
        f"generation {shape.name}",
        f"Sampling whole clips at {shape.name}, beside reading each token's weights, keys and values once",
        _GENERATION,
        [row | {"ideal": read / bandwidth, "ratio": float(seconds) * bandwidth / read}],
    )


def _by_arm(
    shape: Shape, bench: BenchOptions, measured: Callable[[Experiment, TokenCache], Row], compiled: bool | None = None
) -> list[Row]:
    """One row per arm, then one for `reco` with another λ. If an arm fails, its error is its verdict.

    Args:
        compiled: whether steps are compiled; None leaves it to `bench`.
    """
    arms = {name: bench.experiment(shape, name) for name in ARMS}
    objective = arms["reco"].objective
    weight = FACTOR * objective.continuity_weight
    other = {"objective": objective.model_copy(update={"continuity_weight": weight})}
    arms[f"reco, λ = {weight:g}"] = arms["reco"].model_copy(update=other)
    rows: list[Row] = []
    with random_tokens(shape) as cache:
        for name, experiment in arms.items():
            if compiled is not None:
                training = experiment.training.model_copy(update={"compile": compiled})
                experiment = experiment.model_copy(update={"training": training})
            try:
                rows.append({"arm": name, **measured(experiment, cache)})
            except Exception as error:
                rows.append({"arm": name, "verdict": _sentence(error)})
    return rows


PARTS = (
    Part("exactness", 90, 0, exactness),
    Part("attention", 120, 1, attention_alone),
    Part("graphs", 300, 0, graphs),
    Part("calibration", 480, 20, calibrations),
    Part("profile", 90, 0, profile),
    Part("memory", 150, 0, memory),
    Part("generation", 150, 0, generation),
)
"""In order. At the 110M model they take less than half an hour, which leaves time for the 343M model."""

_PARTS = (
    Column("part", "part"),
    Column("shape", "shape"),
    Column("outcome", "outcome"),
    Column("seconds", "seconds", ".0f"),
)
_EXACTNESS = (
    Column("form", "form"),
    Column("verdict", "verdict"),
    Column("start", "window from", "d"),
    Column("output", "output", ".2f"),
    Column("dq", "dq", ".2f"),
    Column("dk", "dk", ".2f"),
    Column("dv", "dv", ".2f"),
)
_ATTENTION = (
    Column("form", "form"),
    Column("outcome", "error"),
    Column("start", "window from", "d"),
    Column("milliseconds", "ms", ".3f"),
    Column("teraflops", "TFLOP/s", ".1f"),
)
_GRAPHS = (
    Column("arm", "arm"),
    Column("verdict", "error"),
    Column("starts", "starts", "d"),
    Column("graphs", "graphs", "d"),
    Column("breaks", "breaks", "d"),
    Column("seconds", "seconds", ".1f"),
    Column("graphs later", "graphs later", "d"),
    Column("breaks later", "breaks later", "d"),
)
_CALIBRATION = (
    Column("arm", "arm"),
    Column("verdict", "verdict"),
    Column("speedup", "speed-up", ".3f"),
    Column("speedup_low", "95% from", ".3f"),
    Column("speedup_high", "to", ".3f"),
    Column("speedup_limit", "limit", ".3f"),
    Column("limit_fraction", "of limit", ".3f"),
    Column("peak_memory_ratio", "memory", ".2f"),
)
_PROFILE = (
    Column("what", "what"),
    Column("calls", "calls", "d"),
    Column("milliseconds", "ms", ".2f"),
    Column("share", "share", ".1%"),
)
_MEMORY = (
    Column("arm", "arm"),
    Column("verdict", "error"),
    Column("held", "allocator, GiB", ".2f"),
    Column("counted", "counted, GiB", ".2f"),
    Column("ratio", "ratio", ".2f"),
)
_GENERATION = (
    Column("clips", "clips at once", "d"),
    Column("seconds", "seconds", ".2f"),
    Column("gigabytes", "GB to read", ".1f"),
    Column("bandwidth", "GB/s of a copy", ".0f"),
    Column("ideal", "ideal seconds", ".2f"),
    Column("ratio", "time / ideal", ".2f"),
)
