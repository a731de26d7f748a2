"""The report folder: tables, figures, sample videos, the page and where all of it came from."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from reco_tune import __version__
from reco_tune.errors import StudyError
from reco_tune.reporting import effort, tables
from reco_tune.reporting.ablation import COLUMNS, ablation_rows, caption, left_out
from reco_tune.reporting.analyses import (
    lambda_caption,
    lambda_groups,
    lambda_table,
    window_stride_caption,
    window_stride_cells,
    window_stride_tables,
)
from reco_tune.reporting.curves import arm_curves, bias_curves, learning_curves
from reco_tune.reporting.drawing import DRAWN_BY, Painter
from reco_tune.reporting.frontier import Frontier, frontier
from reco_tune.reporting.importance import importance_of, searched
from reco_tune.reporting.imported import file_names, origin_note, with_imports
from reco_tune.reporting.ledger import ledger
from reco_tune.reporting.measures import measures_table
from reco_tune.reporting.page import render
from reco_tune.reporting.paper import Reference, paper_reference
from reco_tune.reporting.runs import (
    Source,
    arm_order,
    bounds,
    budget_order,
    comparable,
    load_study,
    measured_with,
    own_runs,
    runs_table,
)
from reco_tune.reporting.samples import Samples, read_samples, write_grids
from reco_tune.reporting.tables import csv_text
from reco_tune.reporting.top_up import TopUp, top_up
from reco_tune.reporting.uncertainty import Uncertainty, frontier_uncertainty
from reco_tune.reporting.verdicts import Verdict, verdicts
from reco_tune.study_log import StudyFolder, StudyRecord

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Report:
    """What was written, and the numbers in it."""

    study: StudyRecord
    runs: pd.DataFrame
    """Of the study, then those from elsewhere."""
    ablation: pd.DataFrame
    """With `ablation.DETAILS`, which ablation.csv leaves out."""
    measures: pd.DataFrame
    """Beside FVD (`measures.measures_table`)."""
    frontier: Frontier
    uncertainty: Uncertainty
    compute: pd.DataFrame
    quality: pd.DataFrame
    """Training compute to reach the baseline's levels of quality."""
    hypervolume: pd.DataFrame
    """Over device hours."""
    importance: pd.DataFrame
    weights: pd.DataFrame
    """Windowed runs by λ."""
    weight_groups: pd.DataFrame
    """The same, runs of one arm and λ together."""
    weights_caption: str
    windows: pd.DataFrame
    """Windowed runs by arm, window length and stride."""
    windows_caption: str
    paper: dict[str, Reference]
    """The paper's own values by arm, where conditions match."""
    verdicts: list[Verdict]
    top_up: list[TopUp]
    """Arms that more training seeds would tell from the baseline, or would not."""
    ledger: pd.DataFrame
    """Device seconds and tokens by arm."""
    caption: str
    """Which variance the table's intervals hold, and where rows from elsewhere come from."""
    left_out: list[tuple[str, str]]
    """(trial, why) of the fixed-arm runs that the table leaves out."""
    imports: list[str]
    """What the files that rows from elsewhere came from are called."""
    folder: Path
    index: Path


