"""How weights, gradients and AdamW's moments lie in memory: whole on every worker, or split over them (`sharding`).

Knows memory and workers; refuses to know losses, optimisers and schedules.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from reco_tune.errors import SettingsError
from reco_tune.model import Decoder
from reco_tune.model.flops import parameter_count
from reco_tune.model.shape import DecoderSettings
from reco_tune.training.compiling import compiled
from reco_tune.training.distributed import Group
from reco_tune.training.gradient_mean import GradientMean

ALIGNMENT = 16
"""Elements; every parameter begins at a multiple of 64 bytes, which vectorised kernels and tensor cores want."""

State = list[Tensor]
"""One value for each weight that this worker updates: weights, their gradients or a moment."""


class Parameters(Protocol):
    """A model's weights and gradients on one worker."""

    weights: State
    """What this worker updates."""
    frozen: dict[str, Tensor]
    """Tensors by name that are not updated, and that only a checkpoint can restore."""
    frozen_bytes: int
    """Bytes of this worker's part of all weights that are not trained."""
    gradients: State
    """Theirs; always there, zeros where a parameter has none in this step (the class embedding, when the window starts
    after token 0), so that it is treated alike on any number of workers: AdamW's moments decay, weight decay applies.
    """

    def last_backward(self) -> AbstractContextManager[None]:
        """Wraps the last backward of a step. Afterwards, gradients are the mean over the workers."""

    def gradient_norm(self) -> Tensor:
        """Norm of the whole model's gradient."""

    def by_name(self, state: State) -> dict[str, Tensor]:
        """The same memory, by parameter, as `torch.distributed.checkpoint` reads and writes it."""

    def storages(self) -> set[int]:
        """Identities of the storages of the current weights."""

    @property
    def gathered_bytes(self) -> int:
        """`gathered_bytes` of a split state; 0 for a whole one."""

    def compile_blocks(self) -> None:
        """Puts compiled blocks into the model."""

    def whole_model(self) -> Decoder:
        """A model with all weights on every worker, for everything except training. All ranks call it."""


GATHERED_BLOCKS = 2
"""Number of blocks of a split model that are on a worker at once. One is gathered while another is computed."""


def state_bytes(settings: DecoderSettings, workers: int, half: bool) -> int:
    """Of one of the workers that a model's state is split over: weights, gradients and AdamW's moments of its part, and
    what it gathers of the others'. With one worker it is the whole state. What is not trained is weights alone.
    """
    whole = 16 * parameter_count(settings) - 12 * settings.frozen_parameters
    return whole if workers == 1 else -(-whole // workers) + gathered_bytes(settings, half)


def gathered_bytes(settings: DecoderSettings, half: bool) -> int:
    """Of a worker with a part of a model, what a step takes beside that part: of all that lies around the blocks, and
    of `GATHERED_BLOCKS` blocks, weights, gradients, and the float32 values by which gradients are summed.

    Args:
        half: whether blocks and their gradients come in bfloat16.
    """
    around, block, _ = settings.parameter_counts
    return around * (4 + 4 + 4) + GATHERED_BLOCKS * block * ((2 + 2 if half else 4 + 4) + 4)


def untrained(model: Decoder) -> tuple[dict[str, Tensor], int]:
    """The weights that are not trained, without those that the model's `start` brings back, and the bytes of all.

    Raises:
        SettingsError: where none is trained.
    """
    named = {name: own for name, own in model.named_parameters() if not own.requires_grad}
    if not named:
        return {}, 0
    if len(named) == len(list(model.parameters())):
        raise SettingsError(f"model.kind: no weight of {type(model).__name__} is trained (requires_grad); train some")
    given_again = model.given_again()
    kept = {name: own.detach() for name, own in named.items() if name not in given_again}
    return kept, sum(own.numel() * own.element_size() for own in named.values())


class FlatParameters:
    """All trained weights as views of one vector, all gradients of another: sums of long slices, one norm, one AdamW
    kernel per step. Gradients are accumulated in place.
    """

    gathered_bytes = 0

    def __init__(self, model: Decoder, group: Group = Group()) -> None:
        self._model, self.frozen, self.frozen_bytes = model, *untrained(model)
        named = {name: own for name, own in model.named_parameters() if own.requires_grad}
        parameters = list(named.values())
        self.spans: list[tuple[int, int]] = []
        end = 0
        for parameter in parameters:
            begin = -(-end // ALIGNMENT) * ALIGNMENT
            end = begin + parameter.numel()
            self.spans.append((begin, end))
        self.vector = torch.zeros(end, dtype=parameters[0].dtype, device=parameters[0].device)
        self.gradient = torch.zeros_like(self.vector)
        for parameter, (begin, end) in zip(parameters, self.spans, strict=True):
            view = self.vector[begin:end].view_as(parameter)
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = self.gradient[begin:end].view_as(parameter)
        self.weights, self.gradients = [self.vector], [self.gradient]
        self._shapes = {name: parameter.shape for name, parameter in named.items()}
        self._mean = GradientMean(parameters, self.spans, self.gradient, group) if group.size > 1 else None

    def last_backward(self) -> AbstractContextManager[None]:
        return self._mean.taken() if self._mean is not None else nullcontext()

    def gradient_norm(self) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        return norm

    def by_name(self, state: State) -> dict[str, Tensor]:
        (vector,) = state
        places = zip(self._shapes.items(), self.spans, strict=True)
        return {name: vector[begin:end].view(shape) for (name, shape), (begin, end) in places}

    def storages(self) -> set[int]:
        frozen = (own for own in self._model.parameters() if not own.requires_grad)
        return {self.vector.untyped_storage()._cdata, *(own.untyped_storage()._cdata for own in frozen)}

    def compile_blocks(self) -> None:
        self._model.compile_blocks(compiled)

    def whole_model(self) -> Decoder:
        return self._model
