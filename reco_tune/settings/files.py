"""Reads settings from YAML and dotted overrides. Each mistake becomes one sentence, with the nearest known key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from reco_tune.errors import SettingsError
from reco_tune.parts import nearest
from reco_tune.settings.checks import ALTERNATIVES
from reco_tune.settings.experiment import Experiment, flatten
from reco_tune.settings.fields import check_key, check_value, sentences
from reco_tune.settings.own_parts import PARTS
from reco_tune.settings.protocols import protocol_defaults
from reco_tune.settings.sections import PRESETS
from reco_tune.settings.space import ARM_NAME, ARMS, BASELINE, Space

M = TypeVar("M", bound=BaseModel)


def load_experiment(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment in a YAML file, with `key=value` overrides.

    Raises:
        SettingsError: if settings are invalid, or it is a space file.
    """
    if holds_space(read_yaml(path)):
        first = next(iter(load_space(path).arms), "ARM")
        raise SettingsError(
            f"{path} is a space file (a study of several runs), but this command needs an experiment file (one run);"
            f" name an arm: {path}:{first}"
        )
    shared = _overridden(_settings(read_yaml(path), str(path)), parse_overrides(overrides))
    return make_experiment(shared, {}, where=str(path))


def load_run(path: Path, arm: str | None, overrides: Iterable[str] = ()) -> Experiment:
    """The settings of one run: from an experiment file, or from an arm of a space file at the study's first seed.

    Raises:
        SettingsError: if settings are invalid, the arm is unknown, or a space file is given without an arm.
    """
    if arm is None:
        return load_experiment(path, overrides)
    space = load_arms(path)
    check_arm(space, arm, path)
    return arm_experiment(space, arm, {"training.seed": space.seeds[0], **parse_overrides(overrides)})


def load_arms(path: Path, overrides: Iterable[str] = ()) -> Space:
    """The space in a space file, for a caller that names one of its arms.

    Raises:
        SettingsError: if it is an experiment file, which has no arms.
    """
    if not holds_space(read_yaml(path)):
        raise SettingsError(f"{path} is an experiment file (one run), which has no arms; leave the arm out")
    return load_space(path, overrides)


def check_arm(space: Space, arm: str, path: Path) -> None:
    """Checks that the space has the arm.

    Raises:
        SettingsError: if it does not have it.
    """
    if arm not in space.arms:
        raise SettingsError(f"{path} has no arm {arm or repr(arm)}; it has {', '.join(space.arms) or 'none'}")


def holds_space(values: Mapping[str, Any]) -> bool:
    """Whether a file holds a space (a study: question, arms, search) rather than an experiment (one run)."""
    return bool(set(values) & (set(Space.model_fields) - {"resources"}))


def load_space(path: Path, overrides: Iterable[str] = ()) -> Space:
    """The space in a YAML file. Overrides are dotted keys of the experiment or of the space (`trials=4`,
    `sampler.seed=1`). An experiment file becomes a space of one run.
    """
    return build_space(read_yaml(path), path, parse_overrides(overrides))


def build_space(values: dict[str, Any], path: Path, given: Mapping[str, Any]) -> Space:
    """`load_space` for values that are read already, with parsed overrides."""
    one_run = not holds_space(values) and bool({key.split(".")[0] for key in values} & set(Experiment.model_fields))
    if one_run:
        values = _one_run(path, values, given)
    _refuse_unknown(values, Space.model_fields, str(path))
    experiment_overrides: dict[str, Any] = {}
    for key, value in given.items():
        if key.split(".")[0] in Space.model_fields and not key.startswith("resources."):
            values = merge(values, {key: value})
        else:
            experiment_overrides[key] = value
    experiment = values.get("experiment") or {}
    if isinstance(experiment, str):
        experiment = read_yaml(path.parent / experiment)
    values["arms"] = {name: _flat(own) for name, own in _arms(values.get("arms") or {}, str(path)).items()}
    shared = merge(_settings(experiment, f"{path}: experiment"), _flat({"resources": values.get("resources") or {}}))
    values["experiment"] = _overridden(shared, experiment_overrides)
    values["source"] = path
    space = make(Space, values, str(path))
    if not one_run:
        _refuse_buried(space, experiment_overrides)
    for name in [*space.arms, *([None] if space.trials else [])]:  # check all runs before any of them starts
        arm_experiment(space, name)
    return space


