"""Describes every setting, in words and as JSON schema, from its field. `reco-tune settings`, the reference page and
editors show these descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from reco_tune.errors import SettingsError
from reco_tune.parts import IMPORT_PATH, nearest
from reco_tune.settings.fields import known_keys
from reco_tune.settings.sections import PRESETS, Sections
from reco_tune.settings.space import ARMS, Space

FileKind = Literal["space", "experiment"]
SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
"""Bounds of JSON schema as signs."""
NAMES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": ""}
"""Types of JSON schema in words."""
_PRESET = {
    "description": "Sets width, depth and heads by name. Other `model` keys override it. "
    + "; ".join(f"`{name}` is {' x '.join(str(size) for size in sizes.values())}" for name, sizes in PRESETS.items())
    + ".",
    "enum": list(PRESETS),
}
"""The only key that is not a field."""


_OF_A_PART = f"^({'|'.join(key.partition('.')[0] for key in known_keys() if key.endswith('.options'))})\\.options\\..+$"
"""Keys of a part's options, which its own class checks."""


class Setting(NamedTuple):
    """The description of one setting."""

    key: str
    kind: str
    """Its type, with the range or the values that are allowed."""
    default: str
    """Empty if the setting has no default value, `required` if it must be given."""
    meaning: str


class Group(NamedTuple):
    """A section of settings."""

    name: str
    meaning: str
    settings: tuple[Setting, ...]


def experiment_groups() -> list[Group]:
    """The sections of an experiment file."""
    schema = _schema(Sections)
    return [_group(name, schema, _section(own, schema), f"{name}.") for name, own in schema["properties"].items()]


def space_groups() -> list[Group]:
    """The keys of a space file, followed by those of its sections."""
    schema = _schema(Space)
    own = {key: given for key, given in schema["properties"].items() if not _section(given, schema)}
    groups = [_group("space", schema, {**schema, "properties": own}, "")]
    for key, given in schema["properties"].items():
        if section := _section(given, schema):
            groups.append(_group(key, schema, section, f"{key}."))
        elif section := _section(given.get("additionalProperties"), schema):
            groups.append(_group(key, schema, section, f"{key}.NAME."))
    return groups


def find_settings(key: str) -> list[Setting]:
    """The setting with this name, or all settings of the section.

    Raises:
        SettingsError: if there is none; suggests the nearest.
    """
    every = [setting for group in (*experiment_groups(), *space_groups()) for setting in group.settings]
    found = [setting for setting in every if setting.key == key or setting.key.startswith(f"{key}.")]
    if not found:
        known = dict.fromkeys([*(one.key for one in every), *(one.key.split(".")[0] for one in every)])
        raise SettingsError(f"{key} is not a setting; {nearest(key, known)}")
    return found


def file_schema(kind: FileKind) -> dict[str, Any]:
    """JSON schema of a space or an experiment file. Editors use it to complete and check the file."""
    shared = _schema(Sections)
    shared["$defs"] = {name: _without_titles(own) for name, own in shared["$defs"].items()}
    dotted = dict(_dotted(shared))
    experiment = {
        "type": "object",
        "additionalProperties": False,
        "properties": {**shared["properties"], **dotted},
        "patternProperties": {_OF_A_PART: {}},
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    if kind == "experiment":
        return {**head, "title": "An experiment of ReCo-Tune", **experiment, "$defs": shared["$defs"]}
    space = _schema(Space)
    keys = {key: _without_titles(own) for key, own in space["properties"].items()}
    keys["experiment"] |= {"type": ["object", "string"], **{k: v for k, v in experiment.items() if k != "type"}}
    arm = {**experiment, "type": ["object", "null"]}
    arms = {"properties": {name: {"$ref": "#/$defs/Arm"} for name in ARMS}}
    keys["arms"] |= {**arms, "additionalProperties": {"$ref": "#/$defs/Arm"}}
    keys["search"] |= {
        "properties": {key: {"$ref": "#/$defs/Range"} for key in dotted},
        "patternProperties": {_OF_A_PART: {"$ref": "#/$defs/Range"}},
        "additionalProperties": False,
    }
    keys["resources"] = shared["properties"]["resources"]
    definitions = {
        **shared["$defs"],
        **{name: _without_titles(own) for name, own in space["$defs"].items()},
        "Arm": arm,
    }
    return {
        **head,
        "title": "A study of ReCo-Tune",
        "type": "object",
        "required": space["required"],
        "additionalProperties": False,
        "properties": keys,
        "$defs": definitions,
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of pydantic, plus keys that are read elsewhere, minus keys that users do not set."""
    schema = model.model_json_schema()
    schema["properties"].pop("source", None)  # the file that a space was read from is not a setting
    if "Model" in schema.get("$defs", {}):
        schema["$defs"]["Model"]["properties"]["preset"] = _PRESET
    return schema


def _without_titles(schema: dict[str, Any]) -> dict[str, Any]:
    """Removes titles that only repeat the key: editors would show them instead of the description."""
    kept = {key: value for key, value in schema.items() if key != "title"}
    if "properties" in kept:
        kept["properties"] = {key: _without_titles(own) for key, own in kept["properties"].items()}
    return kept


def _dotted(shared: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in known_keys():
        section, name = key.split(".")
        yield key, {"$ref": f"{shared['properties'][section]['$ref']}/properties/{name}"}


def _group(name: str, schema: dict[str, Any], part: dict[str, Any], prefix: str) -> Group:
    required = part.get("required", [])
    settings = [
        Setting(prefix + key, _kind(own, schema), _default(own, key in required), _plain(own.get("description", "")))
        for key, own in part["properties"].items()
    ]
    return Group(name, _plain(part.get("description", "")), tuple(settings))


def _kind(own: dict[str, Any], schema: dict[str, Any]) -> str:
    """A type in words: `whole number (≥ 1)`, `crop, stretch`, `list of number`."""
    if "anyOf" in own:
        return ", ".join(filter(None, (_kind(one, schema) for one in own["anyOf"])))
    if "enum" in own or "const" in own:
        return ", ".join(f"`{one}`" for one in own.get("enum", [own.get("const")]))
    kind = own.get("type")
    if kind == "array" and "prefixItems" in own:
        return "[" + ", ".join(_kind(one, schema) for one in own["prefixItems"]) + "]"
    if kind == "array":
        return f"list of {_kind(own['items'], schema)}" if own.get("items") else "list"
    if kind == "object" or "$ref" in own:
        return "mapping"
    if own.get("format") == "path":
        return "path"
    if own.get("pattern") == f"^{IMPORT_PATH.pattern}$":
        return "import path"
    bounds = [f"{sign} {own[key]}" for key, sign in SIGNS.items() if key in own]
    return f"{NAMES[str(kind)]} ({', '.join(bounds)})" if bounds else NAMES[str(kind)]


def _default(own: dict[str, Any], required: bool) -> str:
    """The default as it is written in a file."""
    import yaml

    if required:
        return "required"
    value = own.get("default")
    if value is None or value in ({}, []):
        return ""
    return " ".join(yaml.safe_dump(value, default_flow_style=True, sort_keys=False).removesuffix("...\n").split())


def _section(given: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """The group of settings that a value consists of. Empty if it is not a group."""
    for one in [given, *given.get("anyOf", [])] if isinstance(given, dict) else []:
        if "$ref" in one:
            found: dict[str, Any] = schema["$defs"][one["$ref"].rsplit("/", 1)[1]]
            return found
    return {}


def _plain(text: str) -> str:
    return " ".join(text.split())
