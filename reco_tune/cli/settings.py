"""`reco-tune settings`: describes every setting, in words or as a schema for editors."""

from __future__ import annotations

import json
import textwrap
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from reco_tune.cli.completion import complete_key
from reco_tune.errors import SettingsError

if TYPE_CHECKING:
    from reco_tune.settings.described import Setting

WIDEST = 100
"""Width of the text in columns."""


class FileKind(StrEnum):
    """Kinds of file with a schema."""

    space = "space"
    experiment = "experiment"


def settings(
    key: Annotated[
        str | None,
        typer.Argument(
            help="A setting or a section, for example training.steps or window. Default: all.",
            autocompletion=complete_key,
        ),
    ] = None,
    schema: Annotated[
        FileKind | None,
        typer.Option(help="Prints the JSON schema of this kind of file instead, for completion in editors."),
    ] = None,
) -> None:
    """Prints the meaning, type, range and default of each setting.

    \b
    Examples:
      reco-tune settings window
      reco-tune settings training.batch_size
      reco-tune settings --schema space > space.schema.json
    """
    from reco_tune.settings.described import experiment_groups, file_schema, find_settings, space_groups

    if schema is not None:
        if key is not None:
            raise SettingsError(f"--schema describes a whole file; leave {key} out")
        print(json.dumps(file_schema(schema.value), indent=2, ensure_ascii=False))
    elif key is not None:
        _print(find_settings(key))
    else:
        for title, groups in (("experiment", experiment_groups()), ("space", space_groups())):
            print(f"{title.upper()} FILE\n")
            for group in groups:
                print(f"{group.name}: {group.meaning}\n")
                _print(list(group.settings))
                print()


def _print(settings: list[Setting]) -> None:
    from reco_tune.cli.console import terminal_width

    width = min(WIDEST, terminal_width())
    for one in settings:
        default = f"; default {one.default}" if one.default not in ("", "required") else ""
        print(one.key)
        for text in (f"{one.kind.replace('`', '')}{default or ('; required' if one.default else '')}", one.meaning):
            print(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ", break_long_words=False))
