"""`reco-tune spaces`: space files, new and shipped."""

from __future__ import annotations

import re
import shutil
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from reco_tune.cli.completion import complete_space
from reco_tune.cli.new_space import new
from reco_tune.cli.options import settings_path, shipped_experiments, shipped_spaces
from reco_tune.errors import SettingsError

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="""Space files: one for your own videos, and the shipped ones.

    \b
    Examples:
      reco-tune spaces new mine.yaml --root /data/mine
      reco-tune spaces ls
      reco-tune spaces show lambda
      reco-tune spaces cp lambda my_lambda.yaml
    """,
)
Name = Annotated[str, typer.Argument(help="Name of a shipped space or experiment.", autocompletion=complete_space)]
app.command()(new)


@app.callback()
def listed(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        ls()


@app.command()
def ls() -> None:
    """Lists the shipped spaces, each with its question and its cost, and the shipped experiments.

    \b
    Example:
      reco-tune spaces ls
    """
    for name, path in shipped_spaces().items():
        told = _header(path.read_text(encoding="utf-8"))
        print(f"{name}\n    {told['Question']}\n    costs {told['Costs']}")
    print(f"\nexperiments (single runs with the paper's settings):\n    {', '.join(shipped_experiments())}")


@app.command()
def show(name: Name) -> None:
    """Prints a shipped space or experiment.

    \b
    Example:
      reco-tune spaces show demo
    """
    print(settings_path(name).read_text(encoding="utf-8"), end="")


@app.command()
def cp(name: Name, destination: Annotated[Path, typer.Argument(help="File or folder.")] = Path()) -> None:
    """Copies a shipped space or experiment for you to edit.

    \b
    Example:
      reco-tune spaces cp joint my_joint.yaml
    """
    source = settings_path(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise SettingsError(f"{target} exists already; give another file name")
    if not target.parent.is_dir():
        raise SettingsError(f"{target.parent} is not a folder; make it, or give another file name")
    shutil.copyfile(source, target)
    print(target)


def _header(text: str) -> dict[str, str]:
    """The comments at the top of a space file, by title. A text may continue on the next lines."""
    told: dict[str, str] = {}
    title = ""
    for line in takewhile(lambda line: line.startswith("#"), text.splitlines()):
        if begins := re.match(r"# (\w[\w ]*):\s+(.*)", line):
            title, told[begins[1]] = begins[1], begins[2]
        elif title:
            told[title] += f" {line.removeprefix('#').strip()}"
    return told
