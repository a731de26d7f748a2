"""Fixed arms that are stopped at a rung (`pruning.arms`): who is judged beside whom, what the table says."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from small_study import small_space
from toy_study import record_study

from reco_tune.cost import Rates, plan
from reco_tune.errors import SettingsError, StudyError
from reco_tune.reporting import Evidence, load_runs
from reco_tune.reporting.render.markdown import markdown
from reco_tune.reporting.sections import ablation
from reco_tune.settings import Space, load_space
from reco_tune.simulation import FaultRates, Workload, simulate
from reco_tune.study.bookkeeping import Bookkeeping
from reco_tune.study.scheduler import Rungs, prune_reason
from reco_tune.study.unchanged import check_unchanged
from reco_tune.study_log import StudyFolder, StudyRecord, apply, replay

PRUNED = ("pruning={kind: pareto_asha, arms: true, reduction_factor: 2}", "trials=0", "budgets=[equal_steps]")
JOINT = Path(__file__).parents[1] / "search_spaces" / "joint.yaml"


def pruned_space(folder: Path, *overrides: str) -> Space:
    return small_space(folder, *PRUNED, *overrides)


def planned(trial: str, steps: int = 60) -> dict[str, Any]:
    """`local-equal_steps-s1`, or `full-s1` of both whole budgets."""
    arm, *budget, seed = trial.split("-")
    settings = {"training.steps": steps, "training.rungs": 6}
    own = {"arm": arm, "budget": budget[0] if budget else "both", "seed": int(seed[1:])}
    return {"event": "planned", "trial": trial, "settings": settings, "settings_hash": trial, **own}


def at_rung(trial: str, loss: float, step: int = 10) -> dict[str, Any]:
    metrics = {"val_cross_entropy": loss} if math.isfinite(loss) else {}
    return {"event": "reported", "trial": trial, "step": step, "metrics": metrics}


def study_of(reports: dict[str, float], *more: dict[str, Any]) -> StudyRecord:
    """Run -> its loss at the first of six rungs; `slow` is as fast as the baseline, others are twice as fast."""
    arms = dict.fromkeys(trial.split("-")[0] for trial in reports)
    speeds = [
        {"event": "calibrated", "key": arm, "metrics": {"speedup": 1.0 if arm in ("full", "slow") else 2.0}}
        for arm in arms
    ]
    runs = [event for trial, loss in reports.items() for event in (planned(trial), at_rung(trial, loss))]
    return replay([*speeds, *runs, *more])


LADDER = {"full-s0": 2.0, "slow-equal_steps-s0": 3.0, "reco-equal_steps-s0": 2.5, "local-equal_steps-s0": 4.0}


@pytest.mark.parametrize(
    ("trial", "stops"),
    [
        ("slow-equal_steps-s0", True),
        ("local-equal_steps-s0", True),
        ("reco-equal_steps-s0", False),
        ("full-s0", False),
    ],
    ids=["as-slow-as-the-baseline-and-worse", "as-fast-as-another-and-worse", "worse-but-faster", "the-baseline"],
)
def test_speed_and_loss_decide_about_an_arm(tmp_path: Path, trial: str, stops: bool) -> None:
    reason = prune_reason(pruned_space(tmp_path), study_of(LADDER), trial, 10)
    assert bool(reason) is stops
    assert not stops or ("at rung 1 of 6" in reason and "best 1 in 2 of 4 arms of seed 0" in reason)


def test_the_baseline_is_never_stopped_however_bad_it_is(tmp_path: Path) -> None:
    study = study_of({**LADDER, "full-s0": 9.0})
    assert prune_reason(pruned_space(tmp_path), study, "full-s0", 10) == ""


@pytest.mark.parametrize(
    ("override", "step"),
    [("pruning.arms=false", 10), ("pruning.grace_rungs=2", 10), ("pruning.arms=true", 30)],
    ids=["not-asked-for", "within-its-grace", "no-deciding-rung"],
)
def test_nothing_else_stops_an_arm(tmp_path: Path, override: str, step: int) -> None:
    study = study_of(LADDER, *(at_rung(trial, loss, step) for trial, loss in LADDER.items()))
    assert prune_reason(pruned_space(tmp_path, override), study, "slow-equal_steps-s0", step) == ""


def test_other_seeds_other_budgets_and_the_search_are_not_beside_an_arm(tmp_path: Path) -> None:
    """Seeds of one arm would push each other out, and a run half way through would meet one at its end."""
    sampled = [{**planned("search-equal_steps-s0"), "event": "asked", "trial": "search-0000", "arm": "search"}]
    sampled += [{"event": "calibrated", "key": "search-0000", "trial": "search-0000", "metrics": {"speedup": 3.0}}]
    better = ("slow-equal_steps-s1", "reco-half_compute-s0", "full-half_compute-s0")
    study = study_of({"slow-equal_steps-s0": 3.0, **dict.fromkeys(better, 1.0)}, *sampled, at_rung("search-0000", 1.0))
    assert prune_reason(pruned_space(tmp_path), study, "slow-equal_steps-s0", 10) == ""
    beaten = study_of({"slow-half_compute-s0": 3.0, **dict.fromkeys(better, 1.0)})
    assert "of 3 arms of seed 0; 2 dominate it" in prune_reason(
        pruned_space(tmp_path), beaten, "slow-half_compute-s0", 10
    )


def test_at_equal_compute_arms_meet_at_a_share_of_their_training(tmp_path: Path) -> None:
    """The faster arm takes 121 steps for the compute of the baseline's 60; its first of six rungs ends at 21."""
    fast = [planned("reco-equal_compute-s0", 121), at_rung("reco-equal_compute-s0", 1.0, 21)]
    study = study_of({"full-s0": 2.0, "slow-equal_compute-s0": 3.0}, *fast)
    study.calibrations["reco"] = {"speedup": 2.0}
    reason = prune_reason(pruned_space(tmp_path), study, "slow-equal_compute-s0", 10)
    assert "of 3 arms of seed 0; 2 dominate it" in reason, "the baseline's whole run stands under equal compute, too"


