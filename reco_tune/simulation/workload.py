"""Durations and results of simulated runs. Durations come from the forecast or from a recorded study; quality comes
from a random surface or from the recorded study.

Knows settings, costs and the records of a study, not clusters or faults. The surface is plausible, not realistic. It
exercises the search, the pruning and the frontier, and says nothing about video models.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from reco_tune import quantities as q
from reco_tune.cost import Plan, Rates, estimated_speedup, forecast_run
from reco_tune.errors import StudyError
from reco_tune.settings import BASELINE, SEARCH, Experiment, Range
from reco_tune.study_log import RunRecord, StudyRecord

REACHED = 0.95
"""Speed of a simulated arm as a share of its FLOP limit."""
NOISE = 0.08
"""Standard deviation of the logarithm of a simulated quality, caused by the training seed."""


@dataclass(frozen=True)
class RunTimes:
    """Seconds of a run on its worker group."""

    calibration: float
    step: float
    """Seconds of one optimiser step, with its share of validation."""
    evaluation: float

    def whole(self, experiment: Experiment) -> float:
        """Seconds of a whole run with these settings, from calibration to evaluation."""
        return self.calibration + experiment.training.steps * self.step + self.evaluation


class Workload:
    """The workload of one study. The same run always gets the same answers, so that a resumed study sees what the
    killed one saw.
    """

    def __init__(self, plan: Plan, rates: Rates, seed: int, recorded: StudyRecord | None = None) -> None:
        """
        Args:
            recorded: a study whose speeds and qualities are used instead of simulated ones.

        Raises:
            StudyError: if none of its runs was evaluated.
        """
        self._plan, self._rates, self._seed = plan, rates, seed
        self._recorded = [run for run in recorded.runs.values() if run.state == "evaluated"] if recorded else []
        if recorded is not None and not self._recorded:
            raise StudyError(f"the study {recorded.name} has no evaluated run, so it cannot serve as a record of times")
        self._times: dict[str, RunTimes] = {}

    def times(self, trial: str, experiment: Experiment) -> RunTimes:
        if trial not in self._times:
            self._times[trial] = self._as_recorded(experiment) if self._recorded else self._forecast(experiment)
        return self._times[trial]

    def speed(self, experiment: Experiment) -> dict[str, float]:
        """The result of a calibration."""
        limit = estimated_speedup(experiment, self._plan.baseline)
        speedup = limit * (REACHED if limit != 1.0 else 1.0)
        return {
            q.SPEEDUP.name: speedup,
            q.SPEEDUP_LOW.name: 0.98 * speedup,
            q.SPEEDUP_HIGH.name: 1.02 * speedup,
            q.SPEEDUP_LIMIT.name: limit,
            q.PEAK_MEMORY_RATIO.name: min(1.0, 0.2 + 0.8 / limit),
            q.CALIBRATION_SECONDS.name: experiment.resources.calibration_seconds,
        }

    def rung(self, trial: str, params: Mapping[str, Any], share: float) -> dict[str, float]:
        """Report of a run after this share of its steps."""
        quality = self.quality(trial, params)
        loss = 1 + 0.5 * math.log1p(quality) + 1.5 * math.exp(-3 * share)
        draws = random.Random(f"{self._seed}-{trial}-{share:.4f}")
        noise = 0.02 * draws.gauss(0, 1)
        return {q.VAL_CROSS_ENTROPY.name: loss + noise, q.KERNEL_DISTANCE.name: 0.1 * quality * (1.5 - share) + noise}

    def result(self, trial: str, params: Mapping[str, Any]) -> dict[str, float]:
        """Evaluation of a run: every metric that the study may ask for."""
        quality = self.quality(trial, params)
        found = dict.fromkeys((*self._plan.space.objectives, *self._plan.space.constraints), 0.1 * quality)
        for name in (q.SPEEDUP.name, q.PEAK_MEMORY_RATIO.name):
            found.pop(name, None)
        fvd = {q.FVD.name: quality, q.FVD_LOW.name: 0.9 * quality, q.FVD_HIGH.name: 1.1 * quality}
        return found | fvd | self.rung(trial, params, 1.0)

    def quality(self, trial: str, params: Mapping[str, Any]) -> float:
        """The run's FVD."""
        draws = random.Random(f"{self._seed}-{trial}")
        if self._recorded:
            return self._nearest(params).metrics.get(q.FVD.name, 1.0) * math.exp(NOISE * draws.gauss(0, 1))
        bowl = sum(
            weight * (place - centre) ** 2
            for place, (centre, weight) in zip(self._places(params), self._centres, strict=True)
        )
        return 3 * math.exp(bowl + NOISE * draws.gauss(0, 1))

    @cached_property
    def _ranges(self) -> dict[str, Range]:
        """Every setting that is searched or tuned."""
        space = self._plan.space
        return {**space.search, **(space.tune.per_arm if space.tune is not None else {})}

    @cached_property
    def _centres(self) -> list[tuple[float, float]]:
        """For each dimension of the ranges: its best position (0 to 1) and its weight."""
        draws = random.Random(f"{self._seed}-surface")
        return [(draws.uniform(0.2, 0.8), draws.uniform(0.5, 3.0)) for _ in self._ranges]

    def _places(self, params: Mapping[str, Any]) -> list[float]:
        """Position of a run in each dimension of the ranges, from 0 to 1. 0.5 if the run's value is not in the
        range.
        """
        places = []
        for key, range_ in self._ranges.items():
            value = params.get(key)
            low, high = range_.int or range_.float or (0, len(range_.choice or ()) - 1)
            if range_.choice is not None:
                value = list(range_.choice).index(value) if value in range_.choice else None
            if value is None:
                places.append(0.5)
                continue
            value = min(max(value, low), high)
            if range_.log:
                low, high, value = math.log(low), math.log(high), math.log(value)
            places.append((value - low) / (high - low) if high > low else 0.5)
        return places

    def _nearest(self, params: Mapping[str, Any]) -> RunRecord:
        """The recorded run whose sampled settings are nearest."""
        here = self._places(params)
        return min(
            self._recorded,
            key=lambda run: sum((a - b) ** 2 for a, b in zip(self._places(run.params), here, strict=True)),
        )

    def _forecast(self, experiment: Experiment) -> RunTimes:
        cost = forecast_run(experiment, self._rates)
        workers = experiment.resources.workers
        training = cost.training_flops / self._rates.flops_per_second
        return RunTimes(
            calibration=experiment.resources.calibration_seconds,
            step=training / workers / cost.steps,
            evaluation=(cost.device_seconds - training) / workers,
        )

    def _as_recorded(self, experiment: Experiment) -> RunTimes:
        """Durations at the pace of the recorded runs, scaled by each run's relative speed-up."""
        workers = experiment.resources.workers

        def pace(run: RunRecord) -> float:
            """Device seconds of a baseline step."""
            speedup = 1.0 if run.arm == BASELINE else run.metrics.get(q.SPEEDUP.name, 1.0)
            return run.metrics[q.TRAINING_SECONDS.name] / run.metrics[q.STEPS.name] * speedup

        speedup = self.speed(experiment)[q.SPEEDUP.name]
        ends = [
            run.metrics.get(q.GENERATION_SECONDS.name, 0.0) + run.metrics.get(q.EVALUATION_SECONDS.name, 0.0)
            for run in self._recorded
        ]
        calibrations = [run.metrics[q.CALIBRATION_SECONDS.name] for run in self._recorded if run.arm == SEARCH]
        return RunTimes(
            calibration=median(calibrations or [experiment.resources.calibration_seconds]) / workers,
            step=median(map(pace, self._recorded)) / speedup / workers,
            evaluation=median(ends) / workers,
        )
