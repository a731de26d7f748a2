"""Worker groups on GPUs: Ray's placement is real, the GPUs are logical ones, so that it can be seen on a machine
without any.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.train.torch import TorchConfig

from reco_tune.settings import Resources
from reco_tune.study import worker_pool
from reco_tune.study.cluster import cluster, place
from reco_tune.study.dispatcher import ACTOR, Dispatcher, Job
from reco_tune.study.worker import Hooks


def say_where(job: Job, hooks: Hooks) -> None:
    """Instead of training: which GPUs and CPUs this worker was given."""
    hooks.event(
        "evaluated",
        metrics={},
        curves={},
        provenance={"gpus": ray.get_gpu_ids(), **ray.get_runtime_context().get_assigned_resources()},
    )


RESOURCES = Resources(gpus_per_worker=1, cpus_per_worker=1)


@pytest.fixture(scope="module")
def two_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, float]]]:
    """A cluster of one machine, by its resources."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reco_tune.study.cluster.machine", lambda: {"CPU": 2.0, "GPU": 2.0})
        with cluster(None, RESOURCES, tmp_path_factory.mktemp("ray") / "temp") as nodes:
            yield nodes


def start_dispatcher(workers: int) -> Any:
    return ray.remote(Dispatcher).options(**ACTOR).remote(workers, max_failures=2)


def test_more_workers_than_ray_lets_wait_by_default(two_gpus: list[dict[str, float]]) -> None:
    """Where an actor takes no more calls, the driver's own, which would let all others return, is kept out with
    them."""
    many = 1100
    dispatcher = start_dispatcher(workers=1)
    ray.get([dispatcher.submit.remote(Job("trial", f"run-{i}", {}, "", "", folder="")) for i in range(many)])
    takes = [dispatcher.take.remote(slot, "x", 0) for slot in range(many)]
    followers = [dispatcher.follow.remote(f"run-{i}", 0) for i in range(many)]
    taken = [job.key for job in ray.get(takes, timeout=100)]
    assert sorted(taken) == sorted(f"run-{i}" for i in range(many))
    reports = [dispatcher.report.remote(key, 10, {}) for key in taken]
    heard: list[str] = []
    written = 0
    while len(heard) < many or written:
        events, _ = ray.get(dispatcher.news.remote(written, seconds=1), timeout=100)
        written = len(events)
        heard += [event["key"] for event in events]
    assert ray.get(reports, timeout=100) == [False] * many and sorted(heard) == sorted(taken)
    assert all(told == [{"step": 10}] for told, _, _ in ray.get(followers, timeout=100))


@pytest.mark.slow
def test_every_group_gets_gpus_of_its_own(
    two_gpus: list[dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`resources.gpus_per_worker` reaches Ray: two groups at once on two GPUs, each with one and with the CPU it asked
    for.
    """
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(worker_pool.worker, "execute", say_where)
    monkeypatch.setattr(worker_pool, "TorchConfig", lambda: TorchConfig(backend="gloo"))  # NCCL needs real GPUs
    placement = place(RESOURCES, two_gpus, jobs=2)
    assert (placement.groups, placement.gpus) == (2, 1)
    dispatcher = start_dispatcher(placement.workers)
    jobs = [Job("trial", f"run-{i}", {}, "", "", folder="") for i in range(2)]
    ray.get([dispatcher.submit.remote(job) for job in jobs])
    followers = [dispatcher.follow.remote(job.key, 0) for job in jobs]  # a job is begun when a trial follows it
    warm = worker_pool.WorkerPool(dispatcher, placement, tmp_path / "train", len(jobs))
    heard: list[dict[str, Any]] = []
    written, deadline = 0, time.monotonic() + 240
    while (
        sum(event["event"] in ("evaluated", "failed") for event in heard) < 2
        and time.monotonic() < deadline
        and not warm.gone
    ):
        events, _ = ray.get(dispatcher.news.remote(written, seconds=1))
        written = len(events)
        heard += events
    del followers
    ray.get(dispatcher.pause.remote())
    warm.join()
    warm.end()  # as the driver does: a thread that still waits in Ray when it shuts down ends the process
    assert not warm.lost
    found = {event["key"]: event["provenance"] for event in heard if event["event"] == "evaluated"}
    assert set(found) == {"run-0", "run-1"}, heard
    assert all(where["GPU"] == 1 and where["CPU"] == 1 and len(where["gpus"]) == 1 for where in found.values())
