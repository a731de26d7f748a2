"""Reference pages made from the code while the documentation is built: settings, metrics, commands.

A hook of MkDocs (`hooks:` in mkdocs.yml). Nothing here is written by hand, so nothing here can be out of date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reco_tune import quantities
from reco_tune.cli import app
from reco_tune.settings import Experiment, Space

BETTER = {"lower": "lower", "higher": "higher", "neither": ""}
MEASURED = {True: "", False: "yes"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for name, text in (("settings", settings()), ("metrics", metrics()), ("commands", commands())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def settings() -> str:
    """Every setting with its type, default and meaning."""
    parts = [
        "# Settings",
        "Every setting has one dotted key. It is the same key in a YAML file, in `--set KEY=VALUE`, in the\n"
        "`search:` section of a space file, as an MLflow parameter, and as a column of `runs.csv`.",
        "## Experiment",
        "One training run and its evaluation. A space file holds these under `experiment:`.",
        *_sections(Experiment),
        "## Space",
        "A study: the question, the arms, the budgets and the search.",
        *_table(Space, ""),
        *_sections(Space),
    ]
    return "\n\n".join(parts) + "\n"


def metrics() -> str:
    """Every metric with its unit and direction."""
    rows = [
        f"| `{one.name}` | {_cell(one.label)} | {one.unit} | {BETTER[one.better]} | {MEASURED[one.deterministic]} |"
        for one in vars(quantities).values()
        if isinstance(one, quantities.Quantity)
    ]
    head = ["| name | meaning | unit | better | measured time |", "|---|---|---|---|---|"]
    intro = (
        "# Metrics\n\n"
        "The names of metrics in `runs.csv`, in MLflow, and in `objectives:` and `constraints:` of a space file.\n"
        "A *measured time* differs from run to run. Every other metric has the same bits for the same settings\n"
        "and seeds on one type of machine without a GPU."
    )
    return intro + "\n\n" + "\n".join([*head, *rows]) + "\n"


def commands() -> str:
    """Every command with its help."""
    parts = ["# Commands", "`reco-tune` and `python -m reco_tune` are the same."]
    for name, command in _commands(typer.main.get_command(app), "reco-tune"):
        parts.append(f"## {name}")
        parts.append(
            f"```text\n{command.get_help(command.make_context(name, [], resilient_parsing=True)).strip()}\n```"
        )
    return "\n\n".join(parts) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for key, one in command.commands.items():
            yield from _commands(one, f"{name} {key}")
    else:
        yield name, command


def _sections(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield f"### {name}"
            yield (inner.__doc__ or "").strip()
            yield from _table(inner, f"{name}.")


def _table(model: type[BaseModel], prefix: str) -> Iterator[str]:
    rows = [
        f"| `{prefix}{name}` | {_type(field)} | {_default(field)} | {_cell(field.description or '')} |"
        for name, field in model.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    ]
    yield "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _type(field: FieldInfo) -> str:
    """The type in words, with the range that is allowed."""
    text = field.annotation.__name__ if type(field.annotation) is type else str(field.annotation)
    choices = re.findall(r"'([^']*)'", text) if "Literal" in text else []
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "LocalPath": "path"}
    plain = [word for kind, word in words.items() if re.search(rf"\b{kind}\b", re.sub(r"'[^']*'", "", text))]
    if re.search(r"\bPath\b", text):
        plain = ["path"]
    kind = ", ".join([*plain, *(f"`{one}`" for one in choices)]) or "see the meaning"
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(one, key)}" for one in field.metadata for key, sign in signs.items() if hasattr(one, key)
    ]
    return f"{kind} ({', '.join(bounds)})" if bounds else kind


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    return "" if value is None else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
