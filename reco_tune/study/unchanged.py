"""Checks that no setting has changed that a result of the study depends on. Otherwise, runs with different settings
would be in one row of a table as seeds of one arm.

Compares the settings in a study's folder with those at the start of its log, and with those of its runs. Knows only
settings and the log; changes nothing. Additions (`extend`: arms, seeds, budgets, trials, ranges of its search) and
settings of where it runs (`WHERE`) may change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from reco_tune.errors import StudyError
from reco_tune.settings import BASELINE, SEARCH, Experiment, Space, Tune, arm_experiment, known_keys, make_experiment
from reco_tune.study_log import RunRecord, StudyFolder, StudyRecord

OF_THE_SEARCH = ("objectives", "constraints", "sampler", "points", "pruning", "repeats", "warm_start")
"""Keys of a space that determine how a proposal follows from those before it."""


class Change(NamedTuple):
    """A setting whose value has changed."""

    key: str
    before: Any
    now: Any


def check_unchanged(space: Space, study: StudyRecord, folder: StudyFolder) -> None:
    """Refuses changed settings.

    Args:
        space: of the folder's settings, as they are now.
        study: of its log.

    Raises:
        StudyError: if a setting has changed that may not. It names the first one, both values and the way out.
    """
    if not study.name:
        return  # nothing was begun
    for change in _changes(space, study):
        raise StudyError(
            f"{folder.settings}: {change.key} is {_word(change.now)}, but the study runs with {_word(change.before)};"
            " runs of both would not be comparable: restore it, or add an arm with the change (`reco-tune extend`), or"
            " begin a new study"
        )
    if not (study.settings or study.finished):
        for whose, key in _own_steps(space):
            raise StudyError(
                f"the study in {folder.path} was begun by a version that measured the speed of {whose} against a"
                f" baseline with the same {key}, not against `{BASELINE}`; begin a new study"
            )


def _changes(space: Space, study: StudyRecord) -> Iterator[Change]:
    begun = Space.model_validate(study.settings) if study.settings else None
    if begun is not None:
        arms_too = begun.pruning.arms or space.pruning.arms
        for name in OF_THE_SEARCH if begun.trials else ("pruning",) if arms_too else ():
            yield from _differing(name, getattr(begun, name), getattr(space, name))
        yield from _differing("tune", _plain(begun.tune), _plain(space.tune))
        for key in sorted(begun.search.keys() ^ space.search.keys()) if begun.trials else ():
            yield Change(f"search.{key}", begun.search.get(key), space.search.get(key))
        for arm in begun.arms:
            if arm not in space.arms:
                yield Change(f"arms.{arm}", begun.arms[arm], None)
        for arm in dict.fromkeys([BASELINE, *begun.arms]):
            yield from _compared(arm, arm_experiment(begun, arm), arm_experiment(space, arm))
        if begun.trials:
            yield from _compared(SEARCH, *(arm_experiment(of, None, _first_seed(of)) for of in (begun, space)))
    known = known_keys()
    for run in _telling(study):
        before = {key: value for key, value in run.settings.items() if key in known}  # of an earlier version, too
        if run.arm == SEARCH:
            now = arm_experiment(space, None, {"training.seed": run.seed, **run.params})
        elif run.arm in space.arms:
            steps = {} if run.budget in ("both", "equal_steps") else {"training.steps": before["training.steps"]}
            chosen = run.params or study.tuned.get(run.arm, {})
            now = arm_experiment(space, run.arm, {**chosen, "training.seed": run.seed, **steps})
        else:
            continue
        yield from _compared(run.arm, make_experiment({}, before, where=run.trial), now)


def _telling(study: StudyRecord) -> Iterator[RunRecord]:
    """Runs whose settings represent all others: all runs of fixed arms, and the first and last sampled one."""
    sampled = [run for run in study.runs.values() if run.arm == SEARCH]
    yield from (run for run in study.runs.values() if run.arm != SEARCH)
    yield from sampled[:1] + sampled[-1:]


def _first_seed(space: Space) -> dict[str, int]:
    """Seed of every sampled run: the first of the study's seeds."""
    return {"training.seed": space.seeds[0]}


def _compared(arm: str, before: Experiment, now: Experiment) -> Iterator[Change]:
    whose = "sampled runs" if arm == SEARCH else f"arm `{arm}`"
    for change in _differing("", before.result_settings(), now.result_settings()):
        yield change._replace(key=f"{change.key} of {whose}")


def _differing(name: str, before: Any, now: Any) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from _differing(f"{name}.{key}".lstrip("."), before.get(key), now.get(key))
    elif before != now:
        yield Change(name, before, now)


def _plain(tune: Tune | None) -> dict[str, Any] | None:
    return None if tune is None else tune.model_dump(mode="json")


def _word(value: Any) -> str:
    """A value as a settings file writes it."""
    if value is None:
        return "left out"
    plain = value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, BaseModel) else value
    return json.dumps(plain, default=str)


def _own_steps(space: Space) -> Iterator[tuple[str, str]]:
    """Arms and searches in which a setting of model or training changes the cost of a step from the baseline's, each
    with that setting.
    """
    baseline = arm_experiment(space, BASELINE).step_settings()
    costly = [key for key in baseline if key.startswith(("model.", "training."))]
    for arm in space.arms:
        own = arm_experiment(space, arm).step_settings()
        yield from ((f"arm `{arm}`", key) for key in costly if own[key] != baseline[key])
    yield from (("sampled runs", key) for key in space.search if key in [*costly, "model.preset"])
