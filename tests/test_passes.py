"""Passes over the training clips: as the other way to give steps, and as what a report tells of overfitting."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_study import small_space
from toy_study import record_study

from reco_tune.cost.planning import plan
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError, SettingsError
from reco_tune.preparation import prepare
from reco_tune.reporting import Evidence
from reco_tune.reporting.sections import passes
from reco_tune.settings import Experiment, Range, load_experiment, make_experiment
from reco_tune.study.export import exported
from reco_tune.study_log import RunRecord
from reco_tune.training import fit

DATA = {"data.train_clips": 96, "training.batch_size": 8}


@pytest.mark.parametrize(
    ("settings", "steps", "epochs"),
    [
        ({"training.epochs": 2}, 24, 2),
        ({"training.epochs": 0.01}, 1, 0.01),
        ({"training.epochs": 2, "training.steps": 24}, 24, 2),
        ({"training.steps": 24}, 24, None),
    ],
    ids=["epochs", "less than a step", "a record of both", "steps"],
)
def test_epochs_are_steps_at_the_door(settings: dict[str, Any], steps: int, epochs: float | None) -> None:
    experiment = make_experiment({}, {**DATA, **settings}, where="here")
    assert (experiment.training.steps, experiment.training.epochs) == (steps, epochs)
    again = make_experiment({}, experiment.flat(), where="again")
    assert again == experiment and again.result_hash() == experiment.result_hash()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"data.train_clips": None, "training.epochs": 2}, r"data\.train_clips, which is missing"),
        ({"training.epochs": 2, "training.steps": 25}, "which is 24 steps of 8 out of 96 clips"),
        ({"training.epochs": 0}, "greater than 0"),
        ({"training.warmup_steps": 3, "training.warmup_fraction": 0.1}, "both give the warm-up; leave one out"),
    ],
    ids=["of unknown clips", "two things", "none", "two warm-ups"],
)
def test_what_cannot_be_counted_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        make_experiment({}, {**DATA, **settings}, where="here")


def test_one_way_overrides_the_other(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("data: {train_clips: 96}\ntraining: {batch_size: 8, epochs: 2}\n")
    assert load_experiment(file, ["training.steps=100"]).training.epochs is None
    assert load_experiment(file, ["training.epochs=3"]).training.steps == 36
    file.write_text("data: {train_clips: 96}\ntraining: {batch_size: 8, steps: 5}\n")
    assert load_experiment(file, ["training.epochs=3"]).training.steps == 36


def test_budgets_count_in_the_steps_that_epochs_give(tmp_path: Path) -> None:
    """Runs at equal steps record both; what a compute budget gives is no whole number of passes, and is steps alone."""
    runs = {run.trial: run.experiment.training for run in plan(small_space(tmp_path, "training.epochs=5")).runs}
    for trial in ("full-s0", "reco-equal_steps-s0"):
        assert (runs[trial].steps, runs[trial].epochs) == (40, 5)
    assert runs["reco-equal_compute-s0"].steps > 40 and runs["reco-equal_compute-s0"].epochs is None
    space = small_space(tmp_path, "training.epochs=5")
    record = RunRecord("full-s0", 0, "full", "both", 0, settings=plan(space).runs[0].experiment.flat())
    assert exported(record).training.epochs == 5 and exported(record, 80).training.epochs is None
    sampled = space.model_copy(update={"search": {"training.batch_size": Range(choice=(4, 8))}})
    for other in (sampled, small_space(tmp_path, "training.epochs=5", "arms.reco.training.batch_size=4")):
        with pytest.raises(SettingsError, match="other steps than the baseline"):
            plan(other)


def test_the_clips_must_be_those_that_were_counted(toy_cache: TokenCache) -> None:
    experiment = make_experiment({}, {"data.train_clips": 100, "training.epochs": 2}, where="here")
    with pytest.raises(DataError, match="set data.train_clips to 96".replace(".", r"\.")):
        prepare._counted(toy_cache, experiment)
    same = make_experiment({}, {**DATA, "training.epochs": 2}, where="here")
    assert prepare._counted(toy_cache, same) is toy_cache


def test_a_run_counts_its_passes(
    toy_cache: TokenCache, toy_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    told: list[float] = []
    experiment = toy_experiment({**DATA, "training.epochs": 2})

    def report(step: int, metrics: dict[str, float]) -> bool:
        told.append(metrics["passes"])
        return False

    result = fit(experiment, toy_cache, tmp_path, report=report)
    assert (result.steps, result.metrics["passes"]) == (24, 2) and told == pytest.approx([2 / 3, 4 / 3, 2])


def test_a_report_tells_where_validation_turned_in_passes(tmp_path: Path) -> None:
    evidence = Evidence.read(
        record_study(tmp_path / "toy", arms=("full", "reco", "fewer_frames"), searched=0, files=False)
    )
    record = copy.deepcopy(evidence.study)
    for run in record.runs.values():
        if run.arm == "full":
            for report, value in zip(run.reports, (1.4, 1.2, 2.3), strict=True):
                report["val_cross_entropy"] = value
    risen = Evidence.read(record)
    section = passes.build(risen)
    table = section.tables[0].data
    assert table is not None
    row = table.set_index(["budget", "arm"]).loc["equal_steps", "full"]
    every = 600 * 32 / 4096
    assert row["passes"] == pytest.approx(every) and row["best_pass"] == pytest.approx(every * 2 / 3)
    assert (row["best_val_cross_entropy"], row["last_val_cross_entropy"]) == (1.2, 2.3)
    assert row["fvd"] == pytest.approx(risen.results["equal_steps", "full"].runs["fvd"].mean())
    steps = table.set_index(["budget", "arm"])["passes"]
    assert steps["equal_compute", "reco"] > 1.5 * steps["equal_steps", "reco"]
    (figure,) = section.figures
    drawn = figure.draw(*figure.given)
    assert [axes.get_xlabel() for axes in drawn.axes] == ["passes over the training clips"] * 2


def test_a_study_whose_clips_nobody_counted_has_no_passes(tmp_path: Path) -> None:
    evidence = Evidence.read(record_study(tmp_path / "toy", arms=("full",), searched=0, files=False))
    record = copy.deepcopy(evidence.study)
    for run in record.runs.values():
        run.settings["data.train_clips"] = None
        run.metrics.pop("passes", None)
    section = passes.build(Evidence.read(record))
    assert not section.tables[0].groups and section.figures[0].draw(*section.figures[0].given) is None
