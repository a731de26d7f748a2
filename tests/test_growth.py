"""A study that grows and is steered: what is taken, what is refused, and what the log says; on a real log, without a
cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_study import books_of
from test_unchanged import begun, edit

import reco_tune as rt
from reco_tune.cli import main
from reco_tune.errors import ReCoTuneError, StudyError
from reco_tune.settings import load_space
from reco_tune.study import Growth, requests
from reco_tune.study.growth import given_arms, grown, news
from reco_tune.study.job_source import CALIBRATION
from reco_tune.study.steering import FAILED, Steering, retry_aside, stop_aside
from reco_tune.study.study_writer import locked
from reco_tune.study_log import StudyFolder, read_events, read_study

SMALL_ARM = {"window.scheme": "window", "window.length_blocks": 3}


class Steered:
    """A study as its driver has it while it runs."""

    def __init__(self, study: StudyFolder) -> None:
        self.study = study
        self.driver = books_of(load_space(study.settings), study)
        self.stopped: list[str] = []
        self.paused = False
        self.steering = Steering(
            study,
            self.driver.writer,
            self.driver.jobs,
            lambda trial, reason: self.stopped.append(trial),
            lambda: setattr(self, "paused", True),
        )

    def ask(self, what: requests.What, **fields: Any) -> dict[str, Any]:
        """What the study answers."""
        request = requests.ask(self.study, what, **fields)
        self.steering.look()
        assert not list(self.study.requests.iterdir()), "the driver deletes what it took"
        (event,) = [event for event in read_events(self.study.events) if event.get("request") == request.name]
        return event

    def given(self) -> list[str]:
        """Every job that can be given out now."""
        keys = []
        while (job := self.driver.jobs.next()) is not None:
            keys.append(job.key)
        return keys

    def calibrated(self, *arms: str) -> None:
        for arm in arms:
            key = CALIBRATION + arm
            self.driver.take_in({"event": "calibrated", "key": key, "kind": "calibration", "metrics": {"speedup": 1.5}})


def test_a_live_study_takes_up_what_is_new_and_repeats_nothing(tmp_path: Path) -> None:
    live = Steered(begun(tmp_path, "calibrating"))
    assert live.given() == ["calibration.full", "calibration.reco"]
    live.calibrated("full", "reco")
    assert live.given() == [
        "full-s0",
        "reco-equal_steps-s0",
        "reco-equal_compute-s0",
        "search-0000",
        "search-0001",
    ]
    growth = Growth({"mine": SMALL_ARM}, seeds=(3,), trials=1, budgets=("half_compute",))
    event = live.ask("extend", growth=growth.to_json())
    assert event["what"] == ["arm `mine`", "seed 3", "budget half_compute", "1 further trials"]
    assert live.given() == ["calibration.mine"], "beside the baseline, before anything of it runs"
    live.calibrated("mine")
    new = live.given()
    assert len(new) == len(set(new)) and not set(new) & {"full-s0", "reco-equal_steps-s0", "search-0001"}
    assert {"mine-equal_compute-s3", "mine-equal_steps-s0", "full-s3", "full-half_compute-s0", "search-0002"} <= set(
        new
    )
    study = read_study(live.study.path)
    assert study.arms == ["full", "reco", "mine"] and study.extensions[0]["arms"] == ["mine"]
    assert study.runs["mine-equal_compute-s0"].settings["training.steps"] == 90
    assert load_space(live.study.settings).seeds == (0, 3), "the folder's settings are the log's"


def test_a_study_that_nobody_drives_grows_when_it_is_gone_on_with(tmp_path: Path) -> None:
    """By `extend`, or by a person's editor: either way the log says so once."""
    study = begun(tmp_path, "running")
    edit(study, {"seeds": [0, 7], "search/window.length_tokens": {"int": [9, 18]}})
    for _ in range(2):
        assert "full-s7" in Steered(study).given() + list(read_study(study.path).runs)
    events = [event for event in read_events(study.events) if event["event"] == "extended"]
    assert [event["what"] for event in events] == [
        ["seed 7", "search.window.length_tokens int [9, 18] instead of int [9, 27]"]
    ]
    lengths = [run.params["window.length_tokens"] for run in read_study(study.path).runs.values() if run.params]
    assert len(lengths) == 2


