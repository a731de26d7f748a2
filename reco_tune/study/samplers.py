"""Who proposes a search's next point: a function of the space, the number of the proposal and its seed.

The n-th proposal is drawn by a sampler of its own seed, so it depends on nothing but the trials before it; the first
ones are drawn at random and depend on no result, so runs that end in another order ask the same. A sampler of one's own
is any of Optuna's classes, or a function, that takes `seed`.
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
"""Of a search by Gaussian processes, whose cost grows with the cube of what they know; TPE proposes the others."""


def sampler_of(space: Space, number: int, planned: int, distributions: Any) -> optuna.samplers.BaseSampler:
    """The one that proposes a search's point.

    Args:
        number: of the point: proposals and what earlier studies gave before it. Fixed arms do not count: when they are
            told depends on when they end.
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
    """Also the sampler of a grid, whose points are put in its queue."""
    return optuna.samplers.RandomSampler(seed=seed)


def _drawn_at_random(planned: int) -> int:
    return min(10, max(3, planned // 3))


class _Nsga2(optuna.samplers.NSGAIISampler):
    """Optuna's, which remembers what settings all trials of a study share: every proposal has a sampler of its own,
    which would look through all of them again.
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
        """
        Args:
            seed: scrambles the sequence; the same for all its points.
            choice_seed: of categories, which have no place in a sequence and are drawn.
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
