"""How much memory each phase of a run takes, before anything is allocated: counted on tensors without storage.

The real code of step and validation runs on tensors that have a shape but no data. Every allocation and release is
counted, also in backward. For a GPU these are `meta` tensors, and stand-ins replace what autocast casts and what a
fused kernel keeps. For the CPU they are torch's fake tensors. Layers of the built-in transformer are alike, so two
depths are counted and the rest is extrapolated linearly. Compiled steps keep less, because a block recomputes what it
can.

Not counted: a GPU's context (`CONTEXT_BYTES`), tokenizers, and the networks of the evaluation. The last two run after
training.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reco_tune.cost.planning import Plan
from reco_tune.errors import SettingsError
from reco_tune.generation import RESERVED_BYTES, clips_that_fit, drawing_of
from reco_tune.model import Decoder
from reco_tune.model.build import BUILT_IN
from reco_tune.model.flops import parameter_count
from reco_tune.model.sampling import static_bytes_per_clip
from reco_tune.model.teacher_forcing import analysis_bytes, logits_of_clips
from reco_tune.settings import Experiment
from reco_tune.training.parameters import state_bytes
from reco_tune.training.schemes import Batch, Scheme, plan_scheme
from reco_tune.windows import WindowSpan

CONTEXT_BYTES = 2**30
"""Memory of a GPU that is not in tensors: CUDA itself, workspaces of its libraries, rounding by the allocator."""

MOST_SHARING = 64
"""The largest number of workers that `ways_out` suggests."""

COUNTED_DEPTHS = 2, 3
"""Depths of the models that are counted. From the second block on, each further block takes the same memory."""


class MemoryByPhase(NamedTuple):
    """Largest number of bytes in tensors of one worker, by phase of the run."""

    training: int
    """A step at its worst window: weights, gradients, moments, what the forward pass keeps, short-lived buffers."""
    validation: int
    generation: int
    """Bytes of one clip on a GPU, which takes as many clips as fit; of a whole sampling batch on the CPU."""
    analyses: int
    calibration: int
    """Two models, the baseline's and the arm's. One of them makes a step."""

    def largest(self) -> tuple[str, int]:
        """The largest phase and its bytes."""
        phase = max(self._fields, key=lambda field: getattr(self, field))
        return phase, getattr(self, phase)


def memory_by_phase(experiment: Experiment, baseline: Experiment) -> MemoryByPhase:
    """Memory of a worker that trains, validates, generates, analyses, and measures speed against the baseline."""
    scheme = plan_scheme(experiment)
    weights, state, training = parameter_count(scheme.model_settings), _state_bytes(experiment), _step_bytes(experiment)
    validated = 0 if scheme.trains_pieces else _extrapolated(experiment, None)
    whole = 4 * weights if _sharing(experiment) > 1 else 0  # validation and generation have a whole copy of the model
    calibration = state + training
    if experiment.step_settings() != baseline.step_settings():
        calibration = state + _state_bytes(baseline) + max(training, _step_bytes(baseline))
    return MemoryByPhase(
        training=state + training,
        validation=state + whole + validated,
        generation=state + whole + _generation_bytes(experiment, scheme, weights),
        analyses=4 * weights + analysis_bytes(scheme.model_settings) if experiment.evaluation.analyses else 0,
        calibration=calibration,
    )


def refuse_what_cannot_fit(plan: Plan, worker_bytes: float, name: str) -> None:
    """Refuses a plan if a worker has too little memory for a phase of an arm.

    Args:
        worker_bytes: bytes that a worker gets: of a GPU or, without one, of a machine's memory.
        name: name of this GPU or machine, for the message.

    Raises:
        SettingsError: if a phase of an arm does not fit.
    """
    on_gpu = plan.shared.device_type == "cuda"
    context, what = (CONTEXT_BYTES, "a GPU") if on_gpu else (0, "memory")
    for arm, experiment in plan.kinds.items():
        for phase, needed in memory_by_phase(experiment, plan.baseline)._asdict().items():
            if needed + context <= worker_bytes:
                continue
            raise SettingsError(
                f"arm `{arm}` needs {(needed + context) / 2**30:.1f} GiB of {what} for {_PHASES[phase]}, but a worker"
                f" on {name} gets {worker_bytes / 2**30:.1f};"
                f" {ways_out(experiment, plan.baseline, phase, worker_bytes - context)}"
            )


_PHASES = {
    "training": "a training step",
    "validation": "validation",
    "generation": "the cache of what it samples at once",
    "analyses": "its analyses",
    "calibration": "the two models of its calibration",
}


def ways_out(experiment: Experiment, baseline: Experiment, phase: str, worker_bytes: float) -> str:
    """Advice in words for a phase that does not fit. Names only what is not done already."""
    training, resources, on_gpu = experiment.training, experiment.resources, experiment.device_type == "cuda"
    stepping = phase in ("training", "calibration")
    ways = {
        "raise training.micro_batches": stepping or phase == "validation",
        "set training.activation_checkpointing": stepping and not training.activation_checkpointing,
        "set training.loss_chunk_tokens": stepping and training.loss_chunk_tokens is None,
        "shorten the clip": phase == "generation" and on_gpu,
        "lower sampling.batch_size": phase == "generation" and not on_gpu,
        "set evaluation.analyses to false": phase == "analyses",
        "raise resources.gpus_per_worker": on_gpu and resources.gpus_per_worker < 1,
        "lower resources.concurrent_trials": not on_gpu,
        _sharing_that_fits(experiment, baseline, worker_bytes): True,
        "shrink the model": True,
    }
    *several, last = (way for way, helps in ways.items() if way and helps)
    return f"{', '.join(several)} or {last}"


def _sharing_that_fits(experiment: Experiment, baseline: Experiment, worker_bytes: float) -> str:
    """Advice in words: how many workers must split the model's state so that all phases fit. Empty if more than
    `MOST_SHARING` would be needed.
    """
    training, resources = experiment.training, experiment.resources
    if resources.storage is not None or experiment.device_type == "cpu":  # on a CPU, workers share the machine's memory
        return ""
    for workers in range(resources.workers, MOST_SHARING + 1):
        if workers > _sharing(experiment) and training.batch_size % (training.micro_batches * workers) == 0:
            split = (_with(one, "resources", workers=workers, shard_state=True) for one in (experiment, baseline))
            if memory_by_phase(*split).largest()[1] <= worker_bytes:
                more = "" if workers == resources.workers else f" with resources.workers at {workers}"
                return f"set resources.shard_state to true{more}"
    return ""


def clips_sampled_at_once(experiment: Experiment, gpu_bytes: float) -> int:
    """Number of clips that a worker samples together once training is over, by formulas alone.

    Args:
        gpu_bytes: bytes of its GPU, or of its part of one.
    """
    settings = plan_scheme(experiment).model_settings
    return clips_that_fit(settings, experiment, gpu_bytes - CONTEXT_BYTES - 4 * parameter_count(settings))


def clips_of_a_step(experiment: Experiment) -> int:
    """Number of clips that a worker computes at once."""
    return experiment.training.batch_size // (experiment.training.micro_batches * experiment.resources.workers)


def _sharing(experiment: Experiment) -> int:
    """Number of workers that split a model's state."""
    return experiment.resources.workers if experiment.resources.shard_state else 1