def arms_in(path: Path) -> dict[str, dict[str, Any]]:
    """The arms in a YAML file, which is a space file or a mapping of arm names to settings."""
    values = read_yaml(path)
    given = values.get("arms", values)
    return {name: _flat(own) for name, own in _arms(given or {}, str(path)).items()}


def make_space(values: Mapping[str, Any], where: str) -> Space:
    """Rebuilds a space from its plain values."""
    _refuse_unknown(values, Space.model_fields, where)
    return make(Space, dict(values), where)


def arm_experiment(space: Space, arm: str | None, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Settings of one run. Later ones override earlier ones: the shared settings, those of a known arm (`ARMS`),
    those that the space file gives the arm, `overrides`. With `arm` None it is a sampled trial: ReCo's windows with
    `overrides`.
    """
    nested = dict(space.experiment)
    layers = [{"window.scheme": "window"}] if arm is None else [ARMS.get(arm, {}), space.arms.get(arm, {})]
    for layer in [*layers, dict(overrides or {})]:
        nested = merge(nested, layer)
    return make_experiment(nested, {}, where=f"arm `{arm}`" if arm else "a sampled trial")


def make_experiment(nested: dict[str, Any], overrides: Mapping[str, Any], where: str) -> Experiment:
    """Builds an experiment from nested values and dotted overrides."""
    merged = merge(nested, overrides)
    for key in flatten(merged):
        if key not in Experiment.model_fields:
            check_key(key, where)
    return make(Experiment, merged, where)


def make(kind: type[M], values: Any, where: str) -> M:
    """Builds a settings object; a SettingsError names the first wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        place = (
            errors[0]["loc"][:2] if kind is Experiment else errors[0]["loc"]
        )  # further errors are those of the alternative types of a field
        key = ".".join(str(part) for part in place) or kind.__name__.lower()
        if errors[0]["type"] == "missing":
            raise SettingsError(f"{where}: {key} is missing; give it") from error
        said = sentences(one for one in errors if one["loc"][: len(place)] == place)
        raise SettingsError(f"{where}: {key} ({errors[0].get('input')!r}): {said}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, safely loaded."""
    try:
        values = _Loader(Path(path).read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError as error:
        raise SettingsError(f"{path} does not exist; `reco-tune spaces ls` lists the shipped ones") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as a text file ({error}); give a YAML file") from error
    except _GivenTwiceError as error:
        raise SettingsError(f"{path}: {error}; keep one") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must hold a mapping of settings, but holds {type(values).__name__}")
    return values


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """["window.length_tokens=18"] -> {"window.length_tokens": 18}; values are YAML."""
    parsed: dict[str, Any] = {}
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise SettingsError(f"--set {item!r} must look like key=value")
        try:
            given = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SettingsError(f"--set {item!r}: the value is not YAML") from error
        whole_section = key.strip() in Experiment.model_fields and isinstance(given, dict)
        parsed.update(
            flatten({key.strip(): given}) if whole_section else {key.strip(): given}
        )  # keys that are not overridden stay
    return parsed


def merge(nested: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Applies dotted overrides to nested values, and clears what they replace: setting a value in one way clears its
    alternative (`ALTERNATIVES`); a published protocol clears the settings that it fixes, so that it can evaluate a
    trained run; a model preset clears the sizes that it sets; a new part clears the options of the old one.
    """
    merged: dict[str, Any] = json.loads(json.dumps(dict(nested), default=str))
    twins = {a: b for pair in ALTERNATIVES for a, b in (pair, pair[::-1])}
    for key, options in PARTS.items():
        (section, name), (_, options_name) = key.split("."), options.split(".")
        if key in overrides and overrides[key] != merged.get(section, {}).get(name):
            merged.get(section, {}).pop(options_name, None)
    for key, value in overrides.items():
        _put(merged, key, value)
        if key in twins and twins[key] not in overrides:
            _clear(merged, twins[key])
    for knob in protocol_defaults(overrides.get("evaluation.protocol")):
        if f"evaluation.{knob}" not in overrides:
            merged["evaluation"].pop(knob, None)
    for size in PRESETS.get(str(overrides.get("model.preset")), {}):
        if f"model.{size}" not in overrides:
            merged["model"].pop(size, None)
    return merged


def save_space(space: Space, path: Path) -> None:
    """Writes the frozen settings of a study."""
    path.write_text(
        yaml.safe_dump(space.model_dump(mode="json"), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


class _GivenTwiceError(yaml.YAMLError):
    """A mapping has a key twice. YAML would silently use the last value."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                name = self.construct_object(key, deep=True)
                if name in seen:
                    raise _GivenTwiceError(f"line {key.start_mark.line + 1} gives {name} a second time")
                seen.append(name)
        return super().construct_mapping(node, deep)


def _overridden(shared: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Valid nested settings with the overrides of the command line applied."""
    return _settings(merge(shared, overrides), "--set")


def _refuse_buried(space: Space, overrides: Mapping[str, Any]) -> None:
    """Refuses a command-line setting that every arm and the search override, because it would affect no run."""
    twins = {a: b for pair in ALTERNATIVES for a, b in (pair, pair[::-1])}
    own = [{**ARMS.get(arm, {}), **space.arms[arm]} for arm in space.arms]
    own += [{"window.scheme": "window", **space.search}] if space.trials else []
    for key, value in overrides.items():
        if key == "training.seed":
            raise SettingsError(f"--set {key}: training seeds belong to the study; give --seeds {value}")
        if all(key in keys or twins.get(key) in keys for keys in own):
            arm = next((arm for arm in reversed(space.arms) if arm != BASELINE), BASELINE)
            raise SettingsError(
                f"--set {key}: every arm and the search set their own value, so no run would change; set it for one"
                f" arm, for example --set arms.{arm}.{key}={value}"
            )


def _one_run(path: Path, experiment: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The space of an experiment file: one arm without overrides, at the file's own seed."""
    own = {key: value for key, value in overrides.items() if key.partition(".")[0] in Experiment.model_fields}
    given = make_experiment(_overridden(_settings(experiment, str(path)), own), {}, where=str(path))
    name = path.stem if ARM_NAME.fullmatch(path.stem) and path.stem not in ARMS else "run"
    return {
        "question": f"What is one run of {path.stem}?",
        "experiment": experiment,
        "arms": {name: {"window.scheme": given.window.scheme}},
        "seeds": [given.training.seed],
    }


def _arms(arms: Any, where: str) -> dict[str, dict[str, Any]]:
    """Arms by name, each a mapping of settings."""
    if not isinstance(arms, dict):
        raise SettingsError(
            f"{where}: arms must be a mapping of names to settings, for example `full:` on its own line; got {arms!r}"
        )
    for name, own in arms.items():
        if not isinstance(name, str):
            raise SettingsError(f"{where}: the arm {name!r} must have a string as its name; put the name in quotes")
        if own is not None and not isinstance(own, dict):
            raise SettingsError(
                f"{where}: arm `{name}` must hold settings, for example {{objective.continuity_weight: 0.1}}; got"
                f" {own!r}"
            )
        if name not in ARMS and not own:
            raise SettingsError(
                f"{where}: arm `{name}` is not a known arm ({', '.join(ARMS)}) and has no settings; give it overrides"
            )
    return {name: own or {} for name, own in arms.items()}


def _settings(values: Any, where: str) -> dict[str, Any]:
    """Nested settings, each with a valid value. A section that is not a mapping is refused here, because overrides
    would hide the mistake.
    """
    if not isinstance(values, dict):
        raise SettingsError(f"{where} must be a path or a mapping of settings, got {values!r}")
    nested = _nested(values)
    for section in Experiment.model_fields:
        if not isinstance(nested.get(section, {}), dict):
            raise SettingsError(
                f"{where}: {section} ({nested[section]!r}) is a group of settings; give one of them, `{section}.KEY`"
            )
    for key, value in flatten(nested).items():
        check_value(key, value, where)
    return nested


def _clear(nested: dict[str, Any], key: str) -> None:
    section, name = key.split(".")
    if isinstance(nested.get(section), dict):
        nested[section].pop(name, None)


def _put(nested: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(nested.get(parent), dict):
            nested[parent] = {}
        nested = nested[parent]
    nested[last] = value


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides written nested or dotted, converted to dotted keys."""
    return flatten(_nested(values))


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values written with dotted keys at any level, converted to nested values."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            for inner, inner_value in flatten(_nested(value)).items():
                _put(nested, f"{key}.{inner}", inner_value)
            nested.setdefault(key, {}) if not value else None
        else:
            _put(nested, str(key), value)
    return nested


def _refuse_unknown(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise SettingsError(
                f"{where}: {key} is not a key of a search space;"
                f" {nearest(str(key), [k for k in known if k != 'source'])}"
            )
