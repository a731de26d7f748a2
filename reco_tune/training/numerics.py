"""How a process computes on a GPU: what torch keeps as settings of the whole process, set in one place.

Knows torch's switches; refuses to know models and what is trained.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn import attention

from reco_tune.errors import SettingsError
from reco_tune.settings import Resources


def set_numerics(resources: Resources) -> None:
    """Sets them as the settings say; what an earlier run of the process asked for is undone.

    Raises:
        SettingsError: where FlashAttention 3 is asked for and not installed.
    """
    if getattr(attention, "current_flash_attention_impl", lambda: None)() is not None:
        attention.restore_flash_attention_impl()
    if resources.attention == "flash3":
        if not has_flash3():
            raise SettingsError(
                "resources.attention is flash3, but FlashAttention 3 is not installed here (flash_attn_interface); "
                "install it, or take auto"
            )
        attention.activate_flash_attention_impl("FA3")


def has_flash3() -> bool:
    """Whether FlashAttention 3 is installed, and torch knows how to take it."""
    known: list[str] = getattr(attention, "list_flash_attention_impls", list)()
    return "FA3" in known and importlib.util.find_spec("flash_attn_interface") is not None


@contextmanager
def flash3() -> Iterator[None]:
    """Torch's flash attention is FlashAttention 3 inside."""
    attention.activate_flash_attention_impl("FA3")
    try:
        yield
    finally:
        attention.restore_flash_attention_impl()