def _state_bytes(experiment: Experiment) -> int:
    """Weights, gradients and moments on a worker, and the weights that it gathers from others."""
    half = experiment.training.precision == "bfloat16"
    return state_bytes(plan_scheme(experiment).model_settings, _sharing(experiment), half)


def _generation_bytes(experiment: Experiment, scheme: Scheme, weights: int) -> int:
    drawing, on_gpu = drawing_of(experiment), experiment.device_type == "cuda"
    bfloat16 = on_gpu and experiment.training.precision == "bfloat16"
    clip = static_bytes_per_clip(scheme.model_settings, drawing, bfloat16)
    return RESERVED_BYTES + 2 * weights * bfloat16 + clip if on_gpu else clip * experiment.sampling.batch_size


def _step_bytes(experiment: Experiment) -> int:
    """Bytes beside the state, at the worst window."""
    return max(_extrapolated(experiment, span) for span in largest_spans(experiment))


def largest_spans(experiment: Experiment) -> list[WindowSpan]:
    """Windows that may need most memory: for each length the longest prefix, and the longest one without prefix."""
    spans = plan_scheme(experiment).distribution()
    ends = {max(span for span in spans if span.length == length) for length in {span.length for span in spans}}
    longest = max(span.length for span in spans)
    return sorted({*ends, min(span for span in spans if span.length == longest)})


def _extrapolated(experiment: Experiment, span: WindowSpan | None) -> int:
    """Bytes of a step with that window, or of validation, at the experiment's own depth."""
    depth, (low, high) = experiment.model.depth, COUNTED_DEPTHS
    if depth <= high or experiment.model.kind != BUILT_IN:
        return peak_bytes(experiment, span).most
    few, more = (peak_bytes(_with(experiment, "model", depth=counted), span).most for counted in (low, high))
    return few + (depth - low) * (more - few)


def _with(experiment: Experiment, section: str, **changes: Any) -> Experiment:
    """The experiment without checks: its costs are counted, but it never runs."""
    return experiment.model_copy(update={section: getattr(experiment, section).model_copy(update=changes)})


class Counted(NamedTuple):
    """Bytes beside weights, gradients, moments and inputs."""

    kept: int
    """What a forward pass keeps for backward."""
    most: int
    """Largest number of bytes at once."""


_known: dict[Any, Counted] = {}


