"""Window starts of training steps: pure functions of integers, and a seeded, resumable sampler."""

from __future__ import annotations

import random
from typing import Any, Literal, NamedTuple

Schedule = Literal["constant", "short_to_long", "long_to_short"]

PADDING = -1
"""Fills a short text on the left to the length of the others."""

MOST_LENGTHS = 4
"""Largest number of window lengths in a schedule. Each length has its own starts and tensor shapes."""


class WindowSpan(NamedTuple):
    """Start and length of the window of one micro-batch."""

    start: int
    length: int


def start_grid(num_tokens: int, length_tokens: int, stride_tokens: int) -> list[int]:
    """0, S, 2S, ... and always the last start T - W, so that every token can have a loss."""
    last = num_tokens - length_tokens
    return sorted({*range(0, last + 1, stride_tokens), last})


def schedule_lengths(num_tokens: int, length_tokens: int, stride_tokens: int, schedule: Schedule) -> list[int]:
    """Window lengths of a run in order: from W to T in whole strides (the end of the clip may cut the last one), or
    the reverse.
    """
    if schedule == "constant":
        return [length_tokens]
    strides = (num_tokens - length_tokens) / stride_tokens
    grown = [length_tokens + stride_tokens * round(i * strides / (MOST_LENGTHS - 1)) for i in range(MOST_LENGTHS - 1)]
    lengths = sorted({min(length, num_tokens) for length in grown} | {num_tokens})
    return lengths if schedule == "short_to_long" else lengths[::-1]


def prefix_inputs(start: int, prefix_tokens: int | None) -> int:
    """Number of inputs before a window that it reads: all `start` of them, or the class and the nearest
    `prefix_tokens` tokens.
    """
    return start if prefix_tokens is None else min(start, prefix_tokens + 1)


class WindowSampler:
    """Draws window starts: 0 with probability p, else uniformly over the other starts of the stride grid.

    The paper samples first-frame windows with p = 0.5. `"uniform"` gives start 0 the probability of every other start.
    """

    def __init__(
        self,
        num_tokens: int,
        length_tokens: int,
        stride_tokens: int,
        first_frame_probability: float | Literal["uniform"],
        seed: int | random.Random,
    ) -> None:
        """
        Args:
            num_tokens: T, tokens of a clip.
            length_tokens: W, at most T.
            stride_tokens: S, at most W, so that every token can have a loss.
            first_frame_probability: p in [0, 1], or "uniform".
            seed: seed of the sequence of starts, or a generator that several samplers share.

        Raises:
            ValueError: for an invalid window, stride or probability.
        """
        if not 1 <= length_tokens <= num_tokens:
            raise ValueError(f"length_tokens ({length_tokens}) must lie in 1..num_tokens ({num_tokens})")
        if not 1 <= stride_tokens <= length_tokens:
            raise ValueError(f"stride_tokens ({stride_tokens}) must lie in 1..length_tokens ({length_tokens})")
        self.starts = start_grid(num_tokens, length_tokens, stride_tokens)
        if first_frame_probability == "uniform" or len(self.starts) == 1:
            probability = 1 / len(self.starts)
        elif isinstance(first_frame_probability, str) or not 0 <= first_frame_probability <= 1:
            raise ValueError(f"first_frame_probability ({first_frame_probability}) must lie in [0, 1] or be 'uniform'")
        else:
            probability = float(first_frame_probability)
        self.num_tokens, self.length_tokens = num_tokens, length_tokens
        self._first_probability = probability
        self._random = seed if isinstance(seed, random.Random) else random.Random(seed)

    def draw(self) -> int:
        """The next start; one per micro-batch."""
        if len(self.starts) == 1 or self._random.random() < self._first_probability:
            return 0
        return self._random.choice(self.starts[1:])

    def distribution(self) -> dict[int, float]:
        """Probability of every start of the grid."""
        if len(self.starts) == 1:
            return {0: 1.0}
        rest = (1 - self._first_probability) / (len(self.starts) - 1)
        return {start: self._first_probability if start == 0 else rest for start in self.starts}

    def coverage(self) -> list[float]:
        """Probability that a token has a loss in one step, for each token, in closed form. Sums to W."""
        covered = [0.0] * self.num_tokens
        for start, probability in self.distribution().items():
            for token in range(start, start + self.length_tokens):
                covered[token] += probability
        return covered

    def state_dict(self) -> dict[str, Any]:
        """State of the random sequence, as JSON values."""
        version, internal, gauss = self._random.getstate()
        return {"version": version, "internal": list(internal), "gauss": gauss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the sequence exactly where `state_dict` was taken."""
        self._random.setstate((state["version"], tuple(state["internal"]), state["gauss"]))


class WindowSchedule:
    """The windows of a whole run: the length by step, and starts from a `WindowSampler` for each length. All of them
    share one generator.
    """

    def __init__(
        self,
        num_tokens: int,
        length_tokens: int,
        stride_tokens: int,
        first_frame_probability: float | Literal["uniform"],
        seed: int,
        steps: int = 1,
        schedule: Schedule = "constant",
        full_fraction: float = 0.0,
    ) -> None:
        """
        Args:
            steps: number of steps in the run; the schedule divides them into equal parts.
            schedule: the order of the lengths (`schedule_lengths`).
            full_fraction: fraction of the steps, at the end, that train on full sequences.

        Raises:
            ValueError: as `WindowSampler`.
        """
        generator = random.Random(seed)
        lengths = schedule_lengths(num_tokens, length_tokens, stride_tokens, schedule)
        scheduled = steps - round(full_fraction * steps)
        self._ends = [scheduled * (i + 1) // len(lengths) for i in range(len(lengths))]
        if scheduled < steps:
            lengths, self._ends = [*lengths, num_tokens], [*self._ends, steps]
        self._steps = steps
        self._samplers = [
            WindowSampler(num_tokens, n, stride_tokens, first_frame_probability, generator) for n in lengths
        ]

    def draw(self, step: int) -> WindowSpan:
        """Window of the next micro-batch, which belongs to this step (counted from 0). Steps after the last use the
        last length.
        """
        sampler = next((s for s, end in zip(self._samplers, self._ends, strict=True) if step < end), self._samplers[-1])
        return WindowSpan(sampler.draw(), sampler.length_tokens)

    def distribution(self) -> dict[WindowSpan, float]:
        """Share of each window in the whole run."""
        shares: dict[WindowSpan, float] = {}
        begin = 0
        for sampler, end in zip(self._samplers, self._ends, strict=True):
            for start, probability in sampler.distribution().items():
                span = WindowSpan(start, sampler.length_tokens)
                if end > begin:
                    shares[span] = shares.get(span, 0.0) + probability * (end - begin) / self._steps
            begin = end
        return shares

    def state_dict(self) -> dict[str, Any]:
        """State of the random sequence, as JSON values."""
        return self._samplers[0].state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the sequence exactly where `state_dict` was taken."""
        self._samplers[0].load_state_dict(state)
