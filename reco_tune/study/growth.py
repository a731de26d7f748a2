"""How a study grows: arms, seeds, budgets, trials and ranges that are added to its first settings. Only settings and
text. The driver writes the additions to the log (`extended`); they are in effect from there on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reco_tune.errors import SettingsError, StudyError, command
from reco_tune.settings import ARMS, WHERE, Range, Space, arm_experiment, arms_in, make_space, parse_overrides
from reco_tune.settings.files import merge
from reco_tune.study_log import StudyRecord

SEARCH_KEY = "search."
"""Prefix of the key of a searched setting."""
GROWS, LIMITS = ("search", "stop_after"), ("stop_after",)
"""Groups of a space's settings that may change during a study, and those of them that `resume` accepts."""


@dataclass(frozen=True)
class Growth:
    """The additions to a study: plain JSON values, so that they can be sent to the driver's process."""

    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """New arms: name -> overrides."""
    seeds: tuple[int, ...] = ()
    """Further training seeds of the fixed arms."""
    trials: int = 0
    """Further sampled configurations."""
    budgets: tuple[str, ...] = ()
    """Further ones."""
    changes: tuple[str, ...] = ()
    """`key=value` of ranges, limits, and settings of where the study runs."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def grown(space: Space, growth: Growth) -> Space:
    """The settings of a study with the additions.

    Raises:
        StudyError: if an addition is not allowed, or nothing is new.
        SettingsError: for invalid settings.
    """
    changes = parse_changes(growth.changes, "extend", also=GROWS)
    ranges = {key.removeprefix(SEARCH_KEY): value for key, value in changes.items() if key.startswith(SEARCH_KEY)}
    own = {key: value for key, value in changes.items() if key.startswith("stop_after.")}
    where = {key: value for key, value in changes.items() if key.startswith(WHERE)}
    for name, overrides in growth.arms.items():
        if name in space.arms and overrides != space.arms[name]:
            raise StudyError(
                f"arm `{name}` is in the study with other settings, so their runs would not be comparable; rename the"
                " new one"
            )
    values = space.model_dump(mode="json")
    values["arms"] = {**values["arms"], **growth.arms}
    values["seeds"] = list(dict.fromkeys([*space.seeds, *growth.seeds]))
    values["budgets"] = list(dict.fromkeys([*space.budgets, *growth.budgets]))
    values["trials"] = space.trials + growth.trials
    values["search"] |= ranges
    values["experiment"] = merge(space.experiment, where)
    larger = make_space(merge(values, own) if own else values, "--set")
    for arm in [*growth.arms, *([None] if larger.trials else [])]:
        arm_experiment(larger, arm)
    if not where and not news(space, larger):
        raise StudyError(
            "the study has all of that already; give arms, seeds, budgets, trials or ranges that it does not have"
        )
    return larger


def parse_changes(changes: Iterable[str], verb: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
    """["resources.workers=2"] -> {"resources.workers": 2}, for settings that may change during a study.

    Args:
        also: groups of settings that may change besides those of where it runs.

    Raises:
        StudyError: for any other setting.
    """
    allowed = (*WHERE, *(f"{group}." for group in also))
    parsed = parse_overrides(changes)
    for key in parsed:
        if not key.startswith(allowed):
            grows = "" if verb == "extend" else "`reco-tune extend` adds arms, seeds, trials and ranges; "
            raise StudyError(
                f"--set {key}: only {', '.join(f'{one}*' for one in allowed)} may change during a study by `{verb}`;"
                f" {grows}for another value, add an arm or begin a new study"
            )
    return parsed


def given_arms(given: str, space: Space) -> dict[str, dict[str, Any]]:
    """Arms by name, from a file (a space, or a mapping of names to settings) or from names of known arms.

    Raises:
        SettingsError: for an unknown name, or a file without arms.
        StudyError: for an arm that the study has already.
    """
    if Path(given).suffix in (".yaml", ".yml") or Path(given).is_file():
        arms = arms_in(Path(given))
        return {name: own for name, own in arms.items() if name not in space.arms or own != space.arms[name]}
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name in space.arms:
            raise StudyError(f"--arms {given}: the study has arm `{name}` already; leave it out")
        if name not in ARMS:
            raise SettingsError(
                f"--arms {given}: {name} is not a known arm ({', '.join(ARMS)}); give a YAML file for arms of your own"
            )
    return {name: {} for name in names}


def news(before: Space, after: Space) -> list[str]:
    """The additions to a study, in words; empty if there are none."""
    told = []
    for name, word in (("arms", "arm"), ("seeds", "seed"), ("budgets", "budget")):
        had, has = getattr(before, name), getattr(after, name)
        new = [f"`{one}`" if name == "arms" else str(one) for one in has if one not in had]
        if new:
            told.append(f"{word}{'s' if len(new) > 1 else ''} {', '.join(new)}")
    if after.trials != before.trials:
        more = after.trials - before.trials
        told.append(f"{more} further trials" if more > 0 else f"{after.trials} trials instead of {before.trials}")
    told += _limits(before, after)
    for key in after.search:
        if key not in before.search:
            told.append(f"search.{key} {_range(after.search[key])}")
        elif before.search[key] != after.search[key]:
            told.append(f"search.{key} {_range(after.search[key])} instead of {_range(before.search[key])}")
    return told


def in_log(space: Space) -> dict[str, Any]:
    """A study's settings as the log keeps them."""
    return {"arms": list(space.arms), "settings": space.model_dump(mode="json", exclude={"source", "on_event"})}


def _limits(before: Space, after: Space) -> list[str]:
    had, has = before.stop_after.model_dump(), after.stop_after.model_dump()
    word = {None: "none"}
    return [
        f"stop_after.{key} {word.get(has[key], has[key])} instead of {word.get(had[key], had[key])}"
        for key in has
        if has[key] != had[key]
    ]


def growth_since(study: StudyRecord, space: Space) -> list[str]:
    """Additions that the folder's settings have and the log does not, as text; empty for a log of an earlier version
    without settings.
    """
    return news(Space.model_validate(study.settings), space) if study.settings else []


def check_extendable(study: StudyRecord, folder: Path) -> None:
    """
    Checks that the log holds the study's first settings.

    Raises:
        StudyError: if it does not.
    """
    if study.name and not study.settings:
        raise StudyError(
            f"the study in {folder} was begun by a version that kept no settings in its log, so it cannot be extended;"
            f" `{command('resume', folder)}` finishes it; begin a new study for more"
        )


def _range(one: Range) -> str:
    bounds: Mapping[str, Any] = one.model_dump(mode="json", exclude_defaults=True)
    return ", ".join(f"{key} {value}" for key, value in bounds.items())
