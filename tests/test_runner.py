"""The driver's bookkeeping where an arm's speed cannot be measured, and of finalists: without a cluster, on
a real log."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.tune.search import Searcher
from small_study import small_space

from reco_tune.cost import plan
from reco_tune.errors import RunFailedError, StudyError
from reco_tune.settings import load_space
from reco_tune.settings.files import save_space
from reco_tune.study import Observer, preflight, runner
from reco_tune.study.bookkeeping import Bookkeeping
from reco_tune.study.job_source import CALIBRATION
from reco_tune.study.runner import Driver, Options
from reco_tune.study.scheduler import prune_reason
from reco_tune.study.study_writer import frozen
from reco_tune.study.trial import Proposals
from reco_tune.study_log import StudyFolder, read_events

REASON = "the speed of arm `reco` could not be measured: it ran out of memory"


def driver(folder: Path, *overrides: str) -> Bookkeeping:
    """Of the small study with two seeds."""
    space = frozen(small_space(folder, "seeds=[0,1]", *overrides))
    one = Bookkeeping(plan(space), StudyFolder(folder / "study"))
    one.begin()
    return one


def calibrated(one: Bookkeeping, arm: str) -> None:
    hear(one, "calibrated", arm, metrics={"speedup": 1.0})


def hear(one: Bookkeeping, event: str, arm: str, **fields: Any) -> None:
    """What the dispatcher tells of a calibration."""
    one.take_in({"event": event, "key": CALIBRATION + arm, "kind": "calibration", **fields})


def asked_for(one: Bookkeeping) -> list[str]:
    """Jobs that the driver gives out, calibrations that it has to wait for left out."""
    keys = []
    while (job := one.jobs.next()) is not None:
        keys.append(job.key)
    return keys


def test_an_arm_that_cannot_be_measured_fails_alone(tmp_path: Path) -> None:
    one = driver(tmp_path, "budgets=[equal_steps]")
    assert asked_for(one) == ["calibration.full", "calibration.reco"]
    calibrated(one, "full")
    assert asked_for(one) == []  # the other is still being measured
    hear(one, "failed", "reco", reason="it ran out of memory")
    assert asked_for(one) == ["full-s0", "full-s1", "search-0000", "search-0001"]
    failed = [
        (event["trial"], event["reason"])
        for event in read_events(tmp_path / "study" / "events.jsonl")
        if event["event"] == "failed"
    ]
    assert failed == [("reco-equal_steps-s0", REASON), ("reco-equal_steps-s1", REASON)]


def test_a_log_opens_with_what_the_search_is_allowed(tmp_path: Path) -> None:
    one = driver(tmp_path, "constraints={peak_memory_ratio: {max: 0.7}}")
    assert one.study.constraints == {"peak_memory_ratio": {"max": 0.7}}


def test_a_log_opens_with_the_packages_and_what_was_not_committed(tmp_path: Path) -> None:
    driver(tmp_path)
    first = next(iter(read_events(tmp_path / "study" / "events.jsonl")))
    assert set(first["environment"]) == {"packages", "uncommitted"} and first["environment"]["packages"]


def test_a_resumed_study_does_not_measure_it_again(tmp_path: Path) -> None:
    before = driver(tmp_path, "budgets=[equal_steps]", "trials=0")
    asked_for(before)
    calibrated(before, "full")
    hear(before, "failed", "reco", reason="it ran out of memory")
    asked_for(before)
    log = tmp_path / "study" / "events.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))  # killed before the last run was told
    again = driver(tmp_path, "budgets=[equal_steps]", "trials=0")
    assert asked_for(again) == ["full-s0", "full-s1"]
    assert {run.trial: run.reason for run in again.study.runs.values() if run.state == "failed"} == {
        "reco-equal_steps-s0": REASON,
        "reco-equal_steps-s1": REASON,
    }


@pytest.mark.parametrize(
    ("arm", "overrides"),
    [("full", ["budgets=[equal_steps]"]), ("reco", ["budgets=[equal_steps,equal_compute]"])],
    ids=["the baseline", "an arm whose steps follow from its speed"],
)
def test_what_nothing_can_go_on_without_ends_the_study(arm: str, overrides: list[str], tmp_path: Path) -> None:
    one = driver(tmp_path, *overrides)
    asked_for(one)
    hear(one, "failed", arm, reason="it ran out of memory")
    with pytest.raises(RunFailedError, match=f"the speed of arm `{arm}` could not be measured: it ran out of memory"):
        one.conclude()
    assert not one.study.runs  # a resumed study measures again


def ended(one: Bookkeeping, trial: str, fvd: float, speed: dict[str, float]) -> None:
    """What the dispatcher tells of a sampled run, from its calibration on; its FVD is known to 1."""
    for event, fields in {
        "calibrated": {"metrics": speed},
        "evaluated": {
            "metrics": {"fvd": fvd, "fvd_low": fvd - 1, "fvd_high": fvd + 1, **speed},
            "curves": {},
            "provenance": {},
        },
    }.items():
        one.take_in({"event": event, "key": trial, "kind": "trial", **fields})


def test_a_finalist_runs_again_at_its_own_speed_and_is_never_judged(tmp_path: Path) -> None:
    overrides = [
        "arms={full: null}",
        "budgets=[equal_steps]",
        "seeds=[0]",
        "finalist_seeds=1",
        "pruning.kind=pareto_asha",
    ]
    one, speed = driver(tmp_path, *overrides), {"speedup": 1.5, "speedup_low": 1.4, "calibration_seconds": 3.0}
    asked_for(one)
    calibrated(one, "full")
    assert asked_for(one) == ["full-s0", "search-0000", "search-0001"] and not one.jobs.exhausted
    ended(one, "search-0001", 4.0, speed)
    assert asked_for(one) == [], "the other may still dominate it"
    assert one.jobs.left == 2 + 2, "two that have not ended, and each of the sampled ones may be a finalist"
    ended(one, "search-0000", 5.0, speed)
    job = one.jobs.next()
    assert job is not None and (job.key, job.sampled, job.judged) == ("search-0001-s1", False, False)
    assert one.study.runs[job.key].metrics == speed
    assert asked_for(one) == [] and one.jobs.exhausted
    one.take_in({"event": "started", "key": job.key, "kind": "trial", "attempt": 1})
    one.take_in(
        {"event": "reported", "key": job.key, "kind": "trial", "step": 10, "metrics": {"val_cross_entropy": 99.0}}
    )
    assert prune_reason(one.jobs.plan.space, one.study, job.key, 10) == ""
    again = driver(tmp_path, *overrides)
    assert asked_for(again) == ["full-s0", "search-0001-s1"] and again.study.runs[job.key].metrics["speedup"] == 1.5


@pytest.mark.parametrize(
    ("metric", "steps"),
    [("kernel_distance", (10, 30)), ("val_cross_entropy", ())],
    ids=["kernel-distance", "a-loss-needs-no-clips"],
)
def test_only_sampled_runs_generate_clips_and_only_where_it_decides(
    tmp_path: Path, metric: str, steps: tuple[int, ...]
) -> None:
    one = driver(
        tmp_path,
        "arms={full: null}",
        "budgets=[equal_steps]",
        "seeds=[0]",
        f"pruning={{kind: pareto_asha, metric: {metric}}}",
    )
    assert one.jobs.next() is not None and one.jobs.next() is None
    calibrated(one, "full")
    jobs = [one.jobs.next() for _ in range(3)]
    assert [(job.key, job.generates_at) for job in jobs if job] == [
        ("full-s0", ()),
        ("search-0000", steps),
        ("search-0001", steps),
    ]


def test_a_search_that_waits_for_a_lost_run_ends(tmp_path: Path) -> None:
    """Tune asks again and again as long as it is told `later`."""
    told = Proposals(iter([{"trial": "search-0000"}, None, None]).__next__)
    assert told.suggest("a") == {"trial": "search-0000"} and told.suggest("b") is None
    told.on_trial_complete("a", error=True)
    assert told.suggest("b") == Searcher.FINISHED


def test_resources_given_on_top_of_the_file_hold_when_the_study_is_resumed(tmp_path: Path) -> None:
    space = frozen(small_space(tmp_path, "resources.concurrent_trials=1"))
    save_space(space, tmp_path / "settings.yaml")
    assert plan(load_space(tmp_path / "settings.yaml")).shared.resources == plan(space).shared.resources
    assert (
        plan(space).shared.resources.concurrent_trials
        == 1
        != plan(small_space(tmp_path)).shared.resources.concurrent_trials
    )


def test_a_run_that_ends_leaves_what_the_study_keeps(tmp_path: Path) -> None:
    one = driver(tmp_path, "budgets=[equal_steps]", "trials=0", "keep.checkpoints=none", "keep.models=frontier")
    asked_for(one)
    calibrated(one, "full")
    calibrated(one, "reco")
    names = asked_for(one)
    for name in names:
        for part in ("checkpoint", "model"):
            (StudyFolder(tmp_path / "study").trial(name) / part).mkdir(parents=True)
        fvd = 1.0 if name.startswith("full") else 2.0
        one.take_in({"event": "evaluated", "key": name, "kind": "trial", "metrics": {"fvd": fvd, "speedup": 1.0}})
    left = {path.parent.name for path in (tmp_path / "study").glob("trials/*/model")}
    assert left == set(names) and not list((tmp_path / "study").glob("trials/*/checkpoint"))
    one.conclude()
    assert {path.parent.name for path in (tmp_path / "study").glob("trials/*/model")} == {"full-s0", "full-s1"}


def test_whoever_writes_the_log_has_left_ray_when_a_study_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread still waited for news when Ray was shut down, which then ended the process: a study whose disk was
    full ended without its sentence.
    """
    woken = threading.Event()

    def wake(*arguments: object) -> None:
        threading.Timer(0.2, woken.set).start()  # the dispatcher gathers progress for a while

    calls = {"news": lambda *_: woken, "progress": wake, "abandon": lambda: None}
    stub = SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in calls.items()})
    monkeypatch.setattr(ray, "get", lambda woken: (woken.wait(30), ([], {}))[1])
    one = Driver(plan(small_space(tmp_path)), StudyFolder(tmp_path / "study"), Options(), Observer())
    one._dispatcher = stub
    with one._draining(1):
        one._give_up(StudyError("the disk is full"))
    assert woken.is_set() and "log" not in {thread.name for thread in threading.enumerate()}


