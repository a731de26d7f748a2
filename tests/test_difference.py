"""What two runs or studies differ in, and that numbers which do not compare are not set against each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_export import reco_tune
from toy_study import record_study

from reco_tune.quantities import ALL, FVD, TRAINING_SECONDS, VAL_CROSS_ENTROPY
from reco_tune.reporting.difference import of_runs, of_studies
from reco_tune.study_log import read_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_study(
        tmp_path_factory.mktemp("diff") / "toy", arms=("full", "reco"), seeds=(0, 1), searched=0, files=False
    )


def test_a_run_differs_from_itself_in_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_study(study)
    for run in record.runs.values():
        found = of_runs(run, run)
        assert (found.settings, found.results, found.incomparable) == ([], [], "")
    same = of_studies(record, record)
    assert not same.settings and {row.change for row in same.results} == {"0.00"}
    assert reco_tune("diff", f"{study}:full-s0", f"{study}:full-s0") == 0
    assert "settings: the same\n\nresults: the same" in capsys.readouterr().out


def test_two_runs_differ_in_what_their_arms_set(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = read_study(study).runs
    full, reco = runs["full-s0"], runs["reco-equal_steps-s1"]
    rows = {row.name: row for row in of_runs(full, reco).settings}
    assert (rows["window.scheme"].first, rows["window.scheme"].second) == ("full", "window")
    assert {"objective.continuity_weight", "training.seed"} <= set(rows) and "training.steps" not in rows
    results = {row.name: row for row in of_runs(full, reco).results}
    change = reco.metrics["fvd"] - full.metrics["fvd"]
    assert results[FVD.label].change == f"{change:+.4g}"
    assert reco_tune("diff", f"{study}:full-s0", f"{study}:reco-equal_steps-s1") == 0
    assert "window.scheme" in (said := capsys.readouterr().out) and "B less A" in said


@pytest.mark.parametrize("key", ["protocol", "data_fingerprint"])
def test_clips_of_two_protocols_are_not_compared_but_costs_are(key: str, study: Path) -> None:
    runs = read_study(study).runs
    one, other = runs["full-s0"], runs["full-s1"]
    one.metrics[TRAINING_SECONDS.name], other.metrics[TRAINING_SECONDS.name] = 1.0, 2.0
    one.metrics[VAL_CROSS_ENTROPY.name], other.metrics[VAL_CROSS_ENTROPY.name] = 1.5, 1.25
    other.provenance[key] = one.provenance[key] = "this"
    other.provenance[key] = "that"
    found = of_runs(one, other)
    names = [row.name for row in found.results]
    assert FVD.label not in names and {TRAINING_SECONDS.label, VAL_CROSS_ENTROPY.label} <= set(names)
    assert "this and that" in found.incomparable


def test_studies_are_compared_arm_by_arm(study: Path, tmp_path: Path) -> None:
    again = record_study(tmp_path / "again", arms=("full", "reco", "local"), searched=0, files=False, noise=0.3)
    first, second = read_study(study), read_study(again)
    second.provenance["commit"] = "fedcba9"
    found = of_studies(first, second)
    settings = {row.name: (row.first, row.second) for row in found.settings}
    assert settings["seeds"] == ("[0, 1]", "[0]") and settings["commit"] == ("0123abc", "fedcba9")
    rows = {row.name: row for row in found.results}
    reco = rows["FVD of reco, equal compute"]
    assert reco.first.endswith("(2 seeds)") and reco.second.endswith("(1 seed)") and reco.change
    assert rows["FVD of local, equal steps"].first == "" and not rows["FVD of local, equal steps"].change


def test_studies_of_two_protocols_say_why_they_are_not_compared(study: Path, tmp_path: Path) -> None:
    other = record_study(
        tmp_path / "other",
        arms=("full",),
        searched=0,
        files=False,
        protocol="native/9x12x12/stride1/raw/train2048/n512x1/9f3c21ab",
    )
    found = of_studies(read_study(study), read_study(other))
    assert not found.results and "evaluation.reference" in found.incomparable


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("{}", "{}:full-s0", "a study and a run"),
        ("{}:fulls0", "{}:full-s0", "did you mean full-s0"),
        ("{}x", "{}", "not a study folder"),
    ],
    ids=["of two kinds", "no such run", "no study"],
)
def test_what_cannot_be_compared_is_one_sentence(
    first: str, second: str, told: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reco_tune("diff", first.format(study), second.format(study)) == 2
    assert told in capsys.readouterr().err


def test_labels_tell_metrics_apart() -> None:
    """Rows are named by them."""
    assert len({quantity.label for quantity in ALL.values()}) == len(ALL)
