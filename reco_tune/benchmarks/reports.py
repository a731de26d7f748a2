"""How long reports take: the report of a synthetic study with many runs, and reading runs from MLflow compared with a
plain query.

The study has the real format (event log, one Parquet history per run) and random numbers. Each report runs in its own
process, so that its time includes imports, and its memory nothing else. MLflow is imported only for its comparison.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reco_tune import quantities
from reco_tune.benchmarks.tables import Column, Row, Table
from reco_tune.progress import Progress, quiet
from reco_tune.settings import ARMS, BASELINE, Experiment, Space, arm_experiment, save_space
from reco_tune.study_log import StudyFolder

STEPS = 100
"""Steps in every history."""
METRICS = 50
"""Metrics of every run and in every history."""
RUNGS = 3
PROTOCOL = "native/9x12x12/stride1/reconstructed/train2048/n512x1/00000000"
_REPORT = (
    "import sys; from pathlib import Path; from reco_tune.reporting import write_report;"
    " write_report(Path(sys.argv[1]))"
)


def bench_reports(runs: int, mlflow_runs: int, progress: Progress = quiet) -> list[Table]:
    """Times the report of a study of `runs` runs from its folder, and two ways of reading a study of `mlflow_runs`
    runs from MLflow.
    """
    with tempfile.TemporaryDirectory() as place:
        progress(0, 4, "making a study")
        study = synthetic_study(Path(place) / "many", runs)
        progress(1, 4, "writing its report")
        reports = [_report(study, runs)]
        progress(2, 4, "sending a study to MLflow")
        reading = _mlflow(synthetic_study(Path(place) / "some", mlflow_runs), mlflow_runs) if mlflow_runs else []
        progress(4, 4, "done")
    columns = [Column("what", "what"), Column("runs", "runs", ",d"), Column("seconds", "seconds", ".1f")]
    more = [
        Column("cpu_seconds", "CPU s", ".1f"),
        Column("peak_gib", "peak GiB", ".2f"),
        Column("log_mb", "log, MB", ".0f"),
    ]
    tables = [Table("report", "A report from the study folder", [*columns, *more], reports)]
    if reading:
        ratio = [Column("histories", "histories asked for one by one", ",d"), Column("ratio", "its time / ours", ".1f")]
        tables.append(Table("mlflow", "The runs of a study from MLflow", [*columns, *ratio], reading))
    return tables


def synthetic_study(path: Path, runs: int, seed: int = 0) -> Path:
    """Writes a finished study with every arm at both budgets, and sampled runs for the rest. Returns its folder."""
    folder = StudyFolder(path)
    path.mkdir(parents=True)
    space = Space(
        question="How long does a report take?", experiment={}, arms={arm: {} for arm in ARMS}, seeds=(0, 1, 2)
    )
    save_space(space, folder.settings)
    with folder.events.open("w", encoding="utf-8") as log:
        for number, event in enumerate(_events(path.name, runs, random.Random(seed))):
            log.write(
                json.dumps({"event": event.pop("event"), "time": 1.7e9 + number, **event}, separators=(",", ":")) + "\n"
            )
    generator = np.random.default_rng(seed)
    columns = {"step": np.arange(1, STEPS + 1)} | {name: generator.normal(size=STEPS) for name in _metric_names()}
    history = path / "history.parquet"
    pq.write_table(pa.table(columns), history)
    for trial in _trials(runs):
        folder.trial(trial[0]).mkdir(parents=True)
        os.link(history, folder.history(trial[0]))
    return path


def _metric_names() -> list[str]:
    known = list(quantities.ALL)
    return known + [f"extra_{number}" for number in range(METRICS - len(known))]


def _trials(runs: int) -> list[tuple[str, str, str, int]]:
    """(trial, arm, budget, seed)."""
    fixed = [(f"{BASELINE}-s{seed}", BASELINE, "both", seed) for seed in range(3)]
    for arm in [arm for arm in ARMS if arm != BASELINE]:
        fixed += [
            (f"{arm}-{budget}-s{seed}", arm, budget, seed)
            for budget in ("equal_steps", "equal_compute")
            for seed in range(3)
        ]
    sampled = [(f"search-{number:05d}", "search", "equal_steps", 0) for number in range(max(0, runs - len(fixed)))]
    return [*fixed, *sampled][:runs]


def _events(name: str, runs: int, chance: random.Random) -> Iterator[dict[str, Any]]:
    space = Space(question="?", experiment={}, arms={arm: {} for arm in ARMS})
    settings = {arm: arm_experiment(space, arm, {}).flat() for arm in ARMS}
    origin = {"commit": "0", "version": "0", "hardware": "none"}
    yield {"event": "study", "name": name, "question": space.question, "arms": list(ARMS), "provenance": origin}
    for trial, arm, budget, seed in _trials(runs):
        own, params = dict(settings.get(arm, settings["reco"])), {}
        if arm == "search":
            length = chance.choice((9, 18, 27, 36))
            params = {"window.length_tokens": length, "objective.continuity_weight": 10 ** chance.uniform(-4, 1)}
            params |= {
                "window.stride_fraction": chance.choice((0.25, 0.5, 1.0)),
                "window.first_frame_probability": chance.random(),
            }
            own |= params | {"window.stride_tokens": int(length * params["window.stride_fraction"])}
        common = {
            "trial": trial,
            "arm": arm,
            "budget": budget,
            "seed": seed,
            "settings": own,
            "settings_hash": f"{trial:0>16}",
        }
        speed = 1.0 if arm == BASELINE else chance.uniform(1, 3)
        metrics = {metric: chance.random() for metric in _metric_names()}
        metrics |= {"speedup": speed, "speedup_low": 0.95 * speed, "speedup_high": 1.05 * speed}
        fvd = 2 * speed * chance.uniform(1, 3)
        metrics |= {
            "fvd": fvd,
            "fvd_low": 0.9 * fvd,
            "fvd_high": 1.1 * fvd,
            "steps": float(Experiment().training.steps),
        }
        yield {"event": "asked", **common, "params": params} if params else {"event": "planned", **common}
        facts = {"device": "cpu", "data_fingerprint": "d", "tokenizer_fingerprint": "t"}
        yield {"event": "started", "trial": trial, "attempt": 1, "provenance": facts}
        for rung in range(1, RUNGS + 1):
            step = int(metrics["steps"]) * rung // RUNGS
            yield {
                "event": "reported",
                "trial": trial,
                "step": step,
                "metrics": {"val_cross_entropy": 3 / rung + chance.random()},
            }
        if trial.endswith("9"):
            yield {"event": "pruned", "trial": trial, "step": step, "reason": "dominated"}
            continue
        yield {"event": "completed", "trial": trial, "metrics": metrics}
        curves = {curve: [chance.random() for _ in range(5)] for curve in quantities.CURVES}
        yield {
            "event": "evaluated",
            "trial": trial,
            "metrics": {},
            "curves": curves,
            "provenance": {"protocol": PROTOCOL, "extractor": "0"},
        }
    yield {"event": "finished"}


def _report(study: Path, runs: int) -> Row:
    """Times one report in its own process."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", _REPORT, str(study)])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"the report of {study} ended with exit code {process.returncode}")
    return {
        "what": "every table, figure and the page",
        "runs": runs,
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_gib": used.ru_maxrss / 2**20,
        "log_mb": StudyFolder(study).events.stat().st_size / 1e6,
    }


