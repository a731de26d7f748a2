"""How the time of a step divides into parts. It is timed whole, without its attention, and without its prefix; the
optimiser is timed alone. All of this runs in turn.

Knows the parts of a step and how to remove one. Knows nothing of tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reco_tune.cost.timing import TimedStep, device_clock, in_rounds, span_strata
from reco_tune.model import transformer
from reco_tune.progress import Progress, quiet
from reco_tune.training import Scheme
from reco_tune.windows import WindowSpan

JOBS = 4
"""Number of jobs in `_jobs`."""
DATA_DRAWS = 20
"""Number of batches whose creation is timed."""


class StepParts(NamedTuple):
    """Seconds of a whole step with all micro-batches: the expectation over its starts."""

    whole: float
    optimiser: float
    """Zeroing the gradient, norm, clipping and AdamW. Timed alone, because it is smaller than the difference between
    two steps.
    """
    attention: float
    """Scores, softmax and weighted sums of every layer, prefix included, projections excluded."""
    prefix: float
    """Keys and values of the tokens before the window, their attention included."""
    data: float
    """Making the next batch. Not part of `whole`, because it happens before the step."""

    @property
    def rest(self) -> float:
        """Linear layers, norms, embeddings, loss and Python."""
        return self.whole - self.optimiser - self.attention


def measure_parts(
    full: TimedStep, arm: TimedStep, seconds: float, progress: Progress = quiet
) -> tuple[StepParts, StepParts]:
    """The parts of the full step and of an arm's step, measured in turn in the same rounds."""
    strata = span_strata(arm.scheme.distribution())
    cases: list[tuple[TimedStep, WindowSpan | int]] = [(full, 0), *((arm, span) for span in strata)]
    jobs = [job for step, span in cases for job in _jobs(step, span)]
    for _ in range(2):
        for job in jobs:
            job()
    device = full.step.device
    medians = np.median(in_rounds(jobs, device_clock(device), seconds, progress, "leaving out"), axis=0).reshape(
        len(cases), JOBS
    )
    expected = np.array(list(strata.values())) @ medians[1:]
    return _parts(full, medians[0]), _parts(arm, expected)


def prefix_flop_share(step: TimedStep) -> float:
    """The prefix's share of a step's FLOPs. At equal FLOP/s, its share of the time would be the same."""
    return _expected(step.scheme, step.scheme.prefix_flops) / step.scheme.expected_flops()


def attention_and_rest_kept(full: TimedStep, arm: TimedStep) -> tuple[float, float]:
    """FLOPs of the arm's step divided by the full step's: for attention, and for everything else."""
    whole, attention = _expected_flops(full)
    arm_whole, arm_attention = _expected_flops(arm)
    return arm_attention / attention, (arm_whole - arm_attention) / (whole - attention)


def _expected_flops(step: TimedStep) -> tuple[float, float]:
    """FLOPs of a clip: all, and those of attention."""
    return step.scheme.expected_flops(), _expected(step.scheme, step.scheme.attention_flops)


def _expected(scheme: Scheme, flops: Callable[[WindowSpan], int]) -> float:
    return sum(share * flops(span) for span, share in scheme.distribution().items())


def _jobs(step: TimedStep, span: WindowSpan | int) -> list[Callable[[], None]]:
    model, kept = step.step.model, _FirstResult()
    assert isinstance(model, transformer.VideoTransformer)

    def optimiser() -> None:
        torch._foreach_zero_(step.step.parameters.gradients)
        step.step.update(0.0)

    def without_attention() -> None:
        with _replaced(transformer, "attend", _no_attention):
            step.run_once(span)

    def without_prefix() -> None:
        with _replaced(model, "_prefix", partial(kept.first_of, model._prefix)):
            step.run_once(span)

    return [partial(step.run_once, span), optimiser, without_attention, without_prefix]


class _FirstResult:
    """Caches what a function yields the first time, and returns it ever after."""

    def __init__(self) -> None:
        self._found: list[Any] | None = None

    def first_of(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._found is None:
            self._found = list(function(*arguments))
        return self._found


def _no_attention(
    queries: Tensor, keys: Tensor, values: Tensor, prefix: object = None, form: str = "", seen: object = None
) -> Tensor:
    return values


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _parts(step: TimedStep, seconds_J: np.ndarray) -> StepParts:
    whole, optimiser, without_attention, without_prefix = (float(value) for value in seconds_J)
    count = step.scheme.experiment.training.micro_batches
    data = float(np.median(in_rounds([step.feed.next], device_clock(step.step.device), 0.0, fewest=DATA_DRAWS)))
    return StepParts(
        count * (whole - optimiser) + optimiser,
        optimiser,
        count * (whole - without_attention),
        count * (whole - without_prefix) if prefix_flop_share(step) > 0 else 0.0,
        count * data,
    )
