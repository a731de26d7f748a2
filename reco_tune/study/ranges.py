"""The ranges of a search as Optuna's distributions: the dimensions of a point, whether a point lies inside, and all
points of a grid. Knows Optuna's distributions and settings; knows nothing of samplers or of the log.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from reco_tune.errors import SettingsError
from reco_tune.settings import Experiment, Range
from reco_tune.settings.ranges import parents_first


class Ranges:
    """The searched settings of a space. A conditional one (`when`) is a dimension only of points that fulfil it."""

    def __init__(self, search: Mapping[str, Range]) -> None:
        """
        Raises:
            SettingsError: for a range that Optuna cannot draw from.
        """
        self._search = search
        self._distributions = {key: to_distribution(key, range_) for key, range_ in search.items()}
        self._order = parents_first(search)

    @property
    def conditional(self) -> bool:
        return any(range_.when for range_ in self._search.values())

    @property
    def always(self) -> dict[str, BaseDistribution]:
        """Dimensions of every point."""
        return {key: one for key, one in self._distributions.items() if not self._search[key].when}

    def active(self, params: Mapping[str, Any]) -> list[str]:
        """Keys that are dimensions of a point with these values."""
        found: list[str] = []
        for key in self._order:
            allowed = self._search[key].when
            if all(parent in found and params.get(parent) in values for parent, values in allowed.items()):
                found.append(key)
        return found

    def of(self, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """The distributions of a point."""
        return {key: self._distributions[key] for key in params}

    def fits(self, params: Mapping[str, Any]) -> bool:
        """Whether a search over these ranges could propose that point."""
        if set(params) != set(self.active(params)):
            return False
        try:
            optuna.trial.create_trial(state=TrialState.RUNNING, params=dict(params), distributions=self.of(params))
        except (ValueError, TypeError):
            return False
        return True

    def draw(self, trial: optuna.Trial) -> None:
        """Whether the trial has all of its conditional dimensions."""
        for key in self._order:
            if self._search[key].when and key in self.active(trial.params):
                _suggest(trial, key, self._distributions[key])

    def learns(self, params: Mapping[str, Any]) -> bool:
        """Whether a point has these dimensions, and its choices still exist. It may lie outside its ranges."""
        if set(params) != set(self.active(params)):
            return False
        choices = {key: one for key, one in self.of(params).items() if isinstance(one, CategoricalDistribution)}
        return all(params[key] in one.choices for key, one in choices.items())

    def grid(self) -> list[dict[str, Any]]:
        """Every point, in the order of the ranges.

        Raises:
            SettingsError: for a range without a step.
        """
        levels = {key: _levels(key, range_) for key, range_ in self._search.items()}
        points = [dict(zip(levels, point, strict=True)) for point in itertools.product(*levels.values())]
        if not self.conditional:
            return points
        kept = ({key: point[key] for key in levels if key in self.active(point)} for point in points)
        return list({tuple(point.items()): point for point in kept}.values())

    def point_of(self, experiment: Experiment) -> dict[str, Any] | None:
        """The point with the settings of an experiment; None if there is none."""
        known = experiment.flat()
        length, stride = experiment.window.length_tokens, experiment.window.stride_tokens
        assert length is not None and stride is not None
        known["window.stride_fraction"] = stride / length
        if length % experiment.grid.tokens_per_block == 0:
            known["window.length_blocks"] = length // experiment.grid.tokens_per_block
        point = {key: known.get(key) for key in self._distributions}
        point = {key: point[key] for key in self.active(point)}
        return point if self.fits(point) else None


def to_distribution(key: str, range_: Range) -> BaseDistribution:
    """Optuna's form of a search range.

    Raises:
        SettingsError: for a whole-number range with a broken step.
    """
    if range_.choice is not None:
        return CategoricalDistribution(list(range_.choice))
    if range_.int is not None:
        step = range_.step or 1
        if step != int(step):
            raise SettingsError(f"search: {key} takes whole numbers, but its step is {step}; give a whole step")
        return IntDistribution(*range_.int, log=range_.log, step=int(step))
    assert range_.float is not None
    return FloatDistribution(*range_.float, log=range_.log, step=range_.step)


def _suggest(trial: optuna.Trial, key: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(key, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _levels(key: str, range_: Range) -> list[Any]:
    if range_.choice is not None:
        return list(range_.choice)
    bounds = range_.int or range_.float
    assert bounds is not None
    if range_.log or (range_.float is not None and not range_.step):
        raise SettingsError(
            f"search: the grid sampler needs a step for {key}; give step, choice with its values, or points"
        )
    step = range_.step or 1
    count = int((bounds[1] - bounds[0]) / step + 1e-9) + 1
    return [(int if range_.int else float)(round(bounds[0] + i * step, 12)) for i in range(count)]
