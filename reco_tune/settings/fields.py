"""Looks up and checks one setting by its dotted key, and finds the nearest key for a misspelt one. `checks` compares
settings with each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from reco_tune.errors import SettingsError
from reco_tune.parts import nearest
from reco_tune.settings.sections import PRESETS, Sections

_WORDS = {"model_type": "must be a mapping", "dict_type": "must be a mapping", "tuple_type": "must be a list"}
"""Replacements for pydantic's messages that name Python types."""


@cache
def known_keys() -> tuple[str, ...]:
    """Every dotted key of an experiment."""
    keys = [
        f"{section}.{key}"
        for section, field in Sections.model_fields.items()
        for key in field.default.__class__.model_fields
    ]
    return (*keys, "model.preset")


def is_option(key: str) -> bool:
    """Whether a key names an option of a user's part, such as `model.options.width`."""
    section, _, rest = key.partition(".")
    return rest.startswith("options.") and f"{section}.options" in known_keys()


def check_key(key: str, where: str) -> None:
    """Checks that a setting exists.

    Raises:
        SettingsError: if there is no such setting; suggests the nearest one.
    """
    if is_option(key):
        return
    if key not in (known := known_keys()):
        raise SettingsError(f"{where}: {key} is not a setting; {nearest(key, known)}")


def check_value(key: str, value: Any, where: str) -> Any:
    """The parsed value of one setting. `1e-3`, which YAML reads as a string, becomes a number if the setting takes one.

    Raises:
        SettingsError: if there is no such setting, or it cannot have that value.
    """
    check_key(key, where)
    if is_option(key):  # the part checks its options when it is used
        return value
    try:
        kept = _type_of(key).validate_python(value)
    except ValidationError as error:
        raise SettingsError(f"{where}: {key} ({value!r}): {sentences(error.errors())}") from error
    if isinstance(value, bool) and not isinstance(kept, bool):
        raise SettingsError(f"{where}: {key} ({value!r}): true and false are not numbers; give a number")
    return kept


def sentences(errors: Iterable[Mapping[str, Any]]) -> str:
    """The errors of one value, one for each type that the setting allows."""
    return ", or ".join(dict.fromkeys(map(_sentence, errors)))


def _sentence(error: Mapping[str, Any]) -> str:
    message: str = _WORDS.get(error["type"], error["msg"].removeprefix("Value error, "))
    return message[0].lower() + message[1:]


@cache
def _type_of(key: str) -> TypeAdapter[Any]:
    if key == "model.preset":
        presets: Any = Literal[tuple(PRESETS)]
        return TypeAdapter(presets)
    section, name = key.split(".", 1)
    field = type(Sections.model_fields[section].default).model_fields[name]
    annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
