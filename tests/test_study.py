"""One small study end to end: decord, tokenizer, Ray Train inside Ray Tune, Optuna, the log."""

from __future__ import annotations

import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from small_study import WatchedStudy, deterministic, ray_processes_left, run_small_study, small_space

from reco_tune import quantities
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import SettingsError, StudyError
from reco_tune.evaluation import evaluate, prepare_evaluation
from reco_tune.preparation import prepare_tokens
from reco_tune.reporting import Evidence, ablation_table, load_runs
from reco_tune.settings import load_space, make_experiment
from reco_tune.study import Options, resume, run
from reco_tune.study_log import read_events, read_study
from reco_tune.training import fit


def test_every_run_is_evaluated_once(finished_study: WatchedStudy) -> None:
    study = finished_study.study
    assert list(study.runs) == ["full-s0", "reco-equal_steps-s0", "reco-equal_compute-s0", "search-0000", "search-0001"]
    assert {run.state for run in study.runs.values()} == {"evaluated"} and study.finished
    counts = [event["event"] for event in read_events(finished_study.result.folder.events)]
    assert counts.count("started") == counts.count("evaluated") == counts.count("completed") == 5
    assert counts[0] == "study" and counts[-1] == "finished" and "retried" not in counts


def test_the_observer_hears_the_log(finished_study: WatchedStudy) -> None:
    assert finished_study.heard == list(read_events(finished_study.result.folder.events))
    assert set(finished_study.study.runs) <= set(finished_study.progress)
    assert "starting Ray" in finished_study.phases


def test_equal_compute_steps_follow_from_the_logged_calibration(finished_study: WatchedStudy) -> None:
    study = finished_study.study
    assert set(study.calibrations) == {"full", "reco", "search-0000", "search-0001"}
    speedup = study.calibrations["reco"]["speedup"]
    assert study.runs["reco-equal_compute-s0"].settings["training.steps"] == max(1, round(60 * speedup))
    assert (
        study.runs["reco-equal_compute-s0"].metrics["speedup"]
        == study.runs["reco-equal_steps-s0"].metrics["speedup"]
        == speedup
    )


def test_a_run_inside_ray_gives_the_bits_of_one_outside(finished_study: WatchedStudy, tmp_path: Path) -> None:
    """Worker groups are reused: what an earlier trial left behind must not reach the next one."""
    for name in ("reco-equal_steps-s0", "search-0001"):
        record = finished_study.study.runs[name]
        experiment = make_experiment({}, record.settings, where=name)
        cache = prepare_tokens(experiment)
        prepare_evaluation(experiment, cache)
        trained = fit(experiment, cache, tmp_path / name)
        evaluated = evaluate(trained.model, experiment, cache)
        outside = {**trained.metrics, **evaluated.metrics}
        inside = deterministic(record)["metrics"]
        compared = [key for key in inside if key in outside]
        assert "fvd" in compared and "val_cross_entropy" in compared
        assert {key: inside[key] for key in compared} == {key: outside[key] for key in compared}
        assert record.curves == evaluated.curves


def test_a_run_leaves_everything_in_its_folder(finished_study: WatchedStudy) -> None:
    folder = finished_study.result.folder
    for trial in finished_study.study.runs:
        for file in ("history.parquet", "samples.npz", "result.json", "model/model.safetensors"):
            assert (folder.trial(trial) / file).exists(), f"{trial} lacks {file}"


def test_records_say_where_and_on_what(finished_study: WatchedStudy) -> None:
    study = finished_study.study
    assert {"commit", "version", "versions", "hardware", "command", "platform"} <= set(study.provenance)
    for run_ in study.runs.values():
        cache = TokenCache.open(prepare_tokens(make_experiment({}, run_.settings, where=run_.trial)).path)
        assert run_.provenance["data_fingerprint"] == cache.data_fingerprint
        assert {"host", "device", "tokenizer_fingerprint", "protocol"} <= set(run_.provenance)
        stages = ["training_seconds", "generation_seconds", "evaluation_seconds"] + ["calibration_seconds"] * (
            run_.arm == "search"
        )
        assert run_.metrics["gpu_hours"] == pytest.approx(sum(run_.metrics[stage] for stage in stages) / 3600)
        assert set(run_.metrics) <= set(quantities.ALL)


def test_rungs_are_reported_in_order(finished_study: WatchedStudy) -> None:
    for run_ in finished_study.study.runs.values():
        steps = [report["step"] for report in run_.reports]
        assert (
            len(steps) == 6 and all(a < b for a, b in pairwise(steps)) and steps[-1] == run_.settings["training.steps"]
        )


def test_a_finished_study_is_left_as_it_is(finished_study: WatchedStudy) -> None:
    before = finished_study.result.folder.events.read_bytes()
    again = resume(finished_study.folder, Options(track=False))
    same = run(finished_study.space, finished_study.folder, Options(track=False))
    assert again.study == same.study == read_study(finished_study.folder)
    assert finished_study.result.folder.events.read_bytes() == before


