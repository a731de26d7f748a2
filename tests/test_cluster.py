from __future__ import annotations

import gc
import subprocess
import weakref

import pytest
import ray

from reco_tune.errors import SettingsError
from reco_tune.settings import Resources
from reco_tune.study.cluster import _shut_down, place
from reco_tune.study.ray_internals import running_clusters

CPU_NODE = {"CPU": 8.0}
GPU_NODE = {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("resources", "nodes", "jobs", "groups"),
    [
        pytest.param({}, [CPU_NODE], 100, 8, id="a group for every CPU"),
        pytest.param({}, [CPU_NODE], 3, 3, id="no more groups than jobs"),
        pytest.param({"concurrent_trials": 2}, [CPU_NODE], 100, 2, id="no more than asked for"),
        pytest.param({"concurrent_trials": 20}, [CPU_NODE], 100, 8, id="no more than fit"),
        pytest.param(
            {"workers": 2, "cpus_per_worker": 3},
            [CPU_NODE, CPU_NODE],
            100,
            2,
            id="a worker does not span nodes, a group may",
        ),
        pytest.param({"gpus_per_worker": 1}, [GPU_NODE], 100, 4, id="GPUs bind"),
        pytest.param({"gpus_per_worker": 1, "cpus_per_worker": 8}, [GPU_NODE], 100, 2, id="CPUs bind beside GPUs"),
        pytest.param({"gpus_per_worker": 0.25}, [GPU_NODE], 100, 16, id="several workers share a GPU"),
        pytest.param(
            {"gpus_per_worker": 1, "workers": 4},
            [GPU_NODE, CPU_NODE, GPU_NODE],
            100,
            2,
            id="nodes without GPUs do not count",
        ),
    ],
)
def test_as_many_groups_as_fit(
    resources: dict[str, float], nodes: list[dict[str, float]], jobs: int, groups: int
) -> None:
    assert place(Resources(**resources), nodes, jobs).groups == groups


@pytest.mark.parametrize(
    "resources",
    [
        pytest.param({"cpus_per_worker": 9}, id="no node has the CPUs"),
        pytest.param({"workers": 9}, id="all nodes together hold too few workers"),
        pytest.param({"gpus_per_worker": 1}, id="no GPU"),
    ],
)
def test_what_can_never_be_placed_is_refused_before_anything_starts(resources: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=r"the cluster has 8 CPU\(s\), 0 GPU\(s\); lower resources"):
        place(Resources(**resources), [CPU_NODE], 10)


def test_a_worker_gets_what_its_settings_say() -> None:
    assert place(Resources(gpus_per_worker=0.5, cpus_per_worker=2), [GPU_NODE], 1).worker_resources == {
        "CPU": 2.0,
        "GPU": 0.5,
    }
    assert place(Resources(), [CPU_NODE], 1).worker_resources == {"CPU": 1.0}


def test_another_cluster_on_this_machine_is_seen() -> None:
    """Its raylet's command line tells the address; a shell of that name stands for it."""
    command = ["raylet", "-c", "read line; :", "--gcs-address=192.0.2.1:6379"]
    with subprocess.Popen(command, executable="/bin/sh", stdin=subprocess.PIPE) as raylet:
        assert "192.0.2.1:6379" in running_clusters()
        raylet.communicate(b"\n")
    assert "192.0.2.1:6379" not in running_clusters()


def test_nothing_is_let_go_of_while_ray_shuts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ended the process, and a refused study its sentence with it, where another thread's garbage collection met
    one of its references just then.
    """
    gone: list[str] = []
    circle: list[object] = [type("Reference", (), {})()]
    circle.append(circle)
    weakref.finalize(circle[0], gone.append, "collected")
    del circle
    monkeypatch.setattr(ray, "shutdown", lambda: gone.append(f"shut down, collecting: {gc.isenabled()}"))
    _shut_down()
    assert gone == ["collected", "shut down, collecting: False"] and gc.isenabled()
