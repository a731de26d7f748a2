"""Keys and values of everything sampled so far, in buffers made once. Knows one layer; refuses to know tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from reco_tune.model.attention import attend


class LayerCache:
    """The keys and values of one layer, written in place; its buffers take shape, type and device from the first
    inputs.
    """

    def __init__(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._length = 0

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, capacity: int) -> Tensor:
        """Adds the keys and values of new inputs and attends to all up to each; [B, H, S, K].

        Only the first call may bring more than one input: then no mask is needed afterwards.
        """
        batch, heads, new, head_width = keys.shape
        if self._keys is None or self._values is None:
            self._keys = keys.new_empty(batch, heads, capacity, head_width)
            self._values = values.new_empty(batch, heads, capacity, head_width)
        elif new > 1:
            raise ValueError(f"a cache that holds {self._length} inputs takes one more at a time, not {new}")
        begin, self._length = self._length, self._length + new
        self._keys[:, :, begin : self._length] = keys
        self._values[:, :, begin : self._length] = values
        if new > 1:
            return attend(queries, keys, values)
        return F.scaled_dot_product_attention(
            queries, self._keys[:, :, : self._length], self._values[:, :, : self._length]
        )
