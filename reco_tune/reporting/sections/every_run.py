"""Every run of a study, each with the command that repeats it."""

from __future__ import annotations

import shlex

from markupsafe import Markup

from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.quality import FVD
from reco_tune.reporting.section import (
    STUDY_DIR,
    Column,
    Row,
    RowGroup,
    Section,
    Table,
    interval_column,
    number_column,
    quality_column,
    records,
    text_column,
)

MOST_ROWS = 200


def build(evidence: Evidence) -> Section:
    own = evidence.own
    first = own.head(MOST_ROWS)
    workers = "resources.workers"
    pixels = evidence.quality is FVD
    measured = ["speedup", *(FVD.ends if pixels else ()), "val_cross_entropy", "gpu_hours"]
    rows = records(first[["trial", "state", *measured, *([workers] if workers in first else [])]])
    for row in rows:
        row["command"] = repeat_command(str(row["trial"]), int(row.get(workers) or 1))
    columns = (
        text_column("trial", "run"),
        text_column("state", "state"),
        number_column("speedup", "speed-up (x) ↑"),
        *([quality_column(FVD), interval_column(FVD.key)] if pixels else []),
        number_column("val_cross_entropy", "val CE (nats/token) ↓", 3),
        number_column("gpu_hours", "device (h) ↓", 3),
        Column(
            "command", "repeat it", _command, "text", markup=lambda row: Markup("<code>{}</code>").format(_command(row))
        ),
    )
    more = f" {len(own) - MOST_ROWS} more are in `runs.csv`." if len(own) > MOST_ROWS else ""
    table = Table(
        "runs",
        "Runs",
        columns,
        [RowGroup("", rows)] if rows else [],
        "The command writes the run's settings to a file, trains with them, and evaluates. With the same machine type,"
        f" versions and number of workers, it ends with the same bits. `{STUDY_DIR}` is the study's folder.{more}",
        data=evidence.runs,
        folded=True,
    )
    return Section("runs", "Every run", tables=[table])


def repeat_command(trial: str, workers: int) -> str:
    """A shell command that trains and evaluates a run again."""
    file = shlex.quote(f"{trial}.yaml")
    train = "reco-tune train" if workers == 1 else f"torchrun --nproc-per-node {workers} -m reco_tune train"
    return f"reco-tune export {STUDY_DIR} {shlex.quote(trial)} && {train} {file} --evaluate"


def _command(row: Row) -> str:
    return str(row["command"])
