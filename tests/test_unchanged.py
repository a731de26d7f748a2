"""What may change under a study and what may not, told without a cluster from the settings and the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_study import small_space

from reco_tune.cost import plan
from reco_tune.errors import DataError, StudyError
from reco_tune.settings import load_space
from reco_tune.study import Options, resume
from reco_tune.study.bookkeeping import Bookkeeping
from reco_tune.study.job_source import CALIBRATION
from reco_tune.study.study_writer import claimed, freeze, frozen
from reco_tune.study.unchanged import check_unchanged
from reco_tune.study_log import StudyFolder, read_study

KINDS = ("calibrating", "running", "an earlier version's")
"""How far a study is: its arms are being calibrated, its first sampled run was asked for, or that and no settings in
the log.
"""


def begun(folder: Path, kind: str, *overrides: str) -> StudyFolder:
    """A study that was stopped there."""
    folder.mkdir(exist_ok=True)
    space, study = frozen(small_space(folder, *overrides)), StudyFolder(folder / "study")
    with claimed(space, study):
        one = Bookkeeping(plan(space), study)
    one.begin()
    while one.jobs.next() is not None:
        pass
    for arm in () if kind == "calibrating" else space.arms:
        key = CALIBRATION + arm
        one.take_in({"event": "calibrated", "key": key, "kind": "calibration", "metrics": {"speedup": 1.73}})
    while kind != "calibrating" and one.jobs.next() is not None:
        pass
    one.writer.close()
    if kind == "an earlier version's":
        first, *others = study.events.read_text().splitlines(keepends=True)
        event = json.loads(first)
        del event["settings"]
        study.events.write_text("".join([json.dumps(event) + "\n", *others]))
    return study


def edit(study: StudyFolder, changes: dict[str, Any]) -> None:
    """By hand, in an editor."""
    settings = yaml.safe_load(study.settings.read_text())
    for key, value in changes.items():
        *parents, last = key.split("/")
        place = settings
        for parent in parents:
            place = place[parent]
        place[last] = value
    study.settings.write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"experiment/training/steps": 200}, "training.steps of arm `full` is 200, but the study runs with 60"),
        ({"experiment/tokenizer/num_codes": 32}, "tokenizer.num_codes of arm `full` is 32, but .* 24"),
        ({"experiment/evaluation": {"samples": 16}}, "evaluation.samples of arm `full` is 16, but .* 32"),
        (
            {"arms/reco": {"objective.continuity_weight": 0.2}},
            "objective.continuity_weight of arm `reco` is 0.2, .* 0.1",
        ),
        ({"arms/full": {"training.batch_size": 4}}, "training.batch_size of arm `full` is 4, .* 8"),
        ({"arms/reco": {"training.loss_chunk_tokens": 5}}, "loss_chunk_tokens of arm `reco` is 5, .* left out"),
    ],
    ids=["steps", "tokenizer", "evaluation", "an-arm", "the-baseline", "what-had-no-value"],
)
def test_what_results_depend_on_stays(kind: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Runs of 1,500 and of 200 steps were pooled as seeds of one arm, and the report said `supported`."""
    study = begun(tmp_path, kind)
    edit(study, change)
    before = study.events.read_bytes()
    with pytest.raises(StudyError, match=said) as caught:
        resume(study.path, Options(track=False))
    assert (
        "\n" not in str(caught.value)
        and "a new study" in str(caught.value)
        and str(study.settings) in str(caught.value)
    )
    assert study.events.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"search": {"window.length_tokens": {"int": [9, 27]}}}, r"search\.objective\.continuity_weight is left out"),
        ({"objectives": {"fvd": "minimize"}}, 'objectives.speedup is left out, but .* "maximize"'),
        ({"sampler": {"kind": "random"}}, "sampler is .*random"),
        ({"arms": {"full": {}}}, "arms.reco is left out"),
        ({"seeds": [3, 0]}, "training.seed of sampled runs is 3, .* 0"),
    ],
    ids=["a-range-taken-out", "objectives", "sampler", "an-arm-taken-out", "the-seed-of-sampled-runs"],
)
def test_what_a_search_follows_from_stays(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    study = begun(tmp_path, "running")
    edit(study, change)
    with pytest.raises(StudyError, match=said):
        resume(study.path, Options(track=False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_may_grow_and_move(kind: str, tmp_path: Path) -> None:
    study = begun(tmp_path, kind)
    edit(
        study,
        {
            "trials": 9,
            "search/window.length_tokens": {"int": [9, 18]},
            "seeds": [0, 1],
            "arms/local": {},
            "budgets": ["equal_steps", "equal_compute", "half_compute"],
            "experiment/resources": {"workers": 2, "concurrent_trials": 1},
            "experiment/data/cache_dir": str(tmp_path / "elsewhere"),
        },
    )
    check_unchanged(load_space(study.settings), read_study(study.path), study)


def test_an_old_study_whose_speeds_mean_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    arms = "arms={full: null, small: {model.depth: 1}}"
    study = begun(tmp_path, KINDS[2], arms)
    with pytest.raises(StudyError, match=r"speed of arm `small` .* model\.depth, .*; begin a new study"):
        resume(study.path, Options(track=False))
    check_unchanged(load_space(study.settings), read_study(begun(tmp_path / "new", "running", arms).path), study)


def test_where_it_runs_changes_for_what_is_planned_too(tmp_path: Path) -> None:
    study = begun(tmp_path, "running")
    space = load_space(study.settings, ["resources.workers=2", "data.cache_dir=there"])
    freeze(space, study)
    one = Bookkeeping(plan(load_space(study.settings)), study)
    job = one.jobs.next()
    assert job is not None and job.key == "full-s0"
    assert job.settings["resources"]["workers"] == 2 and job.settings["training"]["steps"] == 60
    assert job.settings["data"]["cache_dir"] == str(Path("there").resolve())
    assert job.settings_hash == read_study(study.path).runs["full-s0"].settings_hash


@pytest.mark.parametrize("key", ["training.steps", "trials", "evaluation.samples"])
def test_only_where_it_runs_may_be_set_on_resuming(key: str, tmp_path: Path) -> None:
    study = begun(tmp_path, "calibrating")
    with pytest.raises(StudyError, match=rf"--set {key}: only .*resources\.\*.*a new study"):
        resume(study.path, Options(track=False), changes=[f"{key}=3"])


def test_a_study_goes_on_with_the_clips_that_its_runs_saw(tmp_path: Path) -> None:
    """Earlier versions took wrong frames of some videos: runs before and after would stand in one table."""
    study = begun(tmp_path, "running")
    trial = next(iter(read_study(study.path).runs))
    event = {"event": "started", "trial": trial, "attempt": 1, "provenance": {"data_fingerprint": "an earlier reading"}}
    first = json.loads(study.events.read_text().splitlines()[0])
    with study.events.open("a") as log:
        log.write(json.dumps({name: first[name] for name in first if name in ("time", "version")} | event) + "\n")
    before = study.events.read_bytes()
    with pytest.raises(DataError, match=r"gives other clips than the study's runs used .*; begin a new study"):
        resume(study.path, Options(track=False))
    assert study.events.read_bytes() == before and not list(tmp_path.rglob("*.npy")), "nothing was decoded or encoded"
