"""Keys and values of everything sampled so far, in buffers that are allocated once. Knows one layer, but no tokens.

`LayerCache` reads only what it has been given so far, which is fastest on the CPU. `StaticCache` always has the length
of a whole clip, at fixed addresses. Its filled length is a tensor on the device. So one CUDA graph serves every token
of a clip.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from reco_tune.model.attention import attend, beside_padding

BLOCK_TOKENS = 128
"""Keys in a block. Attention to a static cache reads or skips whole blocks, and its buffers hold whole blocks."""

NARROWEST_HEAD = 16
"""Smallest head width that the block-skipping kernel accepts."""


@dataclass(frozen=True)
class Kept:
    """How much of the past is kept, and in which precision."""

    int8: bool = False
    """Whether keys and values are stored in 8 bits, with one scale for each input and head."""
    blocks: int | None = None
    """Number of latest blocks that are read, including the block of the next token. The first block is always read.
    None reads all blocks.
    """
    block_tokens: int = 1
    """P, the tokens of a block."""

    def skipped(self, inputs: int) -> tuple[int, int]:
        """Begin and end of the range that is not read, out of this many inputs. The last input predicts the next token.
        Input i is token i-1, and input 0 is the condition.
        """
        first = self.block_tokens + 1
        if self.blocks is None:
            return first, first
        latest = (inputs - 1) // self.block_tokens - self.blocks + 1
        return first, max(first, latest * self.block_tokens + 1)


WHOLE = Kept()
"""Keeps the whole past, as it was computed."""


class LayerCache:
    """The keys and values of one layer, written in place; its buffers take shape, type and device from the first
    inputs.
    """

    def __init__(self, capacity: int, kept: Kept = WHOLE) -> None:
        self._capacity, self._kept = capacity, kept
        self._keys: _Store | None = None
        self._values: _Store | None = None
        self._length = 0

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, padding_B: Tensor | None = None) -> Tensor:
        """Adds the keys and values of new inputs, and returns the attention's output; all [B, H, S, K]. Each input
        attends to itself and to the earlier inputs that are kept.

        Only the first call may bring more than one input. So no later call needs a mask, except for padding.
        """
        new, store = keys.shape[2], _Int8 if self._kept.int8 else _Plain
        if self._keys is None or self._values is None:
            self._keys, self._values = store(keys, self._capacity), store(values, self._capacity)
        elif new > 1:
            raise ValueError(f"a cache that holds {self._length} inputs takes one more at a time, not {new}")
        begin, self._length = self._length, self._length + new
        self._keys.write(begin, keys)
        self._values.write(begin, values)
        seen = None if padding_B is None else beside_padding(padding_B, new, self._length)
        if new > 1:
            return attend(queries, keys, values, seen=seen)
        skipped = self._kept.skipped(self._length)
        keys, values = (one.read(self._length, *skipped) for one in (self._keys, self._values))
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)


class _Plain:
    """[B, H, S, K], in the type of the inputs."""

    def __init__(self, like: Tensor, capacity: int) -> None:
        batch, heads, _, width = like.shape
        self._held = like.new_empty(batch, heads, capacity, width)

    def write(self, begin: int, new: Tensor) -> None:
        self._held[:, :, begin : begin + new.shape[2]] = new

    def read(self, length: int, skip: int, to: int) -> Tensor:
        """The first `length` inputs, without inputs `skip` .. `to - 1`."""
        return _without(self._held, length, skip, to)


class _Int8:
    """Keys or values as 8-bit integers. Each vector [K] has one scale."""

    def __init__(self, like: Tensor, capacity: int) -> None:
        batch, heads, _, width = like.shape
        self._held = like.new_empty(batch, heads, capacity, width, dtype=torch.int8)
        self._scales = like.new_empty(batch, heads, capacity, 1)

    def write(self, begin: int, new: Tensor) -> None:
        scales = new.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127
        own = slice(begin, begin + new.shape[2])
        self._scales[:, :, own] = scales
        self._held[:, :, own] = (new / scales).round().to(torch.int8)

    def read(self, length: int, skip: int, to: int) -> Tensor:
        scales = _without(self._scales, length, skip, to)
        return _without(self._held, length, skip, to).to(scales.dtype) * scales


_Store = _Plain | _Int8


def _without(held: Tensor, length: int, skip: int, to: int) -> Tensor:
    if to <= skip or to >= length:
        return held[:, :, :length]
    return torch.cat([held[:, :, :skip], held[:, :, to:length]], dim=2)


class StaticCache:
    """A cache for clips of a fixed length. Its position is a tensor on the device."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        """
        Args:
            keys, values: [B, H, S, K], finite everywhere, because unwritten places are multiplied by 0.
            position: int64 [1], position of the next call's input. The caller advances it.
        """
        self._keys, self._values, self._position = keys, values, position

    @staticmethod
    def tokens_held(capacity: int) -> int:
        """S: the number of inputs of a clip, rounded up to whole blocks."""
        return -(-capacity // BLOCK_TOKENS) * BLOCK_TOKENS

    def of(self, clips: slice) -> StaticCache:
        """The same buffers, for some of the clips."""
        return StaticCache(self._keys[clips], self._values[clips], self._position)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, padding_B: Tensor | None = None) -> Tensor:
        """As `LayerCache.attend`. Several inputs at once must be the first ones of their clips. None may be padding."""
        assert padding_B is None  # models with a text condition are not sampled this way
        new = keys.shape[2]
        if new > 1:
            self._keys[:, :, :new] = keys
            self._values[:, :, :new] = values
            return attend(queries, keys, values)
        self._keys.index_copy_(2, self._position, keys)
        self._values.index_copy_(2, self._position, values)
        return attend_up_to(self._position, queries, self._keys, self._values)


def attend_up_to(position: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one query per clip [B, H, 1, K] to the keys at 0 .. position of [B, H, S, K].

    On a GPU, blocks of keys that lie entirely after the position are not read. The time depends on the bytes read.
    """
    if queries.device.type == "cuda" and skips_blocks(*keys.shape[1:], keys.dtype, keys.device):
        return _compiled()(position, queries, keys, values)
    return masked(position, queries, keys, values)


