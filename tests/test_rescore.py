"""A study's models under another protocol: into the same log, beside the first, and into tables only when named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_study import WatchedStudy
from test_export import reco_tune
from toy_study import PROTOCOL, record_study

from reco_tune.errors import ComparisonError, SettingsError, StudyError
from reco_tune.locks import lock
from reco_tune.quantities import JUDGED
from reco_tune.reporting import Evidence, write_report
from reco_tune.reporting.protocols import other_protocols, under_protocol
from reco_tune.reporting.sections import protocols, sampling
from reco_tune.study.rescore import rescore
from reco_tune.study_log import EventLog, StudyFolder, read_events, read_study

OTHER = ("evaluation.protocol=native-pca", "evaluation.samples=24")


@pytest.fixture
def folder(finished_study: WatchedStudy, tmp_path: Path) -> StudyFolder:
    """A copy of the small study in which one run has lost its model."""
    path = tmp_path / "study"
    shutil.copytree(finished_study.folder, path, ignore=shutil.ignore_patterns("ray", "ml*", "report"))
    shutil.rmtree(StudyFolder(path).trial("search-0000") / "model")
    return StudyFolder(path)


def test_models_are_scored_once_and_beside_the_first(
    folder: StudyFolder, finished_study: WatchedStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Evidence(Evidence.read(folder.path).runs).ablation
    assert reco_tune("rescore", folder.path, "--set", OTHER[0], "--set", OTHER[1]) == 0
    told = capsys.readouterr().out
    assert "4 runs evaluated, 0 had been already, 1 have no model" in told and "search-0000: " in told
    again = rescore(folder.path, OTHER)
    assert (again.scored, len(again.known), list(again.lost)) == ([], 4, ["search-0000"])
    study = read_study(folder.path)
    assert [event["event"] for event in read_events(folder.events)].count("rescored") == 4 and study.finished

    record = study.runs["reco-equal_steps-s0"]
    score = record.rescored[again.protocol]
    assert again.protocol.startswith("native-pca/") and "/n24x1/" in again.protocol
    assert record.metrics == finished_study.study.runs[record.trial].metrics
    assert reco_tune("evaluate", folder.trial(record.trial), "--set", OTHER[0], "--set", OTHER[1]) == 0
    alone = json.loads(capsys.readouterr().out)
    judged = {name: value for name, value in alone["metrics"].items() if name in JUDGED}
    assert judged == {name: value for name, value in score["metrics"].items() if name in JUDGED}
    assert alone["curves"] == score["curves"] and len(judged) > 5

    own, other = Evidence.read(folder.path), Evidence.read(folder.path, protocol="native-pca")
    assert own.ablation.equals(before) and set(own.comparable["protocol"]) == {record.provenance["protocol"]}
    assert set(other.comparable["protocol"]) == {again.protocol} and "search-0000" not in set(other.comparable["trial"])
    row = other.runs.set_index("trial").loc[record.trial]
    assert (row["fvd"], row["evaluation.samples"]) == (score["metrics"]["fvd"], 24)
    kept = ["speedup", "gpu_hours", "val_cross_entropy", "training_flops"]
    assert (row[kept] == own.runs.set_index("trial").loc[record.trial, kept]).all()


def test_other_sampling_stands_beside_the_studys_own(folder: StudyFolder) -> None:
    """Under a protocol of its own, so that no table mixes them but the one that compares them."""
    changes = ("sampling.cache_blocks=1", "sampling.cache_precision=int8")
    found = rescore(folder.path, changes)
    study = read_study(folder.path)
    record = study.runs["reco-equal_steps-s0"]
    own = record.provenance["protocol"]
    assert found.protocol == f"{own}/sampled cache_precision=int8,cache_blocks=1" and len(found.scored) == 4
    score = record.rescored[found.protocol]
    assert score["provenance"]["protocol"] == found.protocol and score["settings"]["sampling.cache_blocks"] == 1
    assert score["metrics"]["fvd"] != record.metrics["fvd"]
    assert set(Evidence.read(folder.path).comparable["protocol"]) == {own}
    assert set(Evidence.read(folder.path, protocol="cache_blocks=1").comparable["protocol"]) == {found.protocol}
    table = sampling.sampling_table(Evidence.read(folder.path)).set_index(["arm", "budget"])
    row = table.loc[("reco", "equal_steps")]
    assert row["fvd_delta"] == pytest.approx(score["metrics"]["fvd"] - record.metrics["fvd"])
    assert row["fvd_delta_low"] < row["fvd_delta"] < row["fvd_delta_high"] and 0.05 < row["sampling_speedup"] < 5
    assert len(rescore(folder.path, changes).known) == 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (("window.length_tokens=9",), "--set window.length_tokens"),
        (("sampling.temperature=1.0",), "the study's own"),
        (("sampling.cache_blocks=0",), "sampling.cache_blocks"),
        (("evaluation.analyses=false",), "the study's own"),
        ((), "the study's own"),
        (("evaluation.samples=1",), "evaluation.samples"),
    ],
    ids=["trained with it", "sampled so already", "no block", "same protocol", "nothing", "impossible"],
)
def test_what_is_not_another_protocol_is_refused(changes: tuple[str, ...], told: str, folder: StudyFolder) -> None:
    before = folder.events.read_bytes()
    with pytest.raises(SettingsError, match=told):
        rescore(folder.path, changes)
    assert folder.events.read_bytes() == before


def test_a_live_study_is_left_alone(folder: StudyFolder) -> None:
    with lock(folder.lock), pytest.raises(StudyError, match="is running"):
        rescore(folder.path, OTHER)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A recorded study whose two arms change places under another protocol; one run was not scored."""
    path = record_study(tmp_path / "toy", arms=("full", "reco"), seeds=(0, 1), searched=0, noise=0.01)
    study, log = read_study(path), EventLog(StudyFolder(path).events)
    for run in list(study.runs.values())[:-1]:
        fvd = 1.0 if run.arm == "reco" else 5.0 + run.seed
        metrics = {"fvd": fvd, "fvd_low": fvd - 0.1, "fvd_high": fvd + 0.1, "speedup": 99.0}
        provenance = {"protocol": "latte/16x12x12/stride3/raw/train64/n64x1/abcdef01", "extractor": "abcdef01"}
        log.append(
            "rescored", trial=run.trial, protocol=provenance["protocol"], metrics=metrics, curves={},
            provenance=provenance, settings={"evaluation.protocol": "latte"},
        )  # fmt: skip
    log.close()
    return path


