"""What all scripts in analysis/ share: arguments, and one sentence instead of a traceback for a user's mistake."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reco_tune.errors import ReCoTuneError
from reco_tune.reporting.report import write_files
from reco_tune.reporting.section import Section


def run_script(work: Callable[[list[str], Path], str], description: str, several: bool = False) -> None:
    """Calls `work(sources, output folder)` with the command line's arguments and prints what it returns.

    Args:
        work: writes files into the folder and returns what to print.
        description: of the script, for `--help`.
        several: whether it takes more than one study.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "source", nargs="+" if several else 1, metavar="STUDY", help="a study folder, or mlflow:EXPERIMENT"
    )
    parser.add_argument(
        "--output", type=Path, help="folder to write to; by default analysis/ in the (first) study folder"
    )
    arguments = parser.parse_args()
    first = arguments.source[0]
    if arguments.output is None and first.startswith("mlflow:"):
        parser.error("a study read from MLflow needs --output DIR")
    output = arguments.output or Path(first) / "analysis"
    try:
        text = work(arguments.source, output)
    except ReCoTuneError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        place, reason = Path(error.filename or output), (error.strerror or str(error)).lower()
        other = (
            "give another folder with --output, or "
            if place.is_relative_to(output) or output.is_relative_to(place)
            else ""
        )
        print(f"{place} cannot be used ({reason}); {other}check its permissions and free space", file=sys.stderr)
        sys.exit(2)
    print(text)


def save(section: Section, output: Path) -> None:
    """Writes the files of a section into the output folder, which is created if it is missing."""
    output.mkdir(parents=True, exist_ok=True)
    write_files(section, output)
    for figure in section.figures:
        save_figure(output / figure.name, figure.draw, *figure.given)


def save_figure(path: Path, draw: Callable[..., Any], *given: Any) -> None:
    """Saves the figure of `draw(*given)` as .png and .pdf. Does nothing if there is nothing to draw."""
    from reco_tune.reporting import style

    if figure := draw(*given):
        style.save(figure, path)


def write(output: Path, name: str, text: str) -> Path:
    """Writes a text file into the output folder, which is created if it is missing."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / name
    path.write_text(text, encoding="utf-8", newline="\n")
    return path
