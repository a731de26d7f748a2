"""`reco-tune plan`: what a study would cost, without launching it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reco_tune.cli.options import Overrides, PlannedFile, parse_seeds, planned_path

if TYPE_CHECKING:
    from reco_tune.settings import Experiment

ASSUMED_GPU_FLOPS_PER_SECOND = 125e12
"""40% of an A100's bfloat16 peak, where a space asks for GPUs and none is visible."""


def plan(
    space: PlannedFile,
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(min=0, help="Sampled trials.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Training seeds of the fixed arms, for example 0,1,2.")] = None,
) -> None:
    """Dry run of a study or of one run: steps, estimated time, disk, and how they fit this machine. Launches and writes
    nothing.

    \b
    Examples:
      reco-tune plan evidence
      reco-tune plan paper_ablation --set training.steps=10000 --seeds 0,1,2
      reco-tune plan taichi_343M
    """
    from reco_tune.settings import load_space

    changes = list(overrides or [])
    changes += [f"trials={trials}"] if trials is not None else []
    changes += [f"seeds={parse_seeds(seeds)}"] if seeds is not None else []
    loaded = load_space(planned_path(space), changes)

    from reco_tune.cli.console import print_table, size
    from reco_tune.cli.estimate import duration
    from reco_tune.cost import forecast, least_memory, plan

    planned = plan(loaded)
    if loaded.trials:
        from reco_tune.study.searcher import rehearse  # Optuna takes a second to import

        rehearse(loaded)
    shared = planned.shared
    rate, source = _rate(shared)
    cost = forecast(planned, rate)
    rows, memory = [], {arm: size(least_memory(experiment)) for arm, experiment in planned.kinds.items()}
    for run in cost.runs[: len(planned.runs) + 1]:
        sampled = run.arm == "search"
        name = f"{planned.trials} sampled, each" if sampled else run.trial
        rows.append(
            [
                name,
                run.budget,
                f"{run.steps:,}",
                f"{run.training_flops:.2g}",
                duration(run.device_seconds),
                memory[run.arm],
            ]
        )
    print_table(loaded.question, ["run", "budget", "steps", "FLOPs", "device time", "memory, at least"], rows, left=2)
    at_once, fit = _fit(shared, planned.total)
    wall = duration(cost.wall_seconds(at_once, shared.resources.workers))
    print(
        f"\nruns: {planned.total}, {len(planned.runs)} of fixed arms and {planned.trials} sampled; {cost.steps:,} steps"
    )
    if planned.trials and loaded.finalist_seeds:
        print(
            f"finalists: {loaded.finalist_seeds} further run(s) each, not counted here: how many there are shows when"
            " the search ends"
        )
    if set(loaded.budgets) - {"equal_steps"}:
        counted = "equal-compute" if "equal_compute" in loaded.budgets else "half-compute"
        print(f"{counted} steps follow from FLOP limits here, from calibrated speeds when the study runs")
    print(f"pace: {cost.flops_per_second:.2g} FLOP/s per worker, {source}")
    print(
        f"time: about {duration(cost.device_seconds)} of device time, {wall} with {at_once} run(s) at once; preparation"
        " and start-up on top"
    )
    print(
        "memory: a worker's weights, gradients, moments and block inputs alone; the calibrations, a study's first jobs,"
        " try real steps"
    )
    print(f"disk: about {size(cost.disk_bytes)} for runs; {_cache(shared)}")
    print(f"resources: {fit}")


def _rate(shared: Experiment) -> tuple[float | None, str]:
    """FLOP/s to count with (None: measured) and where it comes from."""
    import torch

    if shared.device_type == "cuda" and not torch.cuda.is_available():
        return ASSUMED_GPU_FLOPS_PER_SECOND, "assumed (40% of an A100's bfloat16 peak), because no GPU is visible here"
    return None, "measured here"


def _cache(shared: Experiment) -> str:
    """What clips and codes take on disk, in words."""
    from reco_tune.cli.console import size

    data = shared.data
    if data.train_clips is None or data.test_clips is None:
        return (
            "clips and codes are not counted, because data.train_clips and data.test_clips leave open how many"
            " there are"
        )
    pixels = data.clip_frames * 3 * data.size_px**2
    clips = (data.train_clips, data.test_clips)
    return (
        f"{size(sum(4 * shared.grid.num_tokens * count + pixels * min(count, shared.kept_clips) for count in clips))}"
        " for clips and codes"
    )


def _fit(shared: Experiment, jobs: int) -> tuple[int, str]:
    """Runs at once on this machine, and the sentence about it."""
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
        return 1, f"{needs}; {has}: not even one run fits here, give a cluster with --address"
    return at_once, f"{needs}; {has}: {at_once} at once"