def test_a_machine_that_joins_gives_room_for_more_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the settings allow and the study has work for; one that is not fit for the study gives none."""
    cluster = {"a": {"CPU": 1.0}}
    told: list[str] = []

    class Listener(Observer):
        def on_phase(self, done: int, total: int, what: str) -> None:
            told.append(what)

    def survey(places: object) -> list[preflight.Machine]:
        if "strange" in cluster:
            raise StudyError("strange has another torch")
        return [preflight.look({})]

    monkeypatch.setattr(runner, "nodes", lambda: cluster)
    monkeypatch.setattr(preflight, "survey", survey)
    space = frozen(small_space(tmp_path, "resources.concurrent_trials=null"))
    one = Driver(plan(space), StudyFolder(tmp_path / "study"), Options(track=False), Listener())
    one._books.begin()
    one._pool = SimpleNamespace(groups=1)  # type: ignore[assignment]
    assert one._room(set()) == 1
    cluster["b"] = {"CPU": 1.0}
    assert one._room({"b"}) == 2 and told == ["2 worker groups instead of 1: there is room and work for more"]
    cluster["strange"] = {"CPU": 1.0}
    assert one._room({"strange"}) == 0 and told[-1].endswith("is not used: strange has another torch")
    assert one._room(set()) == 2, "nor later"
    cluster["large"] = {"CPU": 64.0}
    assert one._room(set()) == one._jobs.left == 5, "no more than there is work for"
    one._books.writer.close()


def test_as_many_trials_live_as_there_are_groups_and_more_when_there_are_more() -> None:
    room = 1
    proposals = Proposals(lambda: {"trial": "one"}, lambda: room)
    assert proposals.suggest("a") == {"trial": "one"} and proposals.suggest("b") is None
    room = 2
    assert proposals.suggest("b") == {"trial": "one"} and proposals.suggest("c") is None
    proposals.on_trial_complete("a")
    assert proposals.suggest("c") == {"trial": "one"}
