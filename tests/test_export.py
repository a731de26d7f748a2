"""A run out of its study: the experiment file that repeats it bit for bit, lengthens it or goes on with it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small_study import WatchedStudy, deterministic
from toy_study import record_study

from reco_tune.cli import main
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import StudyError
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.sections import every_run
from reco_tune.settings import Experiment, load_experiment
from reco_tune.study.export import best_run, continued, experiment_text, exported
from reco_tune.study_log import RunRecord, StudyFolder, named_run, read_study
from reco_tune.training import fit
from reco_tune.training.checkpoint import read_checkpoint


def reco_tune(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_the_command_of_the_page_ends_in_the_bits_of_the_row(
    finished_study: WatchedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line of the runs list, word for word, in one process; then the model's own numbers, all digits of them."""
    monkeypatch.chdir(tmp_path)
    evidence = Evidence.read(finished_study.folder)
    (table,) = every_run.build(evidence).tables
    told = {row["trial"]: row["command"] for row in table.groups[0].rows}
    record = finished_study.study.runs["reco-equal_compute-s0"]
    for line in told[record.trial].split(" && "):
        program, *words = shlex.split(line.replace("STUDY_DIR", shlex.quote(str(finished_study.folder))))
        assert program == "reco-tune" and reco_tune(*words) == 0
    printed = dict(re.findall(r"^ *(\w+) +(-?[\d,.e+-]+)$", capsys.readouterr().out, re.MULTILINE))
    assert printed["fvd"] == f"{record.metrics['fvd']:,.6g}"

    theirs, ours = finished_study.result.folder.trial(record.trial), tmp_path / "runs" / record.trial
    for file in ("model/model.safetensors", "samples.npz"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
    last = read_checkpoint(ours)
    assert last is not None
    assert reco_tune("evaluate", ours) == 0
    again = {**last.state["metrics"], **json.loads(capsys.readouterr().out)["metrics"]}
    known = deterministic(record)["metrics"]
    shared = known.keys() & again.keys()
    assert {"fvd", "val_cross_entropy", "train_cross_entropy", "training_flops"} <= shared
    assert {name: again[name] for name in shared} == {name: known[name] for name in shared}


def test_a_file_holds_what_the_study_ran(finished_study: WatchedStudy, tmp_path: Path) -> None:
    for record in finished_study.study.runs.values():
        path = tmp_path / f"{record.trial}.yaml"
        path.write_text(experiment_text(exported(record), record, finished_study.study))
        assert load_experiment(path).result_hash() == record.settings_hash
    longer = exported(record, 90)
    assert longer.training.steps == 90
    assert "for 90 steps, not 60" in experiment_text(longer, record, finished_study.study).splitlines()[0]


def test_a_run_goes_on_where_it_stopped(
    toy_cache: TokenCache, toy_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    """12 steps in the study and 12 more from its checkpoint are the 24 of a run that was never in a study."""
    short = toy_experiment({"training.schedule": "constant", "training.warmup_steps": 2, "training.keep_best": True})
    folder, record = _one_run(tmp_path / "study", short)
    fit(short, toy_cache, folder.trial(record.trial))
    longer = exported(record, 24)
    assert continued(folder, record, longer, tmp_path / "on") == 12
    on, whole = (fit(longer, toy_cache, tmp_path / name) for name in ("on", "whole"))
    for name, tensor in whole.model.state_dict().items():
        assert tensor.equal(on.model.state_dict()[name]), name
    assert on.metrics["val_cross_entropy"] == whole.metrics["val_cross_entropy"]
    with pytest.raises(StudyError, match="is not empty; remove it"):
        continued(folder, record, longer, tmp_path / "on")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({}, "training.schedule (cosine)"),
        ({"window.schedule": "short_to_long"}, "window.schedule"),
        ({"window.full_fraction": 0.5}, "window.full_fraction"),
    ],
    ids=["cosine", "growing window", "full at the end"],
)
def test_what_stretches_over_a_run_is_not_gone_on_with(
    overrides: dict[str, object], key: str, toy_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    """The learning rate of step 5 of 12 is not that of step 5 of 24: such a run would be neither of both."""
    constant = {"training.schedule": "constant"} if overrides else {}
    folder, record = _one_run(tmp_path, toy_experiment({**constant, **overrides}))
    with pytest.raises(StudyError, match=re.escape(key)):
        continued(folder, record, exported(record, 24), tmp_path / "on")


def test_a_run_without_a_checkpoint_starts_again(toy_experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    folder, record = _one_run(tmp_path, toy_experiment())
    with pytest.raises(StudyError, match="leave --continue out"):
        continued(folder, record, exported(record), tmp_path / "on")


def test_the_best_run_is_whole_and_allowed(tmp_path: Path) -> None:
    study = read_study(record_study(tmp_path / "toy"))
    best = best_run(study, "fvd")
    rest = [run for run in study.runs.values() if run.state == "evaluated" and not run.reason]
    assert best.metrics["fvd"] == min(run.metrics["fvd"] for run in rest)
    assert best_run(study, "speedup").metrics["speedup"] == max(run.metrics.get("speedup", 1.0) for run in rest)
    best.reason = "fvd is too high"
    assert best_run(study, "fvd") is not best
    for metric, told in (("fdv", "did you mean fvd"), ("learning_rate", "neither higher nor lower")):
        with pytest.raises(StudyError, match=told):
            best_run(study, metric)
    with pytest.raises(StudyError, match="did you mean full-s0"):
        named_run(study, "fulls0")


def test_what_the_verb_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = record_study(tmp_path / "toy", arms=("full", "reco"), searched=0, files=False)
    monkeypatch.chdir(tmp_path)
    assert reco_tune("export", study) == 2 and "--best METRIC" in capsys.readouterr().err
    assert reco_tune("export", study, "full-s0") == reco_tune("export", study, "full-s0") == 0
    assert "reco-tune train full-s0.yaml --evaluate" in capsys.readouterr().out
    assert yaml.safe_load(Path("full-s0.yaml").read_text())["training"]["steps"] == 600
    Path("full-s0.yaml").write_text("mine: 1\n")
    assert reco_tune("export", study, "full-s0") == 2 and "--output" in capsys.readouterr().err
    assert reco_tune("export", study, "--best", "fvd", "--steps", 700, "--output", "longer.yaml") == 0
    assert "best FVD: full-s0" in capsys.readouterr().out
    assert load_experiment(Path("longer.yaml")).training.steps == 700


def test_a_run_of_several_workers_is_repeated_by_as_many() -> None:
    assert "torchrun --nproc-per-node 2 -m reco_tune train reco-s0.yaml" in every_run.repeat_command("reco-s0", 2)


def _one_run(path: Path, experiment: Experiment) -> tuple[StudyFolder, RunRecord]:
    record = RunRecord("reco-s0", 0, "reco", "equal_steps", 0, "evaluated", settings=experiment.flat())
    return StudyFolder(path), record
