"""`reco-tune simulate`: runs a study on simulated time, with faults, using the real searcher, scheduler and log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reco_tune.cli.options import Arms, Overrides, Planned, Seeds, Trials, asked_space, one_arm, path_and_arm
from reco_tune.errors import RunFailedError

if TYPE_CHECKING:
    from reco_tune.cost import Plan
    from reco_tune.simulation import FaultRates, Simulated, Workload

DAY = 24.0
ROUGH = {"hang_share": 0.001, "slow_disk_hours": DAY, "tracking_hours": DAY, "driver_hours": DAY}
"""Faults that `--rough` adds: about one of each per day."""


def simulate(
    space: Planned,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs of the cluster, or worker slots without GPUs.")],
    overrides: Overrides = None,
    trials: Trials = None,
    seeds: Seeds = None,
    arms: Arms = None,
    mtbf_days: Annotated[
        float | None, typer.Option(min=0.01, help="Mean days between failures of one machine. Default: no failures.")
    ] = None,
    preemptible: Annotated[
        float, typer.Option(min=0, max=1, help="Share of machines that are preempted about once a day.")
    ] = 0.0,
    rough: Annotated[
        bool,
        typer.Option(help="Also hung workers, a slow log disk, an MLflow outage and a killed driver, about daily."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed of the faults and of the simulated qualities.")] = 0,
    gpus_per_machine: Annotated[int, typer.Option(min=1)] = 8,
    recorded: Annotated[
        Path | None, typer.Option(help="A study whose recorded times and qualities replace the forecast.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of a GPU hour, in any currency.")] = None,
    compare: Annotated[
        bool, typer.Option(help="Also simulates the study without pruning, and on fewer GPUs. This takes longer.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="PNG file of the figure.")] = None,
) -> None:
    """Runs a study on simulated time, with the real search, pruning, log and dispatcher. Prints how busy the GPUs are,
    what faults cost, and whether any run was lost or repeated. Trains nothing. Qualities are made up unless --recorded
    gives those of a study.

    \b
    Examples:
      reco-tune simulate joint --gpus 16
      reco-tune simulate joint --gpus 1000 --trials 10000 --mtbf-days 30 --preemptible 0.2 --rough
    """
    path, arm = path_and_arm(space)
    loaded = asked_space(path, overrides, trials, seeds, arms)
    loaded = loaded if arm is None else one_arm(loaded, arm, path)

    from reco_tune.cli.plan import rates_of
    from reco_tune.cost import measure_rates, plan
    from reco_tune.simulation import FaultRates, Workload
    from reco_tune.study_log import read_study

    planned = plan(loaded)
    pace, source = rates_of(planned.shared, None)
    earlier = read_study(recorded) if recorded else None
    workload = Workload(planned, pace or measure_rates(planned.baseline), seed, earlier)
    faults = FaultRates(mtbf_days=mtbf_days, preemptible=preemptible, **(ROUGH if rough else {}))
    found = _simulated(planned, workload, gpus, faults, seed, gpus_per_machine)
    _print(planned, found, f"those of {recorded}" if recorded else f"forecast, {source}", price)
    if compare:
        _compare(planned, workload, gpus, faults, seed, gpus_per_machine, found)
    if output is not None:
        from reco_tune.simulation.outcome import draw, progress

        draw(found, progress(loaded, found.study), output)
        print(f"figure: {output}")
    if found.problems:
        raise RunFailedError(f"{len(found.problems)} error(s) in the log: {'; '.join(found.problems[:3])}")
    print("no run was lost or repeated")


def _simulated(
    planned: Plan, workload: Workload, gpus: int, faults: FaultRates, seed: int, gpus_per_machine: int
) -> Simulated:
    """Simulates the study. Deletes its log at the end, so that nobody takes it for a real study."""
    import tempfile

    from reco_tune.simulation import simulate as run

    with tempfile.TemporaryDirectory(prefix="reco-simulated-") as folder:
        return run(planned, workload, gpus, faults, seed, Path(folder) / "study", gpus_per_machine)


def _print(planned: Plan, found: Simulated, times: str, price: float | None) -> None:
    from reco_tune.cli.console import print_table
    from reco_tune.cli.estimate import duration
    from reco_tune.simulation.outcome import SHARE, progress, states

    ended, covered = states(found.study), progress(planned.space, found.study)
    held = found.gpus * found.wall
    rows = [
        ["runs", ", ".join(f"{count:,} {state}" for state, count in sorted(ended.items()))],
        ["wall-clock", duration(found.wall)],
        [f"until {SHARE:.0%} of the final hypervolume", duration(covered.reached) if covered else "no frontier"],
        ["GPUs at work until the last job was given out", f"{found.utilisation:.1%} of those available"],
        ["GPU hours held", f"{held / 3600:,.1f}"],
        ["GPU hours at work", f"{found.busy / 3600:,.1f}"],
        ["GPU hours of work lost to faults", f"{found.lost / 3600:,.1f}"],
        ["GPU hours of machines that were down", f"{found.down / 3600:,.1f}"],
        ["moves to other workers", f"{sum(run.moves for run in found.study.runs.values()):,}"],
        ["longest wait for an answer to a rung report", f"{found.slowest_answer:.1f} s"],
        ["longest time without a log event", duration(found.silence)],
        ["MLflow behind at most", duration(found.mirror_lag)],
        ["driver's CPU (real)", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found.cpu.items())],
    ]
    if price is not None:
        rows.insert(5, ["cost of the GPU hours held", f"{price * held / 3600:,.0f}"])
    print_table(f"{found.groups} worker groups on {found.gpus} GPUs", ["what", "value"], rows, left=2)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(found.faults.items()) if count)
    print(f"\nfaults: {told or 'none'}\ntimes: {times}; qualities are not those of video models unless recorded")


def _compare(
    planned: Plan,
    workload: Workload,
    gpus: int,
    faults: FaultRates,
    seed: int,
    gpus_per_machine: int,
    found: Simulated,
) -> None:
    """The same faults and qualities without pruning, and on fewer GPUs."""
    from dataclasses import replace

    from reco_tune.cli.console import print_table
    from reco_tune.cli.estimate import duration
    from reco_tune.simulation.outcome import progress

    cases = {"as asked": found}
    if planned.space.pruning.kind != "none" and planned.trials:
        whole = planned.space.model_copy(update={"pruning": planned.space.pruning.model_copy(update={"kind": "none"})})
        cases["without pruning"] = _simulated(
            replace(planned, space=whole), workload, gpus, faults, seed, gpus_per_machine
        )
    for part in (2, 10):
        if gpus // part >= planned.shared.resources.workers:
            cases[f"on {gpus // part} GPUs"] = _simulated(
                planned, workload, gpus // part, faults, seed, gpus_per_machine
            )
    rows = []
    for name, case in cases.items():
        covered = progress(planned.space, case.study)
        hours = [f"{seconds / 3600:,.1f}" for seconds in (case.busy, case.lost)]
        reached = duration(covered.reached) if covered else ""
        rows.append([name, duration(case.wall), reached, f"{case.utilisation:.1%}", *hours])
    print()
    print_table(
        "effect of pruning and of the number of groups",
        ["case", "wall-clock", "95% of hypervolume", "GPUs at work", "GPU hours", "undone"],
        rows,
        left=1,
    )
