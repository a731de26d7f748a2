"""The report folder: tables, figures, sample videos, the page and where all of it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from reco_tune import __version__
from reco_tune.errors import StudyError
from reco_tune.reporting import figures
from reco_tune.reporting.ablation import ablation_table, caption, left_out
from reco_tune.reporting.curves import arm_curves, learning_curves
from reco_tune.reporting.frontier import Frontier, frontier
from reco_tune.reporting.ledger import ledger
from reco_tune.reporting.page import Content, render
from reco_tune.reporting.runs import Source, budget_order, comparable, load_study, runs_table
from reco_tune.reporting.samples import Samples, read_samples, write_grids
from reco_tune.reporting.tables import ablation_latex, ablation_markdown, csv_text
from reco_tune.reporting.verdicts import Verdict, verdicts
from reco_tune.study_log import StudyFolder, StudyRecord

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Report:
    """What was written, and the numbers in it."""

    runs: pd.DataFrame
    ablation: pd.DataFrame
    frontier: Frontier
    verdicts: list[Verdict]
    caption: str
    """Which variance the table's intervals hold."""
    left_out: list[tuple[str, str]]
    """(trial, why) of the fixed-arm runs that the table leaves out."""
    folder: Path
    index: Path


def write_report(source: Source, output: Path | None = None, progress: Progress | None = None) -> Report:
    """Writes the whole report of a study, replacing an earlier one; tables are byte-identical whether read from the log or from MLflow.

    Args:
        source: a study folder, `mlflow:EXPERIMENT`, or a study already read. Sample videos need a folder.
        output: where to; by default `report/` in the study folder.
        progress: called with (done, total, what).

    Raises:
        StudyError: where there is no study, or no place to write to.
        ComparisonError: where runs of different protocols meet.
    """
    tell = progress or _quiet
    tell(0, 6, "reading runs")
    study = load_study(source)
    folder = _study_folder(source)
    if output is None and folder is None:
        raise StudyError("a report of a study that lies in no folder needs to know where to write; give --output DIR")
    output = Path(output) if output is not None else folder.report  # type: ignore[union-attr]
    runs = runs_table(study)
    tell(1, 6, "computing tables")
    report = Report(
        runs,
        ablation_table(runs),
        frontier(runs),
        verdicts(runs),
        caption(runs),
        left_out(runs),
        folder=output,
        index=output / "index.html",
    )
    output.mkdir(parents=True, exist_ok=True)
    tell(2, 6, "writing tables")
    _write_tables(report)
    _write_provenance(study, report)
    tell(3, 6, "drawing figures")
    drawn = _draw(study, report)
    tell(4, 6, "writing sample videos")
    samples: dict[str, dict[str, Samples]] = read_samples(study, folder) if folder else {}
    if samples:
        write_grids(samples, output / "samples")
    tell(5, 6, "writing the page")
    content = Content(
        study=study,
        runs=runs,
        ablation=report.ablation,
        caption=report.caption,
        left_out=report.left_out,
        frontier=report.frontier,
        verdicts=report.verdicts,
        ledger=ledger(study, runs),
        figures=drawn,
        samples=samples,
    )
    report.index.write_text(render(content), encoding="utf-8")
    tell(6, 6, "done")
    return report


def _write_tables(report: Report) -> None:
    for name, text in {
        "runs.csv": csv_text(report.runs),
        "frontier.csv": csv_text(report.frontier.points),
        "ablation.csv": csv_text(report.ablation),
        "ablation.md": ablation_markdown(report.ablation, report.caption, report.left_out),
        "ablation.tex": ablation_latex(report.ablation, report.caption, report.left_out),
    }.items():
        (report.folder / name).write_text(text, encoding="utf-8", newline="\n")


def _write_provenance(study: StudyRecord, report: Report) -> None:
    """What the tables rest on; nothing in it depends on where the runs were read from."""
    runs = report.runs
    origin = {
        "study": study.name,
        "question": study.question,
        "finished": study.finished,
        **study.provenance,
        "report_version": __version__,
        "arms": study.arms,
        "budgets": budget_order(runs),
        "seeds": sorted({int(seed) for seed in runs["seed"]}),
        "runs_by_state": {state: int(count) for state, count in sorted(runs["state"].value_counts().items())},
        **{
            name: [value for value in dict.fromkeys(runs[name]) if value]
            for name in ("protocol", "extractor", "data_fingerprint", "tokenizer_fingerprint", "device")
        },
        "sha256": {
            name: hashlib.sha256((report.folder / name).read_bytes()).hexdigest() for name in ("runs.csv", "frontier.csv", "ablation.csv")
        },
    }
    text = json.dumps(origin, indent=2, ensure_ascii=False, default=str) + "\n"
    (report.folder / "provenance.json").write_text(text, encoding="utf-8")


def _draw(study: StudyRecord, report: Report) -> dict[str, Path]:
    runs, budget = report.runs, budget_order(report.runs)[0]
    curves = arm_curves(study, budget)
    drawn = {}
    for name, figure in {
        "frontier": figures.draw_frontier(report.frontier, runs),
        "lambda": figures.draw_lambda(runs, comparable(runs)),
        "loss_by_frame": figures.draw_loss_by_frame(curves, budget),
        "error_growth": figures.draw_error_growth(curves, budget),
        "learning_curves": figures.draw_learning(learning_curves(study)),
    }.items():
        if figure is not None:
            figures.save(figure, report.folder / name)
            drawn[name] = report.folder / f"{name}.png"
    return drawn


def _study_folder(source: Source) -> StudyFolder | None:
    if isinstance(source, StudyRecord) or str(source).startswith("mlflow:"):
        return None
    return StudyFolder(Path(source))


def _quiet(done: int, total: int, what: str) -> None:
    """Nobody listens."""