def masked(position: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The plain form. It reads everything."""
    seen = torch.arange(keys.shape[2], device=keys.device) <= position
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen[None, None, None])


def skipping(position: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Flex attention. When compiled, it reads only the blocks up to the position."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention  # imports the compiler

    tokens, last = keys.shape[2], position[0]
    blocks = -(-tokens // BLOCK_TOKENS)
    mask = BlockMask.from_kv_blocks(
        (last // BLOCK_TOKENS + 1).to(torch.int32).view(1, 1, 1),
        torch.arange(blocks, dtype=torch.int32, device=keys.device).view(1, 1, 1, blocks),
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=lambda clip, head, query, key: key <= last,
        seq_lengths=(1, tokens),
        compute_q_blocks=False,
    )
    attended = flex_attention(queries, keys, values, block_mask=mask)
    assert isinstance(attended, Tensor)  # it returns a tuple only on request
    return attended


@cache
def skips_blocks(heads: int, tokens: int, head_width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the compiled form works here and agrees with the plain one. Each shape is tried once, on two clips.

    If it does not, sampling is slower but still correct, and a warning gives the reason.
    """
    if head_width < NARROWEST_HEAD:
        return False
    draw = torch.Generator(device).manual_seed(0)
    parts = [torch.randn(2, heads, n, head_width, device=device, generator=draw).to(dtype) for n in (1, tokens, tokens)]
    reason = "its values differ from the plain form's"
    try:
        for part in parts:
            torch._dynamo.maybe_mark_dynamic(part, 0)  # one graph for any number of clips
        found = [
            (_compiled()(position, *parts), masked(position, *parts))
            for position in (torch.full((1,), last, device=device) for last in sorted({0, tokens // 3, tokens - 1}))
        ]
        if all(torch.allclose(ours.float(), plain.float(), rtol=2e-2, atol=2e-2) for ours, plain in found):
            return True
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch's compiler, the compiler it calls or the driver may fail in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    told = f"sampling reads its whole cache for every token, because the block-skipping kernel cannot be used: {reason}"
    warnings.warn(told, stacklevel=2)
    return False


@cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Compiled once. Every model of a worker may have its own shape, so the limits of recompilation are raised."""
    compiled = torch.compile(skipping, fullgraph=True)

    def run(position: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=1000, accumulated_recompile_limit=10_000):
            return compiled(position, queries, keys, values)

    return run
