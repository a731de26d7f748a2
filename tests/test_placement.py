"""Worker groups on GPUs: Ray's placement is real, the GPUs are logical ones, so that it can be seen on a machine
without any.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.train.torch import TorchConfig

from reco_tune.settings import Resources
from reco_tune.study import worker_pool
from reco_tune.study.cluster import cluster, place
from reco_tune.study.dispatcher import Dispatcher, Job
from reco_tune.study.worker import Hooks


def say_where(job: Job, hooks: Hooks) -> None:
    """Instead of training: which GPUs and CPUs this worker was given."""
    hooks.event(
        "evaluated",
        metrics={},
        curves={},
        provenance={"gpus": ray.get_gpu_ids(), **ray.get_runtime_context().get_assigned_resources()},
    )


def test_every_group_gets_gpus_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`resources.gpus_per_worker` reaches Ray: two groups at once on two GPUs, each with one and with the CPU it asked
    for.
    """
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(worker_pool.worker, "execute", say_where)
    monkeypatch.setattr(worker_pool, "TorchConfig", lambda: TorchConfig(backend="gloo"))  # NCCL needs real GPUs
    monkeypatch.setattr("reco_tune.study.cluster.machine", lambda: {"CPU": 2.0, "GPU": 2.0})
    resources = Resources(gpus_per_worker=1, cpus_per_worker=1)
    with cluster(None, resources, tmp_path / "temp") as nodes:
        placement = place(resources, nodes, jobs=2)
        assert (placement.groups, placement.gpus) == (2, 1)
        dispatcher: Any = ray.remote(Dispatcher).options(num_cpus=0, max_concurrency=100).remote(placement.workers, 2)
        jobs = [Job("trial", f"run-{i}", {}, "", "", folder="") for i in range(2)]
        ray.get([dispatcher.submit.remote(job) for job in jobs])
        followers = [dispatcher.follow.remote(job.key, 0) for job in jobs]  # a job is begun when a trial follows it
        warm = worker_pool.WorkerPool(dispatcher, placement, tmp_path / "train", len(jobs), own_cluster=True)
        heard: list[dict[str, Any]] = []
        deadline = time.monotonic() + 240
        while (
            sum(event["event"] in ("evaluated", "failed") for event in heard) < 2
            and time.monotonic() < deadline
            and not warm.gone
        ):
            events, _ = ray.get(dispatcher.drain.remote())
            ray.get(dispatcher.wrote.remote(len(events)))
            heard += events
            time.sleep(0.2)
        del followers
        ray.get(dispatcher.pause.remote())
        warm.join()
    assert not warm.lost
    found = {event["key"]: event["provenance"] for event in heard if event["event"] == "evaluated"}
    assert set(found) == {"run-0", "run-1"}, heard
    assert all(where["GPU"] == 1 and where["CPU"] == 1 and len(where["gpus"]) == 1 for where in found.values())
