"""Where a study runs: starting or joining a Ray cluster cleanly, and fitting worker groups into it.

Knows Ray's environment traps; knows nothing of trials. Each trap here was met: two clusters on one host confuse Ray's
own clean-up actors unless `RAY_ADDRESS` is pinned; a pruned trial's placement group leaks when the dashboard is off;
socket paths longer than 107 bytes are refused; `ray.init` takes SIGTERM from whoever had it; Train changes the working
directory of its workers.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import services

from reco_tune.errors import SettingsError, StudyError
from reco_tune.settings import Resources

HEAD = "node:__internal_head__"
"""Resource of every cluster's head node. Trial drivers ask for a thousandth of it: they start at once and never take a
worker's CPU.
"""

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}
"""What Ray reads from the driver's environment: quick fault detection, no working-directory changes, no snapshots
nobody reads.
"""

OBJECT_STORE_BYTES = 128 * 2**20
"""Of a local cluster: only small messages pass through it."""
START_ATTEMPTS = 3
"""Ray gives its own processes 15-30 s to start and then gives up; on a busy machine the second attempt finds warm
files.
"""
LONGEST_TEMP = 40
"""Bytes of a temp folder's path below which Ray's socket names fit the system's limit."""


@dataclass(frozen=True)
class Placement:
    """How many worker groups run at once, and what each worker gets."""

    groups: int
    workers: int
    cpus: int
    gpus: float

    @property
    def worker_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)} | ({"GPU": self.gpus} if self.gpus else {})


def place(resources: Resources, nodes: Iterable[Mapping[str, float]], jobs: int) -> Placement:
    """As many worker groups as the nodes hold and the jobs can use.

    Args:
        nodes: each node's `CPU` and `GPU`.

    Raises:
        SettingsError: where not even one group fits.
    """
    nodes = list(nodes)
    cpus, gpus = resources.cpus_per_worker, resources.gpus_per_worker
    workers = sum(
        min(int(node.get("CPU", 0) // cpus), int(node.get("GPU", 0) / gpus + 1e-6) if gpus else 10**9) for node in nodes
    )
    groups = workers // resources.workers
    if not groups:
        need = f"{resources.workers} worker(s) of {cpus} CPU(s)" + (f" and {gpus:g} GPU(s)" if gpus else "")
        have = (
            " + ".join(f"{node.get('CPU', 0):g} CPU(s), {node.get('GPU', 0):g} GPU(s)" for node in nodes) or "no nodes"
        )
        raise SettingsError(
            f"a trial needs {need}, but the cluster has {have}; lower resources.workers, resources.cpus_per_worker "
            "or resources.gpus_per_worker"
        )
    return Placement(min(groups, resources.concurrent_trials or groups, max(jobs, 1)), resources.workers, cpus, gpus)


def machine() -> dict[str, float]:
    """CPUs and GPUs of this machine that this process may use."""
    import torch

    return {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}


def machines() -> tuple[set[str], set[str]]:
    """Ids of the cluster's machines that are alive, and of those among them that will be taken away: Ray has been told
    so, by a preemption notice or by whoever shrinks the cluster.
    """
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return alive, alive.intersection(ray._private.state.state.get_draining_nodes())  # no public way, as of 2.60


def neighbours() -> list[str]:
    """Addresses of the Ray clusters that run on this machine, whoever started them."""
    services.find_gcs_addresses.cache_clear()
    return sorted(services.find_gcs_addresses())


@contextmanager
def cluster(address: str | None, resources: Resources, notes: Path) -> Iterator[list[dict[str, float]]]:
    """A Ray cluster for the length of a study: this machine's own, or the one at `address`. Yields each node's
    resources.

    Args:
        notes: file that remembers the temp folder of a local cluster, so that the next start clears what a killed
            driver left.

    Raises:
        StudyError: where no cluster can be reached or started.
    """
    if ray.is_initialized():
        raise StudyError("this process already uses a Ray cluster; call ray.shutdown() first")
    variables = {**ENVIRONMENT, "OMP_NUM_THREADS": str(resources.cpus_per_worker)}
    with _environment(variables):
        terminated = signal.getsignal(signal.SIGTERM)
        temp = _start(address, variables, notes)
        if callable(terminated) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray puts its own in its place, which ends the process
        _silence()
        try:
            yield [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        finally:
            ray.shutdown()
            if temp is not None:
                shutil.rmtree(temp, ignore_errors=True)
                notes.unlink(missing_ok=True)


def _start(address: str | None, variables: dict[str, str], notes: Path) -> Path | None:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        try:
            ray.init(address=address, runtime_env={"env_vars": variables}, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise StudyError(
                f"no Ray cluster answers at {address} ({' '.join(str(error).split())[:200]}); start one or leave"
                " --address out"
            ) from error
        return None
    _clear(notes)
    for attempt in range(1, START_ATTEMPTS + 1):
        temp = Path(
            tempfile.mkdtemp(
                prefix="reco-", dir=tempfile.gettempdir() if len(tempfile.gettempdir()) < LONGEST_TEMP else "/tmp"
            )
        )
        notes.parent.mkdir(parents=True, exist_ok=True)
        notes.write_text(str(temp))
        try:
            _start_here(temp, variables, common)
            return temp
        except Exception as error:  # Ray raises its bare base class here
            ray.shutdown()
            shutil.rmtree(temp, ignore_errors=True)
            if attempt == START_ATTEMPTS:
                reason = " ".join(str(error).split())[:200]
                raise StudyError(
                    f"Ray could not be started on this machine ({reason}); try again when less runs here"
                ) from error
    raise AssertionError("unreachable")


def _start_here(temp: Path, variables: Mapping[str, str], common: Mapping[str, Any]) -> None:
    port, here = _free_port(), machine()
    with _environment({"RAY_GCS_SERVER_PORT": str(port)}):
        ray.init(
            address="local",
            num_cpus=int(here["CPU"]),
            num_gpus=int(here["GPU"]),
            include_dashboard=True,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(temp),
            runtime_env={"env_vars": {**variables, "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}},
            **common,
        )


def _clear(notes: Path) -> None:
    """Removes the temp folder of a local cluster whose driver was killed."""
    if notes.exists():
        left = Path(notes.read_text().strip())
        if left.name.startswith("reco-") and left.parent in (Path(tempfile.gettempdir()), Path("/tmp")):
            shutil.rmtree(left, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _silence() -> None:
    """Ray's own words go to its log files: a dead worker is told in the study's words, not in 25 lines of Ray's."""
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):  # the raylet's error messages; no public switch
        worker.print_to_stdstream = lambda *_, **__: None


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
