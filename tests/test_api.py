"""Studies from Python: the door is that of YAML files, the answers are those of the command line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_study import WatchedStudy, small_space
from toy_study import record_study

import reco_tune as rt
from reco_tune.api.progress import Watching
from reco_tune.api.space import EditableSpace
from reco_tune.data.video import count_frames, read_frames
from reco_tune.errors import ReCoTuneError, SettingsError, StudyError
from reco_tune.reporting import load_runs
from reco_tune.settings import load_space
from reco_tune.training import load_model

ROOT = Path(__file__).resolve().parent.parent


def test_nothing_heavy_is_loaded_before_it_is_used() -> None:
    program = (
        "import sys, time; began = time.perf_counter(); import reco_tune as rt; took = time.perf_counter() - began\n"
        "first = set(sys.modules); space = rt.load('joint'); space.arms['mine'] = {'window.length_blocks': 3}\n"
        "print(took < 0.5, 'pydantic' in first, {'torch', 'ray', 'pandas', 'mlflow', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True False set()\n", done.stderr


def test_names_of_the_package_are_listed() -> None:
    assert {"load", "run", "open", "__version__"} <= set(dir(rt))


@pytest.fixture
def space() -> EditableSpace:
    found: EditableSpace = rt.load("joint")
    return found


def test_what_is_changed_in_python_is_what_would_stand_in_the_file(space: EditableSpace, tmp_path: Path) -> None:
    space.arms["mine"] = {"objective": {"continuity_weight": 0.5}, "window.length_blocks": 3}
    space.search["window.stride_fraction"] = {"float": [0.5, 1.0]}
    space["training.steps"] = 77
    space["model"] = {"width": 32}
    space["seeds"] = [0, 1]
    del space.arms["reco"]
    values = yaml.safe_load((ROOT / "search_spaces" / "joint.yaml").read_text())
    values["arms"] = {"full": None, "mine": {"objective.continuity_weight": 0.5, "window.length_blocks": 3}}
    values["search"]["window.stride_fraction"] = {"float": [0.5, 1.0]}
    values["experiment"]["training"]["steps"], values["experiment"]["model"]["width"] = 77, 32
    values["seeds"] = [0, 1]
    (tmp_path / "same.yaml").write_text(yaml.safe_dump(values))
    space.save(tmp_path / "saved.yaml")
    same, saved = load_space(tmp_path / "same.yaml"), load_space(tmp_path / "saved.yaml")
    assert space.checked.model_dump(exclude={"source"}) == same.model_dump(exclude={"source"})
    assert saved.model_dump(exclude={"source"}) == same.model_dump(exclude={"source"})
    assert (space["training.steps"], space["model.width"], space["seeds"], space["trials"]) == (77, 32, [0, 1], 48)
    assert space["sampler.kind"] == "tpe" and space["training.beta1"] == 0.9
    assert list(space.arms) == ["full", "mine"] and len(space.search) == 4


WRONG: dict[str, tuple[str, Any, str]] = {
    "a misspelt setting of an arm": (
        "arms",
        {"objective.continuity_wieght": 1},
        "objective.continuity_wieght is not a setting; did you mean objective.continuity_weight",
    ),
    "a window above the clip": ("arms", {"window.length_tokens": 1000}, r"must not exceed the clip's 45 tokens"),
    "an arm of nothing": ("arms", {}, "not a known arm"),
    "no mapping": ("arms", 3, "must hold settings"),
    "a misspelt setting": ("", ("trainig.steps", 7), "trainig.steps is not a setting; did you mean training.steps"),
    "a misspelt key of a study": ("", ("trails", 7), "trails is not a setting; did you mean trials"),
    "heads that do not divide": ("", ("model.width", 65), r"model.heads \(4\) must divide model.width \(65\)"),
    "a word for a number": ("", ("training.steps", "many"), r"training.steps \('many'\)"),
    "no range": ("search", {"whole": [1, 2]}, "whole"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_at_once_and_changes_nothing(space: EditableSpace, case: str) -> None:
    part, value, sentence = WRONG[case]
    before = space.checked
    with pytest.raises(SettingsError, match=sentence):
        if part:
            getattr(space, part)["window.length_tokens" if part == "search" else "mine"] = value
        else:
            space[value[0]] = value[1]
    assert space.checked is before


def test_what_is_not_there() -> None:
    with pytest.raises(SettingsError, match=r"jint is neither a file nor a shipped .*; did you mean joint\?"):
        rt.load("jint")
    with pytest.raises(StudyError, match="nowhere is not a study folder"):
        rt.open("nowhere")


def test_a_study_of_a_folder_answers_as_the_report_does(tmp_path: Path) -> None:
    study = rt.open(record_study(tmp_path / "toy", arms=("full", "fewer_frames", "reco"), searched=3))
    runs = study.runs()
    assert runs.equals(load_runs(tmp_path / "toy")) and study.finished
    whole = runs[(runs["state"] == "evaluated")]
    assert study.best().metrics["fvd"] == whole["fvd"].min() and study.best("speedup").state == "evaluated"
    assert set(study.ablation()["arm"]) == {"full", "fewer_frames", "reco"}
    assert study.frontier().non_dominated("equal_steps")["on_frontier"].all()
    assert study.run("full-s0").arm == "full" and repr(study.run("full-s0")).startswith("<run full-s0: evaluated, fvd")
    assert "<table" in study._repr_html_() and "runs evaluated" in repr(study)
    with pytest.raises(StudyError, match="full-s9"):
        study.run("full-s9")
    with pytest.raises(ReCoTuneError, match="no trained model"):
        study.run("full-s0").model()


def test_a_study_that_ran_is_read_and_generated_from(finished_study: WatchedStudy, tmp_path: Path) -> None:
    study = rt.open(finished_study.folder)
    run = study.best()
    assert run.trial in set(study.runs()["trial"])
    assert run.model().settings == load_model(run.folder).model.settings
    names = list(load_model(run.folder).cache.class_names)
    clips = run.generate([names[3], 7], seed=1)
    assert clips.video.shape == (2, 5, 3, 12, 12) and clips.video.dtype == np.uint8
    assert clips.classes == (names[3], names[7]) and len(run.generate()) == 16
    assert (clips.video == run.generate([3, names[7]], seed=1).video).all()
    assert (clips.video != run.generate([3, 7], seed=2).video).any()
    film, pixels = clips.save(tmp_path / "a" / "clips.mp4"), clips.save(tmp_path / "clips.npz")
    assert count_frames(film) == 5 and read_frames(film, [0]).std() > 0
    assert (np.load(pixels)["video"] == clips.video).all()
    assert re.match(r'<video .*src="data:video/mp4;base64,[A-Za-z0-9+/=]+"></video>$', clips._repr_html_())
    with pytest.raises(SettingsError, match=r"'eleven' is not a class of this model; it knows "):
        run.generate(["eleven"])
    with pytest.raises(StudyError, match=r"must end in \.mp4"):
        clips.save(tmp_path / "clips.gif")


def test_a_folder_of_another_study_is_not_run_in(finished_study: WatchedStudy) -> None:
    given = EditableSpace(finished_study.space)
    given["training.steps"] = 61
    before = (finished_study.folder / "events.jsonl").read_bytes()
    with pytest.raises(StudyError, match=r"training\.steps"):
        rt.run(given, finished_study.folder, progress=False)
    assert (finished_study.folder / "events.jsonl").read_bytes() == before


def test_the_script_of_the_documentation_is_right(
    finished_study: WatchedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word, in the folder of a study that is run already, at the settings that the script itself gives."""
    pages = [ROOT / "README.md", ROOT / "docs" / "tutorials" / "python.md"]
    script, again = (
        re.findall(r"```python\n(import reco_tune as rt\n.*?)```", page.read_text(), re.DOTALL)[0] for page in pages
    )
    assert script == again, "the tutorial explains the README's script"
    lines = [line for line in script.splitlines() if line.strip()]
    assert len(lines) <= 20
    monkeypatch.chdir(tmp_path)
    ran: list[Any] = []

    def run(space: EditableSpace, folder: str, **options: Any) -> Any:
        ran.append(space)
        assert folder == "studies/mine"
        return rt.open(finished_study.folder)

    monkeypatch.setattr("reco_tune.api.run", run)
    exec(compile(script, "README.md", "exec"), {})
    assert ran[0].arms["mine"] and (tmp_path / "clips.mp4").is_file()


def test_progress_counts_runs_those_not_asked_for_yet_too() -> None:
    told: list[tuple[int, int, str, bool]] = []
    watching = Watching(2, lambda *shown: told.append(shown))
    for event in (
        {"event": "planned", "trial": "full-s0"},
        {"event": "planned", "trial": "reco-s0"},
        {"event": "asked", "trial": "search-0000"},
        {"event": "evaluated", "trial": "full-s0", "metrics": {"fvd": 3.25}},
        {"event": "failed", "trial": "reco-s0"},
    ):
        watching.on_event(event)
    watching.on_progress("search-0000", 3, 10, "training")
    assert told == [
        (1, 4, "1 of 4 runs ended; full-s0 evaluated, FVD 3.25", True),
        (2, 4, "2 of 4 runs ended; reco-s0 failed", True),
        (2, 4, "2 of 4 runs ended; search-0000: training 3/10", False),
    ]


def test_an_experiment_is_the_space_of_its_one_run(tmp_path: Path) -> None:
    assert list(rt.load("ucf101_110M").arms) == ["ucf101_110M"]
    assert rt.load(small_space(tmp_path).source or "").checked == small_space(tmp_path)