def _mlflow(study: Path, runs: int) -> list[Row]:
    """Reads the same study from MLflow (a sqlite file) in three ways: with this project's reader, with one unfiltered
    search, and with every history.
    """
    from reco_tune.reporting import load_runs
    from reco_tune.tracking import sync

    folder = StudyFolder(study)
    sync(folder)
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = folder.mlflow_uri
    try:
        load_runs(f"mlflow:{study.name}")  # warm-up
        began = time.perf_counter()
        found = load_runs(f"mlflow:{study.name}")
        ours = time.perf_counter() - began
        client = mlflow.MlflowClient(tracking_uri=folder.mlflow_uri)
        mlflow.set_tracking_uri(folder.mlflow_uri)
        began = time.perf_counter()
        table = mlflow.search_runs(experiment_names=[study.name])
        searched = time.perf_counter() - began
        histories = 0
        for identity, run in zip(table["run_id"], table.to_dict("records"), strict=True):
            for name in [
                key.removeprefix("metrics.")
                for key, value in run.items()
                if key.startswith("metrics.") and value == value
            ]:
                client.get_metric_history(identity, name)
                histories += 1
        whole = time.perf_counter() - began
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI") if before is None else os.environ.update(MLFLOW_TRACKING_URI=before)
        shutil.rmtree(folder.mlflow_artifacts, ignore_errors=True)
    named = "paged queries filtered by kind, curves and rungs included (this project)"
    return [
        {"what": named, "runs": len(found), "seconds": ours, "histories": 0, "ratio": 1.0},
        {
            "what": "one unfiltered mlflow.search_runs, no curves",
            "runs": runs,
            "seconds": searched,
            "histories": 0,
            "ratio": searched / ours,
        },
        {
            "what": "the same, then get_metric_history",
            "runs": runs,
            "seconds": whole,
            "histories": histories,
            "ratio": whole / ours,
        },
    ]
