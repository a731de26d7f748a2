"""Samplers: functions of the space, the number of the proposal and its seed that return Optuna's sampler.

Each proposal has a sampler with its own seed, so it depends only on the trials before it. The first proposals are drawn
at random and do not depend on results, so they are the same in whatever order runs end. A user's sampler is any of
Optuna's classes, or a function, that takes `seed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.search_space import IntersectionSearchSpace

from reco_tune import parts
from reco_tune.settings import Space

GP_TRIALS = 200
"""Largest number of trials for Gaussian processes, whose cost grows with the cube of this number. TPE proposes the
others.
"""


def sampler_of(space: Space, number: int, planned: int, distributions: Any) -> optuna.samplers.BaseSampler:
    """The sampler that proposes a search's point.

    Args:
        number: number of the point: proposals and results of earlier studies before it. Fixed arms do not count,
            because the order in which they end is not fixed.
        planned: proposals of the search when it began.
    """
    sampler = space.sampler
    seed = (sampler.seed * 1_000_003 + number) % 2**32
    part = parts.load("samplers", sampler.kind)
    if sampler.kind not in parts.BUILT_IN["samplers"]:
        found: optuna.samplers.BaseSampler = part(
            seed=seed, **dict(parts.options_of(part, sampler.options, "sampler.options"))
        )
        return found
    made: optuna.samplers.BaseSampler = part(space, number, planned, seed, distributions)
    return made


def tpe(space: Space, number: int, planned: int, seed: int, distributions: Any) -> optuna.samplers.BaseSampler:
    startup = _drawn_at_random(planned)
    if number < startup:  # also where fixed arms are known: which of them ended first must not matter
        return random(space, number, planned, seed, distributions)
    # grouped, settings that not every point has are drawn together with those that these points share
    group = any(range_.when for range_ in space.search.values())
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=group)


def gp(space: Space, number: int, planned: int, seed: int, distributions: Any) -> optuna.samplers.BaseSampler:
    if number >= GP_TRIALS:
        return tpe(space, number, planned, seed, distributions)
    startup = _drawn_at_random(planned)
    if number < startup:
        return random(space, number, planned, seed, distributions)
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)


def sobol(space: Space, number: int, planned: int, seed: int, distributions: Any) -> optuna.samplers.BaseSampler:
    return _Sobol(distributions, space.sampler.seed, seed)


def nsga2(space: Space, number: int, planned: int, seed: int, distributions: Any) -> optuna.samplers.BaseSampler:
    return _Nsga2(seed=seed, population_size=min(50, max(4, planned // 4)))


def random(space: Space, number: int, planned: int, seed: int, distributions: Any) -> optuna.samplers.BaseSampler:
    """Random sampler. Also for a grid, whose points are put in its queue."""
    return optuna.samplers.RandomSampler(seed=seed)


def _drawn_at_random(planned: int) -> int:
    return min(10, max(3, planned // 3))


class _Nsga2(optuna.samplers.NSGAIISampler):
    """Optuna's sampler, with the search space that all trials share kept between proposals. Every proposal has a new
    sampler, which would otherwise go through all trials again.
    """

    _shared: ClassVar[WeakKeyDictionary[optuna.Study, IntersectionSearchSpace]] = WeakKeyDictionary()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        shared = self._shared.setdefault(study, IntersectionSearchSpace()).calculate(study)
        return {key: value for key, value in shared.items() if not value.single()}


class _Sobol(optuna.samplers.QMCSampler):
    """Optuna's Sobol sequence over all numbers of the search, from its first point on. Optuna itself waits for a
    finished trial.
    """

    def __init__(
        self, distributions: Mapping[str, optuna.distributions.BaseDistribution], seed: int, choice_seed: int
    ) -> None:
        """Args: seed: scrambles the sequence; the same for all its points. choice_seed: draws categories, which the
        sequence cannot give.
        """
        independent = optuna.samplers.RandomSampler(seed=choice_seed)
        super().__init__(scramble=True, seed=seed, independent_sampler=independent, warn_independent_sampling=False)
        self._distributions = distributions

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        return {
            key: value for key, value in self._distributions.items() if not isinstance(value, CategoricalDistribution)
        }
