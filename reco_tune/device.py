"""Operations on the device of a process: wait for it, and query its memory. A CPU has no memory counter."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor


def exact_float32() -> None:
    """Makes float32 products exact on a GPU, too. Codes, features and distances must not depend on the device, and by
    default torch rounds the inputs of a convolution to 10 bits.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def wait_for(device: torch.device) -> None:
    """Waits until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_bytes(device: torch.device) -> None:
    """Resets `peak_bytes` to what is allocated now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Peak of allocated bytes since the last reset; 0 on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def free_bytes(device: torch.device, part: float = 1.0) -> int | None:
    """Bytes that can still be allocated; None if unknown.

    Args:
        part: share of the device that this process may use. The rest belongs to other processes, even if they have
            not allocated it yet.
    """
    if device.type != "cuda":
        return None
    hand_back(device)
    free, total = torch.cuda.mem_get_info(device)
    return min(free, max(0, int(part * total) - torch.cuda.memory_reserved(device)))


def hand_back(device: torch.device) -> None:
    """Returns freed but cached memory to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def total_bytes(device: torch.device) -> int | None:
    """Total memory of the device in bytes; None if unknown."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def machine_bytes(root: Path = Path("/")) -> int:
    """Memory of this machine, or the limit of this process's container or batch job if that is lower.

    Args:
        root: the folder that contains `proc` and `sys`.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):  # not Linux
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):  # "memory" in version 1 of control groups, "" in version 2
                groups, name = root / "sys/fs/cgroup" / controllers, LIMIT_OF_A_GROUP[controllers]
                own = groups / path.strip("/")
                limits += [limit for group in (own, *own.parents) if (limit := _limit(group / name)) is not None]
    return min(limits)


LIMIT_OF_A_GROUP = {"": "memory.max", "memory": "memory.limit_in_bytes"}


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # a group that this process cannot see, or "max"
        return None


def in_halves(work: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Runs the work on a batch. If that does not fit into a GPU's memory, runs it on the halves one after the
    other.
    """
    try:
        return work(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    return torch.cat([in_halves(work, half) for half in batch.chunk(2)])
