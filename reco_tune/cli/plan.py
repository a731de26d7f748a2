"""`reco-tune plan`: estimates the cost of a study without starting it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reco_tune.cli.options import (
    Address,
    Arms,
    Name,
    Output,
    Overrides,
    Planned,
    Seeds,
    TrackingUri,
    Trials,
    asked_space,
    new_study,
    one_arm,
    path_and_arm,
)

if TYPE_CHECKING:
    from reco_tune.cost import Forecast, Plan, Rates
    from reco_tune.settings import Experiment
    from reco_tune.study import Options


def plan(
    space: Planned,
    overrides: Overrides = None,
    name: Name = None,
    output: Output = None,
    address: Address = None,
    tracking_uri: TrackingUri = None,
    trials: Trials = None,
    seeds: Seeds = None,
    arms: Arms = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=1, help="Memory of one GPU in GiB. Default: that of this machine's GPUs.")
    ] = None,
    mtbf_days: Annotated[
        float | None,
        typer.Option(min=0.01, help="Mean days between failures of one machine. Adds how often to write checkpoints."),
    ] = None,
) -> None:
    """Prints what a study or one run would need: steps, estimated time, memory and disk, and whether they fit this
    machine. Ends with an error if `run` would refuse to start. Takes the options of `run`; starts and writes nothing.

    \b
    Examples:
      reco-tune plan evidence
      reco-tune plan paper_ablation --set training.steps=10000 --seeds 0,1,2
      reco-tune plan taichi_343M --gpu-memory 80
      reco-tune plan taichi_343M --mtbf-days 30
      reco-tune plan evidence:reco    (what `train evidence:reco` takes)
    """
    path, arm = path_and_arm(space)
    loaded = asked_space(path, overrides, trials, seeds, arms)
    loaded = loaded if arm is None else one_arm(loaded, arm, path)
    called, folder = new_study(name, output, path, planned=True)

    from reco_tune.cost import forecast, plan
    from reco_tune.study import Options

    planned = plan(loaded)
    gpu = _gpu(planned.shared, gpu_memory)
    rates, source = rates_of(planned.shared, gpu_memory)
    cost = forecast(planned, rates)
    _print_runs(planned, cost)
    _print_memory(planned)
    _print_words(planned, cost, source, gpu)
    if mtbf_days is not None:
        _print_spacing(planned, mtbf_days)
    _refuse_memory(planned, gpu, address)
    _check(planned, folder, Options(called, address, tracking_uri))


def _refuse_memory(planned: Plan, gpu: tuple[float, str] | None, address: str | None) -> None:
    from reco_tune.cost import refuse_what_cannot_fit
    from reco_tune.study import check_room

    if gpu is not None:
        refuse_what_cannot_fit(planned, *gpu)
    elif planned.shared.device_type == "cpu" and address is None and _fit(planned.shared, planned.total)[0]:
        check_room(planned)


def _check(planned: Plan, folder: Path, options: Options) -> None:
    """Raises the error with which `run` would refuse to start. Data without a folder, as in a shipped experiment, is no
    error here.
    """
    from reco_tune.errors import ReCoTuneError
    from reco_tune.study import check

    try:
        check(planned, folder, options)
    except ReCoTuneError as error:
        if planned.shared.data.root is not None or planned.shared.data.layout == "digits":
            raise
        print(f"still missing: {error}")


def _print_runs(planned: Plan, cost: Forecast) -> None:
    from collections import Counter

    from reco_tune.cli.console import print_table
    from reco_tune.cli.estimate import duration
    from reco_tune.settings import TUNE

    rows = []
    tuned = Counter(run.arm for run in planned.tuning)
    for run in cost.runs[: len(planned.fixed) + 1]:
        if run.budget == TUNE and not (count := tuned.pop(run.arm, 0)):
            continue  # the first run of an arm stands for all
        name = f"{planned.trials} sampled, each" if run.arm == "search" else run.trial
        name = f"{count} to tune {run.arm}, each" if run.budget == TUNE else name
        rows.append([name, run.budget, f"{run.steps:,}", f"{run.training_flops:.2g}", duration(run.device_seconds)])
    print_table(planned.space.question, ["run", "budget", "steps", "FLOPs", "device time"], rows, left=2)


def _print_memory(planned: Plan) -> None:
    from reco_tune.cli.console import print_table
    from reco_tune.cost import MemoryByPhase, memory_by_phase

    rows = []
    for arm, experiment in planned.kinds.items():
        taken = memory_by_phase(experiment, planned.baseline)
        rows.append([arm, *(f"{phase / 2**30:.2f}" if phase else "" for phase in taken)])
    print()
    print_table("memory of a worker in GiB, by phase", ["arm", *MemoryByPhase._fields], rows)


def _print_words(planned: Plan, cost: Forecast, source: str, gpu: tuple[float, str] | None) -> None:
    from reco_tune.cli.console import size
    from reco_tune.cli.estimate import duration

    space, shared, rates = planned.space, planned.shared, cost.rates
    at_once, fit = _fit(shared, planned.total)
    at_once = max(1, at_once)
    wall = duration(cost.wall_seconds(at_once, shared.resources.workers))
    tuning = f", {len(planned.tuning)} to tune them" if planned.tuning else ""
    print(
        f"\nruns: {planned.total}, {len(planned.runs)} of fixed arms{tuning} and {planned.trials} sampled;"
        f" {cost.steps:,} steps"
    )
    if space.tune is not None:
        spent = sum(run.device_seconds for run in cost.runs[: len(planned.tuning)])
        print(
            f"tuning: {len(planned.tuning)} of the runs come before the table,"
            f" {len(planned.tuning) // len(planned.arms)} for each arm at the longest of its budgets,"
            f" about {duration(spent)} of device time"
        )
    if planned.trials and space.finalist_seeds:
        print(
            f"finalists: {space.finalist_seeds} further run(s) each, not counted here: their number is known only when"
            " the search ends"
        )
    if set(space.budgets) - {"equal_steps"}:
        counted = "equal-compute" if "equal_compute" in space.budgets else "half-compute"
        print(f"{counted} steps: estimated here from FLOP limits; the study takes them from measured speeds")
    read = f", sampling {rates.bytes_per_second:.2g} bytes/s" if rates.bytes_per_second else ""
    print(f"pace: {rates.flops_per_second:.2g} FLOP/s per worker{read}, {source}")
    print(
        f"time: about {duration(cost.device_seconds)} of device time, {wall} with {at_once} run(s) at once; preparation"
        " and start-up not included"
    )
    limits = [f"{key} {most:g}" for key, most in space.stop_after if most is not None]
    if limits:
        fixed = sum(run.device_seconds for run in cost.runs[: len(planned.fixed)])
        print(f"stops after: {', '.join(limits)}; the fixed arms take about {duration(fixed)} of device time")
    print(f"memory: {_memory(planned, gpu)}")
    print(f"disk: about {size(cost.disk_bytes)} for runs; {_cache(shared)}")
    print(f"resources: {fit}")


def _print_spacing(planned: Plan, mtbf_days: float) -> None:
    """How often the largest runs should write a checkpoint, as text."""
    from reco_tune.cost.checkpoint_spacing import WRITE_BYTES_PER_SECOND, advise

    found = {name: advise(experiment, mtbf_days) for name, experiment in planned.kinds.items()}
    name = max(found, key=lambda kind: found[kind].write_seconds)
    advice, minutes = found[name], planned.kinds[name].training.checkpoint_minutes
    print(
        f"checkpoints: one of `{name}` takes about {advice.write_seconds:.1f} s to write"
        f" (at {WRITE_BYTES_PER_SECOND / 1e9:g} GB/s, assumed); with {mtbf_days:g} days between failures of each of its"
        f" {advice.machines} machine(s), one every {advice.spacing_seconds / 60:.0f} minutes loses least,"
        f" {advice.share_lost:.2%} of the time; training.checkpoint_minutes {minutes:g} loses"
        f" {advice.share_lost_as_set:.2%}"
    )


def rates_of(shared: Experiment, gibibytes: float | None) -> tuple[Rates | None, str]:
    """Rates for the estimate (None: measured) and where they come from."""
    import torch

    from reco_tune.cost import ASSUMED_GPU

    if shared.device_type == "cuda" and not torch.cuda.is_available():
        whole = gibibytes * 2**30 if gibibytes else ASSUMED_GPU.memory_bytes or 0
        memory = shared.resources.part_of_a_gpu * whole
        return ASSUMED_GPU._replace(memory_bytes=memory), "assumed (an A100's), because no GPU is visible here"
    return None, "measured here"


def _gpu(shared: Experiment, gibibytes: float | None) -> tuple[float, str] | None:
    """GPU memory of a worker in bytes, and which GPU it is. None if no GPU is requested or its memory is unknown."""
    import torch

    part = shared.resources.part_of_a_gpu
    if not part or not (gibibytes or torch.cuda.is_available()):
        return None
    whole, name = (gibibytes or 0) * 2**30, f"a GPU of {gibibytes:g} GiB"
    if not gibibytes:
        devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        smallest = min(devices, key=lambda device: device.total_memory)
        whole, name = smallest.total_memory, f"this machine's {smallest.name}"
    return part * whole, name


def _memory(planned: Plan, gpu: tuple[float, str] | None) -> str:
    """What the memory table includes, as text."""
    from reco_tune.cost import clips_sampled_at_once

    if planned.shared.device_type == "cpu":
        return "counted by tracing the steps, without running them; generation holds one sampling batch"
    told = "counted by tracing the steps, without running them; compiled steps need less, CUDA itself one GiB more"
    if gpu is None:
        return f"{told}; --gpu-memory GIB says whether it fits"
    clips = min(clips_sampled_at_once(experiment, gpu[0]) for experiment in planned.kinds.values())
    return f"{told}; {gpu[1]} samples {clips:,} clips at once"


def _cache(shared: Experiment) -> str:
    """Disk space of clips and codes, as text."""
    from reco_tune.cli.console import size

    data = shared.data
    if data.train_clips is None or data.test_clips is None:
        return (
            "clips and codes not included, because their number is unknown without data.train_clips and data.test_clips"
        )
    pixels = data.clip_frames * 3 * data.size_px**2
    clips = (data.train_clips, data.test_clips)
    return (
        f"{size(sum(4 * shared.grid.num_tokens * count + pixels * min(count, shared.kept_clips) for count in clips))}"
        " for clips and codes"
    )


def _fit(shared: Experiment, jobs: int) -> tuple[int, str]:
    """Number of runs that fit on this machine at once, 0 if none fits, and the sentence about it."""
    from reco_tune.errors import SettingsError
    from reco_tune.study.cluster import machine, place

    wanted, here = shared.resources, machine()
    needs = (
        f"a run needs {wanted.workers} worker(s) of {wanted.cpus_per_worker} CPU(s) and {wanted.gpus_per_worker:g}"
        " GPU(s)"
    )
    has = f"this machine has {here['CPU']:g} CPU(s) and {here['GPU']:g} GPU(s)"
    try:
        at_once = place(wanted, [here], jobs).groups
    except SettingsError:
        return 0, f"{needs}; {has}: no run fits here; give a cluster with --address"
    return at_once, f"{needs}; {has}: {at_once} at once"