def peak_bytes(experiment: Experiment, span: WindowSpan | None) -> Counted:
    """Bytes of a micro-batch's forward and backward with this window, or of validation if None. Counts every layer."""
    scheme, clips = plan_scheme(_with(experiment, "training", compile=False)), max(1, clips_of_a_step(experiment))
    bfloat16, on_gpu = experiment.training.precision == "bfloat16", experiment.device_type == "cuda"
    gathered = bfloat16 and _sharing(experiment) > 1
    own = experiment.model.kind, str(experiment.model.options)
    key = own, type(scheme), scheme.model_settings, scheme.options, span, clips, bfloat16, on_gpu, gathered
    if key not in _known:
        with without_storage(on_gpu, bfloat16) as allocations:
            _known[key] = _count(scheme, span, clips, gathered, allocations)
    return _known[key]


def _count(scheme: Scheme, span: WindowSpan | None, clips: int, gathered: bool, allocations: Allocations) -> Counted:
    """
    Args:
        gathered: whether a worker gathers blocks in bfloat16, so that it keeps no casts of their weights.
    """
    model = _built(scheme)
    for layer in model.layers() if gathered else ():
        layer.to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    batch = Batch(
        torch.zeros(clips, scheme.model_settings.num_tokens, dtype=torch.int32),
        torch.zeros(scheme.model_settings.condition_shape(clips), dtype=torch.long),
    )
    draws = None if span is None else scheme.draws(clips, span, np.random.default_rng(0))
    if draws is not None:
        batch = batch._replace(draws=draws.moved(lambda own: torch.zeros(own.shape, dtype=own.dtype)))
    before = allocations.restart()
    if span is None:
        for logits, codes in islice(logits_of_clips(model, *batch.read), 3):  # the pieces that follow are alike
            F.cross_entropy(logits, codes, reduction="sum")
        return Counted(0, allocations.most - before)
    total = scheme.loss(model, batch, span).total
    kept = allocations.now - before
    # Modes intercept `total.backward()` and are off while it runs. Recomputed blocks would then run without them.
    one = torch.ones_like(total)
    torch.autograd.Variable._execution_engine.run_backward((total,), (one,), False, False, (), accumulate_grad=True)
    return Counted(kept, allocations.most - before)


def _built(scheme: Scheme) -> Decoder:
    """The scheme's model, with tensors of the kind that `without_storage` makes."""
    if scheme.experiment.model.kind == BUILT_IN:
        return scheme.build_model()
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    # Other decoders may move tensors while they are built, which fake tensors do not allow.
    with unset_fake_temporarily(), torch.device("meta"):
        model = scheme.build_model(start=False)
    for module in model.modules():
        held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for name, own in [(name, own) for tensors in held for name, own in tensors.items() if own is not None]:
            bare = torch.empty(own.shape, dtype=own.dtype)
            if name in module._parameters:
                module._parameters[name] = nn.Parameter(bare, requires_grad=own.requires_grad)
            else:
                module._buffers[name] = bare
    return model


@contextmanager
def without_storage(on_gpu: bool, bfloat16: bool) -> Iterator[Allocations]:
    """Inside, new tensors have no storage, and the bytes that they would take are counted."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    allocations = Allocations()
    if on_gpu:
        with torch.device("meta"), allocations, _LikeCuda(bfloat16):
            yield allocations
    else:
        with FakeTensorMode(), allocations, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            yield allocations


class Allocations(TorchDispatchMode):
    """Bytes of storages that operations allocate, until nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._held: dict[int, int] = {}

    def restart(self) -> int:
        """Resets the peak, and returns the bytes that are held now."""
        self.most = self.now
        return self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._held:
            self._held[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self._held.pop(key)


class _LikeCuda(TorchFunctionMode):
    """Imitates a GPU's autocast and fused attention on `meta` tensors, which have neither."""

    LOWER = (F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.mm)
    FLOAT32 = (F.cross_entropy, F.layer_norm, F.softmax, F.log_softmax)

    def __init__(self, bfloat16: bool) -> None:
        super().__init__()
        self._bfloat16 = bfloat16
        self._weights: dict[int, Tensor] = {}
        """Casts of weights with a gradient. Autocast keeps them until it ends."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return FusedAttention.apply(*args[:3])  # type: ignore[no-untyped-call]
        if self._bfloat16 and func in self.LOWER:
            args = [self._lowered(value) for value in args]
        elif self._bfloat16 and func in self.FLOAT32:
            args = [_raised(value) for value in args]
        return func(*args, **kwargs)

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not isinstance(value, torch.nn.Parameter) or not torch.is_grad_enabled():
            return value.to(torch.bfloat16)
        if id(value) not in self._weights:
            self._weights[id(value)] = value.to(torch.bfloat16)
        return self._weights[id(value)]


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


class FusedAttention(torch.autograd.Function):
    """Shapes of an attention that keeps queries, keys, values, output and log-sum-exp, but no square of scores."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        output = torch.empty_like(queries.transpose(1, 2).contiguous()).transpose(1, 2)
        sums = queries.new_empty(queries.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(queries, keys, values, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        queries, keys, values, *_ = ctx.saved_tensors
        return torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)
