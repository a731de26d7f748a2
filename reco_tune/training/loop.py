"""The one training loop of all arms: steps, rungs, the cost ledger, resumption. Never hears of Ray or MLflow.

A run is cut into `training.rungs` equal parts. At the end of each it validates, writes checkpoint and history, and
reports. Between them it writes a checkpoint every `training.checkpoint_minutes`, and when it is asked to leave: it may
have minutes to do so where a rung lasts an hour. A run that is called again on its folder goes on from the newest
checkpoint and ends in the same bits as one that was never interrupted. What else is to be known at a rung, a plain
callable measures; the run goes on as if nobody had looked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from reco_tune import quantities as q
from reco_tune.data.token_cache import TokenCache
from reco_tune.device import peak_bytes, reset_peak_bytes
from reco_tune.errors import CheckpointError, DataError, RunFailedError
from reco_tune.model import Decoder
from reco_tune.model.flops import parameter_count
from reco_tune.model.teacher_forcing import logits_of_clips
from reco_tune.progress import Progress, quiet
from reco_tune.settings import WHERE, Experiment, pinned_experiment
from reco_tune.training.checkpoint import (
    BEST,
    CacheInfo,
    Checkpoint,
    History,
    check_same_training,
    read_checkpoint,
    restore,
    restore_shards,
    save_model,
    take_best,
    write_checkpoint,
    write_history,
    write_shards,
)
from reco_tune.training.distributed import Group, prepare_device
from reco_tune.training.feed import Feed, FeedAhead, held_out
from reco_tune.training.schemes import build_scheme
from reco_tune.training.step import OptimiserStep, learning_rate_at
from reco_tune.windows import WindowSpan

Report = Callable[[int, dict[str, float]], bool]
"""Called with (step, metrics) at the end of a rung. True stops the run there."""


Leave = Callable[[], bool]
"""Called on rank 0 between steps. True stops the run there, with a checkpoint."""
Saved = Callable[[int], None]
"""Called on rank 0 with the step of a checkpoint that is on disk between two rungs."""


class RungMeasurement(NamedTuple):
    """The result of `measure` at a rung."""

    metrics: dict[str, float] = {}
    """Metrics of this rung, by their names in `quantities`."""
    seconds: dict[str, float] = {}
    """Device seconds of the measurement, by their names in `quantities`. They add up over the run."""


Measure = Callable[[int, Decoder], RungMeasurement]
"""Called with (step, model) on all ranks at the end of a rung. It must leave the model and all random states unchanged.
"""

STEPS_BETWEEN_LOOKS = 20
"""Number of steps after which losses are read, checked and shown. Reading makes a GPU wait, so it is not done every
step.
"""

STEP_COLUMNS = (q.TRAIN_CROSS_ENTROPY.name, q.CONTINUITY.name, q.HIDDEN_NORM.name)


@dataclass(frozen=True)
class FitResult:
    """The outcome of `fit`: a finished or stopped run."""

    model: Decoder
    """The model with the weights that `evaluation.checkpoint` names, if the run has done all its steps."""
    steps: int
    """Optimiser steps done."""
    metrics: dict[str, float]
    """Metrics of the last rung."""
    stopped: bool
    """Whether `report` or `leave` ended the run before its last step."""


def keep_going(step: int, metrics: dict[str, float]) -> bool:
    """A `report` that never stops the run."""
    return False


def stay() -> bool:
    """A `leave` that never stops the run."""
    return False


def tell_nobody(step: int) -> None:
    """A `saved` that does nothing."""


def measure_nothing(step: int, model: Decoder) -> RungMeasurement:
    """A `measure` that measures nothing."""
    return RungMeasurement()


def fit(
    experiment: Experiment,
    cache: TokenCache,
    folder: Path,
    report: Report = keep_going,
    progress: Progress = quiet,
    group: Group = Group(),
    measure: Measure = measure_nothing,
    leave: Leave = stay,
    saved: Saved = tell_nobody,
) -> FitResult:
    """Trains one run in its folder, or continues it.

    The metrics of a rung are names of `quantities`: means of the losses since the rung before, `val_cross_entropy`
    (full-sequence, teacher-forced, over held-out clips), what `measure` has found, and the cost ledger since the start
    of the run. The fewer-frames schemes have no `val_cross_entropy`: their models cannot see a whole clip, and a loss
    on pieces would not compare with it.

    `report` is called on rank 0 when everything of the rung is on disk. A run that resumes from a rung calls it again
    for that rung, because the first report may have been lost. What was measured there is in the checkpoint and is not
    measured again. A run that resumes between rungs repeats no report.

    Raises:
        RunFailedError: if the loss is no longer finite.
        CheckpointError: if the folder's checkpoint is damaged or was trained with other settings.
        DataError: if the cache does not have what the scheme trains on.
    """
    experiment = pinned_experiment(experiment)
    run = _Run(experiment, cache, folder, group, progress)
    steps = experiment.training.steps
    rung_ends = rung_steps(steps, experiment.training.rungs)
    stop = False
    if run.step in rung_ends:
        stop = run.report(report)
    for rung_end in rung_ends:
        if rung_end <= run.step or stop:
            continue
        stop = run.train_until(rung_end, leave, saved)
        if not stop:
            run.close_rung(measure)
            stop = run.report(report)
    model = run.whole_model()
    if run.step == steps and group.leads:
        save_model(folder / "model", model, experiment, CacheInfo.of(cache, experiment), run.step)
    group.barrier()
    if run.step == steps and experiment.evaluation.checkpoint == "best":
        take_best(model, folder, group)
        run.metrics[q.VAL_CROSS_ENTROPY.name] = run.lowest_validation
    model.zero_grad(set_to_none=True)  # a view of all gradients, which would outlive the optimiser
    model.run_eagerly()
    return FitResult(model, run.step, dict(run.metrics), stopped=run.step < steps)


def rung_steps(steps: int, rungs: int) -> list[int]:
    """Steps at which rungs end: ceil(i · steps / rungs), each once."""
    return sorted({-(-i * steps // rungs) for i in range(1, rungs + 1)})


@dataclass
class Ledger:
    """The cost of a run so far, without interruptions, as JSON values."""

    tokens_seen: int = 0
    loss_tokens: int = 0
    trained_parameters: int = 0
    training_flops: int = 0
    backward_flops: int = 0
    """The backward part of the FLOPs."""
    training_seconds: float = 0.0
    """Device seconds: wall-clock of steps, validation and checkpoints, times workers. Waiting in `report` does not
    count.
    """
    compile_seconds: float = 0.0
    """Device seconds of `torch.compile`. No other entry includes them."""
    step_seconds: float = 0.0
    """Wall-clock of steps alone."""
    wait_seconds: float = 0.0
    """Wall-clock seconds spent in making batches."""
    measuring_seconds: dict[str, float] = field(default_factory=dict)
    """Device seconds of `measure`, by their names in `quantities`."""
    peak_memory_bytes: int = 0
    """Of one worker. CUDA: the allocator's peak. CPU, whose allocator keeps no count: weights, gradients, AdamW's
    moments and what the largest micro-batch keeps for its backward; short-lived buffers and the libraries themselves
    are not in it.
    """

    def metrics(self) -> dict[str, float]:
        return {
            q.TOKENS_SEEN.name: float(self.tokens_seen),
            q.LOSS_TOKENS.name: float(self.loss_tokens),
            q.TRAINED_PARAMETERS.name: float(self.trained_parameters),
            q.TRAINING_FLOPS.name: float(self.training_flops),
            q.FORWARD_FLOPS.name: float(self.training_flops - self.backward_flops),
            q.BACKWARD_FLOPS.name: float(self.backward_flops),
            q.TRAINING_SECONDS.name: self.training_seconds,
            q.TOKENS_PER_SECOND.name: self.tokens_seen / max(self.step_seconds, 1e-9),
            q.DATA_WAIT_SHARE.name: self.wait_seconds / max(self.step_seconds, 1e-9),
            q.PEAK_MEMORY_BYTES.name: float(self.peak_memory_bytes),
            **({q.COMPILE_SECONDS.name: self.compile_seconds} if self.compile_seconds else {}),
            **self.measuring_seconds,
        }


class _Run:
    """The state of a run between two calls."""

    def __init__(
        self, experiment: Experiment, cache: TokenCache, folder: Path, group: Group, progress: Progress
    ) -> None:
        self._training, self._folder, self._group, self._progress = experiment.training, folder, group, progress
        self._cache, self._clips = CacheInfo.of(cache, experiment), len(cache.tokens("train"))
        self._device = prepare_device(experiment)
        self._scheme = build_scheme(experiment, cache)
        feed = Feed(self._scheme, cache, group)
        self._feed = feed if self._device.type == "cpu" else FeedAhead(feed, self._device)
        self._optimiser = OptimiserStep(self._scheme, self._device, group)
        self._validation = (
            None
            if self._scheme.trains_pieces
            else held_out(self._scheme, cache, experiment.evaluation.validation_clips)
        )
        if self._validation is not None and not len(self._validation.labels_B):
            raise DataError(f"the token cache {cache.path} has no held-out clips; check data.split and data.test_clips")
        self._sharded = experiment.resources.shard_state and group.size > 1
        self._identity = {**_training_settings(experiment), "token cache": cache.fingerprint}
        if experiment.model.condition == "text":
            self._identity["captions"] = cache.captions(experiment.captions_name).fingerprint
        self._ledger = Ledger()
        self._largest_start: dict[str, int] = {}
        """By window length (as text, for JSON)."""
        self._history: History = {
            name: [] for name in ("step", *STEP_COLUMNS, q.LEARNING_RATE.name, q.VAL_CROSS_ENTROPY.name)
        }
        self.step = 0
        self.metrics: dict[str, float] = {}
        self._saved_at = time.monotonic()
        self._resume()
        shape = self._scheme.model_settings
        self._ledger.trained_parameters = parameter_count(shape) - shape.frozen_parameters
        if self.step < self._training.steps:
            self._ledger.compile_seconds += self._optimiser.warm_up() * group.size

    def whole_model(self) -> Decoder:
        """The model with all weights, even if each worker has a part of them. All ranks call it."""
        return self._optimiser.parameters.whole_model()

    def train_until(self, end: int, leave: Leave, saved: Saved) -> bool:
        """Optimiser steps up to `end`; their memory alone is the run's peak, not that of what happens between rungs.

        Returns:
            Whether it was asked to leave before, on all ranks alike; then a checkpoint is on disk.
        """
        reset_peak_bytes(self._device)
        leaving = False
        while self.step < end and not leaving:
            leaving, due = self._train_some(min(end, self.step + STEPS_BETWEEN_LOOKS), leave)
            self._ledger.peak_memory_bytes = max(self._ledger.peak_memory_bytes, peak_bytes(self._device))
            if (leaving or due) and self.step < end:
                began = time.perf_counter()
                self._write()
                self._ledger.training_seconds += (time.perf_counter() - began) * self._group.size
                if self._group.leads:
                    saved(self.step)
        return self.step < end

    def close_rung(self, measure: Measure) -> None:
        """Measures, validates, and writes history and checkpoint."""
        model = self.whole_model()
        found = self._found_by(measure, model)
        began = time.perf_counter()
        last = self._rung_means() | found
        if self._validation is not None:
            lowest, loss = self.lowest_validation, self._validate(model)
            last[q.VAL_CROSS_ENTROPY.name] = self._history[q.VAL_CROSS_ENTROPY.name][-1] = loss
            if self._training.keep_best and loss < lowest and self._group.leads:
                save_model(self._folder / BEST, model, self._scheme.experiment, self._cache, self.step)
        del model  # a copy of its own where workers have parts
        self.metrics = {q.STEPS.name: float(self.step), q.PASSES.name: self._passes, **last}
        self._write()
        self._ledger.training_seconds += (time.perf_counter() - began) * self._group.size
        self.metrics.update(self._ledger.metrics())

    @property
    def lowest_validation(self) -> float:
        """Metrics of all rungs so far."""
        losses = self._history[q.VAL_CROSS_ENTROPY.name]
        return min((known for known in losses if known is not None), default=float("inf"))

    @property
    def _passes(self) -> float:
        """Clips drawn so far, divided by the number of clips. A stale prefix reads a batch for several steps."""
        batches = self.step / self._scheme.steps_of_a_batch
        return batches * self._training.batch_size / self._clips

    def report(self, report: Report) -> bool:
        """Rank 0's answer, on all ranks."""
        stop = report(self.step, dict(self.metrics)) if self._group.leads else False
        return self._group.broadcast_json(bool(stop))

    def _train_some(self, end: int, leave: Leave) -> tuple[bool, bool]:
        """A few steps without waiting for the device, then a look at their losses.

        Returns:
            Whether to leave and whether a checkpoint is due, as rank 0 says.
        """
        began, first, losses = time.perf_counter(), self.step, []
        while self.step < end:
            micro_batches = []
            for _ in range(self._training.micro_batches):
                waited = time.perf_counter()
                micro_batches.append(self._feed.next())
                self._ledger.wait_seconds += time.perf_counter() - waited
                self._book(micro_batches[-1].span)
            if self._device.type == "cpu":
                self._measure_memory(micro_batches)
            losses.append(self._optimiser.run(micro_batches, learning_rate_at(self.step, self._training)))
            self.step += 1
        wishes = torch.zeros_like(losses[0])  # they travel with the losses
        if self._group.leads:
            wishes[0] = leave()
            wishes[1] = time.monotonic() - self._saved_at >= 60 * self._training.checkpoint_minutes
        *rows, (leaving, due, *_) = self._group.mean_(
            torch.stack([*losses, wishes])
        ).tolist()  # here, and only here, the device is waited for
        seconds = time.perf_counter() - began
        self._ledger.step_seconds += seconds
        self._ledger.training_seconds += seconds * self._group.size
        for offset, row in enumerate(rows):
            self._record(first + offset, row)
        self._progress(self.step, self._training.steps, f"cross-entropy {rows[-1][0]:.3f}")
        return leaving > 0, due > 0

    def _record(self, step: int, row: list[float]) -> None:
        """Adds one step (counted from 0; the history counts steps done) to the history."""
        if not all(abs(value) < float("inf") for value in row):  # false for NaN too
            raise RunFailedError(
                f"the loss of this {self._scheme.name} run was {row[0]:g} (continuity {row[1]:g}) at step"
                f" {step + 1}; "
                f"lower training.learning_rate ({self._training.learning_rate:g}) or objective.continuity_weight, "
                "or lengthen training.warmup_steps"
            )
        values = (*row, learning_rate_at(step, self._training), None)
        for name, value in zip(self._history, (step + 1, *values), strict=True):
            self._history[name].append(value)

    def _book(self, span: WindowSpan) -> None:
        clips = self._feed.clips_per_micro_batch
        self._ledger.tokens_seen += clips * self._scheme.tokens_seen(span)
        self._ledger.loss_tokens += clips * self._scheme.tokens_predicted(span)
        self._ledger.training_flops += clips * self._scheme.flops(span)
        self._ledger.backward_flops += clips * self._scheme.backward_flops(span)

    def _measure_memory(self, micro_batches: list[Any]) -> None:
        """Measures memory if a start lies further back than all earlier ones of that length, because the longest
        prefix keeps the most.
        """
        for micro_batch in micro_batches:
            start, length = micro_batch.span
            if start > self._largest_start.get(str(length), -1):
                self._largest_start[str(length)] = start
                needed = self._optimiser.fixed_bytes + self._optimiser.activation_bytes(micro_batch)
                self._ledger.peak_memory_bytes = max(self._ledger.peak_memory_bytes, needed)

    def _rung_means(self) -> dict[str, float]:
        """Means of the losses since the last rung, and the current learning rate."""
        done = [end for end in rung_steps(self._training.steps, self._training.rungs) if end < self.step]
        since = done[-1] if done else 0
        means = {
            name: sum(v for v in self._history[name][since:] if v is not None) / (self.step - since)
            for name in STEP_COLUMNS
        }
        return {**means, q.LEARNING_RATE.name: learning_rate_at(self.step - 1, self._training)}

    def _found_by(self, measure: Measure, model: Decoder) -> dict[str, float]:
        """Runs `measure`. Its seconds are booked under its own names."""
        found = measure(self.step, model)
        spent = self._ledger.measuring_seconds
        spent.update({name: spent.get(name, 0.0) + seconds for name, seconds in found.seconds.items()})
        return found.metrics

    @torch.no_grad()
    def _validate(self, model: Decoder) -> float:
        """Full-sequence cross-entropy in nats per token over the held-out clips, spread over the ranks."""
        assert self._validation is not None
        tokens, labels = self._validation.read
        mine = self._group.share(len(labels))
        tokens_BT, labels_B = tokens[mine].to(self._device), labels[mine].to(self._device)
        at_once = max(1, self._feed.clips_per_micro_batch // self._group.size)
        total = torch.zeros(2, dtype=torch.float64)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._training.precision == "bfloat16"):
            for part, label in zip(tokens_BT.split(at_once), labels_B.split(at_once), strict=True):
                for logits, codes in logits_of_clips(model, part, label):
                    total[0] += float(F.cross_entropy(logits, codes, reduction="sum"))
                total[1] += part.numel()
        self._group.sum_(total)
        return float(total[0] / total[1])

    def _write(self) -> None:
        state = {
            "training": self._identity,
            "feed": self._feed.state_dict(),
            "ledger": asdict(self._ledger),
            "largest_start": self._largest_start,
            "metrics": {**self.metrics, **self._ledger.metrics()},
        }
        if self._sharded:
            told = Checkpoint(self.step, {}, state, self._history)
            write_shards(self._folder, told, self._optimiser.tensors_by_parameter(), self._group)
        elif self._group.leads:
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in self._optimiser.tensors().items()}
            write_checkpoint(self._folder, Checkpoint(self.step, tensors, state, self._history))
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        """Continues from the folder's checkpoint, which rank 0 alone reads, but for a state that is split: other ranks
        may run on a machine without that folder.
        """
        found = read_checkpoint(self._folder) if self._group.leads else None
        if found is not None:
            check_same_training(found.state["training"], self._identity, self._folder)
        told = self._group.broadcast_json((found.step, found.state, found.history, found.shards) if found else None)
        if told is None:
            return
        self.step, state, self._history, shards = told
        self._restore(found, shards)
        if self._group.leads:
            write_history(self._folder / "history.parquet", self._history)  # it may tell of steps after the checkpoint
        self._feed.load_state_dict(state["feed"])
        self._ledger, self._largest_start = Ledger(**state["ledger"]), state["largest_start"]
        self.metrics = dict(state["metrics"])

    def _restore(self, found: Checkpoint | None, shards: str | None) -> None:
        """Loads the weights and the optimiser state that rank 0 has found, on all ranks."""
        optimiser = self._optimiser
        if self._sharded:
            if shards is None:
                raise CheckpointError(
                    f"the checkpoint in {self._folder} was written without resources.shard_state; set it to false, or"
                    " give another output folder"
                )
            restore_shards(self._folder, shards, optimiser.tensors_by_parameter(), self._group)
            return
        if shards is not None and self._group.leads:
            restore_shards(self._folder, shards, optimiser.tensors_by_parameter(), Group())
        elif found is not None:
            restore(found, optimiser.tensors(), self._folder)
        for tensor in optimiser.tensors().values():
            self._group.broadcast_(tensor)


def _training_settings(experiment: Experiment) -> dict[str, Any]:
    """The settings that weights depend on, by dotted key."""
    ignored = (*WHERE, "sampling.", "evaluation.")
    kept = {key: value for key, value in experiment.flat().items() if not key.startswith(ignored)}
    return {**kept, "evaluation.validation_clips": experiment.evaluation.validation_clips}
