"""The benchmark of reports measures a study in the real format, and what it compares gives the same runs."""

import pyarrow.parquet as pq
import pytest

from reco_tune import quantities
from reco_tune.benchmarks.reports import METRICS, STEPS, bench_reports, synthetic_study
from reco_tune.reporting import frontier, load_study
from reco_tune.reporting.runs import comparable, runs_table
from reco_tune.study_log import StudyFolder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return synthetic_study(tmp_path_factory.mktemp("bench") / "many", 200)


def test_the_study_is_whole(study):
    record = load_study(study)
    runs = runs_table(record)
    assert len(runs) == 200 and record.finished
    assert len(comparable(runs)) == 200 - (runs["state"] == "pruned").sum() > 150
    assert len(frontier(runs).non_dominated("equal_steps")) > 2
    metrics = next(run.metrics for run in record.runs.values() if run.state == "evaluated")
    assert len(metrics) >= METRICS and set(quantities.ALL) <= set(metrics)


def test_every_run_has_its_history(study):
    folder = StudyFolder(study)
    history = pq.read_table(folder.history("search-00003"))
    assert history.num_rows == STEPS and history.num_columns >= 1 + METRICS
    assert all(folder.history(trial).exists() for trial in load_study(study).runs)


def test_the_same_seed_makes_the_same_study(study, tmp_path):
    again = synthetic_study(tmp_path / "many", 200)
    assert StudyFolder(again).events.read_bytes() == StudyFolder(study).events.read_bytes()


@pytest.mark.slow
def test_both_tables_are_filled():
    report, mlflow = bench_reports(80, 3)
    assert report.rows[0]["runs"] == 80 and 0 < report.rows[0]["peak_gib"] < 4
    ours, searched, whole = mlflow.rows
    assert ours["runs"] == searched["runs"] == whole["runs"] == 3
    assert whole["histories"] > 3 * METRICS / 2 and whole["ratio"] > searched["ratio"]
