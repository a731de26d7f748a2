"""Importance finds the setting that decides, says nothing of few runs, and keeps optuna to itself."""

import ast
from pathlib import Path

import pytest
from toy_study import record_study

import reco_tune.reporting
from reco_tune.reporting import Evidence, load_study
from reco_tune.reporting.sections.importance import LEAST_RUNS, importance_table


def made(tmp_path, searched, change=lambda study: None):
    study = load_study(record_study(tmp_path / "toy", arms=("full",), searched=searched, files=False))
    change(study)
    return importance_table(Evidence.read(study))


def test_the_window_decides_the_toy_study(tmp_path):
    table = made(tmp_path, 60)
    assert list(dict.fromkeys(table["objective"])) == ["fvd", "speedup", "val_cross_entropy"]
    for _, rows in table.groupby("objective"):
        assert rows["setting"].iloc[0] == "window.length_tokens" and rows["importance"].iloc[0] > 0.8
        assert rows["importance"].sum() == pytest.approx(1) and rows["importance"].is_monotonic_decreasing


def test_what_was_never_varied_is_not_listed(tmp_path):
    assert "window.stride_fraction" not in set(made(tmp_path, 30)["setting"])


def test_a_choice_of_words_counts_too(tmp_path):
    def decide(study):
        for number, run in enumerate(run for run in study.runs.values() if run.arm == "search"):
            run.params = {
                "objective.continuity_reduction": ("mean", "sum")[number % 2],
                "training.learning_rate": 10.0 ** -(number // 2 % 5),
            }
            run.metrics["fvd"] = 1.0 + number % 2 + 0.001 * number

    assert made(tmp_path, 40, decide).iloc[0]["setting"] == "objective.continuity_reduction"


def test_few_runs_say_nothing(tmp_path):
    assert made(tmp_path, LEAST_RUNS).empty  # the last is pruned, so one too few


def test_only_this_module_of_the_reports_imports_optuna():
    folder = Path(reco_tune.reporting.__file__).parent
    named = {
        path.name
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna"))
        or (isinstance(node, ast.Import) and any(name.name.startswith("optuna") for name in node.names))
    }
    assert named == {"importance.py"}
