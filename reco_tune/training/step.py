"""One optimiser step of a scheme: micro-batches forward and backward, the mean over workers, clipping, AdamW. Driven by
the loop and by calibration.

Knows one step; refuses to know where batches come from, how many steps there are, and files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.adamw import adamw

from reco_tune.errors import SettingsError
from reco_tune.model import VideoTransformer
from reco_tune.settings import Training
from reco_tune.training.distributed import Group
from reco_tune.training.feed import MicroBatch
from reco_tune.training.gradient_mean import GradientMean
from reco_tune.training.schemes import Batch, Scheme

ALIGNMENT = 16
"""Elements; every parameter begins at a multiple of 64 bytes, which vectorised kernels and tensor cores want."""

COMPILED_STARTS = 64
"""Most starts that may each get a compiled graph."""


class FlatParameters:
    """All weights as views of one vector, all gradients of another: sums of long slices, one norm, one AdamW kernel per
    step.

    Gradients are accumulated in place, so a parameter without one in this step (the class embedding, when the window
    starts after token 0) has zeros and is treated alike on any number of ranks: AdamW's moments decay, weight decay
    applies.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = list(model.parameters())
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
        self._parameters = parameters

    def mean_over(self, group: Group) -> GradientMean:
        """What averages the gradient over the workers."""
        return GradientMean(self._parameters, self.spans, self.gradient, group)


class OptimiserStep:
    """A scheme's model with its optimiser."""

    def __init__(self, scheme: Scheme, device: torch.device, group: Group = Group()) -> None:
        """Builds the scheme's model on the device.

        Raises:
            SettingsError: where `training.compile` would need a graph for each of too many starts.
        """
        training = scheme.experiment.training
        self.scheme, self.device, self._group = scheme, device, group
        self.model: VideoTransformer = scheme.build_model().to(device)
        self.flat = FlatParameters(self.model)
        self._mean = self.flat.mean_over(group) if group.size > 1 else None
        self._moments = torch.zeros_like(self.flat.vector), torch.zeros_like(self.flat.vector)
        self._steps = torch.zeros((), device=device)
        self._training = training
        self._autocast = training.precision == "bfloat16"
        self._loss = _compiled(scheme) if training.compile else scheme.loss

    @property
    def fixed_bytes(self) -> int:
        """Memory of weights, gradients and AdamW's two moments."""
        return 4 * self.flat.vector.numel() * self.flat.vector.element_size()

    def run(self, micro_batches: Sequence[MicroBatch], learning_rate: float) -> Tensor:
        """One step; returns [3] detached means over this rank's micro-batches: cross-entropy, continuity, norm. Never
        waits for a GPU.
        """
        self.flat.gradient.zero_()
        *earlier, last = micro_batches
        terms = [self.backward(micro_batch, len(micro_batches)) for micro_batch in earlier]
        with self._mean.taken() if self._mean is not None else nullcontext():
            terms.append(self.backward(last, len(micro_batches)))
        self.update(learning_rate)
        return terms[0] if len(terms) == 1 else torch.stack(terms).mean(dim=0)

    def backward(self, micro_batch: MicroBatch, parts: int = 1) -> Tensor:
        """Adds 1/parts of a micro-batch's gradient; returns its three terms."""
        batch = Batch(*(tensor.to(self.device, non_blocking=True) for tensor in micro_batch.batch))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            loss = self._loss(self.model, batch, micro_batch.span)
        (loss.total / parts).backward()
        return torch.stack([loss.cross_entropy.float(), loss.continuity.float(), loss.norm.float()])

    def update(self, learning_rate: float) -> None:
        """Clips the gradient and takes AdamW's step with it."""
        norm = torch.linalg.vector_norm(self.flat.gradient)
        self.flat.gradient.mul_(
            (self._training.gradient_clip / (norm + 1e-6)).clamp(max=1.0)
        )  # as clip_grad_norm_, in one kernel
        self._adamw(learning_rate)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimiser state, the live ones, under the names that a checkpoint has."""
        first, second = self._moments
        return {
            "weights": self.flat.vector,
            "adamw.first_moment": first,
            "adamw.second_moment": second,
            "adamw.steps": self._steps,
        }

    def activation_bytes(self, micro_batch: MicroBatch) -> int:
        """Bytes that the forward pass of a micro-batch keeps for its backward, each storage once, weights and inputs
        left out.

        A deterministic stand-in for peak memory where the allocator keeps no count (CPU); short-lived buffers are not
        in it. The gradient is left as it was.
        """
        known = {tensor.untyped_storage().data_ptr() for tensor in (self.flat.vector, *micro_batch.batch)}
        seen: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                seen[storage.data_ptr()] = storage.nbytes()
            return (
                tensor.detach()
            )  # an output kept as it is would hold the node that keeps it: a cycle that nobody frees

        with (
            saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(self.device.type, torch.bfloat16, self._autocast),
        ):
            held = self.scheme.loss(
                self.model, Batch(*(tensor.to(self.device) for tensor in micro_batch.batch)), micro_batch.span
            )
        del held  # only now: a storage freed earlier could lend its address to another
        return sum(seen.values())

    def _adamw(self, learning_rate: float) -> None:
        """torch's AdamW in its functional form: the class imports the whole compiler, three seconds and 90 MB of every
        worker.
        """
        first, second = self._moments
        adamw(
            [self.flat.vector],
            [self.flat.gradient],
            [first],
            [second],
            [],
            [self._steps],
            fused=True,
            amsgrad=False,
            beta1=self._training.beta1,
            beta2=self._training.beta2,
            lr=learning_rate,
            weight_decay=self._training.weight_decay,
            eps=1e-8,
            maximize=False,
        )


def learning_rate_at(step: int, training: Training) -> float:
    """Learning rate of step 0, 1, ...: linear warm-up, then cosine to zero or constant."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return training.learning_rate
    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _compiled(scheme: Scheme):  # type: ignore[no-untyped-def]
    """`scheme.loss` compiled, one graph per span of the window."""
    starts = len(scheme.distribution())
    if starts > COMPILED_STARTS:
        raise SettingsError(
            f"training.compile makes a graph for each of the {starts} window starts, at most {COMPILED_STARTS}; "
            "raise window.stride_tokens or set training.compile to false"
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * starts + 8)
    return torch.compile(scheme.loss, dynamic=False)
