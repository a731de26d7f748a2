"""`reco-tune diff`: the differences of two runs or two studies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reco_tune.cli.options import study_folder

if TYPE_CHECKING:
    from reco_tune.study_log import RunRecord, StudyRecord

Side = Annotated[str, typer.Argument(metavar="STUDY_DIR[:RUN]", help="Folder of a study, or a run of it.")]


def diff(first: Side, second: Side) -> None:
    """Prints the settings and results in which two runs or two studies differ. Leaves out FVDs of different protocols.

    \b
    Examples:
      reco-tune diff studies/evidence:full-s0 studies/evidence:reco-equal_steps-s0
      reco-tune diff studies/evidence studies/again
    """
    from reco_tune.errors import StudyError

    (study_a, run_a), (study_b, run_b) = (_side(given) for given in (first, second))
    if (run_a is None) != (run_b is None):
        raise StudyError(f"{first} and {second} are a study and a run; give two studies or two runs (STUDY_DIR:RUN)")

    from reco_tune.cli.console import print_table
    from reco_tune.reporting.difference import of_runs, of_studies

    found = of_runs(run_a, run_b) if run_a and run_b else of_studies(study_a, study_b)
    print(f"A: {first}\nB: {second}\n")
    if found.settings:
        print_table("settings", ["key", "A", "B"], [list(row[:3]) for row in found.settings], left=3)
    else:
        print("settings: the same")
    print()
    if found.results:
        print_table("results", ["result", "A", "B", "B less A"], [list(row) for row in found.results], left=1)
    elif not found.incomparable:
        print("results: the same" if run_a else "results: no run is evaluated yet")
    if found.incomparable:
        print(f"not compared: {found.incomparable}")


def _side(given: str) -> tuple[StudyRecord, RunRecord | None]:
    from reco_tune.study_log import named_run, read_study

    folder, separator, run = given.rpartition(":")
    if (Path(given) / "events.jsonl").is_file() or not separator:
        return read_study(study_folder(Path(given))), None
    study = read_study(study_folder(Path(folder)))
    return study, named_run(study, run)
