"""Where a study runs: starting or joining a Ray cluster cleanly, and fitting worker groups into it.

Knows nothing of trials. It handles these traps of Ray, each of which has happened:

- Two clusters on one host confuse Ray's own clean-up actors unless `RAY_ADDRESS` is pinned.
- The placement group of a pruned trial leaks if the dashboard is off.
- Socket paths longer than 107 bytes are refused.
- `ray.init` replaces the process's SIGTERM handler.
- Train changes the working directory of its workers.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from reco_tune.errors import SettingsError, StudyError
from reco_tune.settings import Resources
from reco_tune.study import ray_internals

ENVIRONMENT = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}
"""Environment variables that Ray reads from the driver: quick fault detection, no working-directory changes, no
snapshots that nobody reads.
"""

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
"""Of every `ray.init`."""
OBJECT_STORE_BYTES = 128 * 2**20
"""Bytes of a local cluster's object store. Only small messages pass through it."""
START_ATTEMPTS = 3
"""Ray gives its own processes 15-30 s to start and then gives up; on a busy machine the second attempt finds warm
files.
"""
LONGEST_PATH = 103 if sys.platform == "darwin" else 107
"""Longest path of a socket that the system allows, in bytes."""
ELSEWHERE = ("/tmp", "/var/tmp", "/dev/shm")
"""Folder of Ray's sockets if paths in the temporary folder are too long, as they often are on batch systems."""
TEMP_PREFIX = "reco-"
TEMP_LETTERS = 8
"""What `tempfile` appends to a prefix."""


@dataclass(frozen=True)
class Placement:
    """How many worker groups run at once, and the resources of each worker."""

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


def nodes() -> dict[str, dict[str, float]]:
    """Ids of the connected cluster's machines that are alive, each with its resources."""
    return {node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]}


def machines() -> tuple[set[str], set[str]]:
    """Ids of the cluster's machines that are alive, and of those that will be taken away. Ray learns this from a
    preemption notice or from whoever shrinks the cluster.
    """
    alive = set(nodes())
    return alive, alive & ray_internals.draining()


def beside_workers(placement: Placement) -> dict[str, str]:
    """Labels of the machines for the light process of each run. The head is not one of them if it has no room for a
    worker. If only such a head is left, no run can continue.
    """
    (head,) = [node for node in ray.nodes() if node["Alive"] and ray_internals.HEAD in node["Resources"]]
    if all(head["Resources"].get(name, 0) >= amount for name, amount in placement.worker_resources.items()):
        return {}
    return {"ray.io/node-id": f"!{head['NodeID']}"}


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
    with _environment(variables), ExitStack() as stack:
        if address is None:
            _start(variables, notes, stack)
        else:
            _join(address, variables, stack)
        _silence()
        yield list(nodes().values())


def socket_folder() -> Path:
    """The folder in which a cluster of this machine has its own: the first in which its sockets' paths fit.

    Raises:
        StudyError: where they fit nowhere.
    """
    sockets = ray_internals.LONGEST_SOCKET.format(pid=os.getpid())
    room = LONGEST_PATH - len(f"/{TEMP_PREFIX}{'x' * TEMP_LETTERS}/{sockets}")
    reasons = {}
    for folder in dict.fromkeys((tempfile.gettempdir(), *ELSEWHERE)):
        length = len(os.fsencode(folder))
        if length > room:
            reasons[folder] = f"has {length} bytes"
        elif not os.access(folder, os.W_OK | os.X_OK):
            reasons[folder] = "cannot be written to"
        else:
            return Path(folder)
    tried = ", ".join(f"{folder} {reason}" for folder, reason in reasons.items())
    raise StudyError(
        f"no temporary folder is suitable for Ray's sockets ({tried}): their paths may have {LONGEST_PATH} bytes, so"
        f" the folder's path may have {room}; set TMPDIR to a writable folder with a path that short"
    )


def _join(address: str, variables: Mapping[str, str], stack: ExitStack) -> None:
    stack.callback(_shut_down)
    try:
        with _own_signals():
            ray.init(address=address, runtime_env={"env_vars": dict(variables)}, **QUIET)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StudyError(
            f"no Ray cluster answers at {address} ({' '.join(str(error).split())[:200]}); start one, or leave --address"
            " out"
        ) from error


def _start(variables: Mapping[str, str], notes: Path, stack: ExitStack) -> None:
    _clear(notes)
    notes.parent.mkdir(parents=True, exist_ok=True)
    stack.callback(notes.unlink, missing_ok=True)
    for attempt in range(1, START_ATTEMPTS + 1):
        with ExitStack() as started:
            temp = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir=socket_folder()))
            started.callback(shutil.rmtree, temp, ignore_errors=True)
            notes.write_text(str(temp))
            started.enter_context(_token(temp))
            started.callback(_shut_down)
            try:
                with _own_signals():
                    _start_here(temp, variables)
            except Exception as error:  # here Ray raises its bare base class
                if attempt == START_ATTEMPTS:
                    reason = " ".join(str(error).split())[:200]
                    raise StudyError(
                        f"Ray could not be started on this machine ({reason}); try again when the machine is less busy"
                    ) from error
            else:
                stack.push(started.pop_all())
                return


def _shut_down() -> None:
    """Shuts Ray down without garbage collection. If any thread releases a reference of Ray's meanwhile, Ray ends the
    process without a message of ours.
    """
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


def _start_here(temp: Path, variables: Mapping[str, str]) -> None:
    """Ray's own processes keep their temporary files in the cluster's folder, the workers where the driver does."""
    port, here = _free_port(), machine()
    own = {"RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}", "TMPDIR": tempfile.gettempdir()}
    with _environment({"RAY_GCS_SERVER_PORT": str(port), "TMPDIR": str(temp)}, in_place=True):
        ray.init(
            address="local",
            num_cpus=int(here["CPU"]),
            num_gpus=int(here["GPU"]),
            include_dashboard=True,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(temp),
            runtime_env={"env_vars": {**variables, **own}},
            **QUIET,
        )


@contextmanager
def _token(temp: Path) -> Iterator[None]:
    """A token for the cluster where the person has none: Ray would lay one into their home, which not everybody can
    write to, readable by all.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or ray_internals.has_token():
        yield
        return
    file = temp / "token"
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32))
    try:
        with _environment({"RAY_AUTH_TOKEN_PATH": str(file)}, in_place=True):
            ray_internals.forget_token()
            yield
    finally:
        ray_internals.forget_token()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps this process's SIGTERM handler. Ray's own prints C++ frames and exits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        raise KeyboardInterrupt from error  # the signal came while Ray started
    finally:
        signal.signal(signal.SIGTERM, before)


def _clear(notes: Path) -> None:
    """Removes the temp folder of a local cluster whose driver was killed."""
    if notes.exists():
        left = Path(notes.read_text().strip())
        if left.name.startswith(TEMP_PREFIX) and str(left.parent) in (tempfile.gettempdir(), *ELSEWHERE):
            shutil.rmtree(left, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _silence() -> None:
    """Sends Ray's own messages to its log files. The study reports a dead worker in one sentence; Ray would print 25
    lines.
    """
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ray_internals.silence()


@contextmanager
def _environment(variables: Mapping[str, str], in_place: bool = False) -> Iterator[None]:
    """Sets them while the block runs.

    Args:
        in_place: also of those that are set already.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if in_place or before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