def write_report(
    source: Source, output: Path | None = None, progress: Progress | None = None, imports: Sequence[Path] = ()
) -> Report:
    """Writes the whole report of a study, replacing an earlier one; tables are byte-identical whether read from the log
    or from MLflow.

    Args:
        source: a study folder, `mlflow:EXPERIMENT`, or a study already read. Sample videos need a folder.
        output: where to; by default `report/` in the study folder.
        progress: called with (done, total, what).
        imports: CSV files of runs from elsewhere (`imported`), which stand as marked rows.

    Raises:
        StudyError: where there is no study, or no place to write to.
        ComparisonError: where runs of different protocols meet, or an imported file is not as it must be.
    """
    tell = progress or _quiet
    folder = _study_folder(source)
    if output is None and folder is None:
        raise StudyError("a report of a study that lies in no folder needs to know where to write; give --output DIR")
    output = Path(output) if output is not None else folder.report  # type: ignore[union-attr]
    tell(0, 6, "reading runs")
    with _uncollected(), Painter() as painter:
        study = load_study(source)
        own = runs_table(study)
        runs, names = with_imports(own, imports), file_names(imports)
        tell(1, 6, "computing tables")
        ablation = ablation_rows(
            runs
        )  # refuses what does not compare, before anything of an earlier report is replaced
        output.mkdir(parents=True, exist_ok=True)
        _clear(output)
        budget = budget_order(own)[0]
        by_arm = arm_curves(study, budget)
        painter.draw("loss_by_frame", output, by_arm, budget)
        painter.draw("error_growth", output, by_arm, budget)
        painter.draw("frame_accuracy", output, by_arm, budget)
        painter.draw("fvd_by_samples", output, bias_curves(study, budget), budget)
        painter.draw("learning_curves", output, learning_curves(study))
        weights = lambda_table(own)
        painter.draw("lambda", output, weights, arm_order(own))
        painter.compute_and_draw("importance", output, importance_of, searched(study, own))
        curves = effort.compute_curves(study, own)
        report = Report(
            study=study,
            runs=runs,
            ablation=ablation,
            measures=measures_table(runs),
            frontier=frontier(runs),
            uncertainty=frontier_uncertainty(runs),
            compute=effort.compute_table(own),
            quality=effort.compute_to_quality(curves),
            hypervolume=effort.hypervolume_history(study, own),
            importance=pd.DataFrame(),  # comes with the figures
            weights=weights,
            weight_groups=lambda_groups(weights),
            weights_caption=lambda_caption(own),
            windows=window_stride_tables(own),
            windows_caption=window_stride_caption(own),
            paper=paper_reference(own),
            verdicts=verdicts(own),
            top_up=top_up(own),
            ledger=ledger(study, own),
            caption=caption(runs) + origin_note(names),
            left_out=left_out(runs),
            imports=names,
            folder=output,
            index=output / "index.html",
        )
        painter.draw(
            "frontier", output, report.uncertainty, report.ablation, arm_order(runs), bounds(study), report.paper
        )
        painter.draw("compute", output, report.compute, curves)
        painter.draw("hypervolume", output, report.hypervolume)
        painter.draw(
            "window_stride", output, window_stride_cells(report.windows[report.windows["budget"] == budget]), budget
        )
        tell(2, 6, "writing tables")
        _write_tables(report)
        _write_provenance(report, own, imports)
        tell(3, 6, "writing sample videos")
        samples: dict[str, dict[str, Samples]] = read_samples(study, folder) if folder else {}
        if samples:
            write_grids(samples, output / "samples")
        tell(4, 6, "drawing figures")
        drawn = painter.finish()
    report = replace(report, importance=drawn.computed["importance"])
    _write(output / "importance.csv", csv_text(report.importance))
    tell(5, 6, "writing the page")
    report.index.write_text(render(report, drawn.files, samples), encoding="utf-8")
    tell(6, 6, "done")
    return report


def _clear(folder: Path) -> None:
    """Takes away what an earlier report, perhaps of another study, has there and the next may not replace: figures and
    sample videos.
    """
    with suppress(
        OSError, ValueError, KeyError, TypeError
    ):  # where no provenance of a report lies there, nothing is touched
        origin = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        arms = {str(arm) for arm in origin["arms"]} if "report_version" in origin else set()
        for name in DRAWN_BY if arms else ():
            for kind in ("png", "pdf"):
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
        for video in (folder / "samples").glob("*.mp4"):
            if video.stem in arms:
                video.unlink()
        (folder / "samples").rmdir()  # unless a person keeps something there


def _write_tables(report: Report) -> None:
    words = report.caption, report.left_out, report.paper
    for name, text in {
        "runs.csv": csv_text(report.runs),
        "frontier.csv": csv_text(report.frontier.points),
        "frontier_probability.csv": csv_text(report.uncertainty.points),
        "hypervolume.csv": csv_text(report.hypervolume),
        "compute.csv": csv_text(report.compute),
        "compute_to_quality.csv": csv_text(report.quality),
        "ablation.csv": csv_text(report.ablation[list(COLUMNS)]),
        "ablation.md": tables.ablation_markdown(report.ablation, *words),
        "ablation.tex": tables.ablation_latex(report.ablation, *words),
        "measures.csv": csv_text(report.measures),
        "measures.md": tables.measures_markdown(report.measures, measured_with(comparable(own_runs(report.runs)))),
        "lambda.csv": csv_text(report.weights),
        "lambda.md": tables.lambda_markdown(report.weight_groups, report.weights_caption),
        "lambda.tex": tables.lambda_latex(report.weight_groups, report.weights_caption),
        "window_stride.csv": csv_text(report.windows),
        "window_stride.md": tables.window_stride_markdown(report.windows, report.windows_caption),
        "window_stride.tex": tables.window_stride_latex(report.windows, report.windows_caption),
    }.items():
        _write(report.folder / name, text)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _write_provenance(report: Report, runs: pd.DataFrame, imports: Sequence[Path]) -> None:
    """What the tables rest on; nothing in it depends on where the runs were read from."""
    study = report.study
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
        **(
            {"imports": {name: _hash(path) for name, path in zip(report.imports, imports, strict=True)}}
            if imports
            else {}
        ),
        "sha256": {name: _hash(report.folder / name) for name in ("runs.csv", "frontier.csv", "ablation.csv")},
    }
    text = json.dumps(origin, indent=2, ensure_ascii=False, default=str) + "\n"
    (report.folder / "provenance.json").write_text(text, encoding="utf-8")


def _hash(path: Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _study_folder(source: Source) -> StudyFolder | None:
    if isinstance(source, StudyRecord) or str(source).startswith("mlflow:"):
        return None
    return StudyFolder(Path(source))


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles while a report is made: its millions of small objects are in none, and it would go over them
    again and again.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _quiet(done: int, total: int, what: str) -> None:
    """Nobody listens."""
