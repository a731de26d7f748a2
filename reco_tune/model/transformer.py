"""The video transformer: predicts every token of a clip from the class and the tokens before it. Read this file first.

It knows codes, positions and classes; not where codes come from, what a loss is, or which window start is drawn.

    B  clips of a batch      T  tokens of a clip, in raster order (block, row, column)      V  codes       D  width
    W  tokens of a window    s  its start                                                   H  heads       K  D / H

Input 0 is the class, and input i is token i-1. So the output at i predicts token i, and a window of tokens s..s+W-1
reads the inputs s..s+W-1:

    input     class  e0  e1  e2 | e3   e4   e5 | e6 ...
    predicts   e0    e1  e2  e3 | e4   e5   e6 | ...
              `-- prefix, s=4 --´`- window, W=3 -´`- never computed

The window attends to the keys and values of its prefix. They carry no gradient, neither through their own computation
(the prefix runs without a graph) nor into the projections that make them. For the prefix, the last layer computes only
keys and values.

The last word of a text is input 0. Its other words stand before input 0 and belong to the same part, prefix or window.
No input sees the padding before them.

Pre-norm blocks, learned absolute positions, GELU MLP of 4 D, untied head, no biases (each costs a kernel and gains
nothing here).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reco_tune.model.attention import KeysValues, attend, attend_with_gradient, beside_padding, joined
from reco_tune.model.decoder import Decoder, Inputs
from reco_tune.model.kv_cache import WHOLE, Kept, LayerCache, StaticCache
from reco_tune.model.sampling import Read
from reco_tune.model.shape import ModelSettings
from reco_tune.windows import prefix_inputs


class VideoTransformer(Decoder):
    """p(token | class, earlier tokens), for full sequences, for windows after a prefix without gradient, and for
    sampling.
    """

    settings: ModelSettings

    def __init__(
        self,
        num_codes: int,
        num_tokens: int,
        num_classes: int,
        width: int,
        depth: int,
        heads: int,
        generator: torch.Generator | None = None,
        attention: str = "auto",
        residual: str = "float32",
        condition_tokens: int = 1,
    ) -> None:
        """
        Args:
            generator: of the initial weights; torch's global one where None.
            attention: `form` of `attention.attend`. A model trained with one form also runs with the others.
            residual: "bfloat16" keeps the residual stream in bfloat16 if autocast computes products in it. Norms
                compute their statistics in float32 in any case.
            condition_tokens: C, the words of a text; 1 for a class.

        Raises:
            ValueError: for an impossible shape.
        """
        super().__init__(num_codes, num_tokens, num_classes, width, condition_tokens)
        if width % heads:
            raise ValueError(f"heads ({heads}) must divide width ({width})")
        if depth < 1:
            raise ValueError(f"depth must be 1 or more, got {depth}")
        self.settings = ModelSettings(**asdict(self.shape), depth=depth, heads=heads)
        self.residual = residual
        self.token_embedding = nn.Parameter(torch.empty(num_codes, width))
        self.class_embedding = nn.Parameter(torch.empty(num_classes + 1, width))
        self.position_embedding = nn.Parameter(torch.empty(num_tokens, width))
        self.word_position_embedding: Tensor | None = None
        """Embedding of the words before input 0."""
        if condition_tokens > 1:
            self.word_position_embedding = nn.Parameter(torch.empty(condition_tokens - 1, width))
        # A ModuleList hides the type of its modules.
        self.blocks: list[Block] = nn.ModuleList(Block(width, heads, attention) for _ in range(depth))  # type: ignore[assignment]
        self.run_block: Callable[[Block, Tensor, KeysValues | None, Tensor | None], Tensor]
        """How a block is run. Training puts compiled functions here."""
        self.run_eagerly()
        self.final_norm = nn.LayerNorm(width, bias=False)
        self.head = _Linear(width, num_codes)
        self._initialise(generator)

    def run_eagerly(self) -> None:
        """Removes compiled functions. Otherwise, occasional calls of a trained model would wait for recompilation."""
        self.run_block, self.run_block_before_a_window = Block.__call__, Block.before_a_window

    def compile_blocks(self, compiled: Callable[[Any], Any]) -> None:
        self.run_block = compiled(Block.forward)
        self.run_block_before_a_window = compiled(Block.before_a_window)

    @property
    def recordable(self) -> bool:
        return self.shape.condition_tokens == 1

    def layers(self) -> list[Block]:
        return list(self.blocks)

    def inputs(self, tokens_BT: Tensor, labels_B: Tensor, begin: int, end: int) -> Inputs:
        return Inputs(self._embed(tokens_BT, labels_B, begin, end), begin, self.words_and_padding(labels_B)[1])

    def advance(self, inputs: Inputs, past: list[KeysValues] | None = None) -> tuple[Tensor, list[KeysValues]]:
        """The past is keys and values of each layer. It never carries a gradient."""
        hidden_BSD, found = inputs.embedded_BSD, []
        earlier: list[KeysValues] | list[None] = past or [None] * len(self.blocks)
        read = past[0].keys.shape[2] if past else 0
        seen = _seen(inputs.padding_B, hidden_BSD.shape[1], read + hidden_BSD.shape[1])
        for block, before in zip(self.blocks, earlier, strict=True):
            hidden_BSD, own = block.after(hidden_BSD, before, seen)
            found.append(joined(own.keys, own.values, before))
        return hidden_BSD, found

    def logits(self, hidden_BSD: Tensor) -> Tensor:
        found: Tensor = self.head(self.final_norm(hidden_BSD))
        return found

    @property
    def norm_and_head(self) -> tuple[nn.Module, nn.Linear]:
        return self.final_norm, self.head

    def hidden(
        self,
        tokens_BT: Tensor,
        labels_B: Tensor,
        start: int,
        length: int,
        prefix_tokens: int | None = None,
        activation_checkpointing: bool = False,
    ) -> Tensor:
        """As `Decoder.hidden`, but the last layer computes only keys and values of the prefix.

        Raises:
            ValueError: where the window does not lie in the clip.
        """
        self._check_window(start, length)
        read = prefix_inputs(start, prefix_tokens)
        prefix = self._prefix(tokens_BT, labels_B, start, read) if start else [None] * len(self.blocks)
        hidden_BWD = self._embed(tokens_BT, labels_B, start, start + length)
        columns = self.shape.condition_tokens - 1 + read + length
        seen = _seen(self.words_and_padding(labels_B)[1], hidden_BWD.shape[1], columns)
        for block, keys_values in zip(self.blocks, prefix, strict=True):
            if activation_checkpointing and torch.is_grad_enabled():
                hidden_BWD = _checkpointed(partial(self.run_block, block), hidden_BWD, keys_values, seen)
            else:
                hidden_BWD = self.run_block(block, hidden_BWD, keys_values, seen)
        return hidden_BWD if start else self.after_words(hidden_BWD)

    def _prefix(self, tokens_BT: Tensor, labels_B: Tensor, start: int, read: int) -> Iterator[KeysValues]:
        """Keys and values of inputs 0 .. start-1 in every layer, without gradient. If `read` is less than `start`, only
        input 0 and the last `read - 1` of these inputs are used.

        Each layer's keys and values are computed just before the window needs them. So the layer's weights are read
        once for both.
        """
        with torch.no_grad():
            hidden_BSD = self._embed(tokens_BT, labels_B, 0, 1 if read < start else start)
            if 1 < read < start:
                hidden_BSD = torch.cat([hidden_BSD, self._embed(tokens_BT, labels_B, start - read + 1, start)], dim=1)
            seen = _seen(self.words_and_padding(labels_B)[1], hidden_BSD.shape[1], hidden_BSD.shape[1])
        *lower, last = self.blocks
        for block in lower:
            with torch.no_grad():
                hidden_BSD, keys_values = self.run_block_before_a_window(block, hidden_BSD, seen)
            # older torch would reuse the weights cast here, which carry no gradient, for the window
            torch.clear_autocast_cache()
            yield keys_values
        with torch.no_grad():
            keys_values = last.keys_values(hidden_BSD)
        torch.clear_autocast_cache()
        yield keys_values

    def _embed(self, tokens_BT: Tensor, labels_B: Tensor, begin: int, end: int) -> Tensor:
        """Inputs begin .. end-1, with the words before input 0."""
        inputs = F.embedding(tokens_BT[:, max(begin - 1, 0) : end - 1], self.token_embedding)
        positions = self.position_embedding[begin:end]
        if begin == 0:
            words, _ = self.words_and_padding(labels_B)
            inputs = torch.cat([F.embedding(words, self.class_embedding), inputs], dim=1)
            if self.word_position_embedding is not None:
                positions = torch.cat([self.word_position_embedding, positions])
        return self._stream(inputs + positions)

    def _stream(self, inputs: Tensor) -> Tensor:
        """Embeddings in the type of the residual stream."""
        rounded = self.residual == "bfloat16" and torch.is_autocast_enabled(inputs.device.type)
        return inputs.to(torch.bfloat16) if rounded else inputs

    def disturbed(self, tokens_BT: Tensor, labels_B: Tensor, noise_SD: Tensor) -> Tensor:
        """Adds the noise to the position embeddings. The sum is the same as with noise on the token embeddings."""
        rows = self.position_embedding.clone()
        positions = slice(1, len(noise_SD) + 1)  # position 0 reads the class
        rows[positions] += noise_SD[: len(rows[positions])]
        own, self.position_embedding = self.position_embedding, nn.Parameter(rows, requires_grad=False)
        try:
            return self.hidden(tokens_BT, labels_B, 0, self.settings.num_tokens)
        finally:
            self.position_embedding = own

    def reader(self, kept: Kept = WHOLE) -> Read:
        caches = [LayerCache(self.settings.num_inputs, kept) for _ in self.blocks]
        return partial(self.read, caches=caches)

    def read(
        self, tokens_BT: Tensor, labels_B: Tensor, begin: int, end: int, caches: Sequence[LayerCache | StaticCache]
    ) -> Tensor:
        """Logits [B, V] after inputs begin .. end-1, which continue the inputs in the caches (sampling)."""
        _, padding_B = self.words_and_padding(labels_B)
        return self._read(self._embed(tokens_BT, labels_B, begin, end), caches, padding_B)

    def read_next(self, codes_B: Tensor, position: Tensor, caches: Sequence[LayerCache | StaticCache]) -> Tensor:
        """Logits after one more input: the code before `position`, which is an int64 tensor [1] on the device."""
        inputs_BD = F.embedding(codes_B, self.token_embedding) + self.position_embedding.index_select(0, position)
        return self._read(self._stream(inputs_BD[:, None]), caches)

    def _read(
        self, hidden_BSD: Tensor, caches: Sequence[LayerCache | StaticCache], padding_B: Tensor | None = None
    ) -> Tensor:
        for block, cache in zip(self.blocks, caches, strict=True):
            hidden_BSD = block.step(hidden_BSD, cache, padding_B)
        logits: Tensor = self.head(self.final_norm(hidden_BSD[:, -1]))
        return logits

    def _initialise(self, generator: torch.Generator | None) -> None:
        """Draws normal weights with standard deviation 0.02. Weights that write to the residual stream are scaled
        down, so that depth does not widen the stream.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                continue  # norms start at one
            scale = (
                1 / math.sqrt(2 * self.settings.depth)
                if name.endswith(("attention_out.weight", "mlp_out.weight"))
                else 1.0
            )
            nn.init.normal_(parameter, std=0.02 * scale, generator=generator)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, attention: str = "auto") -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = _Linear(width, 3 * width)
        self.attention_out = _Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp_in = _Linear(width, 4 * width)
        self.mlp_out = _Linear(4 * width, width)

    def forward(self, hidden_BSD: Tensor, prefix: KeysValues | None = None, seen: Tensor | None = None) -> Tensor:
        """The block's output.

        Args:
            seen: as in `attention.attend`, also in the methods below.
        """
        queries, keys, values = self._heads(self.qkv(self.attention_norm(hidden_BSD)), 3)
        return self._finish(hidden_BSD, attend(queries, keys, values, prefix, self.attention, seen))

    def after(
        self, hidden_BSD: Tensor, past: KeysValues | None, seen: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:
        """The block's output for inputs after a past, and the keys and values of these inputs."""
        queries, keys, values = self._heads(self.qkv(self.attention_norm(hidden_BSD)), 3)
        return self._finish(hidden_BSD, attend(queries, keys, values, past, self.attention, seen)), KeysValues(
            keys, values
        )

    def after_with_gradient(self, hidden_BSD: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """As `after`, but with a gradient for the past."""
        queries, keys, values = self._heads(self.qkv(self.attention_norm(hidden_BSD)), 3)
        return self._finish(hidden_BSD, attend_with_gradient(queries, keys, values, past)), KeysValues(keys, values)

    def before_a_window(self, hidden_BSD: Tensor, seen: Tensor | None = None) -> tuple[Tensor, KeysValues]:
        """The block's output, and the keys and values that later inputs read."""
        queries, keys, values = self._heads(self.qkv(self.attention_norm(hidden_BSD)), 3)
        return self._finish(hidden_BSD, attend(queries, keys, values, None, self.attention, seen)), KeysValues(
            keys, values
        )

    def keys_values(self, hidden_BSD: Tensor) -> KeysValues:
        """Only the keys and values that later inputs read: no queries, attention or MLP."""
        width = hidden_BSD.shape[-1]
        return KeysValues(*self._heads(F.linear(self.attention_norm(hidden_BSD), self.qkv.weight[width:]), 2))

    def step(self, hidden_BSD: Tensor, cache: LayerCache | StaticCache, padding_B: Tensor | None = None) -> Tensor:
        """The block's output for inputs that continue the cache (sampling)."""
        queries, keys, values = self._heads(self.qkv(self.attention_norm(hidden_BSD)), 3)
        return self._finish(hidden_BSD, cache.attend(queries, keys, values, padding_B))

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, S, parts D] -> `parts` views of [B, H, S, K]."""
        batch, length, _ = projected.shape
        # Unbound before they are transposed: backward then stacks the gradients straight into the layout of the
        # projection.
        return tuple(part.transpose(1, 2) for part in projected.view(batch, length, parts, self.heads, -1).unbind(2))

    def _finish(self, hidden_BSD: Tensor, attended_BHSK: Tensor) -> Tensor:
        hidden_BSD = hidden_BSD + self.attention_out(attended_BHSK.transpose(1, 2).flatten(2))
        change_BSD: Tensor = self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(hidden_BSD))))
        return hidden_BSD + change_BSD


def _seen(padding_B: Tensor | None, rows: int, columns: int) -> Tensor | None:
    """Mask of what the last `rows` of `columns` inputs see. None if they see all earlier inputs."""
    return None if padding_B is None else beside_padding(padding_B, rows, columns)


def _checkpointed(
    run_block: Callable[[Tensor, KeysValues | None, Tensor | None], Tensor],
    hidden_BSD: Tensor,
    prefix: KeysValues | None,
    seen: Tensor | None,
) -> Tensor:
    """The block's output. Its activations are computed again in backward."""
    from torch.utils.checkpoint import (
        checkpoint,
    )  # imported only here, because its first call imports the compiler, which takes seconds

    def run(hidden: Tensor, *prefix: Tensor) -> Tensor:
        return run_block(hidden, KeysValues(*prefix) if prefix else None, seen)

    found: Tensor = checkpoint(run, hidden_BSD, *(prefix or ()), use_reentrant=False, preserve_rng_state=False)
    return found


class _Linear(nn.Linear):
    """A linear layer without bias and without torch's own initialisation, which would draw from the global generator.

    `nn.utils.skip_init` does the same through meta tensors, whose first use imports 490 modules (two seconds of every
    process).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Does nothing: the model initialises its weights."""
