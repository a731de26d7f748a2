"""Reference pages made from the code while the documentation is built: settings, metrics, commands.

A hook of MkDocs (`hooks:` in mkdocs.yml). Nothing here is written by hand, so nothing here can be out of date.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from reco_tune import quantities
from reco_tune.cli import app
from reco_tune.settings.described import Group, experiment_groups, space_groups

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
        "`search:` section of a space file, as an MLflow parameter, and as a column of `runs.csv`.\n\n"
        "`reco-tune settings` prints this page, `reco-tune settings window` a part of it.",
        "## Experiment",
        "One training run and its evaluation. A space file holds these under `experiment:`.",
        *_groups(experiment_groups()),
        "## Space",
        "A study: the question, the arms, the budgets and the search.",
        *_groups(space_groups()),
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


def _groups(groups: list[Group]) -> Iterator[str]:
    for group in groups:
        rows = [
            f"| `{one.key}` | {_cell(one.kind)} | {f'`{one.default}`' if one.default else ''} | {_cell(one.meaning)} |"
            for one in group.settings
        ]
        yield f"### {group.name}"
        yield group.meaning
        yield "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
