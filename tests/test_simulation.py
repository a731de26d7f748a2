"""A small study on simulated time with every fault, and the checks that would notice what went wrong."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from reco_tune.cost import Plan, Rates, plan
from reco_tune.settings import load_space
from reco_tune.simulation import FaultRates, Simulated, Workload, simulate
from reco_tune.simulation.checks import check_log
from reco_tune.simulation.clock import SimulatedLoop, StandstillError
from reco_tune.simulation.outcome import draw, progress
from reco_tune.study_log import read_events

JOINT = Path(__file__).parents[1] / "search_spaces" / "joint.yaml"
EVERYTHING = FaultRates(
    mtbf_days=2,
    preemptible=0.5,
    preemption_hours=4,
    hang_share=0.2,
    slow_disk_hours=8,
    tracking_hours=8,
    driver_hours=6,
)
SMALL = ["trials=40", "sampler.kind=nsga2", "pruning.kind=pareto_asha", "training.rungs=4", "finalist_seeds=1"]


def small_plan(*overrides: str) -> Plan:
    return plan(load_space(JOINT, [*SMALL, *overrides]))


def small(folder: Path, planned: Plan, rates: FaultRates, gpus: int = 8) -> Simulated:
    """On machines of two GPUs that are slow enough for runs of hours."""
    pace = Rates(flops_per_second=5e7)
    return simulate(planned, Workload(planned, pace, 0), gpus, rates, 0, folder, gpus_per_machine=2)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path, Simulated]:
    folder, planned = tmp_path_factory.mktemp("simulated") / "study", small_plan()
    return planned, folder, small(folder, planned, EVERYTHING)


def test_nothing_is_lost_or_doubled_whatever_goes_wrong(disturbed: tuple[Plan, Path, Simulated]) -> None:
    _, _, found = disturbed
    assert found.problems == []
    happened = {kind for kind, count in found.faults.items() if count}
    assert happened >= {"lost", "preempted", "hung", "slow disk", "no tracking", "driver killed"}, found.faults
    ends = Counter(run.state for run in found.study.runs.values())
    assert found.study.finished and ends["pruned"] and ends["evaluated"] and found.lost > 0
    assert any(run.repeats for run in found.study.runs.values()), "finalists ran again"


def test_a_seed_gives_the_same_study(disturbed: tuple[Plan, Path, Simulated], tmp_path: Path) -> None:
    _, folder, first = disturbed
    second = small(tmp_path / "study", small_plan(), EVERYTHING)
    assert (second.wall, second.faults) == (first.wall, first.faults)
    assert second.busy == pytest.approx(first.busy, rel=1e-12), "a sum, in the order in which groups of one instant end"
    logs = [list(read_events(where / "events.jsonl"))[1:] for where in (folder, tmp_path / "study")]
    assert logs[0] == logs[1]


def test_without_faults_the_hours_are_those_of_the_work(tmp_path: Path) -> None:
    planned = small_plan("trials=0", "arms={full: null, reco: null}", "seeds=[0,1]")
    found = small(tmp_path / "study", planned, FaultRates(), gpus=1)
    workload = Workload(planned, Rates(flops_per_second=5e7), 0)
    runs = planned.at_speeds({arm: workload.speed(kind)["speedup"] for arm, kind in planned.arms.items()}).runs
    times = [workload.times(run.trial, run.experiment) for run in runs]
    work = sum(run.experiment.training.steps * one.step + one.evaluation for run, one in zip(runs, times, strict=True))
    work += sum(workload.times(arm, kind).calibration for arm, kind in planned.arms.items())
    assert found.busy == pytest.approx(work, rel=1e-3) and found.lost == 0 and not found.faults
    assert found.wall == pytest.approx(work + 26, rel=0.01)


@pytest.mark.parametrize("workers", [2, 4], ids=["a-group-on-a-machine", "a-group-over-two-machines"])
def test_groups_of_many_workers(tmp_path: Path, workers: int) -> None:
    planned = small_plan("trials=6", "finalist_seeds=0", f"resources.workers={workers}")
    found = small(tmp_path / "study", planned, FaultRates(mtbf_days=1, preemptible=0.5, preemption_hours=3))
    assert found.problems == [] and found.groups == 8 // workers
    assert sum(run.moves for run in found.study.runs.values()) > 0


@pytest.mark.parametrize(
    ("cut", "told"),
    [
        ('"event":"evaluated"', "never ended"),
        ('"event":"finished"', "does not end with the study"),
        ('"event":"pruned"', "never ended"),
    ],
)
def test_a_lost_event_is_noticed(disturbed: tuple[Plan, Path, Simulated], tmp_path: Path, cut: str, told: str) -> None:
    planned, folder, _ = disturbed
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    lines.remove(next(line for line in lines if cut in line))
    (tmp_path / "events.jsonl").write_text("".join(lines))
    assert told in "; ".join(check_log(planned, tmp_path))


def test_a_doubled_end_is_noticed(disturbed: tuple[Plan, Path, Simulated], tmp_path: Path) -> None:
    planned, folder, _ = disturbed
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if '"event":"pruned"' in line)
    (tmp_path / "events.jsonl").write_text("".join([*lines[: at + 1], lines[at], *lines[at + 1 :]]))
    run = json.loads(lines[at])["trial"]
    assert check_log(planned, tmp_path) == [f"{run} is pruned after its end"]


def test_a_figure_is_drawn(disturbed: tuple[Plan, Path, Simulated], tmp_path: Path) -> None:
    planned, _, found = disturbed
    covered = progress(planned.space, found.study)
    assert covered is not None and 0 < covered.reached <= found.wall and covered.shares[-1] == 1
    draw(found, covered, tmp_path / "simulated.png")
    assert (tmp_path / "simulated.png").stat().st_size > 5000


def test_the_clock_jumps_and_a_standstill_is_told() -> None:
    loop = SimulatedLoop()
    loop.run_until_complete(asyncio.sleep(1e6))
    assert loop.time() == pytest.approx(1e6)
    waiting = loop.create_task(asyncio.sleep(0))
    loop.run_until_complete(waiting)
    with pytest.raises(StandstillError):
        loop.run_until_complete(loop.create_future())
    loop.close()
