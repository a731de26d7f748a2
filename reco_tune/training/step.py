"""One optimiser step of a scheme: micro-batches forward and backward, the mean over workers, clipping, AdamW. Driven by
the loop and by calibration.

Knows one step; knows nothing of where batches come from, how many steps there are, or files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.adamw import adamw

from reco_tune.model import Decoder
from reco_tune.settings import Training
from reco_tune.training.compiling import no_way_back
from reco_tune.training.distributed import Group
from reco_tune.training.feed import MicroBatch
from reco_tune.training.numerics import numerics_of_a_step
from reco_tune.training.parameters import FlatParameters, Parameters, State
from reco_tune.training.schemes import Batch, Scheme


class OptimiserStep:
    """A scheme's model with its optimiser."""

    def __init__(self, scheme: Scheme, device: torch.device, group: Group = Group()) -> None:
        """Builds the scheme's model on the device."""
        training = scheme.experiment.training
        self.scheme, self.device, self._group = scheme, device, group
        self.model, self.parameters = _placed(scheme, device, group)
        self._moments = tuple([torch.zeros_like(own) for own in self.parameters.weights] for _ in range(2))
        self._steps = torch.zeros((), device=device)
        self._training = training
        share = group.share(training.batch_size // training.micro_batches)
        self._clips = share.stop - share.start
        self._autocast = training.precision == "bfloat16"
        tf32, deterministic = training.precision == "tf32", scheme.experiment.resources.deterministic
        self._numerics: Callable[[], AbstractContextManager[None]] = (
            partial(numerics_of_a_step, tf32, deterministic) if tf32 or deterministic else nullcontext
        )
        self._loss = scheme.compiled_loss(self.parameters) if training.compile else scheme.loss

    @property
    def fixed_bytes(self) -> int:
        """Bytes of weights, gradients of the trained ones, AdamW's two moments, and weights gathered from other
        workers.
        """
        own = sum(weights.numel() * weights.element_size() for weights in self.parameters.weights)
        return 4 * own + self.parameters.frozen_bytes + self.parameters.gathered_bytes

    def run(self, micro_batches: Sequence[MicroBatch], learning_rate: float) -> Tensor:
        """One step; returns [3] detached means over this rank's micro-batches: cross-entropy, continuity, norm. Never
        waits for a GPU.
        """
        torch._foreach_zero_(self.parameters.gradients)
        *earlier, last = micro_batches
        terms = [self.backward(micro_batch, len(micro_batches)) for micro_batch in earlier]
        with self.parameters.last_backward():
            terms.append(self.backward(last, len(micro_batches)))
        self.update(learning_rate)
        return terms[0] if len(terms) == 1 else torch.stack(terms).mean(dim=0)

    def backward(self, micro_batch: MicroBatch, parts: int = 1) -> Tensor:
        """Adds a micro-batch's gradient, times 1/parts. Returns its three terms."""
        batch = micro_batch.batch.moved(partial(Tensor.to, device=self.device, non_blocking=True))
        with no_way_back() if self._training.compile else nullcontext(), self._numerics():
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
                loss = self._loss(self.model, batch, micro_batch.span)
            (loss.total / parts).backward()
        return torch.stack([loss.cross_entropy.float(), loss.continuity.float(), loss.norm.float()])

    def warm_up(self) -> float:
        """Compiles what the spans of the run and its validation need, before any clock counts. Returns the wall-clock
        seconds.

        Nothing is trained: tokens are zeros, and the gradient is dropped.
        """
        if not self._training.compile:
            return 0.0
        began = time.perf_counter()
        shape = self.scheme.model_settings
        tokens_BT = torch.zeros(self._clips, shape.num_tokens, dtype=torch.int32)
        batch = Batch(tokens_BT, torch.zeros(shape.condition_shape(len(tokens_BT)), dtype=torch.int64))
        for span in self.scheme.kinds_of_spans():
            self.backward(MicroBatch(self.scheme.redrawn(batch, span), span))
        if isinstance(self.parameters, FlatParameters):  # a split model is validated by one that is whole
            with no_way_back(), torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, self._autocast):
                self.model(tokens_BT.to(self.device), batch.labels_B.to(self.device))
        torch._foreach_zero_(self.parameters.gradients)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def update(self, learning_rate: float) -> None:
        """Clips the gradient, then takes AdamW's step."""
        norm = self.parameters.gradient_norm()
        factor = (self._training.gradient_clip / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(self.parameters.gradients, factor)  # as clip_grad_norm_, in one kernel
        self._adamw(learning_rate)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimiser state (the live tensors), under the names of a checkpoint in one file."""
        frozen = {f"frozen.{name}": own for name, own in self.parameters.frozen.items()}
        own = self.scheme.state(self._clips, self.device)
        return {**{name: one for name, (one,) in self._states().items()}, **frozen, **own, "adamw.steps": self._steps}

    def tensors_by_parameter(self) -> dict[str, Tensor]:
        """The same, under the names of a checkpoint with one file per worker. Any number of workers can read it."""
        states = self._states().items()
        named = ((f"{key}.{name}", one) for key, own in states for name, one in self.parameters.by_name(own).items())
        frozen = {f"frozen.{name}": own for name, own in self.parameters.frozen.items()}
        return {**dict(named), **frozen, "adamw.steps": self._steps}

    def _states(self) -> dict[str, State]:
        first, second = self._moments
        return {"weights": self.parameters.weights, "adamw.first_moment": first, "adamw.second_moment": second}

    def activation_bytes(self, micro_batch: MicroBatch) -> int:
        """Bytes that the forward pass of a micro-batch keeps for its backward, each storage once, weights and inputs
        left out.

        A deterministic stand-in for peak memory where the allocator keeps no count (CPU); short-lived buffers are not
        in it. The gradient is left as it was.
        """
        known, beside = set[int](), 0

        def given(tensor: Tensor) -> Tensor:
            known.add(tensor.untyped_storage()._cdata)
            return tensor.to(self.device)

        batch = micro_batch.batch.moved(given)

        def compute() -> object:
            nonlocal beside
            eager = torch.compiler.set_stance("force_eager") if self._training.compile else nullcontext()
            with eager, torch.autocast(self.device.type, torch.bfloat16, self._autocast):
                held, beside = self.scheme.graph(self.model, batch, micro_batch.span)
            return held

        return kept_bytes(compute, lambda: known | self.parameters.storages()) + beside

    def _adamw(self, learning_rate: float) -> None:
        """torch's AdamW as a function. Its class imports the whole compiler, which takes three seconds and 90 MB of
        every worker.
        """
        first, second = self._moments
        counts = list(self._steps.repeat(len(first)))  # each weight counts for itself
        adamw(
            self.parameters.weights,
            self.parameters.gradients,
            first,
            second,
            [],
            counts,
            fused=True,
            amsgrad=False,
            beta1=self._training.beta1,
            beta2=self._training.beta2,
            lr=learning_rate,
            weight_decay=self._training.weight_decay,
            eps=1e-8,
            maximize=False,
        )
        self._steps += 1


def kept_bytes(compute: Callable[[], object], left_out: Callable[[], set[int]]) -> int:
    """Bytes of the storages that a computation keeps for its backward, each once; also of tensors without storage.

    Args:
        left_out: identities of storages that are not counted.
    """
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in left_out():
            seen[storage._cdata] = storage.nbytes()
        return tensor.detach()  # an output kept as it is would hold the node that keeps it: a cycle that nobody frees

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        held = compute()
    del held  # only now: a storage freed earlier could lend its identity to another
    return sum(seen.values())


def learning_rate_at(step: int, training: Training) -> float:
    """Learning rate of step 0, 1, ...: linear warm-up, then cosine to zero or constant."""
    warmup = training.warmup_steps or round(training.warmup_fraction * training.steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    if training.schedule == "constant":
        return training.learning_rate
    done = (step - warmup) / max(1, training.steps - warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _placed(scheme: Scheme, device: torch.device, group: Group) -> tuple[Decoder, Parameters]:
    """The scheme's model on the device, whole or split over the workers."""
    experiment, model = scheme.experiment, scheme.build_model()
    if experiment.resources.shard_state and group.size > 1:
        from reco_tune.training.sharding import ShardedParameters  # FSDP is a second of imports

        return model, ShardedParameters(model, group, device, half=experiment.training.precision == "bfloat16")
    model = model.to(device)
    return model, FlatParameters(model, group)
