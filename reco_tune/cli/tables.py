"""Prints the tables of a report on the terminal."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from reco_tune.cli.console import terminal_width

if TYPE_CHECKING:
    from reco_tune.reporting import Report

MOST_LEFT_OUT = 3
"""Number of runs outside the table that are named, each with its reason."""


def print_report(report: Report, study: str) -> None:
    """Prints each section's tables, sentences and commands for the terminal.

    Args:
        study: its folder, as commands name it.
    """
    from reco_tune.reporting.render.terminal import terminal
    from reco_tune.reporting.section import STUDY_DIR

    width = terminal_width()
    for section in report.sections:
        shown = [table for table in section.tables if table.terminal]
        if (section.words or section.commands) and not shown:
            print(f"\n{section.title}")
        for table in shown:
            print("\n".join(terminal(table, width)))
            if table.caption:
                print(table.caption)
            if table.left_out:
                named = "; ".join(f"{trial} ({why})" for trial, why in table.left_out[:MOST_LEFT_OUT])
                rest = len(table.left_out) - MOST_LEFT_OUT
                more = f"; {rest} more, listed in {table.name}.md" if rest > 0 else ""
                print(f"Left out of the table: {named}{more}.")
        for line in [*section.words, *section.commands]:
            print(f"  {line.replace(STUDY_DIR, shlex.quote(study) if study != STUDY_DIR else study)}")
    if not report.evidence.study.finished:
        print("\nThe study is not finished: these are its numbers so far.")
