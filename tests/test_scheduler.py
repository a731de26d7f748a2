"""Which runs go on at a rung: by hand, by table, and from a log alone; then real studies that prune, by the loss and by
generated clips.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from small_study import WatchedStudy, run_small_study, small_space

from reco_tune.cost import plan
from reco_tune.errors import SettingsError
from reco_tune.pareto import deciding_rungs, goes_on
from reco_tune.reporting import Evidence, frontier, load_runs
from reco_tune.reporting.runs import runs_table
from reco_tune.settings import PROXIES, Space, load_space
from reco_tune.settings.files import save_space
from reco_tune.study import Options, resume
from reco_tune.study.scheduler import prune_reason
from reco_tune.study.searcher import Search
from reco_tune.study_log import StudyFolder, StudyRecord, read_events, replay

pytestmark = pytest.mark.timeout(900)  # two clusters are started


@pytest.mark.parametrize(
    ("rungs", "grace", "reduction", "expected"),
    [(9, 1, 3, [1, 3]), (12, 2, 2, [2, 4, 8]), (5, 4, 3, [4]), (5, 5, 3, []), (1, 1, 2, [])],
    ids=["the-last-rung-saves-nothing", "halving", "late", "grace-is-everything", "one-rung"],
)
def test_deciding_rungs(rungs: int, grace: int, reduction: int, expected: list[int]) -> None:
    assert deciding_rungs(rungs, grace, reduction) == expected


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[1, 1]], True),
        ([[1, 1], [2, 2]], True),
        ([[2, 2], [1, 1]], False),
        ([[1, 2], [2, 1]], True),
        ([[2, 2], [1, 1], [3, 3], [4, 4]], True),
        ([[2, 2], [1, 1], [3, 3]], False),
        ([[1.5, 1.5], [1, 4], [4, 1], [1.4, 1.7]], True),
        ([[3, 3], [1, 1], [2, 4], [4, 2]], False),
        ([[2, 4], [1, 1], [3, 3], [4, 2]], True),
    ],
    ids=[
        "first",
        "best",
        "worse",
        "equal-rank",
        "2-of-4",
        "2-of-3",
        "a-front-is-kept",
        "crowded-of-the-next",
        "the-end-of-the-next",
    ],
)
def test_a_newcomer_goes_on_if_it_is_among_the_best_third(points: list[list[float]], expected: bool) -> None:
    assert goes_on(points, 0, reduction_factor=3) is expected


def test_with_one_objective_it_is_successive_halving() -> None:
    values = np.random.default_rng(0).permutation(40)
    promoted = [value for row, value in enumerate(values) if goes_on(values[:, None], row, 4)]
    assert sorted(promoted) == list(range(10))


def study_of(points: list[tuple[float, float]], step: int = 20) -> StudyRecord:
    """Sampled runs with their speed-up and cross-entropy at one rung of 60 steps in six rungs."""
    log: list[dict[str, Any]] = []
    for number, (speedup, loss) in enumerate(points):
        name = f"search-{number:04d}"
        settings = {"training.steps": 60, "training.rungs": 6}
        log.append(
            {
                "event": "asked",
                "trial": name,
                "arm": "search",
                "budget": "equal_steps",
                "seed": 0,
                "settings": settings,
                "settings_hash": name,
            }
        )
        log.append({"event": "calibrated", "trial": name, "key": name, "metrics": {"speedup": speedup}})
        log.append(
            {
                "event": "reported",
                "trial": name,
                "step": step,
                "metrics": {"val_cross_entropy": loss} if math.isfinite(loss) else {},
            }
        )
    return replay(log)


def pruned_space(folder: Path, *overrides: str) -> Space:
    return small_space(
        folder, "pruning.kind=pareto_asha", "pruning.grace_rungs=2", "pruning.reduction_factor=2", *overrides
    )


def test_speed_and_proxy_decide_together(tmp_path: Path) -> None:
    space = pruned_space(tmp_path)
    others = [(2.0, 2.0), (1.8, 2.2)]
    reason = prune_reason(space, study_of([(1.5, 3.0), *others]), "search-0000", 20)
    assert "rung 2 of 6" in reason and "best 1 in 2 of 3" in reason and "2 dominate it" in reason
    assert prune_reason(space, study_of([(2.5, 3.0), *others]), "search-0000", 20) == "", "worse but faster"
    assert prune_reason(space, study_of([(1.5, 1.9), *others]), "search-0000", 20) == "", "slower but better"


@pytest.mark.parametrize(
    ("case", "trial", "step"),
    [
        ("pruning.kind=none", "search-0000", 20),
        ("pruning.grace_rungs=3", "search-0000", 20),
        ("trials=2", "search-0000", 60),
        ("trials=2", "search-0001", 20),
        ("trials=2", "search-0002", 20),
        ("trials=2", "full-s0", 20),
    ],
    ids=["pruning-is-off", "within-its-grace", "the-last-rung", "the-best", "nothing-to-judge-by", "a-fixed-arm"],
)
def test_nobody_else_is_pruned(tmp_path: Path, case: str, trial: str, step: int) -> None:
    study = study_of([(1.5, 3.0), (2.0, 2.0), (1.0, math.nan)], step)
    assert prune_reason(pruned_space(tmp_path, case), study, trial, step) == ""


@pytest.mark.parametrize(
    ("override", "said"),
    [
        *(
            (
                f"pruning.metric={name}",
                rf"pruning.metric \({name}\) is not known at rungs; take {', '.join(PROXIES[:-1])} or kernel_distance$",
            )
            for name in ("fvd", "class_accuracy", "motion_distance", "learning_rate", "val_cross_entrpy")
        ),
        ("pruning.grace_rungs=6", "leaves none of the 6 training.rungs"),
        ("pruning.reduction_factor=1", "reduction_factor"),
    ],
)
def test_what_cannot_prune_is_refused(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        plan(pruned_space(tmp_path, override))


@pytest.fixture(scope="module")
def pruned_study(finished_study: WatchedStudy, tmp_path_factory: pytest.TempPathFactory) -> WatchedStudy:
    """The baseline, an arm that learns nothing and six sampled runs, one after another, judged by numbers that are the
    same on every machine: the FLOP limit and the loss.
    """
    return run_small_study(
        tmp_path_factory.mktemp("pruned"),
        *("pruning.kind=pareto_asha", "pruning.reduction_factor=5", "sampler.kind=random", "trials=6"),
        *("objectives={speedup_limit: maximize, fvd: minimize}", "constraints={fvd: {max: -1}}"),
        *(
            "pruning.arms=true",
            "arms={full: null, untrained: {window.scheme: masked_full, training.learning_rate: 1.0e-9}}",
            "budgets=[equal_steps]",
            "resources.concurrent_trials=1",
            "resources.calibration_seconds=0.1",
        ),
        *("evaluation.protocol=native-random", finished_study.same_cache),
    )


def test_pruned_runs_end_at_their_rung_and_the_others_are_whole(pruned_study: WatchedStudy) -> None:
    states = {run.trial: run.state for run in pruned_study.study.runs.values()}
    pruned = [run for run in pruned_study.study.runs.values() if run.state == "pruned"]
    assert (
        pruned_study.study.finished
        and set(states.values()) == {"pruned", "evaluated"}
        and states["full-s0"] == "evaluated"
    )
    for run in pruned:
        assert (
            run.reports[-1]["step"] in (10, 50)
            and "not among the best 1 in 5" in run.reason
            and "fvd" not in run.metrics
        )
    for run in pruned_study.study.runs.values():
        assert run.state == "pruned" or run.reports[-1]["step"] == 60


def test_an_arm_that_the_baseline_dominates_is_stopped_where_that_is_asked_for(pruned_study: WatchedStudy) -> None:
    run = pruned_study.study.runs["untrained-equal_steps-s0"]
    assert (run.state, run.reports[-1]["step"]) == ("pruned", 10) and "of 2 arms of seed 0; 1 dominate it" in run.reason


def test_the_log_alone_gives_the_decisions_that_were_made(pruned_study: WatchedStudy) -> None:
    events = list(read_events(StudyFolder(pruned_study.folder).events))
    pruned = {(event["trial"], event["step"]): event["reason"] for event in events if event["event"] == "pruned"}
    for index, event in enumerate(events):
        if event["event"] == "reported":
            told = prune_reason(pruned_study.space, replay(events[: index + 1]), event["trial"], event["step"])
            assert told == pruned.get((event["trial"], event["step"]), "")


def test_optuna_is_told_pruned(pruned_study: WatchedStudy) -> None:
    search = Search(pruned_study.space)
    for event in read_events(StudyFolder(pruned_study.folder).events):
        search.apply(event)
    told = {name: trial.state for name, trial in zip(_sampled(pruned_study.study), search.trials, strict=True)}
    expected = {"pruned": TrialState.PRUNED, "evaluated": TrialState.COMPLETE}
    assert told == {name: expected[pruned_study.study.runs[name].state] for name in told} and search.exhausted


def test_a_run_that_breaks_a_constraint_is_whole_and_says_so(pruned_study: WatchedStudy) -> None:
    whole = [run for run in pruned_study.study.runs.values() if run.state == "evaluated"]
    assert all(run.reason == f"infeasible: fvd is {run.metrics['fvd']:g}, not at most -1" for run in whole) and whole


def test_a_pruned_run_is_in_no_table(pruned_study: WatchedStudy) -> None:
    runs = load_runs(pruned_study.folder)
    pruned = set(runs.loc[runs["state"] == "pruned", "trial"])
    assert pruned and not pruned & set(frontier(runs).points["trial"])


@pytest.fixture(scope="module")
def resumed_study(pruned_study: WatchedStudy, tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    """The driver is gone before it could stop a run that has reported; no more are to be sampled, and finalists run
    with one more seed.

    In its log the FVDs of sampled runs are such that all are on the frontier, each within the interval of the others.
    """
    source, folder = StudyFolder(pruned_study.folder), StudyFolder(tmp_path_factory.mktemp("resumed") / "study")
    events, sampled = list(read_events(source.events)), _sampled(pruned_study.study)
    first = next(
        index for index, event in enumerate(events) if event["event"] == "pruned" and event["trial"] in sampled
    )
    asked = sum(event["event"] == "asked" for event in events[:first])
    folder.path.mkdir()
    changes = {"trials": asked, "finalist_seeds": 1, "constraints": {}}
    save_space(load_space(source.settings).model_copy(update=changes), folder.settings)
    kept = [json.loads(line) for line in source.events.read_text().splitlines()[:first]]
    kept[0]["settings"]["constraints"] = {}
    for event in kept:
        if event["event"] == "evaluated" and event["trial"].startswith("search"):
            event["metrics"] |= {"fvd": event["metrics"]["speedup_limit"], "fvd_low": 0.0, "fvd_high": 9.0}
    folder.events.write_text("".join(json.dumps(event) + "\n" for event in kept))
    return resume(folder.path, Options(track=False)).study


def test_a_resumed_study_judges_by_the_rungs_of_its_log(pruned_study: WatchedStudy, resumed_study: StudyRecord) -> None:
    """It stops the run at that rung, and repeats no other."""
    first = next(run for run in pruned_study.study.runs.values() if run.state == "pruned" and run.arm == "search")
    stopped = resumed_study.runs[first.trial]
    assert resumed_study.finished and (stopped.state, stopped.reason) == ("pruned", first.reason)
    assert {run.attempt for run in resumed_study.runs.values() if run is not stopped} == {1} and stopped.attempt == 2


def test_finalists_run_again_whole_and_at_the_speed_that_is_known(resumed_study: StudyRecord) -> None:
    whole = [
        run
        for run in resumed_study.runs.values()
        if run.arm == "search" and run.state == "evaluated" and not run.repeats
    ]
    again = [run for run in resumed_study.runs.values() if run.repeats]
    fastest = max(whole, key=lambda run: run.metrics["speedup_limit"])
    assert again and [run.repeats for run in again] == [run.trial for run in whole if run is not fastest], (
        "nothing is as fast as that one"
    )
    for run in again:
        first = resumed_study.runs[run.repeats]
        assert (run.trial, run.seed, run.state) == (f"{first.trial}-s1", 1, "evaluated") and run.reports[-1][
            "step"
        ] == 60
        assert run.settings == {**first.settings, "training.seed": 1} and run.metrics["fvd"] != first.metrics["fvd"]
        assert run.trial not in resumed_study.calibrations and run.metrics["speedup"] == first.metrics["speedup"]
        stages = [run.metrics[f"{stage}_seconds"] for stage in ("training", "generation", "evaluation")]
        assert run.metrics["gpu_hours"] == pytest.approx(sum(stages) / 3600), (
            "what calibration cost stands with the first run"
        )
    found = Evidence(runs_table(resumed_study)).frontier.at("equal_steps").set_index("trial")
    assert dict(found.loc[[run.repeats for run in again], "runs"]) == {run.repeats: 2 for run in again}


@pytest.fixture(scope="module")
def study_pruned_by_clips(finished_study: WatchedStudy, tmp_path_factory: pytest.TempPathFactory) -> WatchedStudy:
    """Four sampled runs, one after another, judged by the FLOP limit and the kernel distance of 32 clips."""
    return run_small_study(
        tmp_path_factory.mktemp("clips"),
        *(
            "pruning={kind: pareto_asha, metric: kernel_distance, reduction_factor: 5}",
            "sampler.kind=random",
            "trials=4",
        ),
        *("objectives={speedup_limit: maximize, fvd: minimize}", "arms={full: null}", "budgets=[equal_steps]"),
        *("resources.concurrent_trials=1", "resources.calibration_seconds=0.1"),
        *("evaluation.protocol=native-random", finished_study.same_cache),
    )


def test_runs_are_pruned_by_the_kernel_distance_of_their_reports(study_pruned_by_clips: WatchedStudy) -> None:
    events = list(read_events(StudyFolder(study_pruned_by_clips.folder).events))
    pruned = {(event["trial"], event["step"]): event["reason"] for event in events if event["event"] == "pruned"}
    assert pruned and study_pruned_by_clips.study.finished
    for index, event in enumerate(events):
        if event["event"] == "reported":
            judged = event["trial"] != "full-s0" and event["step"] in (10, 50)
            assert ("kernel_distance" in event["metrics"]) is judged
            told = prune_reason(study_pruned_by_clips.space, replay(events[: index + 1]), event["trial"], event["step"])
            assert told == pruned.get((event["trial"], event["step"]), "")


def test_what_clips_at_rungs_cost_is_in_the_ledger(study_pruned_by_clips: WatchedStudy) -> None:
    for run in study_pruned_by_clips.study.runs.values():
        at_rungs = run.reports[-1]
        if run.arm != "search":
            assert "generation_seconds" not in at_rungs
        elif run.state == "pruned":
            assert run.metrics["generation_seconds"] == at_rungs["generation_seconds"] > 0
        else:
            assert run.metrics["generation_seconds"] > at_rungs["generation_seconds"] > 0
            stages = [
                run.metrics[f"{stage}_seconds"] for stage in ("calibration", "training", "generation", "evaluation")
            ]
            assert run.metrics["gpu_hours"] == pytest.approx(sum(stages) / 3600)


def _sampled(study: StudyRecord) -> list[str]:
    return [run.trial for run in study.runs.values() if run.arm == "search"]
