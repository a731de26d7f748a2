"""What a study leaves on disk: what `keep` says goes, what resume, export and rescore need stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_export import reco_tune
from toy_study import record_study

from reco_tune.cost.planning import plan
from reco_tune.errors import SettingsError
from reco_tune.locks import lock
from reco_tune.settings import Keep, load_space
from reco_tune.study.retention import disk_use, give_up, give_up_run, on_frontier, removable, remove
from reco_tune.study.study_writer import freeze
from reco_tune.study_log import EventLog, RunRecord, StudyFolder, StudyRecord, read_study

PARTS = ("checkpoint/step-00000600/tensors.safetensors", "model/model.safetensors", "best/model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A recorded study of three arms, one of which no objective speaks for, whose runs have left everything; of the
    last run a checkpoint alone, because it was not done.
    """
    folder = StudyFolder(
        record_study(tmp_path / "toy", arms=("full", "local", "reco"), searched=0, failing=("local-equal_steps-s0",))
    )
    log = EventLog(folder.events)
    study = read_study(folder.path)
    last = list(study.runs)[-1]
    log.append("planned", **{"trial": "reco-equal_steps-s1", "arm": "reco", "budget": "equal_steps", "seed": 1},
               settings=study.runs[last].settings, settings_hash="0")  # fmt: skip
    log.append("started", trial="reco-equal_steps-s1", attempt=1)
    log.close()
    for run in (*study.runs, "reco-equal_steps-s1"):
        for number, part in enumerate(PARTS if run in study.runs else PARTS[:1]):
            path = folder.trial(run) / part
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x" * 1000 * (number + 1))
    (folder.ray / "session").mkdir(parents=True)
    (folder.ray / "session" / "log").write_bytes(b"x" * 500)
    (folder.trial("full-s0") / ".model.77.tmp").mkdir()
    return folder


def left(folder: StudyFolder) -> dict[str, set[str]]:
    names = {"checkpoint", "model", "best"}
    return {run.name: {part.name for part in run.iterdir()} & names for run in (folder.path / "trials").iterdir()}


def test_disk_use_adds_up(folder: StudyFolder) -> None:
    use = disk_use(folder)
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert sum(use.values()) == sum(path.stat().st_size for path in files)
    assert (use["checkpoints"], use["models"], use["Ray"]) == (6 * 1000, 5 * 5000, 500)
    assert list(use.values()) == sorted(use.values(), reverse=True)


def test_the_status_of_a_study_tells_its_disk_and_stays_light(folder: StudyFolder) -> None:
    """torch takes seconds to import, and a person asks for the status often."""
    code = "import sys, reco_tune.cli as c\ntry: c.main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "status", str(folder.path)], capture_output=True, text=True)
    assert "models 25 kB, checkpoints 6 kB, Ray 500 B\n" in done.stdout, done.stderr
    assert done.stdout.rstrip().endswith("False")


@pytest.mark.parametrize(
    ("keep", "state", "gone"),
    [
        ({}, "evaluated", set()),
        ({"checkpoints": "none"}, "evaluated", {"checkpoint"}),
        ({"checkpoints": "none"}, "pruned", {"checkpoint"}),
        ({"checkpoints": "none"}, "failed", set()),
        ({"checkpoints": "best"}, "evaluated", {"checkpoint"}),
        ({"models": "none"}, "evaluated", {"model", "best"}),
        ({"models": "none", "checkpoints": "best"}, "evaluated", {"model", "checkpoint"}),
        ({"models": "frontier"}, "evaluated", set()),
    ],
    ids=lambda value: " ".join(value.values()) or "as it is" if isinstance(value, dict) else None,
)
def test_what_a_run_gives_up_when_it_ends(
    keep: dict[str, str], state: str, gone: set[str], folder: StudyFolder
) -> None:
    """A run that failed may be tried again from its checkpoint; of a frontier nobody knows before the end."""
    run = RunRecord("full-s0", 0, "full", "both", 0, state)  # type: ignore[arg-type]
    give_up_run(folder, run, Keep.model_validate(keep))
    assert {"checkpoint", "model", "best"} - left(folder)["full-s0"] == gone