def test_the_other_seeds_of_a_stopped_arm_stop_too(tmp_path: Path) -> None:
    stopped = {"event": "pruned", "trial": "slow-equal_steps-s0", "time": 0.0, "step": 10, "reason": "at rung 1 of 6"}
    again = {"event": "retried", "trial": "slow-equal_steps-s0", "attempt": 2, "reason": "tried again by hand"}
    best = {**LADDER, "slow-equal_steps-s1": 0.1}
    space, other = pruned_space(tmp_path), "slow-equal_steps-s1"
    assert "seed 0 of its arm was stopped" in prune_reason(space, study_of(best, stopped), other, 10)
    by_hand = study_of(best, {**stopped, "reason": "stopped by hand"})
    assert prune_reason(space, by_hand, other, 10) == "", "of what a person stops nobody says that it was bad"
    insisted = study_of(best, stopped, again)
    assert all(prune_reason(space, insisted, trial, 10) == "" for trial in (other, "slow-equal_steps-s0")), (
        "whoever has a run tried again wants it whole"
    )


def test_what_is_kept_event_by_event_judges_as_the_record_does(tmp_path: Path) -> None:
    space, draws, study = pruned_space(tmp_path), random.Random(0), study_of(LADDER)
    kept, names = Rungs(study), list(LADDER)
    for number in range(100):
        trial = draws.choice(names)
        event = at_rung(trial, draws.choice([1.0, 2.0, 3.0, math.nan]), draws.choice([10, 20]))
        if number % 50 == 49:
            trial = f"arm{number}-equal_steps-s0"
            names.append(trial)
            apply(study, planned(trial))
            event = {"event": "calibrated", "key": f"arm{number}", "metrics": {"speedup": draws.uniform(1, 3)}}
        apply(study, event)
        kept.look(trial)
        for one, step in ((one, step) for one in names for step in (10, 20)):
            assert prune_reason(space, study, one, step, kept) == prune_reason(space, study, one, step)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["pruning.arms=true"], "pruning.arms is true, but pruning.kind is none"),
        ([*PRUNED, "pruning.grace_rungs=6"], "leaves none of the 6 training.rungs"),
    ],
    ids=["without-a-kind", "no-rung-left"],
)
def test_what_cannot_stop_an_arm_is_refused(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        plan(small_space(tmp_path, *overrides))


def test_clips_are_generated_for_whoever_is_judged_by_them_and_for_the_baseline_beside(tmp_path: Path) -> None:
    space = pruned_space(tmp_path, "pruning.metric=kernel_distance")
    books = Bookkeeping(plan(space), StudyFolder(tmp_path / "study"))
    books.begin("small")
    for key in ("full", "reco"):
        books.next()
        measured = {"event": "calibrated", "key": f"calibration.{key}", "kind": "calibration"}
        books.take_in({**measured, "metrics": {"speedup": 2.0}})
    jobs = {job.key: job for job in (books.next(), books.next()) if job is not None}
    books.writer.close()
    told = {key: (job.judged, job.generates_at) for key, job in jobs.items()}
    assert told == {"full-s0": (False, (10, 20, 40)), "reco-equal_steps-s0": (True, (10, 20, 40))}
    with pytest.raises(StudyError, match=r"pruning is .* but the study runs with .*arms"):
        off = small_space(tmp_path, *PRUNED, "pruning.metric=kernel_distance", "pruning.arms=false")
        check_unchanged(off, books.study, StudyFolder(tmp_path / "study"))


def test_a_whole_study_that_stops_arms(tmp_path: Path) -> None:
    """On simulated time; the real order of jobs, dispatcher and log."""
    arms = "arms={full: null, masked_full: null, full_continuity: null, local_balanced: null, reco: null}"
    pruning = "pruning={kind: pareto_asha, arms: true}"
    space = load_space(JOINT, ["trials=0", "training.rungs=4", "seeds=[0,1]", arms, pruning])
    own = plan(space)
    found = simulate(own, Workload(own, Rates(flops_per_second=5e7), 0), 4, FaultRates(), 0, tmp_path / "study")
    runs = found.study.runs.values()
    stopped = [run for run in runs if run.state == "pruned"]
    assert found.problems == [] and found.study.finished and stopped
    assert all(run.stopped_at_rung and run.reports[-1]["step"] < run.settings["training.steps"] for run in stopped)
    assert all(run.state == "evaluated" for run in runs if run.arm == "full")


@pytest.fixture(scope="module")
def stopped_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of three seeds of `local` was stopped at equal steps."""
    folder = record_study(
        tmp_path_factory.mktemp("stopped") / "toy",
        arms=("full", "local", "reco"),
        seeds=(0, 1, 2),
        searched=0,
        files=False,
    )
    log, told = StudyFolder(folder).events, []
    for event in map(json.loads, log.read_text().splitlines()):
        if event.get("trial") == "local-equal_steps-s1":
            if event["event"] in ("completed", "evaluated") or event.get("step", 0) > 200:
                continue
            if event["event"] == "reported":
                end = {"event": "pruned", "trial": event["trial"], "time": event["time"], "step": event["step"]}
                told += [event, {**end, "reason": "at rung 1 of 3 it was not among the best 1 in 3 of 3 runs"}]
                continue
        told.append(event)
    log.write_text("".join(json.dumps(event) + "\n" for event in told))
    return folder


def test_an_arm_with_a_stopped_seed_is_in_no_comparison_and_the_table_says_why(stopped_study: Path) -> None:
    evidence = Evidence(load_runs(stopped_study))
    compared = {(one.result.budget, one.result.arm) for one in evidence.comparisons}
    assert ("equal_steps", "local") not in compared and {
        ("equal_steps", "reco"),
        ("equal_compute", "local"),
    } <= compared
    table = ablation.ablation_table(evidence)
    [row] = [row for group in table.groups for row in group.rows if row["seeds"] == 0]
    assert (row["budget"], row["arm"]) == ("equal_steps", "local") and row["speedup"] == 1.72
    assert row["verdict"].startswith("stopped at step 200 of 600 (seed 1): val CE ")
    why = dict(table.left_out)
    assert why["local-equal_steps-s1"].startswith("pruned: at rung 1 of 3")
    assert all("seed 1 of its arm was stopped early" in why[f"local-equal_steps-s{seed}"] for seed in (0, 2))
    assert "local" not in set(evidence.frontier.at("equal_steps")["arm"])
    text = markdown([table])
    assert "stopped at step 200 of 600" in text and "no fair mean" in text and "nan" not in text


def test_a_stopped_arm_has_no_clip_score(stopped_study: Path) -> None:
    """Its row showed the baseline's."""
    runs = load_runs(stopped_study)
    scored = runs.assign(clip_score=25.0)
    scored.attrs = runs.attrs
    table = ablation.ablation_table(Evidence(scored))
    rows = {row["seeds"]: row for group in table.groups if group.title == "Equal steps" for row in group.rows}
    assert rows[3]["clip_score"] == 25.0 and math.isnan(rows[0]["clip_score"])
