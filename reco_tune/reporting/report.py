"""The report folder: what every section has to write, the page, and where all of it came from."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reco_tune import __version__
from reco_tune.errors import StudyError
from reco_tune.progress import Progress, quiet
from reco_tune.reporting.drawing import Painter
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.imported import file_names
from reco_tune.reporting.render.csv import csv_text
from reco_tune.reporting.render.latex import latex
from reco_tune.reporting.render.markdown import markdown
from reco_tune.reporting.render.page import page
from reco_tune.reporting.runs import Source
from reco_tune.reporting.section import Section, file_stem
from reco_tune.reporting.sections import SECTIONS, build
from reco_tune.settings import TUNE

_STEPS = 4
_OLD_FIGURES = (
    "frontier",
    "compute",
    "hypervolume",
    "importance",
    "lambda",
    "window_stride",
    "frame_accuracy",
    "loss_by_frame",
    "error_growth",
    "fvd_by_samples",
    "learning_curves",
)
"""Files of reports that did not record their files yet."""


@dataclass(frozen=True)
class Report:
    """What was written, and the evidence for it."""

    evidence: Evidence
    sections: list[Section]
    """Sections in the order of the page."""
    folder: Path
    index: Path


def write_report(
    source: Source,
    output: Path | None = None,
    progress: Progress = quiet,
    imports: Sequence[Path] = (),
    protocol: str | None = None,
) -> Report:
    """Writes the whole report of a study. An earlier report is replaced only when all of the new one is written. Tables
    are byte-identical whether the study is read from the log or from MLflow.

    Args:
        source: a study folder, `mlflow:EXPERIMENT`, or a study already read. Sample videos need a folder.
        output: folder of the report; by default `report/` in the study folder, `report-PROTOCOL/` for another protocol.
        progress: called with (done, total, what).
        imports: CSV files of imported runs (`imported`), shown as marked rows.
        protocol: another protocol than the study's own, under which its models were scored (`reco-tune rescore`).

    Raises:
        StudyError: if there is no study, or no folder to write to.
        ComparisonError: if runs have different protocols, or an imported file is invalid.
    """
    with _uncollected(), Painter() as painter:
        progress(0, _STEPS, "reading runs")
        evidence = Evidence.read(source, imports, protocol)
        if output is None and evidence.folder is None:
            raise StudyError("this study has no folder for the report; give --output DIR")
        if output is None:
            own: Path = evidence.folder.report  # type: ignore[union-attr]
            output = own if protocol is None else own.with_name(f"{own.name}-{file_stem(protocol)}")
        output = Path(output)
        with _made_beside(output) as folder:
            progress(1, _STEPS, "computing tables")
            sections: dict[str, Section] = {}
            for name in reversed(SECTIONS):  # the slowest figures are at the end of the page: start them first
                sections[name] = build(name, evidence)
                for figure in sections[name].figures:
                    painter.draw(figure, folder)
            ordered = [sections[name] for name in SECTIONS]
            for section in ordered:
                write_files(section, folder)
            progress(2, _STEPS, "drawing figures")
            drawn = {name: folder / f"{name}.png" for name in painter.finish()}
            progress(3, _STEPS, "writing the page")
            _write(folder / "index.html", page(evidence, ordered, drawn))
            _write(folder / "provenance.json", _provenance(evidence, folder))
    progress(_STEPS, _STEPS, "done")
    return Report(evidence, ordered, output, output / "index.html")


def write_files(section: Section, folder: Path) -> None:
    """Its tables as files, and what it writes itself."""
    for table in section.tables:
        if "csv" in table.files and table.data is not None:
            _write(folder / f"{table.name}.csv", csv_text(table.data))
        if "tex" in table.files:
            _write(folder / f"{table.name}.tex", latex(table))
    for name in dict.fromkeys(table.name for table in section.tables if "md" in table.files):
        own = [table for table in section.tables if table.name == name and "md" in table.files]
        _write(folder / f"{name}.md", markdown(own))
    if section.write:
        section.write(folder)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _provenance(evidence: Evidence, folder: Path) -> str:
    """Provenance of the tables, and the list of files. It does not depend on whether the runs were read from the log or
    from MLflow.
    """
    study, runs = evidence.study, evidence.own
    names = zip(file_names(evidence.imports), evidence.imports, strict=True)
    tables = ("runs.csv", "frontier.csv", "ablation.csv")
    origin: dict[str, Any] = {
        "study": study.name,
        "question": study.question,
        "finished": study.finished,
        **study.provenance,
        "report_version": __version__,
        "arms": study.arms,
        **({"tuned": study.tuned} if study.tuned else {}),
        "budgets": evidence.budgets,
        "seeds": sorted({int(seed) for seed in runs["seed"][runs["budget"] != TUNE]}),
        "runs_by_state": {state: int(count) for state, count in sorted(runs["state"].value_counts().items())},
        **{
            name: [value for value in dict.fromkeys(runs[name]) if value]
            for name in ("protocol", "extractor", "data_fingerprint", "tokenizer_fingerprint", "device")
        },
        **({"imports": {name: _hash(path) for name, path in names}} if evidence.imports else {}),
        "sha256": {name: _hash(folder / name) for name in tables if (folder / name).exists()},
        "files": sorted(path.name for path in folder.iterdir() if path.is_file()),
    }
    return json.dumps(origin, indent=2, ensure_ascii=False, default=str) + "\n"


def _hash(path: Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@contextmanager
def _made_beside(output: Path) -> Iterator[Path]:
    """Within this context, writes go to a new folder. Its files replace those of an earlier report if the block ends
    without an error.
    """
    new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=output))
    try:
        yield folder
        _clear(output)
        for path in sorted(folder.rglob("*")):
            place = output / path.relative_to(folder)
            if path.is_dir():
                place.mkdir(exist_ok=True)
            else:
                path.replace(place)
        new = False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if new:
            with suppress(OSError):
                output.rmdir()


def _clear(folder: Path) -> None:
    """Deletes the files of an earlier report, perhaps of another study. The next report may not have all of them."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # without the provenance of a report, nothing is deleted
        origin = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        if "report_version" not in origin:
            return
        figures = [f"{name}.{kind}" for name in _OLD_FIGURES for kind in ("png", "pdf")]
        for name in [*origin.get("files", figures), *(f"samples/{file_stem(arm)}.mp4" for arm in origin["arms"])]:
            path = folder / name
            if path.resolve().is_relative_to(folder.resolve()):
                path.unlink(missing_ok=True)
        (folder / "samples").rmdir()  # unless a person keeps something there


@contextmanager
def _uncollected() -> Iterator[None]:
    """Switches off the search for reference cycles. A report makes millions of small objects without cycles, and Python
    would search them again and again.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