@pytest.mark.parametrize(
    ("growth", "said"),
    [
        (Growth(), "the study has all of that already"),
        (Growth(seeds=(0,)), "the study has all of that already"),
        (
            Growth(arms={"reco": SMALL_ARM}),
            "arm `reco` is in the study with other settings, so their runs would not be comparable; rename the new one",
        ),
        (Growth(arms={"mine": {"training.steps": 9}}), "arm `mine`: training.steps is what budgets count in"),
        (Growth(arms={"mine": {"window.lenght": 9}}), "window.lenght"),
        (Growth(arms={"mine": {"evaluation.samples": 9}}), "evaluation.samples is shared by all runs of a study"),
        (Growth(budgets=("equal_time",)), "budgets"),
        (Growth(changes=("training.steps=9",)), r"--set training.steps: only .*search\.\*.*begin a new study"),
        (Growth(changes=("search.window.stride_tokens={int: [1, 4]}",)), "search.window.stride_tokens is .* left out"),
        (
            Growth(changes=("resources.workers=2",)),
            r"resources.workers: this cannot change while the study runs; `reco-tune pause",
        ),
        (Growth(arms={"fewer_frames": {}}), "pieces of .* are not encoded yet; `reco-tune pause"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(key for key, one in value.to_json().items() if one),
)
def test_what_a_study_cannot_grow_by_is_one_sentence_and_changes_nothing(
    growth: Growth, said: str, tmp_path: Path
) -> None:
    live = Steered(begun(tmp_path, "running"))
    settings, runs = live.study.settings.read_bytes(), read_study(live.study.path).runs
    event = live.ask("extend", growth=growth.to_json())
    with pytest.raises(StudyError, match=said):
        requests.answer(live.study, requests.Request(event["request"], "extend"))
    assert "\n" not in event["refused"] and event["what"] == "extend"
    assert live.study.settings.read_bytes() == settings and read_study(live.study.path).runs == runs


def test_runs_are_stopped_and_tried_again(tmp_path: Path) -> None:
    live = Steered(begun(tmp_path, "running"))
    first = live.driver.jobs.next()
    assert first is not None and first.key == "full-s0"
    assert "refused" not in live.ask("stop", runs=["full-s0"]) and live.stopped == ["full-s0"]
    assert "refused" not in live.ask("stop", runs=["search-0001"]) and live.stopped == ["full-s0"]
    assert "search-0001" not in live.given(), "a run that nobody was given is not begun"
    run = read_study(live.study.path).runs["search-0001"]
    assert (run.state, run.reason) == ("pruned", "stopped by hand")
    assert "has ended (pruned)" in live.ask("stop", runs=["search-0001"])["refused"]
    assert "no run nonsense" in live.ask("stop", runs=["nonsense"])["refused"]
    assert "only runs that failed or were stopped" in live.ask("retry", runs=["reco-equal_steps-s0"])["refused"]
    live.ask("retry", runs=["search-0001"])
    assert live.given() == ["search-0001"] and live.steering.grew.is_set()
    live.driver.take_in({"event": "failed", "key": "search-0001", "kind": "trial", "reason": "its loss is not finite"})
    assert read_study(live.study.path).runs["search-0001"].metrics["moves"] == 0, "not only of those that are whole"
    live.ask("retry", runs=[FAILED])
    assert live.given() == ["search-0001"] and read_study(live.study.path).runs["search-0001"].attempt == 2
    assert not live.paused
    live.ask("pause")
    assert live.paused


def test_a_study_that_nobody_drives_is_steered_in_its_log(tmp_path: Path) -> None:
    study = begun(tmp_path, "running")
    stop_aside(study, ["reco-equal_steps-s0"])
    assert "reco-equal_steps-s0" not in Steered(study).given()
    with pytest.raises(StudyError, match="no run of the study has failed"):
        retry_aside(study, [FAILED])
    retry_aside(study, ["reco-equal_steps-s0"])
    assert "reco-equal_steps-s0" in Steered(study).given()
    aside = [event["event"] for event in read_events(study.events) if event.get("aside")]
    assert aside == ["pruned", "retried"]


def test_a_request_is_answered_once_whoever_dies(tmp_path: Path) -> None:
    """A driver that died after it had written the event and before it deleted the file."""
    live = Steered(begun(tmp_path, "running"))
    request = requests.ask(live.study, "extend", growth=Growth(trials=2).to_json())
    text = (live.study.requests / f"{request.name}.json").read_text()
    live.steering.look()
    (live.study.requests / f"{request.name}.json").write_text(text)
    Steered(live.study).steering.look()
    assert load_space(live.study.settings).trials == 4 and not list(live.study.requests.iterdir())


def test_a_request_that_nobody_takes_is_taken_back(tmp_path: Path) -> None:
    study = begun(tmp_path, "running")
    request = requests.ask(study, "pause")
    assert requests.waiting(study) == [request]
    assert requests.answer(study, request, seconds=5) is None and requests.waiting(study) == []


def test_a_log_without_settings_is_not_extended(tmp_path: Path) -> None:
    live = Steered(begun(tmp_path, "an earlier version's"))
    assert "kept no settings in its log" in live.ask("extend", growth=Growth(trials=2).to_json())["refused"]


def test_arms_come_by_name_or_from_a_file(tmp_path: Path) -> None:
    space = load_space(begun(tmp_path, "calibrating").settings)
    assert given_arms("local, norm_penalty", space) == {"local": {}, "norm_penalty": {}}
    file = tmp_path / "arms.yaml"
    file.write_text("mine: {window.scheme: window, window: {length_blocks: 3}}\nreco:\n")
    assert given_arms(str(file), space) == {"mine": SMALL_ARM}
    assert news(space, grown(space, Growth(given_arms(str(file), space)))) == ["arm `mine`"]
    for given in ("reco", "nonsense", str(tmp_path / "none.yaml")):
        with pytest.raises(ReCoTuneError, match=r"already; leave it out|is not a known arm|does not exist"):
            given_arms(given, space)


def test_from_python(tmp_path: Path) -> None:
    """The same door as the command line's, whoever drives the study."""
    study = begun(tmp_path, "running")
    here = rt.open(study.path)
    with pytest.raises(StudyError, match="is not running"):
        here.pause()
    here.stop("search-0001")
    here.retry("search-0001")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"seeds": [0]}, "the study has all of that already"),
        ({"arms": ["reco"]}, "has arm `reco` already"),
        ({"arms": {"reco": SMALL_ARM}}, "has arm `reco` already"),
        ({"arms": ["lokal"]}, "lokal is not a known arm"),
        ({"arms": {"mine": {"window": {"lenght": 9}}}}, "window.lenght"),
        ({"changes": {"training.steps": 9}}, "--set training.steps: only"),
    ]
    with locked(study):
        live = Steered(study)
        live.steering.start()
        before = study.settings.read_bytes()
        for growth, said in wrong:
            with pytest.raises(ReCoTuneError, match=said):
                here.extend(**growth)
        assert study.settings.read_bytes() == before
        here.extend(arms={"mine": {"window": {"length_blocks": 3}, "window.scheme": "window"}}, seeds=[4], trials=2)
        here.extend(arms=["local"], changes={"search.window.length_tokens": {"int": [9, 18]}})
        with pytest.raises(StudyError, match="has no run nonsense"):
            here.stop("nonsense")
        here.pause()
        live.steering.close()
    space = load_space(study.settings)
    assert live.paused and (space.seeds, space.trials) == ((0, 4), 4)
    assert list(space.arms) == ["full", "reco", "mine", "local"] and space.arms["mine"] == SMALL_ARM


