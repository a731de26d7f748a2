"""The workers of a run: this process's rank, and the few collective operations that training and evaluation need. Knows
torch.distributed; knows nothing of who started the processes (torchrun, Ray Train, a test) or of what is trained.

Gradients are averaged in slices of one flat vector (`gradient_mean`), not by DistributedDataParallel. DDP counts which
parameters' gradients arrive during backward; here the class embedding has none whenever a window starts after token 0,
and part of the weights run twice, once without a graph (the prefix), so DDP would need `find_unused_parameters` and a
walk of the graph at every step.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from reco_tune.errors import SettingsError
from reco_tune.settings import Experiment
from reco_tune.training.numerics import set_numerics

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The workers of one run. `Group()` is a single worker, for which every operation does nothing."""

    rank: int = 0
    """Rank of this process. Rank 0 writes files and reports."""
    size: int = 1

    @classmethod
    def current(cls) -> Group:
        """The group that torch.distributed was initialised with, or a single worker."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this process is rank 0, which writes files and reports."""
        return self.rank == 0

    def share(self, items: int) -> slice:
        """This rank's contiguous part of `items` items. Parts differ by at most one item."""
        return slice(items * self.rank // self.size, items * (self.rank + 1) // self.size)

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place; returns the tensor."""
        if self.size > 1:
            moved = _on_backend(tensor)
            dist.all_reduce(moved)
            if moved is not tensor:
                tensor.copy_(moved)
        return tensor

    def begin_sum_(self, tensor: Tensor) -> Callable[[], None]:
        """Begins `sum_`; call what it returns before the tensor is read. It makes a GPU's stream wait, not the host.

        Of a group of more than one; all ranks begin the same sums in the same order.
        """
        moved = _on_backend(tensor)
        work = dist.all_reduce(moved, async_op=True)

        def finish() -> None:
            work.wait()
            if moved is not tensor:
                tensor.copy_(moved)

        return finish

    def mean_(self, tensor: Tensor) -> Tensor:
        """Mean over ranks, in place; returns the tensor."""
        return self.sum_(tensor).div_(self.size) if self.size > 1 else tensor

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Rank 0's values on all ranks, in place; returns the tensor."""
        if self.size > 1:
            moved = _on_backend(tensor)
            dist.broadcast(moved, src=0)
            if moved is not tensor:
                tensor.copy_(moved)
        return tensor

    def broadcast_json(self, value: T) -> T:
        """Rank 0's value (anything that JSON holds), on all ranks. Values of other ranks are ignored."""
        if self.size == 1:
            return value
        encoded = torch.tensor(list(json.dumps(value).encode()) if self.leads else [], dtype=torch.uint8)
        length = self.broadcast_(torch.tensor([len(encoded)]))
        if not self.leads:
            encoded = torch.empty(int(length), dtype=torch.uint8)
        decoded: T = json.loads(bytes(self.broadcast_(encoded).tolist()))
        return decoded

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, in the order of ranks, on all ranks. First dimensions may differ, the others not."""
        if self.size == 1:
            return [tensor]
        lengths = torch.zeros(self.size, dtype=torch.long)
        lengths[self.rank] = len(tensor)
        longest = int(self.sum_(lengths).max())
        padded = tensor.new_zeros((longest, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        moved = _on_backend(padded)
        parts = [torch.empty_like(moved) for _ in range(self.size)]
        dist.all_gather(parts, moved)
        return [part[: int(length)].to(tensor.device) for part, length in zip(parts, lengths, strict=True)]


def backend_for(device_type: str) -> str:
    """nccl between GPUs, gloo between CPUs."""
    return "nccl" if device_type == "cuda" else "gloo"


@contextmanager
def joined(experiment: Experiment) -> Iterator[Group]:
    """Joins the group of torchrun's environment variables and leaves it at the end of the block; without them, a single
    worker. Uses an existing process group (of Ray Train) as it is.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group.current()
        return
    if experiment.device_type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(backend_for(experiment.device_type))
    try:
        yield Group.current()
    finally:
        dist.destroy_process_group()


def prepare_device(experiment: Experiment) -> torch.device:
    """The device that this process computes on; on the CPU also sets up threads and memory of the whole process.

    The number of threads becomes `resources.cpus_per_worker`. It is part of what makes a CPU run reproducible: sums
    split over threads round differently.

    Raises:
        SettingsError: where a GPU is asked for and none is visible.
    """
    if torch.get_num_threads() != experiment.resources.cpus_per_worker:
        torch.set_num_threads(experiment.resources.cpus_per_worker)
    if experiment.device_type == "cpu":
        _keep_freed_memory()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SettingsError(
            f"resources.gpus_per_worker is {experiment.resources.gpus_per_worker:g}, but this process sees no CUDA"
            " device; set it to 0 to train on the CPU"
        )
    set_numerics(experiment.resources)
    return torch.device("cuda", torch.cuda.current_device())


def _keep_freed_memory() -> None:
    """Tells glibc not to hand freed memory back to the system; does nothing on other systems.

    A step frees and takes the same megabytes again. Where the heap happens to end decides whether glibc trims them each
    time and the kernel must map and clear them anew: the same step then takes 24 or 28 ms from one model to the next,
    and speed-ups spread by ±8% instead of ±2%.
    """
    trim_threshold, mmap_threshold = -1, -3  # parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**25)  # the largest that glibc accepts


def _on_backend(tensor: Tensor) -> Any:
    """The tensor where the group's backend can read it: nccl needs GPU memory, gloo is given CPU memory."""
    wanted = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return tensor.contiguous() if tensor.device.type == wanted else tensor.to(wanted).contiguous()
