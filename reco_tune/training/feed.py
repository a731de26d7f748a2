"""The endless, seeded sequence of micro-batches of a scheme. Knows token caches and the order of clips; refuses to know
models and devices.

Every rank draws the same global micro-batch and takes its slice of it, so that how many ranks there are changes
nothing. All draws but the starts are functions of (seed, position), so the position is the whole state.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError
from reco_tune.training.conditions import conditions, without
from reco_tune.training.distributed import Group
from reco_tune.training.schemes import Batch, Scheme
from reco_tune.windows import WindowSpan

IN_MEMORY_BYTES = 1 << 30
"""Splits smaller than this are copied into memory. A batch then costs an index instead of page faults."""

_ORDER, _DROPOUT, _PIECES, _CORRUPTION, _CAPTIONS, _TOKEN_DROPOUT, _RESAMPLING = range(7)
"""Numbers of random streams that must not repeat each other."""


class MicroBatch(NamedTuple):
    """The input of one forward and backward pass."""

    batch: Batch
    span: WindowSpan
    """Span of the window, the same on all ranks."""


class Feed:
    """Micro-batches of this rank: clips in a new order every epoch, without gaps between epochs."""

    def __init__(self, scheme: Scheme, cache: TokenCache, group: Group = Group()) -> None:
        """
        Raises:
            DataError: if the cache has no training clips, or not the pieces that the scheme trains on.
        """
        training = scheme.experiment.training
        self.scheme = scheme
        self.clips_per_micro_batch = training.batch_size // training.micro_batches
        """Over all ranks."""
        self._seed, self._class_dropout, self._micro_batches = (
            training.seed,
            training.class_dropout,
            training.micro_batches,
        )
        self._prefix_keep = scheme.experiment.window.prefix_keep
        self._token_dropout = training.token_dropout
        self._share = group.share(self.clips_per_micro_batch)
        tokens = scheme.tokens(cache, "train")
        self._tokens = np.array(tokens) if tokens.nbytes < IN_MEMORY_BYTES else tokens
        self._labels = conditions(scheme.experiment, cache, "train")
        several = scheme.experiment.model.condition == "text" and scheme.experiment.data.caption_rule == "all"
        self._captions = cache.captions(scheme.experiment.captions_name) if several else None
        if not len(self._labels):
            raise DataError(f"the token cache {cache.path} has no training clips; check data.root and data.train_clips")
        self._position = 0
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def next(self) -> MicroBatch:
        """The next micro-batch, in memory of the CPU."""
        batches = self._position // self.scheme.steps_of_a_batch
        indices = self._clips(batches * self.clips_per_micro_batch, self.clips_per_micro_batch)
        labels = self._labels[indices]
        if self._captions is not None:
            labels = self._captions.drawn("train", indices, self._draws(_CAPTIONS, self._position))
        if self._class_dropout > 0:
            dropped = self._draws(_DROPOUT, self._position).random(len(indices)) < self._class_dropout
            labels = without(dropped, labels, self.scheme.model_settings.num_classes)
        span = self.scheme.draw(self._position // self._micro_batches)
        columns = self._piece_columns(len(indices), span)
        mine = indices[self._share]
        tokens = self._tokens[mine] if columns is None else self._tokens[mine[:, None], columns[self._share]]
        if self._prefix_keep < 1 and span.start > 0:
            tokens = self._corrupted(tokens, len(indices), span.start)
        inputs = self._dropped(tokens, len(indices)) if self._token_dropout > 0 else None
        drawn = self.scheme.draws(len(indices), span, self._draws(_RESAMPLING, self._position))
        self._position += 1
        batch = Batch(
            torch.from_numpy(tokens),
            torch.from_numpy(labels[self._share]),
            None if inputs is None else torch.from_numpy(inputs),
            None if drawn is None else drawn.moved(lambda draws: draws[self._share]),
        )
        return MicroBatch(batch, span)

    def state_dict(self) -> dict[str, Any]:
        """Position and state of the starts, as JSON values."""
        return {
            "position": self._position,
            "sampler": self.scheme.windows.state_dict() if self.scheme.windows else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where `state_dict` was taken."""
        self._position = state["position"]
        if self.scheme.windows:
            self.scheme.windows.load_state_dict(state["sampler"])

    def _clips(self, consumed: int, count: int) -> np.ndarray:
        """int64 [count]: the clips that follow the first `consumed` clips."""
        epoch, position = divmod(consumed, len(self._labels))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._draws(_ORDER, epoch).permutation(len(self._labels))
        found = self._order[position : position + count]
        return (
            found
            if len(found) == count
            else np.concatenate([found, self._clips(consumed + len(found), count - len(found))])
        )

    def _piece_columns(self, clips: int, span: WindowSpan) -> np.ndarray | None:
        """Columns [clips, tokens of a piece], in the split's flat tokens, of the piece that each clip gives; None for
        whole clips.
        """
        if not self.scheme.trains_pieces:
            return None
        draws = self._draws(_PIECES, self._position)
        return self.scheme.piece_columns(self.scheme.piece_starts(clips, span, draws))

    def _corrupted(self, tokens: np.ndarray, clips: int, start: int) -> np.ndarray:
        """The rank's clips with random codes instead of some tokens before the window: inputs alone, the window's
        targets stay.

        The window's first input is the token before it, so that one may be replaced too.
        """
        before = self._replaced(tokens[:, :start], clips, self._prefix_keep, _CORRUPTION)
        return np.concatenate([before, tokens[:, start:]], axis=1)

    def _dropped(self, tokens: np.ndarray, clips: int) -> np.ndarray:
        """What the model reads of the rank's clips: some tokens, of the window too, are random codes."""
        return self._replaced(tokens, clips, 1 - self._token_dropout, _TOKEN_DROPOUT)

    def _replaced(self, tokens: np.ndarray, clips: int, keep: float, stream: int) -> np.ndarray:
        """The rank's tokens. Each is kept with that probability, and is otherwise a random code."""
        draws, size = self._draws(stream, self._position), (clips, tokens.shape[1])
        replaced = draws.random(size, dtype=np.float32) >= keep
        codes = draws.integers(self.scheme.model_settings.num_codes, size=size, dtype=np.int32)
        return np.where(replaced[self._share], codes[self._share], tokens)

    def _draws(self, stream: int, position: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream, position])


