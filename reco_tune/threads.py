"""Fits that give the same bits on every machine of a type, whatever its number of cores and its load."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one CPU thread. Sums depend on the number of threads, and on a busy machine threads that wait for
    each other spin (one fit took fifty times as long).
    """
    import torch  # imported here, so that importing this module stays instant

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
