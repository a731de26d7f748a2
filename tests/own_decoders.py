"""A decoder of one's own, and what can be wrong with one. Not a test."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reco_tune.model import Decoder, Inputs

ROTARY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
}
"""Sizes of a small model of the Llama and Qwen families of transformers."""


class OneLayer(Decoder):
    """One attention over learned positions, its past the keys and values so far."""

    def __init__(self, num_codes: int, num_tokens: int, num_classes: int, width: int = 8) -> None:
        super().__init__(num_codes, num_tokens, num_classes, width)
        self.codes = nn.Embedding(num_codes, width)
        self.classes = nn.Embedding(num_classes + 1, width)
        self.places = nn.Embedding(num_tokens, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, num_codes)

    def inputs(self, tokens_BT: Tensor, labels_B: Tensor, begin: int, end: int) -> Inputs:
        before = self.codes(tokens_BT[:, max(begin - 1, 0) : end - 1].long())
        if begin == 0:
            before = torch.cat([self.classes(labels_B)[:, None], before], dim=1)
        return Inputs(before + self.places(torch.arange(begin, end, device=before.device)), begin)

    def advance(self, inputs: Inputs, past: Any = None) -> tuple[Tensor, Any]:
        queries, keys, values = self.qkv(inputs.embedded_BSD).chunk(3, dim=-1)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=1), torch.cat([past[1], values], dim=1)
        seen = torch.ones(queries.shape[1], keys.shape[1], dtype=torch.bool, device=keys.device)
        seen = seen.tril(keys.shape[1] - queries.shape[1])
        attended = F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None], attn_mask=seen)
        return inputs.embedded_BSD + attended[:, 0], (keys, values)

    def logits(self, hidden_BSD: Tensor) -> Tensor:
        scores: Tensor = self.head(hidden_BSD)
        return scores


class SeesTheFuture(OneLayer):
    def advance(self, inputs: Inputs, past: Any = None) -> tuple[Tensor, Any]:
        hidden, past = super().advance(inputs, past)
        return hidden + inputs.embedded_BSD.mean(dim=1, keepdim=True), past


class ForgetsItsPast(OneLayer):
    """What transformers does where gradients are checkpointed: the cache is dropped."""

    def advance(self, inputs: Inputs, past: Any = None) -> tuple[Tensor, Any]:
        return super().advance(inputs, None)


class StartsPositionsAnew(OneLayer):
    def inputs(self, tokens_BT: Tensor, labels_B: Tensor, begin: int, end: int) -> Inputs:
        found = super().inputs(tokens_BT, labels_B, begin, end)
        places = self.places.weight[: end - begin] - self.places.weight[begin:end]
        return found._replace(embedded_BSD=found.embedded_BSD + places)


class ReadsOneByOneOtherwise(OneLayer):
    def advance(self, inputs: Inputs, past: Any = None) -> tuple[Tensor, Any]:
        hidden, new = super().advance(inputs, past)
        return (hidden + 1 if inputs.embedded_BSD.shape[1] == 1 else hidden), new


class LeaksAGradient(OneLayer):
    def _past(self, tokens_BT: Tensor, labels_B: Tensor, start: int, read: int) -> Any:
        return self.advance(self.inputs(tokens_BT, labels_B, 0, start))[1]


class DropsOut(OneLayer):
    def advance(self, inputs: Inputs, past: Any = None) -> tuple[Tensor, Any]:
        hidden, past = super().advance(inputs, past)
        return F.dropout(hidden, 0.5, self.training), past


WRONG = {
    SeesTheFuture: "leaks future tokens",
    ForgetsItsPast: "trains a window without its context",
    StartsPositionsAnew: "positions do not continue after a prefix",
    ReadsOneByOneOtherwise: "cached sampling",
    LeaksAGradient: "a gradient goes through the prefix",
    DropsOut: "turn dropout off",
}
