"""Which settings name parts, and what becomes of those that are not built in: they are pinned to their code, and their
options are checked by it. Only who is about to compute calls this, since it imports them.
"""

from __future__ import annotations

from typing import Any

from reco_tune import parts
from reco_tune.errors import SettingsError
from reco_tune.settings.experiment import Experiment
from reco_tune.settings.space import Space

PARTS = {
    "data.layout": "data.options",
    "tokenizer.kind": "tokenizer.options",
    "model.kind": "model.options",
    "window.scheme": "window.options",
    "objective.term": "objective.options",
}
"""Settings that name a part, each with the setting of its options."""

_GROUPS = {
    "data.layout": "layouts",
    "tokenizer.kind": "tokenizers",
    "model.kind": "models",
    "window.scheme": "schemes",
    "objective.term": "losses",
    "evaluation.measure": "measures",
}


def pinned(space: Space) -> Space:
    """The space with every part of somebody's own pinned to the code that there is.

    Raises:
        SettingsError: for a part that cannot be imported, or is pinned to other code.
    """
    sections: dict[str, Any] = {}
    for section, given in space.experiment.items():
        sections[section] = given
        if isinstance(given, dict):
            sections[section] = {name: _pinned(f"{section}.{name}", value) for name, value in given.items()}
    arms = {arm: {key: _pinned(key, value) for key, value in own.items()} for arm, own in space.arms.items()}
    search = dict(space.search)
    for key in _GROUPS.keys() & search.keys():
        if (choice := search[key].choice) is not None:
            search[key] = search[key].model_copy(update={"choice": tuple(_pinned(key, name) for name in choice)})
    sampler = space.sampler.model_copy(update={"kind": parts.pinned("samplers", space.sampler.kind)})
    return space.model_copy(update={"experiment": sections, "arms": arms, "search": search, "sampler": sampler})


def check_options(experiment: Experiment) -> None:
    """
    Raises:
        SettingsError: for options that a part has not, or that a built-in one is given.
    """
    flat = experiment.model_dump()
    for key, options_key in PARTS.items():
        (section, name), (_, options_name) = key.split("."), options_key.split(".")
        check_own(_GROUPS[key], flat[section][name], flat[section][options_name], key, options_key)


def check_own(group: str, name: str | None, options: dict[str, Any], key: str, options_key: str) -> None:
    """
    Raises:
        SettingsError: as `check_options`.
    """
    if name is None or (not options and name in parts.BUILT_IN[group]):
        if options:
            raise SettingsError(
                f"{options_key} ({options}) are of a {key} that is not given; give it, or leave them out"
            )
        return
    part = parts.load(group, name)
    if name in parts.BUILT_IN[group] and not hasattr(part, "Options"):
        raise SettingsError(
            f"{options_key} ({', '.join(options)}) are for parts of your own, but {key} is {name}, which is built in;"
            " leave them out"
        )
    parts.options_of(part, options, options_key)


def _pinned(key: str, value: Any) -> Any:
    return parts.pinned(_GROUPS[key], value) if key in _GROUPS and isinstance(value, str) else value
