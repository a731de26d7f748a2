"""A finished study that grows, and grows again while it runs: nothing is repeated, and what was there stays."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from small_study import WatchedStudy, deterministic

from reco_tune.settings import load_space
from reco_tune.study import Growth, Observer, Options, extend, requests
from reco_tune.study_log import StudyFolder, read_events, read_study

LATE = Growth(seeds=(5,), changes=("search.window.length_tokens={int: [9, 18]}",), trials=1)


class Asks(Observer):
    """Asks the study for more when its last run has been evaluated: Tune has nothing left to propose by then."""

    def __init__(self, folder: StudyFolder, last: str) -> None:
        self._folder, self._last = folder, last

    def on_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "completed" and event["trial"] == self._last:
            requests.ask(self._folder, "extend", growth=LATE.to_json())


@pytest.mark.slow
def test_a_finished_study_grows_and_a_live_one_takes_more_up(finished_study: WatchedStudy, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    shutil.copytree(finished_study.folder, folder.path, ignore=shutil.ignore_patterns("ray"))
    growth = Growth(arms={"local_first": {}})
    result = extend(folder.path, growth, Options(track=False), Asks(folder, "local_first-equal_compute-s0"))
    study = result.study
    assert study.finished and study == read_study(folder.path) and not result.interrupted
    new = {"local_first-equal_steps-s0", "local_first-equal_compute-s0", "search-0002"}
    seeds = {f"{name}-s5" for name in ("full", "reco-equal_steps", "reco-equal_compute")}
    seeds |= {f"local_first-{budget}-s5" for budget in ("equal_steps", "equal_compute")}
    assert study.runs.keys() == finished_study.study.runs.keys() | new | seeds
    assert {run.state for run in study.runs.values()} == {"evaluated"}
    for name, run in finished_study.study.runs.items():
        assert study.runs[name] == run, "what was finished is as it was"
    events = list(read_events(folder.events))
    started = [event["trial"] for event in events if event["event"] == "started"]
    assert len(started) == len(set(started)) == len(study.runs)
    calibrated = [event["key"] for event in events if event["event"] == "calibrated"]
    assert calibrated.count("local_first") == calibrated.count("full") == 1, "the baseline's is measured beside it"
    assert [one["what"] for one in study.extensions] == [
        ["arm `local_first`"],
        ["seed 5", "1 further trials", "search.window.length_tokens int [9, 18] instead of int [9, 27]"],
    ]
    assert load_space(folder.settings).seeds == (0, 5) and not list(folder.requests.iterdir())
    reco = [study.runs[f"reco-equal_compute-s{seed}"] for seed in (0, 5)]
    assert reco[0].settings["training.steps"] == reco[1].settings["training.steps"], "the speed that was measured holds"
    assert deterministic(reco[0])["metrics"] != deterministic(reco[1])["metrics"]
