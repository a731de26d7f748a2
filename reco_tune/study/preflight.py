"""What can be known before a study starts: each finding is one sentence that names the thing and the way out.

Everything here is cheap: files of a few bytes, one request, one small task a machine. What a model needs of a GPU is
bounded from below here; the calibrations, a study's first jobs, then try the real steps.
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
    """Ray itself tries for minutes where nothing listens.

    Raises:
        StudyError: where no cluster can be reached.
    """
    if address is None:
        return
    if "://" in address:
        raise StudyError(
            f"a study cannot be driven from outside its cluster ({address}); run the command on one of its machines"
            " with --address auto, or hand it in with `ray job submit`"
        )
    found = cluster_here() if address == "auto" else address
    if not answers(found):
        where = "on this machine" if not found else f"at {found}"
        raise StudyError(f"no Ray cluster answers {where}; start one with `ray start --head`, or leave --address out")


def answers(address: str) -> bool:
    """Whether a cluster's head takes connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    return port.isdigit() and listens(host.strip("[]"), int(port))


def check_folder(folder: Path, what: str) -> None:
    """
    Raises:
        StudyError: where nothing can be written in it.
    """
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink()
    except OSError as error:
        raise StudyError(
            f"{what} {folder} cannot be written to ({(error.strerror or type(error).__name__).lower()}); give another"
            " one, or see to its permissions and its space"
        ) from error


def check_storage(address: str | None) -> None:
    """
    Raises:
        StudyError: where a storage cannot be written to.
    """
    if address is not None:
        storage = Storage(address)
        storage.forget(storage.probe())


def check_files(experiment: Experiment, space: Space | None = None) -> None:
    """
    Args:
        space: whose objectives and constraints must be measured on these data.

    Raises:
        SettingsError, DataError: where data or weights that are named are missing, I3D's file is another one, or
            something needs classes that the data have not.
    """
    check_data(experiment)
    check_weights(experiment)
    classes = classes_known(experiment)
    check_extractor(experiment, classes)
    if space is not None:
        check_measured(space, experiment, classes)


def check_memory(plan: Plan, machines: Sequence[Machine], workers: int) -> None:
    """Compares what each phase of each arm takes with what a worker gets: of the smallest GPU, or without GPUs of the
    memory that the machines have for all who work at once.

    Args:
        workers: at once, on all machines.

    Raises:
        SettingsError: where it cannot fit.
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
    """What a task on a machine of the cluster found there."""

    name: str
    versions: dict[str, str]
    sees: dict[str, bool]
    """Folder, or address of the storage -> whether the driver's token lies in it."""
    gpu_bytes: int
    """Of its smallest GPU; 0 where it has none."""
    memory_bytes: int
    """That its processes may use together."""


def look(tokens: dict[str, str]) -> Machine:
    """A machine, as seen from itself.

    Args:
        tokens: folder, or address of the storage -> name of what the driver laid in it.
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
    """Of what must be alike everywhere."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def survey(shared: Mapping[str, Path | Storage]) -> list[Machine]:
    """Every machine of the connected cluster: one task on each, with a token in each place that all of them must see.

    Args:
        shared: what a place is for -> the folder, on the driver's machine, or the storage.

    Raises:
        StudyError: where machines do not see them, or hold other versions than the driver.
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
    """Its name there; taken away with the stack."""
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
    Args:
        places: what a place is for -> the folder, or the address of the storage.

    Raises:
        StudyError: where a machine is not fit to work with this driver.
    """
    for what, place in places.items():
        if not machine.sees[place]:
            if "://" in place:
                raise StudyError(
                    f"{what} {place} cannot be used from {machine.name}; see to its credentials and its network there"
                )
            raise StudyError(
                f"{what} {place} is not seen by {machine.name}; put it on storage that all machines of the cluster"
                " share, or set resources.storage to an address that all of them reach"
            )
    for name, own in versions().items():
        if machine.versions[name] != own:
            raise StudyError(
                f"{machine.name} has {name} {machine.versions[name]}, but the driver has {own}; install the same"
                " everywhere"
            )