def test_no_process_and_no_temporary_folder_is_left(finished_study: WatchedStudy) -> None:
    assert ray_processes_left() == []
    assert not (finished_study.result.folder.ray / "temp").exists()


def test_the_folder_of_another_study_is_refused(finished_study: WatchedStudy, tmp_path: Path) -> None:
    other = small_space(tmp_path, "training.steps=61")
    with pytest.raises(StudyError, match=r"holds another study \(it differs in experiment.training.steps\)"):
        run(other, finished_study.folder, Options(track=False))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(StudyError, match="is not empty and has no study"):
        run(other, tmp_path / "notes", Options(track=False))
    assert [file.name for file in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_a_live_study_is_not_resumed(finished_study: WatchedStudy) -> None:
    holder = (
        "import sys; from pathlib import Path; from reco_tune.study.study_writer import locked;"
        " from reco_tune.study_log import StudyFolder\n"
    )
    holder += "with locked(StudyFolder(Path(sys.argv[1]))): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(finished_study.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(StudyError, match=f"is running \\(process {process.pid} on {socket.gethostname()}\\)"):
            resume(finished_study.folder)


def test_what_can_never_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    space = small_space(tmp_path, "resources.cpus_per_worker=4096")
    with pytest.raises(SettingsError, match=r"4096 CPU\(s\)"):
        run(space, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_folder_without_a_study_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="is not a study folder"):
        resume(tmp_path)


CODES_SPACE = """
question: Which window do codes alone want?
experiment:
  data: {{layout: tokens, root: {root}, cache_dir: {root}/cache, grid: [4, 2, 4], split: time, test_fraction: 0.25}}
  tokenizer: {{num_codes: 16}}
  model: {{width: 16, depth: 1, heads: 2}}
  window: {{length_blocks: 2}}
  training: {{steps: 24, batch_size: 8, rungs: 2, learning_rate: 3.0e-3}}
  evaluation: {{validation_clips: 8}}
arms:
  full:
  reco:
search:
  window.length_tokens: {{int: [8, 24], step: 8}}
  objective.continuity_weight: {{float: [0.1, 0.5], step: 0.1}}
trials: 2
resources: {{calibration_seconds: 0.3, concurrent_trials: 2}}
"""


@pytest.mark.slow
def test_a_study_on_codes_alone_from_recordings_to_its_report(tmp_path: Path) -> None:
    """As commaVQ lies on disk: nothing here knows pixels, and every run is evaluated."""
    generator = np.random.default_rng(0)
    for number in range(6):
        frames = (generator.integers(16, size=(1, 2, 4)) + np.arange(40)[:, None, None]) % 16
        np.save(tmp_path / f"{number}.token.npy", frames.astype(np.int16))
    (tmp_path / "space.yaml").write_text(CODES_SPACE.format(root=tmp_path))
    study = run(load_space(tmp_path / "space.yaml"), tmp_path / "study", Options(name="codes", track=False)).study
    assert study.finished and {one.state for one in study.runs.values()} == {"evaluated"} and len(study.runs) == 4
    for one in study.runs.values():
        assert one.provenance["protocol"] == "codes/8 held-out clips/last" and one.metrics["speedup"] > 0
        assert not [name for name in one.metrics if name.startswith(("fvd", "kernel", "motion", "class"))]
    table = ablation_table(load_runs(tmp_path / "study"))
    assert list(table["arm"]) == ["full", "reco"] and table["val_cross_entropy"].notna().all()
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study" / "optuna.journal")))
    told = {
        one.user_attrs.get("run", ""): one.values
        for one in optuna.load_study(study_name="codes", storage=storage).trials
    }
    assert told.keys() - {""} == {"reco-equal_steps-s0", "search-0000", "search-0001"}, (
        "the arm is a point of the ranges"
    )
    for name in ("search-0001", "reco-equal_steps-s0"):
        assert told[name] == [study.runs[name].metrics[key] for key in ("speedup", "val_cross_entropy")]
    front = Evidence.read(tmp_path / "study").frontier.points
    assert (front["arm"] == "search").sum() == 2 and front["val_cross_entropy"].notna().all()


@pytest.mark.slow
def test_two_gloo_workers_give_the_numbers_of_one(finished_study: WatchedStudy, tmp_path: Path) -> None:
    """Same global batch; sums of gradients are split in two, so the last bits may differ."""
    pair = run_small_study(
        tmp_path, finished_study.same_cache, "resources.workers=2", "trials=0", "budgets=[equal_steps]"
    ).study
    assert pair.finished
    for trial in ("full-s0", "reco-equal_steps-s0"):
        one, two = finished_study.study.runs[trial], pair.runs[trial]
        for alone, together in zip(one.reports, two.reports, strict=True):
            assert together["val_cross_entropy"] == pytest.approx(alone["val_cross_entropy"], rel=1e-4)
        assert two.metrics["fvd"] == pytest.approx(one.metrics["fvd"], rel=0.05)  # float noise may flip a sampled code