def test_the_frontier_keeps_its_models_when_the_study_has_ended(folder: StudyFolder) -> None:
    space = load_space(folder.settings, ["keep.models=frontier"])
    study = read_study(folder.path)
    stays = {"full-s0", "reco-equal_steps-s0", "reco-equal_compute-s0"}
    assert on_frontier(study, space) == stays, "local is slower and worse than reco"
    give_up(folder, study, space)
    assert "model" in left(folder)["local-equal_compute-s0"], "it has not ended"
    study.finished = True
    give_up(folder, study, space)
    assert {run for run, parts in left(folder).items() if "model" in parts} == stays | {"local-equal_steps-s0"}


def test_seeds_of_a_configuration_stay_together() -> None:
    """Means decide: the lucky seed of a bad arm takes no place, the unlucky one of a good arm keeps it."""

    def run(arm: str, seed: int, fvd: float) -> RunRecord:
        metrics = {"fvd": fvd, "speedup": 2.0}
        return RunRecord(f"{arm}-s{seed}", 0, arm, "equal_steps", seed, "evaluated", metrics=metrics)

    runs = [run("good", 0, 1.0), run("good", 1, 3.0), run("bad", 0, 0.9), run("bad", 1, 9.0)]
    space = load_space_of({"good": {"objective.continuity_weight": 0.1}, "bad": {"objective.continuity_weight": 0.2}})
    assert on_frontier(StudyRecord(runs={one.trial: one for one in runs}), space) == {"good-s0", "good-s1"}


def test_clean_lists_first_and_takes_only_what_it_was_told(
    folder: StudyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = left(folder)
    assert reco_tune("clean", folder.path) == 0
    said = capsys.readouterr().out
    assert "state of Ray" in said and "500 B would be deleted; --yes deletes it" in said
    assert left(folder) == whole and folder.ray.exists()
    assert reco_tune("clean", folder.path, "--yes") == 0
    assert left(folder) == whole and not folder.ray.exists() and not list(folder.path.rglob("*.tmp"))
    assert reco_tune("clean", folder.path, "--yes") == 0 and "nothing to delete" in capsys.readouterr().out
    assert reco_tune("clean", folder.path, "--checkpoints", "none", "--models", "none", "--yes") == 0
    assert "25 kB deleted" in (said := capsys.readouterr().out) and "rescore" in said
    assert left(folder) == {
        **{run: set() for run in whole},
        "local-equal_steps-s0": {"model", "best"},
        "reco-equal_steps-s1": {"checkpoint"},
    }, "an unfinished run goes on from its checkpoint; a failed one has no model that anybody trained to its end"


def test_a_live_study_is_not_cleaned(folder: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with lock(folder.lock):
        assert reco_tune("clean", folder.path, "--yes") == 2
    assert "is running" in capsys.readouterr().err and folder.ray.exists()


def test_best_weights_must_be_kept_by_somebody(folder: StudyFolder) -> None:
    space = load_space(folder.settings, ["keep.checkpoints=best"])
    with pytest.raises(SettingsError, match=r"set training\.keep_best"):
        plan(space)
    plan(load_space(folder.settings, ["keep.checkpoints=best", "training.keep_best=true"]))


def test_what_a_study_keeps_is_frozen_with_it(folder: StudyFolder) -> None:
    freeze(load_space(folder.settings, ["keep.models=none"]), folder)
    assert yaml.safe_load(folder.settings.read_text())["keep"] == {"checkpoints": "last", "models": "none"}
    listed = removable(folder, read_study(folder.path), load_space(folder.settings), load_space(folder.settings).keep)
    remove([one for one in listed if one.what == "models"])
    assert {run for run, parts in left(folder).items() if "model" in parts} == {"local-equal_steps-s0"}


def load_space_of(arms: dict[str, dict[str, float]]):  # type: ignore[no-untyped-def]
    from reco_tune.settings import Space

    return Space(question="?", experiment={}, arms={**arms})
