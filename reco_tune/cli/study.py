"""What `demo`, `run` and `resume` share: they run a study with live progress, write its report and print its
tables.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reco_tune.cli.console import progress_bars
from reco_tune.errors import RunFailedError, StoppedError, StudyError, TrackingError, command
from reco_tune.study_log import StudyFolder, StudyRecord

if TYPE_CHECKING:
    from reco_tune.study import Observer, StudyResult


def carry_out(path: Path, trials: int, work: Callable[[Observer], StudyResult], tracking_uri: str | None) -> None:
    """Runs or resumes a study with a live view, then writes its report.

    Args:
        path: the study's folder.
        trials: sampled runs of its space.
        work: runs the study and notifies the observer.

    Raises:
        RunFailedError: if runs failed; the report is written anyway.
        StoppedError: if the study was stopped.
    """
    from reco_tune.cli.watch import watching

    try:
        with watching(path, trials) as observer:
            result: StudyResult | None = work(observer)
    except KeyboardInterrupt:
        result = None  # Ctrl-C twice, or before anything ran
    if result is None or result.interrupted:
        raise StoppedError(f"stopped; finished work is kept, and `{command('resume', path)}` continues the study")
    conclude(path, None, tracking_uri)
    _refuse_failures(result.study)
    if limit := result.study.limited:
        more = command("resume", path, "--set", f"{limit.split()[0]}=MORE")
        print(f"the study is not finished: {limit}; `{more}` continues it under a higher limit")


def conclude(
    source: Path | str,
    output: Path | None,
    tracking_uri: str | None = None,
    imports: Sequence[Path] = (),
    protocol: str | None = None,
) -> None:
    """Writes the report of a study, prints its tables and, for a study in a folder, adds the report to MLflow.

    Args:
        source: folder of the study, or `mlflow:EXPERIMENT` of the server of MLFLOW_TRACKING_URI.
    """
    if isinstance(source, str):
        from reco_tune.tracking import reading_address

        reading_address(source.removeprefix("mlflow:"), None)  # before pandas and MLflow, which take seconds to import
    from reco_tune.cli.tables import print_report
    from reco_tune.reporting import write_report

    with progress_bars() as progress:
        report = write_report(
            source, output, lambda done, total, what: progress(done, total, "writing the report"), imports, protocol
        )
    print_report(report, str(source) if isinstance(source, Path) else "STUDY_DIR")
    print(f"\nreport: {report.index}")
    if isinstance(source, Path):
        print(f"MLflow: {mirror_sentence(StudyFolder(source), tracking_uri)}")


def command_line() -> str:
    """The command line as typed, for the log."""
    return shlex.join(["reco-tune", *sys.argv[1:]])


def sampled_trials(path: Path) -> int:
    """Number of sampled runs in the settings of a study's folder.

    Raises:
        StudyError: if its settings are missing.
    """
    from reco_tune.settings import read_yaml

    settings = StudyFolder(path).settings
    if not settings.is_file():
        raise StudyError(f"the study in {path} has no {settings.name}; restore that file from a backup")
    return int(read_yaml(settings).get("trials", 0))


def mirror_sentence(folder: StudyFolder, tracking_uri: str | None) -> str:
    """Sends missing runs to MLflow unless a running study does so itself. Returns the address, or the command that
    opens it.
    """
    if folder.live:
        return "the running study keeps it up to date"
    from reco_tune import tracking

    try:
        tracking.sync(folder, tracking_uri)
    except TrackingError as error:  # the study and its report are complete without it
        return str(error)
    where = tracking.shown(tracking_uri or folder.mlflow_uri)
    return where if where.startswith("http") else shlex.join(["mlflow", "ui", "--backend-store-uri", where])


def _refuse_failures(study: StudyRecord) -> None:
    failed = [run for run in study.runs.values() if run.state == "failed"]
    if failed:
        first = failed[0]
        raise RunFailedError(
            f"{len(failed)} of {len(study.runs)} runs failed and are in no table. {first.trial} failed:"
            f" {first.reason}; `reco-tune status` lists them all"
        )
