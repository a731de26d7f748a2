"""Fits that give the same bits on every machine of a type, however many cores it has and whoever else uses them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one CPU thread: sums depend on how many threads share them, and threads that wait for each other on a
    busy machine spin (a fit was seen to take fifty times as long).
    """
    import torch  # here, so that importing this module stays instant

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
