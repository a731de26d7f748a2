"""What a study will cost, before anything of it starts: runs, steps, device time and disk.

Works in FLOPs and one measured (or given) rate of the device; arms are assumed to reach their FLOP limit, which is what
compute budgets give steps by until their calibration is known. Knows settings and arithmetic; reads no data, trains
nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from reco_tune.cost.planning import Plan, PlannedRun, sampled_name
from reco_tune.model import ModelSettings, VideoTransformer
from reco_tune.model.flops import forward_flops, step_flops
from reco_tune.pareto import deciding_rungs
from reco_tune.settings import BASELINE, RUNG_CLIPS, SEARCH, Experiment, Pruning
from reco_tune.training.distributed import prepare_device
from reco_tune.training.parameters import state_bytes
from reco_tune.training.schemes import plan_scheme

GENERATION_RATE = 0.4
"""Rate of cached sampling relative to that of training steps (0.46 on a CPU with 128 clips at once; small GPU batches
are worse).
"""

CHECKPOINT_COPIES = 7
"""Times the weights that a run takes on disk: they and two moments in a checkpoint, in the one that replaces it, and
the trained model.
"""

PROBE_FLOPS = 4e9
"""Size of the step that measures the rate: a tenth of a second on one CPU core."""

_HISTORY_BYTES_PER_STEP = 6 * 8


class RunForecast(NamedTuple):
    """One run."""

    trial: str
    """Name of the run: `reco-equal_steps-s0`, `search-0000`."""
    arm: str
    budget: str
    seed: int
    steps: int
    training_flops: float
    """Steps and validations, over all workers."""
    device_seconds: float
    """Training, validation, calibration's bound and sampling for the evaluation and at rungs, over all workers."""
    disk_bytes: int
    """At its fullest."""


@dataclass(frozen=True)
class Forecast:
    """A plan in numbers."""

    runs: list[RunForecast]
    """The fixed runs, then every sampled one."""
    flops_per_second: float
    """Rate of one worker."""

    @property
    def steps(self) -> int:
        return sum(run.steps for run in self.runs)

    @property
    def device_seconds(self) -> float:
        """Worker seconds of all runs."""
        return sum(run.device_seconds for run in self.runs)

    @property
    def disk_bytes(self) -> int:
        return sum(run.disk_bytes for run in self.runs)

    def wall_seconds(self, concurrent_runs: int, workers: int = 1) -> float:
        """Elapsed time where so many runs of so many workers go on at once, start-up left out; not below the longest
        run.
        """
        longest = max((run.device_seconds for run in self.runs), default=0.0)
        return max(self.device_seconds / concurrent_runs, longest) / workers


def forecast(plan: Plan, flops_per_second: float | None = None) -> Forecast:
    """What a study costs that runs this plan.

    Args:
        flops_per_second: of one worker on the step's own FLOPs; measured on this machine in about a second where None.
    """
    rate = flops_per_second or measure_flops_per_second(plan.baseline)
    runs, calibrated = [], {BASELINE}
    for run in plan.runs:
        runs.append(_run(run, rate, run.arm not in calibrated))
        calibrated.add(run.arm)
    if plan.sampled is not None:  # ranges of the search vary around these settings
        one = PlannedRun(SEARCH, SEARCH, "equal_steps", plan.space.sampler.seed, plan.sampled)
        cost = _run(one, rate, calibrated=True, rung_clips=_rung_clips(plan.space.pruning, plan.sampled))
        runs += [cost._replace(trial=sampled_name(number)) for number in range(plan.trials)]
    return Forecast(runs, rate)


def measure_flops_per_second(experiment: Experiment) -> float:
    """Rate of forward and backward on this process' device, of a model of the same width that is cut down to a fraction
    of a second.
    """
    device = prepare_device(experiment)
    shape = replace(plan_scheme(experiment).model_settings, depth=min(experiment.model.depth, 2))
    while step_flops(shape, 0, shape.num_tokens) > PROBE_FLOPS and shape.num_tokens > 32:
        shape = replace(shape, num_tokens=shape.num_tokens // 2)
    flops = step_flops(shape, 0, shape.num_tokens)
    batch = max(1, min(experiment.training.batch_size, int(PROBE_FLOPS / flops)))
    model = VideoTransformer(shape.num_codes, shape.num_tokens, 1, shape.width, shape.depth, shape.heads).to(device)
    tokens_BT = torch.zeros(batch, shape.num_tokens, dtype=torch.int32, device=device)
    labels_B = torch.zeros(batch, dtype=torch.long, device=device)
    best = float("inf")
    for _ in range(4):  # the first is slow, and a neighbour may take the core: the best counts
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=experiment.training.precision == "bfloat16"):
            logits = model(tokens_BT, labels_B)
        logits.float().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return batch * flops / best


def parameter_count(settings: ModelSettings) -> int:
    """Weights of a model of this shape."""
    width = settings.width
    embeddings = (settings.num_codes + settings.num_classes + 1 + settings.num_tokens) * width
    return embeddings + settings.depth * (12 * width**2 + 2 * width) + width + settings.num_codes * width


def least_memory(experiment: Experiment) -> int:
    """Bytes below which no training step of a worker can stay: the optimiser's state, and each block's input for every
    token.
    """
    settings, training = plan_scheme(experiment).model_settings, experiment.training
    clips = training.batch_size // (training.micro_batches * experiment.resources.workers)
    assert experiment.window.length_tokens is not None
    tokens = clips * min(experiment.window.length_tokens, settings.num_tokens)
    half = training.precision == "bfloat16"
    activation = 2 if half else 4
    sharing = experiment.resources.workers if experiment.resources.shard_state else 1
    return state_bytes(settings, sharing, half) + activation * tokens * settings.depth * settings.width


def _run(run: PlannedRun, rate: float, calibrated: bool, rung_clips: int = 0) -> RunForecast:
    """
    Args:
        calibrated: whether the run pays for the calibration of its settings.
        rung_clips: generated before the evaluation.
    """
    experiment, steps = run.experiment, run.steps
    scheme, training, evaluation = plan_scheme(experiment), experiment.training, experiment.evaluation
    per_clip = scheme.expected_flops()
    whole = replace(scheme.model_settings, num_tokens=experiment.grid.num_tokens)
    one_clip = forward_flops(whole, 0, whole.num_tokens)
    validated = 0 if scheme.trains_pieces else training.rungs * evaluation.validation_clips
    flops = steps * training.batch_size * per_clip + validated * one_clip
    sampled = (evaluation.samples * evaluation.sampling_seeds + rung_clips) * one_clip / GENERATION_RATE
    calibration = experiment.resources.calibration_seconds if calibrated else 0.0
    disk = CHECKPOINT_COPIES * 4 * parameter_count(scheme.model_settings) + 2 * steps * _HISTORY_BYTES_PER_STEP
    seconds = (flops + sampled) / rate + calibration
    return RunForecast(run.trial, run.arm, run.budget, run.seed, steps, flops, seconds, disk)


def _rung_clips(pruning: Pruning, sampled: Experiment) -> int:
    """Clips that a sampled run generates before its evaluation, where it is never pruned."""
    if not pruning.generates_clips:
        return 0
    deciding = deciding_rungs(sampled.training.rungs, pruning.grace_rungs, pruning.reduction_factor)
    return len(deciding) * min(RUNG_CLIPS, sampled.evaluation.samples)