class FeedAhead:
    """A feed for a GPU: micro-batches in pinned memory, from which it copies while it computes, and the next one made
    by another thread in the meantime.
    """

    def __init__(self, feed: Feed, device: torch.device) -> None:
        self._feed, self._device = feed, device
        self._thread = ThreadPoolExecutor(1, initializer=partial(_work_for, device))
        self._next: Future[tuple[dict[str, Any], MicroBatch]] | None = None

    @property
    def clips_per_micro_batch(self) -> int:
        """Over all ranks."""
        return self._feed.clips_per_micro_batch

    def next(self) -> MicroBatch:
        """The next micro-batch, pinned."""
        made = (self._next or self._thread.submit(self._make)).result()[1]
        self._next = self._thread.submit(self._make)
        return made

    def state_dict(self) -> dict[str, Any]:
        """The state of the feed, as if it had made nothing ahead."""
        return self._feed.state_dict() if self._next is None else self._next.result()[0]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where `state_dict` was taken."""
        if self._next is not None:
            self._next.result()
        self._feed.load_state_dict(state)
        self._next = None

    def _make(self) -> tuple[dict[str, Any], MicroBatch]:
        """The state before the micro-batch was made, and the micro-batch."""
        state = self._feed.state_dict()
        batch, span = self._feed.next()
        return state, MicroBatch(batch.moved(partial(pinned, device=self._device)), span)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in pinned memory, from which a GPU copies by itself."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _work_for(device: torch.device) -> None:
    """Selects this process's GPU. A new thread starts on the first GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def held_out(scheme: Scheme, cache: TokenCache, clips: int) -> Batch:
    """The first `clips` held-out clips, whole."""
    tokens = np.array(cache.tokens("test")[:clips])
    return Batch(torch.from_numpy(tokens), torch.from_numpy(conditions(scheme.experiment, cache, "test")[:clips]))
