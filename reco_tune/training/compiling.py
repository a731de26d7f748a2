"""`torch.compile` for the parts of a step: graphs without a break, of any length, and never back to eager unseen.

Compiled are a block, and the head with its loss; not a whole step, which would need a graph for every start of a
window. Lengths are left open, and weights of terms are tensors, so that a study's arms and trials share a few graphs.
What cannot be compiled whole, and a part that is compiled again and again, is an error: a silent return to eager would
make speeds wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import ParamSpec, TypeVar

import torch

from reco_tune.errors import RunFailedError

P = ParamSpec("P")
R = TypeVar("R")

BACKEND = "inductor"
"""Of `torch.compile`."""

MOST_GRAPHS = 48
"""Largest number of graphs of one compiled part in a process. A study with every scheme, precision and form of
attention stays far below.
"""


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function compiled as a whole, for all lengths. The same function gives the same compiled one."""
    _prepare()
    return _compiled(function, BACKEND)


@contextmanager
def no_way_back() -> Iterator[None]:
    """
    Turns failed compilation in the block into an error.

    Raises:
        RunFailedError: if a function cannot be compiled as a whole.
    """
    from torch._dynamo import exc

    try:
        yield
    except (exc.TorchDynamoException, exc.FailOnRecompileLimitHit) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunFailedError(
            f"training.compile: a part of the step cannot be compiled as a whole, or has {MOST_GRAPHS} graphs already"
            f" ({reason}); set training.compile to false"
        ) from error


@cache
def _compiled(function: Callable[P, R], backend: str) -> Callable[P, R]:
    return torch.compile(function, backend=backend, fullgraph=True, dynamic=True)


@cache
def _prepare() -> None:
    """Raises torch's limit of 8 graphs, above which it warns and goes on without compiling. Runs once per process."""
    from torch._dynamo import config
    from torch.fx.experimental import _config as shapes

    config.recompile_limit = max(config.recompile_limit, MOST_GRAPHS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 8 * MOST_GRAPHS)
    config.fail_on_recompile_limit_hit = True
    config.specialize_float = True  # those that are left are constants, which torch would leave open at first
    shapes.use_duck_shape = False  # lengths that happen to be equal at first would be taken to be equal always
