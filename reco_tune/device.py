"""What is asked of the device that a process computes on: whether it is done, and its memory (a CPU keeps no count)."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor


def exact_float32() -> None:
    """Products of float32 keep all their bits on a GPU, too: codes, features and distances must not depend on who
    computes them, and torch would round what goes into a convolution to 10 bits.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_bytes(device: torch.device) -> None:
    """Begins a new count of `peak_bytes`, at what is allocated now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most that was allocated at once since the last reset; 0 on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def free_bytes(device: torch.device, part: float = 1.0) -> int | None:
    """What can still be allocated; None where nobody knows.

    Args:
        part: of the device that this process may use; the rest is others', even where they have not taken it yet.
    """
    if device.type != "cuda":
        return None
    hand_back(device)
    free, total = torch.cuda.mem_get_info(device)
    return min(free, max(0, int(part * total) - torch.cuda.memory_reserved(device)))


def hand_back(device: torch.device) -> None:
    """Gives the device what was freed here and is kept for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def total_bytes(device: torch.device) -> int | None:
    """The memory that it has; None where nobody knows."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def machine_bytes(root: Path = Path("/")) -> int:
    """Memory of this machine, or as much of it as the container or batch job of this process may use.

    Args:
        root: where `proc` and `sys` lie.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):  # no Linux
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):  # the second and the first version of control groups
                groups, name = root / "sys/fs/cgroup" / controllers, LIMIT_OF_A_GROUP[controllers]
                own = groups / path.strip("/")
                limits += [limit for group in (own, *own.parents) if (limit := _limit(group / name)) is not None]
    return min(limits)


LIMIT_OF_A_GROUP = {"": "memory.max", "memory": "memory.limit_in_bytes"}


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # a group that this process does not see, or "max"
        return None


def in_halves(work: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """The work on a batch; on its halves, one after the other, where a GPU's memory does not hold all of it."""
    try:
        return work(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    return torch.cat([in_halves(work, half) for half in batch.chunk(2)])
