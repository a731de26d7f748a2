"""Each arm at its own best: the points that all arms try, what is refused, and the choice that the log holds; the
driver's bookkeeping on a real log, without a cluster.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_study import books_of, close_books, small_space

from reco_tune.cli import main
from reco_tune.cli.estimate import headline, standing
from reco_tune.cost import Rates, forecast, plan
from reco_tune.errors import RunFailedError, SettingsError, StudyError
from reco_tune.reporting import Evidence, load_runs
from reco_tune.reporting.difference import of_studies
from reco_tune.reporting.render.csv import csv_text
from reco_tune.reporting.render.page import _counts
from reco_tune.reporting.report import _provenance
from reco_tune.reporting.sections import build
from reco_tune.reporting.sections.cost import TUNING, ledger
from reco_tune.settings import TUNE, Space, Tune, load_space, save_space
from reco_tune.simulation import FaultRates, Workload, simulate
from reco_tune.study.bookkeeping import Bookkeeping
from reco_tune.study.export import best_run, exported
from reco_tune.study.growth import Growth, grown
from reco_tune.study.job_source import CALIBRATION
from reco_tune.study.scheduler import prune_reason
from reco_tune.study.study_writer import frozen
from reco_tune.study.unchanged import check_unchanged
from reco_tune.study_log import StudyFolder, read_events, read_study
from reco_tune.tuning import best_point, point_results

RATE = "training.learning_rate"
RATES = (1e-3, 3e-3, 1e-2)
BEST = {"full": 1e-3, "reco": 1e-2}
"""Of the made-up results."""


def tuned_space(folder: Path, *overrides: str, **tune: Any) -> Space:
    own = {"per_arm": {RATE: {"choice": list(RATES)}}, "seeds": [7], **tune}
    return small_space(folder, "trials=0", f"tune={json.dumps(own)}", *overrides)


def driver(space: Space, folder: Path) -> Bookkeeping:
    study = StudyFolder(folder / "study")
    one = books_of(frozen(space), study)
    if not study.settings.exists():
        save_space(frozen(space), study.settings)
    return one


def given(one: Bookkeeping) -> list[str]:
    """Every job that can be given out now."""
    keys = []
    while (job := one.next()) is not None:
        keys.append(job.key)
    return keys


def calibrate(one: Bookkeeping) -> None:
    for arm, speed in (("full", 1.0), ("reco", 2.0)):
        told = {"speedup": speed, "calibration_seconds": 1.0}
        one.take_in({"event": "calibrated", "key": CALIBRATION + arm, "kind": "calibration", "metrics": told})


def fvd(settings: dict[str, Any]) -> float:
    """Lowest at the best rate of the arm, in a bowl over the three."""
    arm = "full" if settings["window.scheme"] == "full" else "reco"
    away, seed = abs(RATES.index(settings[RATE]) - RATES.index(BEST[arm])), int(settings["training.seed"])
    return 2.0 + away + 0.01 * seed


def end(one: Bookkeeping, key: str, **metrics: float) -> None:
    """A run starts, trains and is evaluated."""
    settings = one.study.runs[key].settings
    quality = fvd(settings)
    told: dict[str, Any] = {"fvd": quality, "fvd_low": quality - 0.1, "fvd_high": quality + 0.1, "speedup": 1.0}
    told |= {"steps": settings["training.steps"], "training_seconds": 36.0, "gpu_hours": 0.01, **metrics}
    told |= {"val_cross_entropy": 1.5, "speedup_limit": 2.1} | ({"speedup": 2.0} if key.startswith("reco") else {})
    where = {"protocol": "native/x", "data_fingerprint": "d", "tokenizer_fingerprint": "t"}
    one.take_in({"event": "started", "key": key, "kind": "trial", "attempt": 1, "provenance": where})
    one.take_in(
        {"event": "reported", "key": key, "kind": "trial", "step": 10, "metrics": {"val_cross_entropy": quality}}
    )
    one.take_in({"event": "evaluated", "key": key, "kind": "trial", "metrics": told, "curves": {}, "provenance": where})


def whole(space: Space, folder: Path) -> Bookkeeping:
    """A study that has ended."""
    one = driver(space, folder)
    given(one)
    calibrate(one)
    while keys := given(one):
        for key in keys:
            end(one, key)
    assert one.conclude()
    return one


@pytest.mark.parametrize(
    ("ranges", "trials", "points"),
    [
        (
            {"a": {"choice": [1e-3, 3e-3]}, "b": {"choice": [0, 100]}},
            None,
            [(1e-3, 0), (1e-3, 100), (3e-3, 0), (3e-3, 100)],
        ),
        ({"a": {"float": [1e-3, 1e-2], "log": True}}, 3, [(1e-3,), (3.162e-3,), (1e-2,)]),
        ({"a": {"float": [1e-3, 4e-3], "step": 1e-3}}, None, [(1e-3,), (2e-3,), (3e-3,), (4e-3,)]),
        ({"a": {"float": [0.2, 1.0]}, "b": {"int": [0, 90]}}, 3, [(0.6, 30), (0.4, 60), (0.8, 10)]),
        ({"a": {"float": [1e-4, 1e-2], "log": True}}, 1, [(1e-3,)]),
    ],
    ids=["every combination", "from end to end on a log scale", "steps", "several ranges filled evenly", "one point"],
)
def test_all_arms_try_the_same_points(
    ranges: dict[str, Any], trials: int | None, points: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    names = {"a": RATE, "b": "training.warmup_steps"}
    tune = Tune(per_arm={names[key]: value for key, value in ranges.items()}, trials=trials)
    assert [tuple(point.values()) for point in tune.points] == [pytest.approx(point) for point in points]
    space = tuned_space(
        tmp_path, "training.steps=200", per_arm={names[key]: ranges[key] for key in ranges}, trials=trials
    )
    tried = {arm: [run.params for run in plan(space).tuning if run.arm == arm] for arm in space.arms}
    assert tried["full"] == tried["reco"] == tune.points


@pytest.mark.parametrize(
    ("overrides", "tune", "told"),
    [
        ([], {"seeds": [0]}, "tune.seeds has 0, also a seed of the table"),
        ([], {"per_arm": {}}, "tune.per_arm is empty"),
        ([], {"per_arm": {RATE: {"float": [1e-3, 1e-2]}}}, "tune.trials is missing"),
        ([], {"trials": 4}, "make 3 combinations"),
        ([], {"per_arm": {"training.warmup_steps": {"int": [0, 1]}}, "trials": 3}, "hold only 2 of these points"),
        ([], {"metric": "speedup"}, "tune.metric .speedup. is not one of fvd and val_cross_entropy"),
        (
            [],
            {"per_arm": {"training.batch_size": {"choice": [8, 16]}}},
            "training.batch_size changes what a step costs",
        ),
        ([], {"per_arm": {"training.steps": {"choice": [8, 16]}}}, "training.steps is what budgets count in"),
        ([], {"per_arm": {"evaluation.samples": {"choice": [8]}}}, "evaluation.samples is shared by all runs"),
        ([], {"per_arm": {"objective.continuity_weight": {"choice": [0.1]}}}, "arm `full` has its own objective"),
        ([], {"per_arm": {"training.learning_rat": {"choice": [0.1]}}}, "learning_rat"),
        ([], {"per_arm": {"training.learning_rate": {"choice": [0.1, -1]}}}, "greater than 0"),
        (["arms.fewer_frames={}"], {"metric": "val_cross_entropy"}, "arm `fewer_frames` does not have"),
        (["trials=2"], {}, "give it a range under search, too"),
        (["pruning.kind=pareto_asha", "pruning.grace_rungs=6"], {}, "leaves none of the 6 training.rungs"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_would_be_unfair_or_cannot_be_is_refused(
    overrides: list[str], tune: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=told):
        plan(tuned_space(tmp_path, *overrides, **tune))


def test_every_arm_is_tuned_at_its_longest_budget_and_the_plan_counts_it(tmp_path: Path) -> None:
    planned = plan(tuned_space(tmp_path, seeds=[7, 8])).at_speeds({"full": 1.0, "reco": 2.0})
    assert {run.arm: run.steps for run in planned.tuning} == {"full": 60, "reco": 120}
    assert [run.trial for run in planned.tuning[:4]] == [
        "full-tune0-s7",
        "full-tune1-s7",
        "full-tune2-s7",
        "full-tune0-s8",
    ]
    assert planned.untuned == ("full", "reco") and planned.total == 12 + 3
    cost = forecast(planned, Rates(1e9))
    assert [run.trial for run in cost.runs] == [run.trial for run in planned.fixed]
    cheaper = forecast(plan(tuned_space(tmp_path, metric="val_cross_entropy", seeds=[7, 8])), Rates(1e9))
    assert cheaper.runs[0].device_seconds < cost.runs[0].device_seconds, "what generates nothing is cheaper"
    chosen = planned.at_speeds({"full": 1.0, "reco": 2.0}, {"reco": {RATE: 0.01}})
    assert chosen.untuned == ("full",)
    assert {run.experiment.training.learning_rate for run in chosen.runs if run.arm == "reco"} == {0.01}


def test_the_table_begins_with_what_was_chosen(tmp_path: Path) -> None:
    one = driver(tuned_space(tmp_path), tmp_path)
    assert given(one) == ["calibration.full", "calibration.reco"]
    calibrate(one)
    tuning = [f"{arm}-tune{point}-s7" for arm in ("full", "reco") for point in range(3)]
    assert given(one) == tuning and not one.jobs.exhausted
    assert headline(standing(one.study, 0, 0.0)).startswith("0 of 9 runs ended")
    for key in tuning[:3]:
        end(one, key)
    assert given(one) == ["full-s0"], "an arm that is tuned need not wait for the others"
    assert "tuning: settings chosen for 1 of 2 arms" in headline(standing(one.study, 0, 0.0))
    for key in tuning[3:]:
        end(one, key)
    assert given(one) == ["reco-equal_steps-s0", "reco-equal_compute-s0"] and one.jobs.exhausted
    assert one.study.tuned == {arm: {RATE: rate} for arm, rate in BEST.items()}
    assert {run.arm: run.settings[RATE] for run in one.study.runs.values() if not run.tunes} == BEST
    assert not one.conclude(), "the table is not done"
    for key in ("full-s0", "reco-equal_steps-s0", "reco-equal_compute-s0"):
        end(one, key)
    assert one.conclude()


@pytest.mark.parametrize("cut", [12, 19, 22, 27, 33])
def test_a_study_that_was_killed_goes_on_with_the_same_choices(cut: int, tmp_path: Path) -> None:
    """Wherever the log ends, also between the choice and the runs that follow from it."""
    space = tuned_space(tmp_path)
    undisturbed = whole(space, tmp_path).study
    close_books()
    log = StudyFolder(tmp_path / "study").events
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:cut]))
    one = driver(space, tmp_path)
    while keys := given(one):
        for key in keys:
            if key.startswith(CALIBRATION):
                calibrate(one)
            else:
                end(one, key)
    assert one.conclude() and one.study.tuned == undisturbed.tuned
    hashes = {trial: run.settings_hash for trial, run in one.study.runs.items()}
    assert hashes == {trial: run.settings_hash for trial, run in undisturbed.runs.items()}
    planned = [event["trial"] for event in read_events(log) if event["event"] == "planned"]
    assert len(planned) == len(set(planned)) == len(hashes)


def test_what_was_chosen_stays_chosen(tmp_path: Path) -> None:
    """A tuning run that is done again after the choice changes nothing: half a table would have other settings."""
    one = whole(tuned_space(tmp_path), tmp_path)
    one.writer.write("retried", trial="full-tune2-s7", attempt=2)
    one.jobs.again("full-tune2-s7")
    assert given(one) == ["full-tune2-s7"]
    end(one, "full-tune2-s7", fvd=0.1)
    assert given(one) == [] and one.study.tuned["full"] == {RATE: BEST["full"]} and one.conclude()


def test_the_point_of_most_seeds_is_taken_before_the_lowest_mean(tmp_path: Path) -> None:
    one = driver(tuned_space(tmp_path, seeds=[7, 8]), tmp_path)
    given(one)
    calibrate(one)
    given(one)
    for key in ("full-tune0-s7", "full-tune1-s7", "full-tune1-s8"):
        end(one, key)
    one.take_in({"event": "pruned", "key": "full-tune0-s8", "kind": "trial", "reason": "late"})
    tune = one.jobs.plan.space.tune
    assert tune is not None
    found = point_results(tune, one.study.runs.values(), "full")
    assert [len(result.values) for result in found] == [1, 2, 0] and found[0].mean < found[1].mean
    best = best_point(found)
    assert best is not None and best.params == {RATE: RATES[1]} and best_point(found[2:]) is None


def test_an_arm_that_cannot_be_tuned_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    one = driver(tuned_space(tmp_path), tmp_path)
    given(one)
    calibrate(one)
    for key in given(one):
        if key.startswith("full"):
            end(one, key)
        else:
            one.take_in({"event": "failed", "key": key, "kind": "trial", "reason": "the loss is not finite"})
    assert given(one) == ["full-s0"]
    end(one, "full-s0")
    with pytest.raises(RunFailedError, match=r"arm `reco` could be evaluated \(the loss is not finite\).*retry"):
        one.conclude()
    one.writer.write("retried", trial="reco-tune0-s7", attempt=2)
    one.jobs.again("reco-tune0-s7")
    assert given(one) == ["reco-tune0-s7"]
    end(one, "reco-tune0-s7")
    assert given(one) == ["reco-equal_steps-s0", "reco-equal_compute-s0"]


def test_tuning_runs_are_pruned_among_those_of_their_arm(tmp_path: Path) -> None:
    pruning = ["pruning.kind=pareto_asha", "pruning.reduction_factor=2"]
    one = driver(tuned_space(tmp_path, *pruning, metric="val_cross_entropy"), tmp_path)
    given(one)
    calibrate(one)
    jobs = []
    while (job := one.next()) is not None:
        jobs.append(job)
    assert all(job.judged and not job.sampled and not job.evaluated for job in jobs)
    for key, loss in (("full-tune0-s7", 1.0), ("reco-tune0-s7", 3.0), ("reco-tune1-s7", 2.0), ("full-tune1-s7", 1.5)):
        steps = one.study.runs[key].settings["training.steps"]
        told = {
            "event": "reported",
            "key": key,
            "kind": "trial",
            "step": steps // 6,
            "metrics": {"val_cross_entropy": loss},
        }
        one.take_in(told)
        reason = one.judge(key, steps // 6)
        assert bool(reason) == (key == "full-tune1-s7"), "worse than one of its own arm, better than all of the other"
    assert "best 1 in 2 of 2 points" in prune_reason(one.jobs.plan.space, one.study, "full-tune1-s7", 10)


def test_a_new_arm_is_tuned_before_it_stands_in_the_table(tmp_path: Path) -> None:
    one = whole(tuned_space(tmp_path), tmp_path)
    space = load_space(StudyFolder(tmp_path / "study").settings)
    with pytest.raises(SettingsError, match=r"tune\.seeds has 7"):
        grown(space, Growth(seeds=(7,)))
    larger = grown(space, Growth(arms={"local_balanced": {}}, seeds=(1,)))
    one.jobs.grow(plan(larger))
    assert given(one) == ["calibration.local_balanced"]
    told = {"speedup": 2.0}
    one.take_in({"event": "calibrated", "key": "calibration.local_balanced", "kind": "calibration", "metrics": told})
    new = given(one)
    assert new[:3] == [f"local_balanced-tune{point}-s7" for point in range(3)]
    assert new[3:] == ["full-s1", "reco-equal_steps-s1", "reco-equal_compute-s1"]
    assert one.study.runs["full-s1"].settings[RATE] == BEST["full"], "seeds that are added have what was chosen"
    for key in new:
        end(one, key)
    assert {key.rsplit("-", 1)[0] for key in given(one)} == {
        "local_balanced-equal_steps",
        "local_balanced-equal_compute",
    }


def test_tuning_may_not_change_under_a_study(tmp_path: Path) -> None:
    one = whole(tuned_space(tmp_path), tmp_path)
    study = StudyFolder(tmp_path / "study")
    check_unchanged(load_space(study.settings), one.study, study)
    with pytest.raises(StudyError, match=r"tune\.seeds"):
        check_unchanged(load_space(study.settings, ["tune.seeds=[9]"]), one.study, study)


def test_a_row_is_exported_with_what_was_chosen(tmp_path: Path) -> None:
    study = whole(tuned_space(tmp_path), tmp_path).study
    assert exported(study.runs["reco-equal_steps-s0"]).training.learning_rate == BEST["reco"]
    study.runs["reco-tune2-s7"].metrics["fvd"] = 0.0
    assert not best_run(study, "fvd").tunes


def test_the_report_tells_what_was_chosen_and_what_it_cost(tmp_path: Path) -> None:
    one = whole(tuned_space(tmp_path, "seeds=[0,1]"), tmp_path)
    runs, evidence = load_runs(tmp_path / "study"), Evidence.read(tmp_path / "study")
    tuning = runs[runs["budget"] == TUNE]
    assert len(tuning) == 6 and not set(tuning["trial"]) & set(evidence.comparable["trial"])
    assert list(evidence.ablation["seeds"]) == [2] * 4, "tuning runs are no seeds of a row"
    (table,) = build("ablation", evidence).tables
    assert not table.left_out and "`training.learning_rate`" in table.remarks[-1]
    assert [row[RATE] for row in table.groups[0].rows] == list(BEST.values())
    costs = ledger(one.study, runs).set_index("arm")
    assert costs.loc[TUNING, "runs"] == 6 and costs.loc[TUNING, "device_hours"] == pytest.approx(6 * 36 / 3600)
    assert costs.loc["total", "runs"] == len(runs) and costs.loc["full", "runs"] == 2
    section = build("tuning", evidence)
    points = section.tables[0].data
    assert points is not None
    assert dict(points[points["chosen"]][["arm", RATE]].itertuples(index=False)) == BEST
    assert "`full` got the lowest training.learning_rate that was tried" in section.tables[0].remarks[0]
    (figure,) = section.figures
    drawn = figure.draw(*figure.given)
    assert drawn.axes[0].get_xscale() == "log" and len(drawn.axes) == 1
    assert "6 runs that tuned the arms" in _counts(evidence.own)
    assert json.loads(_provenance(evidence, tmp_path))["tuned"]["reco"] == {RATE: BEST["reco"]}
    (tmp_path / "runs.csv").write_text(csv_text(runs), encoding="utf-8")
    beside = Evidence.read(tmp_path / "study", imports=[tmp_path / "runs.csv"]).runs
    assert len(beside) == 2 * len(runs) - 6, "tuning runs of another study are laid beside nothing"


def test_what_was_chosen_is_told_where_studies_differ(tmp_path: Path) -> None:
    study = whole(tuned_space(tmp_path), tmp_path).study
    other = replace(study, tuned={**study.tuned, "reco": {RATE: 3e-3}})
    told = [tuple(row) for row in of_studies(study, other).settings]
    assert told == [("chosen for reco", f"{RATE} 0.01", f"{RATE} 0.003", "")]


def test_a_study_that_is_not_tuned_has_no_such_section(tmp_path: Path) -> None:
    assert plan(small_space(tmp_path)).tuning == () and not plan(small_space(tmp_path)).untuned


def test_it_can_be_rehearsed_on_simulated_time(tmp_path: Path) -> None:
    """By the real job source, with deaths: every arm is tuned, and its runs have what was chosen."""
    planned = plan(tuned_space(tmp_path, "seeds=[0,1]", "resources.concurrent_trials=null"))
    found = simulate(
        planned,
        Workload(planned, Rates(1e9), 0),
        2,
        FaultRates(driver_hours=0.02, resume_seconds=1.0),
        0,
        tmp_path / "log",
    )
    assert found.problems == [] and set(found.study.tuned) == {"full", "reco"}
    for run in found.study.runs.values():
        assert run.tunes or run.settings[RATE] == found.study.tuned[run.arm][RATE]


def test_plan_and_status_tell_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tuned_space(tmp_path)
    save_space(frozen(space), tmp_path / "own.yaml")
    with pytest.raises(SystemExit, match="0"):
        main(["plan", str(tmp_path / "own.yaml"), "--output", str(tmp_path / "new")])
    told = capsys.readouterr().out
    assert "3 to tune full, each" in told and "tuning: 6 of the runs come before the table, 3 for each arm" in told
    one = driver(space, tmp_path)
    given(one)
    calibrate(one)
    given(one)
    with pytest.raises(SystemExit, match="0"):
        main(["status", str(tmp_path / "study")])
    assert "tuning: settings chosen for 0 of 2 arms" in capsys.readouterr().out
    assert read_study(tmp_path / "study").runs["full-tune0-s7"].params == {RATE: 1e-3}
