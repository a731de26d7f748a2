"""Sets torch's process-wide switches of GPU numerics in training, in one place.

Knows torch's switches; refuses to know models and what is trained. Outside of a step float32 is exact
(`device.exact_float32`), whatever training does.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import attention

from reco_tune.device import exact_float32
from reco_tune.errors import SettingsError
from reco_tune.settings import Resources

WORKSPACE = ":4096:8"
"""Memory that cuBLAS is given where sums must have one order (CUBLAS_WORKSPACE_CONFIG); torch asks for it."""


def set_numerics(resources: Resources) -> None:
    """Sets the switches of a whole run and undoes those of an earlier run of the process.

    Raises:
        SettingsError: if FlashAttention 3 is selected but not installed.
    """
    exact_float32()
    if resources.deterministic:
        from torch._inductor import config  # what compiled code may choose by measuring, it chooses by rule

        os.environ["CUBLAS_WORKSPACE_CONFIG"] = WORKSPACE
        config.deterministic = True
    if getattr(attention, "current_flash_attention_impl", lambda: None)() is not None:
        attention.restore_flash_attention_impl()
    if resources.attention == "flash3":
        if not has_flash3():
            raise SettingsError(
                "resources.attention is flash3, but FlashAttention 3 is not installed here (flash_attn_interface); "
                "install it, or take auto"
            )
        attention.activate_flash_attention_impl("FA3")


@contextmanager
def numerics_of_a_step(tf32: bool, deterministic: bool) -> Iterator[None]:
    """Within this context, float32 matrices may be multiplied in TF32, and every kernel must add in a fixed order."""
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    try:
        torch.set_float32_matmul_precision("high" if tf32 else before[0])
        torch.use_deterministic_algorithms(deterministic or before[1])
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(before[1])


def has_flash3() -> bool:
    """Whether FlashAttention 3 is installed and torch can use it."""
    known: list[str] = getattr(attention, "list_flash_attention_impls", list)()
    return "FA3" in known and importlib.util.find_spec("flash_attn_interface") is not None


@contextmanager
def flash3() -> Iterator[None]:
    """Within this context, torch's flash attention is FlashAttention 3."""
    attention.activate_flash_attention_impl("FA3")
    try:
        yield
    finally:
        attention.restore_flash_attention_impl()
