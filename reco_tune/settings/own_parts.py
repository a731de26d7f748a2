"""Pins a user's parts (model, tokenizer, ...) to their code, and lets the code check their options. Pinning imports
the parts, so call it only where their code may run anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from reco_tune import parts
from reco_tune.errors import SettingsError
from reco_tune.pretrained import MODEL_AND_WORDS, pinned_source
from reco_tune.settings.experiment import Experiment
from reco_tune.settings.ranges import Range
from reco_tune.settings.space import Space

PARTS = {
    "data.layout": "data.options",
    "tokenizer.kind": "tokenizer.options",
    "model.kind": "model.options",
    "window.scheme": "window.options",
    "objective.term": "objective.options",
}
"""Settings that name a part, each with the setting for its options."""

_GROUPS = {
    "data.layout": "layouts",
    "tokenizer.kind": "tokenizers",
    "model.kind": "models",
    "window.scheme": "schemes",
    "objective.term": "losses",
    "evaluation.measure": "measures",
}


def pinned(space: Space) -> Space:
    """The space with each of the user's parts, and the files that their options name, pinned to their current content.

    Raises:
        SettingsError: if a part cannot be imported, or its pinned content has changed.
    """
    sections: dict[str, Any] = {}
    for section, given in space.experiment.items():
        sections[section] = given
        if isinstance(given, dict):
            sections[section] = {name: _pinned(f"{section}.{name}", value) for name, value in given.items()}
    model = dict(sections.get("model") or {})
    kind, shared = model.get("kind", "transformer"), dict(model.get("options") or {})
    if shared:
        sections["model"] = {**model, "options": _pinned_options(kind, shared)}

    def overrides(given: Mapping[str, Any]) -> dict[str, Any]:
        return _with_pinned_options({key: _pinned(key, value) for key, value in given.items()}, kind, shared)

    def at(key: str, value: Any) -> Any:
        if key.startswith(_OPTION):
            name = key.removeprefix(_OPTION)
            return _pinned_options(kind, {**shared, name: value})[name]
        return _pinned(key, value)

    def ranges(given: Mapping[str, Range]) -> dict[str, Range]:
        found = {}
        for key, range_ in given.items():
            when = {parent: tuple(at(parent, value) for value in allowed) for parent, allowed in range_.when.items()}
            choice = range_.choice and tuple(at(key, value) for value in range_.choice)
            found[key] = range_.model_copy(update={"choice": choice, "when": when})
        return found

    tune = space.tune and space.tune.model_copy(update={"per_arm": ranges(space.tune.per_arm)})
    sampler = space.sampler.model_copy(update={"kind": parts.pinned("samplers", space.sampler.kind)})
    return space.model_copy(
        update={
            "experiment": sections,
            "arms": {arm: overrides(own) for arm, own in space.arms.items()},
            "search": ranges(space.search),
            "points": tuple(map(overrides, space.points)),
            "tune": tune,
            "sampler": sampler,
        }
    )


def pinned_experiment(experiment: Experiment) -> Experiment:
    """Like `pinned`, for one run.

    Raises:
        SettingsError: as `pinned`.
    """
    changed: dict[str, BaseModel] = {}
    for key in (*_GROUPS, "evaluation.clip"):
        section, name = key.split(".")
        own = changed.get(section, getattr(experiment, section))
        if (value := _pinned(key, getattr(own, name))) != getattr(own, name):
            changed[section] = own.model_copy(update={name: value})
    model = experiment.model
    if model.options and (options := _pinned_options(model.kind, model.options)) != model.options:
        changed["model"] = changed.get("model", model).model_copy(update={"options": options})
    return experiment.model_copy(update=changed) if changed else experiment


def check_options(experiment: Experiment) -> None:
    """Checks the options of all parts.

    Raises:
        SettingsError: if a part does not have an option, or options are given for a built-in part.
    """
    flat = experiment.model_dump()
    for key, options_key in PARTS.items():
        (section, name), (_, options_name) = key.split("."), options_key.split(".")
        check_own(_GROUPS[key], flat[section][name], flat[section][options_name], key, options_key)


def check_own(group: str, name: str | None, options: dict[str, Any], key: str, options_key: str) -> None:
    """
    Checks the options of one part, if it is the user's own.

    Raises:
        SettingsError: as `check_options`.
    """
    if name is None or (not options and name in parts.BUILT_IN[group]):
        if options:
            raise SettingsError(
                f"{options_key} ({options}) are options of {key}, which is not set; set it, or leave them out"
            )
        return
    part = parts.load(group, name)
    if name in parts.BUILT_IN[group] and not hasattr(part, "Options"):
        raise SettingsError(
            f"{options_key} ({', '.join(options)}) are for parts of your own, but {key} is {name}, which is built in;"
            " leave them out"
        )
    parts.options_of(part, options, options_key)


_OPTION = "model.options."


def _with_pinned_options(arm: dict[str, Any], kind: str, shared: dict[str, Any]) -> dict[str, Any]:
    """An arm's overrides with pinned model options. They belong to the arm's own kind of model, or else to the shared
    one.
    """
    own = {key.removeprefix(_OPTION): value for key, value in arm.items() if key.startswith(_OPTION)}
    if not own:
        return arm
    same = arm.get("model.kind", kind) == kind
    options = _pinned_options(arm.get("model.kind", kind), {**shared, **own} if same else own)
    return {**arm, **{_OPTION + name: options[name] for name in own}}


def _pinned_options(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options, pinned where the part's class says that an option names something that may change."""
    if kind == "transformer":
        return options
    pin: Callable[[dict[str, Any]], dict[str, Any]] | None = getattr(parts.load("models", kind), "pinned_options", None)
    return options if pin is None else pin(options)


def _pinned(key: str, value: Any) -> Any:
    if key == "evaluation.clip" and isinstance(value, str):
        return pinned_source(value, None, key, MODEL_AND_WORDS)
    return parts.pinned(_GROUPS[key], value) if key in _GROUPS and isinstance(value, str) else value