def test_from_another_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The study is driven here, in the name of a driver; the commands are those that a person types elsewhere."""

    def say(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out + told.err

    study = begun(tmp_path, "running")
    assert "is not running" in say("pause", str(study.path))[1]
    assert say("stop", str(study.path), "search-0001") == (
        0,
        f"search-0001 stops; `reco-tune retry {study.path} search-0001` continues it\n",
    )
    assert say("retry", str(study.path))[0] == say("retry", str(study.path), "x", "--failed")[0] == 2
    with locked(study):
        live = Steered(study)
        live.steering.start()
        code, told = say("extend", str(study.path), "--trials", "+2", "--seeds", "4", "--arms", "local")
        assert code == 0 and "added to the running study: arm `local`, seed 4, 2 further trials" in told
        assert "more often than once in twenty" in told, "the warning of a second look"
        code, told = say("extend", str(study.path), "--set", "training.steps=3")
        assert code == 2 and told.startswith("reco-tune: --set training.steps: only")
        code, told = say("stop", str(study.path), "nonsense")
        assert code == 2 and "has no run nonsense; " in told
        assert say("retry", str(study.path), "search-0001") == (0, "the study retries search-0001\n")
        assert say("pause", str(study.path))[0] == 0 and live.paused
        live.steering.close()
    assert load_space(study.settings).trials == 4
