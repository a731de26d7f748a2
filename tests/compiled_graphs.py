"""What the compiler is given in a test, counted; graphs are run as they are, which is quick."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from reco_tune.training import compiling


@contextmanager
def counted_graphs() -> Iterator[list[str]]:
    """The graphs that were made inside, each by the names of its inputs; none are left of before or for later."""
    import torch._dynamo

    made: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        made.append(" ".join(node.name for node in graph.graph.nodes if node.op == "placeholder"))
        return graph.forward

    def forget() -> None:
        torch._dynamo.reset()
        compiling._compiled.cache_clear()

    with patch.object(compiling, "BACKEND", backend):
        forget()
        yield made
        forget()