def test_a_table_holds_the_protocol_that_is_named(recorded: Path) -> None:
    own, other = (Evidence.read(recorded, protocol=name).ablation for name in (None, "latte"))
    assert set(own["protocol"]) == {PROTOCOL} and set(other["protocol"]) == {
        "latte/16x12x12/stride3/raw/train64/n64x1/abcdef01"
    }
    full = other[other["arm"] == "full"].iloc[0]
    assert (full["fvd"], full["speedup"]) == (5.5, 1.0), "speed is of training: no protocol changes it"
    assert own.set_index("arm").loc["reco", "fvd"].max() > 1.9
    assert np.allclose(other.set_index("arm").loc["reco", "fvd"], 1.0)
    assert Evidence.read(recorded, protocol=PROTOCOL).ablation.equals(own)


@pytest.mark.parametrize(("given", "told"), [("larp", "means no protocol"), ("12x12", "more than one")])
def test_a_protocol_must_be_meant(given: str, told: str, recorded: Path) -> None:
    with pytest.raises(ComparisonError, match=told):
        under_protocol(read_study(recorded), given)


def test_the_page_says_what_it_shows_and_what_there_is(recorded: Path) -> None:
    own = protocols.build(Evidence.read(recorded))
    assert own.words[0].startswith("5 runs were scored under `latte/")
    assert "--protocol latte/" in own.commands[0]
    other = protocols.build(Evidence.read(recorded, protocol="latte"))
    assert "not the study's own" in other.words[0] and other.commands == ["reco-tune report STUDY_DIR"]
    assert not protocols.build(Evidence.read(record_study(recorded / "none", searched=0, files=False))).words


def test_a_report_under_another_protocol_replaces_none(recorded: Path) -> None:
    report = write_report(recorded, protocol="latte")
    assert report.folder == recorded / "report-latte" and "not the study&#39;s own" in report.index.read_text()
    assert not (recorded / "report").exists()


def test_scores_reach_mlflow_and_come_back(recorded: Path, tmp_path: Path) -> None:
    from reco_tune import tracking

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking.sync(StudyFolder(recorded), uri)
    study = tracking.read_study("toy", uri)
    assert study == read_study(recorded) and other_protocols(study) == {next(iter(study.runs["full-s0"].rescored)): 5}
