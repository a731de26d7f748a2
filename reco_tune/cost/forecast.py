"""What a study will cost, before anything starts: runs, steps, device time and disk.

Works in FLOPs, bytes, and the device's rates of both, measured or given. Arms are assumed to reach their FLOP limit.
Compute budgets assume the same until the arms are calibrated. Knows settings and arithmetic. Reads no data and trains
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from reco_tune.cost.planning import Plan, PlannedRun, sampled_name
from reco_tune.cost.rates import Rates, measure_rates, seconds_per_clip
from reco_tune.model.flops import forward_flops, parameter_count
from reco_tune.pareto import deciding_rungs
from reco_tune.quantities import VAL_CROSS_ENTROPY
from reco_tune.settings import BASELINE, RUNG_CLIPS, SEARCH, TUNE, Experiment, Pruning
from reco_tune.training.schemes import plan_scheme

CHECKPOINT_COPIES = 7
"""Disk that a run takes, in units of its weights: weights and two moments in a checkpoint, the same in the checkpoint
that replaces it, and the trained model.
"""

_HISTORY_BYTES_PER_STEP = 6 * 8


class RunForecast(NamedTuple):
    """Forecast for one run."""

    trial: str
    """Name of the run: `reco-equal_steps-s0`, `search-0000`."""
    arm: str
    budget: str
    seed: int
    steps: int
    training_flops: float
    """Steps and validations, over all workers."""
    device_seconds: float
    """Time of training, validation, calibration (at most) and sampling for the evaluation and at rungs, over all
    workers.
    """
    disk_bytes: int
    """Largest size during the run."""


@dataclass(frozen=True)
class Forecast:
    """A plan in numbers."""

    runs: list[RunForecast]
    """The runs that tune the arms, then the other fixed runs, then the sampled runs."""
    rates: Rates
    """Of one worker's device."""

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
        """Elapsed time if `concurrent_runs` runs, of `workers` workers each, go on at once. Start-up is not included.
        The time is at least that of the longest run.
        """
        longest = max((run.device_seconds for run in self.runs), default=0.0)
        return max(self.device_seconds / concurrent_runs, longest) / workers


def forecast(plan: Plan, rates: Rates | None = None) -> Forecast:
    """The cost of a study that runs this plan.

    Args:
        rates: of one worker's device; if None, they are measured on this machine in about a second.
    """
    rates = rates or measure_rates(plan.baseline)
    runs, calibrated = [], {BASELINE}
    for run in plan.fixed:
        tuning = plan.space.tune if run.budget == TUNE else None
        judged = plan.space.pruning.arms or tuning is not None
        clips = _rung_clips(plan.space.pruning, run.experiment) if judged else 0
        evaluated = tuning is None or tuning.metric != VAL_CROSS_ENTROPY.name
        runs.append(_run(run, rates, run.arm not in calibrated, clips, evaluated))
        calibrated.add(run.arm)
    if plan.sampled is not None:  # the search varies settings around these
        one = PlannedRun(SEARCH, SEARCH, "equal_steps", plan.space.sampler.seed, plan.sampled)
        cost = _run(one, rates, calibrated=True, rung_clips=_rung_clips(plan.space.pruning, plan.sampled))
        runs += [cost._replace(trial=sampled_name(number)) for number in range(plan.trials)]
    return Forecast(runs, rates)


def forecast_run(experiment: Experiment, rates: Rates) -> RunForecast:
    """Cost of one run with these settings, without its calibration."""
    return _run(PlannedRun("", "", "", experiment.training.seed, experiment), rates, calibrated=False)


def _run(run: PlannedRun, rates: Rates, calibrated: bool, rung_clips: int = 0, evaluated: bool = True) -> RunForecast:
    """
    Args:
        calibrated: whether the run pays for the calibration of its settings.
        rung_clips: number of clips that are generated before the evaluation.
        evaluated: whether it generates clips at its end.
    """
    experiment, steps = run.experiment, run.steps
    scheme, training, evaluation = plan_scheme(experiment), experiment.training, experiment.evaluation
    per_clip = scheme.expected_flops()
    whole = replace(scheme.model_settings, num_tokens=experiment.grid.num_tokens)
    one_clip = forward_flops(whole, 0, whole.num_tokens)
    validated = 0 if scheme.trains_pieces else training.rungs * evaluation.validation_clips
    flops = steps * training.batch_size * per_clip + validated * one_clip
    clips = rung_clips + evaluated * evaluation.samples * evaluation.sampling_seeds
    sampled = clips * seconds_per_clip(experiment, rates)
    calibration = experiment.resources.calibration_seconds if calibrated else 0.0
    copies = CHECKPOINT_COPIES + training.keep_best
    disk = copies * 4 * parameter_count(scheme.model_settings) + 2 * steps * _HISTORY_BYTES_PER_STEP
    seconds = flops / rates.flops_per_second + sampled + calibration
    return RunForecast(run.trial, run.arm, run.budget, run.seed, steps, flops, seconds, disk)


def _rung_clips(pruning: Pruning, experiment: Experiment) -> int:
    """Clips that a run which may be pruned generates before its evaluation, if it is never pruned."""
    if not pruning.generates_clips:
        return 0
    deciding = deciding_rungs(experiment.training.rungs, pruning.grace_rungs, pruning.reduction_factor)
    return len(deciding) * min(RUNG_CLIPS, experiment.evaluation.samples)
