"""Checks before a study starts. Each error is one sentence with the way out. The checks are cheap: files of a few
bytes, one request, one small task per machine. They estimate a lower bound of the GPU memory; the calibrations, a
study's first jobs, then run real steps.
"""

from __future__ import annotations

import importlib.metadata
import platform
import socket
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from reco_tune.cost import refuse_what_cannot_fit
from reco_tune.cost.planning import Plan, check_measured
from reco_tune.device import machine_bytes
from reco_tune.errors import StudyError
from reco_tune.evaluation import check_extractor
from reco_tune.preparation import check_data, check_weights, classes_known
from reco_tune.settings import Experiment, Space
from reco_tune.study.ray_internals import cluster_here
from reco_tune.study.storage import Storage, StorageError
from reco_tune.tracking import listens

PACKAGES = ("ray", "torch", "reco-tune")
"""Packages of which every machine must have the same version: jobs travel between them."""


def check_address(address: str | None) -> None:
    """Checks that a Ray cluster answers; Ray itself would retry for minutes.

    Raises:
        StudyError: if no cluster can be reached.
    """
    if address is None:
        return
    if "://" in address:
        raise StudyError(
            f"a study cannot be run from outside its cluster ({address}); run the command on one of its machines with"
            " --address auto, or submit it with `ray job submit`"
        )
    found = cluster_here() if address == "auto" else address
    if not answers(found):
        where = "on this machine" if not found else f"at {found}"
        raise StudyError(f"no Ray cluster answers {where}; start one with `ray start --head`, or leave --address out")


def answers(address: str) -> bool:
    """Whether a cluster's head accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    return port.isdigit() and listens(host.strip("[]"), int(port))


def check_folder(folder: Path, what: str) -> None:
    """
    Checks that a folder is writable.

    Raises:
        StudyError: if it is not.
    """
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink()
    except OSError as error:
        raise StudyError(
            f"{what} {folder} cannot be written to ({(error.strerror or type(error).__name__).lower()}); give another"
            " one, or check its permissions and free space"
        ) from error


def check_storage(address: str | None) -> None:
    """
    Checks that the storage is writable.

    Raises:
        StudyError: if it is not.
    """
    if address is not None:
        storage = Storage(address)
        storage.forget(storage.probe())


def check_files(experiment: Experiment, space: Space | None = None) -> None:
    """
    Checks the files that a study names.

    Args:
        space: its objectives and constraints must be measurable on these data.

    Raises:
        SettingsError, DataError: if data or weights are missing, the I3D file has another hash, or something
            needs classes that the data do not have.
    """
    check_data(experiment)
    check_weights(experiment)
    classes = classes_known(experiment)
    check_extractor(experiment, classes)
    if space is not None:
        check_measured(space, experiment, classes)


def check_memory(plan: Plan, machines: Sequence[Machine], workers: int) -> None:
    """Compares the memory of each phase of each arm with that of a worker: its share of the smallest GPU, or, without
    GPUs, of the machines' memory.

    Args:
        workers: number of workers at once, on all machines.

    Raises:
        SettingsError: if an arm cannot fit.
    """
    part, with_gpu = plan.shared.resources.part_of_a_gpu, [machine for machine in machines if machine.gpu_bytes]
    if part and with_gpu:
        smallest = min(with_gpu, key=lambda machine: machine.gpu_bytes)
        refuse_what_cannot_fit(plan, part * smallest.gpu_bytes, smallest.name)
    elif not part:
        largest = max(machines, key=lambda machine: machine.memory_bytes)
        shared = sum(machine.memory_bytes for machine in machines) / workers
        name = largest.name if len(machines) == 1 else "the cluster"
        name += f", where {workers} work at once," if workers > 1 else ""
        refuse_what_cannot_fit(plan, min(largest.memory_bytes, shared), name)


@dataclass(frozen=True)
class Machine:
    """What a task found on a machine of the cluster."""

    name: str
    versions: dict[str, str]
    sees: dict[str, bool]
    """Folder, or address of the storage -> whether the driver's token lies in it."""
    gpu_bytes: int
    """Memory of its smallest GPU; 0 without GPUs."""
    memory_bytes: int
    """Memory that its processes may use together."""


def look(tokens: dict[str, str]) -> Machine:
    """Describes the machine that it runs on.

    Args:
        tokens: folder, or address of the storage -> name of the file that the driver put there.
    """
    gpus = [torch.cuda.get_device_properties(device).total_memory for device in range(torch.cuda.device_count())]
    sees = {place: _sees(place, token) for place, token in tokens.items()}
    return Machine(socket.gethostname(), versions(), sees, min(gpus, default=0), machine_bytes())


def _sees(place: str, token: str) -> bool:
    if "://" not in place:
        return (Path(place) / token).exists()
    try:
        return Storage(place).holds(token)
    except StorageError:
        return False


def versions() -> dict[str, str]:
    """Versions of the packages that must be the same on every machine."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def survey(shared: Mapping[str, Path | Storage]) -> list[Machine]:
    """Checks every machine of the connected cluster, with one task on each and a small file in each place that all of
    them must see.

    Args:
        shared: purpose of a place -> the folder on the driver's machine, or the storage.

    Raises:
        StudyError: if a machine does not see a place, or has other versions than the driver.
    """
    places = {
        what: place.address if isinstance(place, Storage) else str(place.resolve()) for what, place in shared.items()
    }
    with ExitStack() as stack:
        tokens = {places[what]: _lay_token(place, stack) for what, place in shared.items()}
        task: Any = ray.remote(look)
        asked = [
            task.options(
                num_cpus=0,
                max_retries=1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(tokens)
            for node in ray.nodes()
            if node["Alive"]
        ]
        machines: list[Machine] = ray.get(asked)
    for machine in machines:
        compare(machine, places)
    return machines


def _lay_token(place: Path | Storage, stack: ExitStack) -> str:
    """Name of the file. The stack deletes it."""
    if isinstance(place, Storage):
        token = place.probe()
        stack.callback(place.forget, token)
    else:
        token = f".seen-by-all-{uuid.uuid4().hex[:8]}"
        (place / token).write_text(token)
        stack.callback((place / token).unlink, missing_ok=True)
    return token


def compare(machine: Machine, places: dict[str, str]) -> None:
    """
    Compares a machine with the driver.

    Args:
        places: purpose of a place -> the folder, or the address of the storage.

    Raises:
        StudyError: if the machine cannot work with this driver.
    """
    for what, place in places.items():
        if not machine.sees[place]:
            if "://" in place:
                raise StudyError(
                    f"{what} {place} cannot be used from {machine.name}; check credentials and network there"
                )
            raise StudyError(
                f"{what} {place} is not visible from {machine.name}; put it on storage that all machines share, or set"
                " resources.storage to an address that all of them can reach"
            )
    for name, own in versions().items():
        if machine.versions[name] != own:
            raise StudyError(
                f"{machine.name} has {name} {machine.versions[name]}, but the driver has {own}; install the same"
                " everywhere"
            )
