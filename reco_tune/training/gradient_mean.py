"""The mean of the workers' gradients, taken while backward still runs.

The flat gradient is cut into buckets of whole parameters. Backward fills it from its end (the head) to its beginning
(the embeddings), and each bucket goes on its way as soon as all of its parameters have their gradient of the last
micro-batch. Buckets leave in one order on all ranks, whatever the order of gradients; a parameter without a gradient in
this step (the class embedding, when the window starts after token 0) holds its bucket back until backward has ended.

Knows parameters and their places in the vector; refuses to know losses and optimisers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from reco_tune.training.distributed import Group

BUCKET_BYTES = 32 * 2**20
"""Least size of all buckets but the last. Smaller ones take longer to start than they save."""


class GradientMean:
    """Averages a flat gradient over the workers of a group, which has more than one."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], spans: Sequence[tuple[int, int]], gradient: Tensor, group: Group
    ) -> None:
        """
        Args:
            spans: where each parameter's gradient lies in `gradient`, in ascending order.
        """
        self._group, self._gradient = group, gradient
        self._buckets: list[tuple[int, int]] = []
        """Slices of the gradient, from its end to its beginning."""
        members: list[int] = []
        end, count = gradient.numel(), 0
        for number, parameter in reversed(list(enumerate(parameters))):
            parameter.register_post_accumulate_grad_hook(partial(self._filled, len(self._buckets)))
            count += 1
            begin = spans[number][0] if number else 0
            if (end - begin) * gradient.element_size() >= BUCKET_BYTES or number == 0:
                self._buckets.append((begin, end))
                members.append(count)
                end, count = begin, 0
        self._members = members
        self._missing: list[int] = []
        """Number of parameters per bucket whose gradient is still missing. Empty except during the last backward."""
        self._under_way: list[Callable[[], None]] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wraps the backward of the last micro-batch. Afterwards the gradient is the mean."""
        self._missing = list(self._members)
        try:
            yield
            while len(self._under_way) < len(self._buckets):
                self._send()
            for wait in self._under_way:
                wait()
        finally:
            self._missing, self._under_way = [], []
        self._gradient.div_(self._group.size)

    def _filled(self, bucket: int, _: Tensor) -> None:
        if not self._missing:
            return
        self._missing[bucket] -= 1
        while len(self._under_way) < len(self._buckets) and self._missing[len(self._under_way)] == 0:
            self._send()

    def _send(self) -> None:
        begin, end = self._buckets[len(self._under_way)]
        self._under_way.append(self._group.begin_sum_(self._gradient[begin:end]))
