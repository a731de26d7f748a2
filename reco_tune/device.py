"""What is asked of the device that a process computes on: whether it is done, and its memory (a CPU keeps no count)."""

from __future__ import annotations

import torch


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
