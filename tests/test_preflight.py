"""What a study refuses before it starts: one sentence each, within seconds."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_study import small_space

from reco_tune.cost import memory_by_phase, plan
from reco_tune.errors import DataError, ReCoTuneError, SettingsError, StudyError, TrackingError
from reco_tune.preparation.cache_paths import tokenizer_path
from reco_tune.study import Options, run
from reco_tune.study.preflight import (
    Machine,
    check_address,
    check_files,
    check_folder,
    check_memory,
    compare,
    look,
    versions,
)
from reco_tune.study.storage import Storage
from reco_tune.study.worker import sentence
from reco_tune.tracking.address import ANSWER_SECONDS


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Nobody listens there, and nobody else can begin to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def test_an_address_where_nothing_listens(closed_port: int, tmp_path: Path) -> None:
    """Ray tried for minutes; nothing is written either."""
    with pytest.raises(
        StudyError, match=f"no Ray cluster answers at 127.0.0.1:{closed_port}; start one with `ray start --head`"
    ):
        run(small_space(tmp_path), tmp_path / "study", Options(address=f"127.0.0.1:{closed_port}"))
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ray://head:10001", r"cannot be run from outside its cluster \(ray://head:10001\).*ray job submit"),
        ("nonsense", "no Ray cluster answers at nonsense"),
        ("", "no Ray cluster answers on this machine"),
    ],
    ids=["Ray Client", "no port", "empty"],
)
def test_addresses_that_cannot_be(address: str, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        check_address(address)


def test_auto_without_a_cluster_is_told_at_once(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself tries for minutes."""
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    began = time.monotonic()
    with pytest.raises(StudyError, match=r"no Ray cluster answers at 127\.0\.0\.1"):
        check_address("auto")
    assert time.monotonic() - began < 2 * ANSWER_SECONDS


def test_a_tracking_server_that_does_not_answer(closed_port: int, tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{closed_port}"
    with pytest.raises(
        TrackingError, match=f"the tracking server {uri} does not answer; start it, or leave --tracking-uri out"
    ):
        run(small_space(tmp_path), tmp_path / "study", Options(tracking_uri=uri))
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("ftp://x", "ftp://x is not an address of MLflow; give an http address"),
        ("mlruns", "mlruns is not an address of MLflow"),
        ("file:///mlruns", "file:///mlruns is not an address of MLflow"),
        ("http://", "http:// names no server"),
        ("http://mlflow:port", "http://mlflow:port is not an address"),
        ("sqlite://", "sqlite:// names no file"),
        ("sqlite:///:memory:", "names no file"),
        (
            "postgresql://me:secret@127.0.0.1:{port}/db",
            r"MLflow at postgresql://me:\*\*\*@127.0.0.1:\d+/db cannot be used",
        ),
        ("sqlite:///{folder}/text.db", "MLflow at sqlite:.*text.db cannot be used .*file is not a database"),
    ],
    ids=lambda value: value.partition(" ")[0] if ":" in value or value == "mlruns" else "",
)
def test_an_address_that_is_none_of_mlflow(uri: str, sentence: str, closed_port: int, tmp_path: Path) -> None:
    """They reached the start of the workers, or ended as an unexpected error after the study."""
    (tmp_path / "text.db").write_text("no database\n" * 100)
    options = Options(tracking_uri=uri.format(port=closed_port, folder=tmp_path))
    with pytest.raises(TrackingError, match=sentence):
        run(small_space(tmp_path), tmp_path / "study", options)
    assert not (tmp_path / "study").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StudyError, match=r"the cache folder .*/file/cache cannot be written to \(not a directory\); give another one"
    ):
        check_folder(tmp_path / "file" / "cache", "the cache folder")
    check_folder(tmp_path / "new", "the cache folder")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_model_that_no_gpu_can_hold(tmp_path: Path) -> None:
    planned = plan(small_space(tmp_path, "model.width=8192", "model.depth=4", "resources.gpus_per_worker=1"))
    large, small, none = (
        Machine(name, {}, {}, gigabytes * 2**30, 2**40)
        for name, gigabytes in (("node-0", 141), ("node-1", 8), ("head", 0))
    )
    with pytest.raises(
        SettingsError,
        match=r"arm `full` needs \d+\.\d GiB of a GPU for a training step, but a worker on node-1 gets 8\.0; raise",
    ):
        check_memory(planned, [none, large, small], 2)
    check_memory(planned, [none, large], 2)
    check_memory(planned, [], 2)


def test_a_model_that_no_machine_can_hold(tmp_path: Path) -> None:
    """Without GPUs workers share a machine's memory; one of them alone may still fit."""
    planned = plan(small_space(tmp_path, "model.width=4096", "model.depth=4"))
    needed = memory_by_phase(planned.arms["reco"], planned.baseline).largest()[1]
    one, other = (Machine(name, {}, {}, 0, int(1.5 * needed)) for name in ("node-0", "node-1"))
    check_memory(planned, [one], 1)
    check_memory(planned, [one, other], 2)
    with pytest.raises(
        SettingsError,
        match=r"arm `\w+` needs \d+\.\d GiB of memory for .*, but a worker on node-0, where 2 work at once, gets"
        r" \d+\.\d; raise training.micro_batches, .* lower resources.concurrent_trials or shrink the model",
    ):
        check_memory(planned, [one], 2)
    with pytest.raises(SettingsError, match="a worker on the cluster, where 4 work at once, gets"):
        check_memory(planned, [one, other], 4)


def test_a_study_that_this_machine_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"arm `full` needs .* of memory for a training step, but a worker on"):
        run(small_space(tmp_path, "model.width=65536"), tmp_path / "study", Options(track=False))
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("versions_there", "sees", "sentence"),
    [
        (
            {},
            False,
            "the study folder .* is not visible from node-7; put it on storage that all machines share",
        ),
        ({"torch": "1.0"}, True, "node-7 has torch 1.0, but the driver has .*; install the same everywhere"),
    ],
    ids=["folder not shared", "another version"],
)
def test_machines_that_do_not_fit(versions_there: dict[str, str], sees: bool, sentence: str, tmp_path: Path) -> None:
    machine = Machine("node-7", {**versions(), **versions_there}, {str(tmp_path.resolve()): sees}, 0, 0)
    with pytest.raises(StudyError, match=sentence):
        compare(machine, {"the study folder": str(tmp_path.resolve())})


def test_this_machine_fits_itself(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("")
    storage, place = Storage(f"file://{tmp_path}/storage"), str(tmp_path.resolve())
    token = storage.probe()
    compare(look({place: "token", storage.address: token}), {"the study folder": place, "the storage": storage.address})
    storage.forget(token)
    with pytest.raises(StudyError, match=r"the storage file://.* cannot be used from .*; check credentials"):
        compare(look({storage.address: token}), {"the storage": storage.address})


def test_a_storage_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError,
        match=r"the storage ftp://server/x cannot be used \(.*\); give resources.storage an address that pyarrow knows",
    ):
        run(small_space(tmp_path, "resources.storage=ftp://server/x"), tmp_path / "study", Options(track=False))
    assert not (tmp_path / "study").exists()


def test_one_sentence_on_the_command_line(closed_port: int, tmp_path: Path) -> None:
    small_space(tmp_path)
    command = [
        sys.executable,
        "-m",
        "reco_tune",
        "run",
        str(tmp_path / "small.yaml"),
        "--output",
        str(tmp_path / "study"),
    ]
    done = subprocess.run(
        [*command, "--address", f"127.0.0.1:{closed_port}"], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert re.match(rf"reco-tune: .* 127\.0\.0\.1:{closed_port};.*`ray start --head`.*--address", done.stderr)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["tokenizer.kind=cosmos"], "tokenizer.kind cosmos needs tokenizer.path"),
        (
            ["tokenizer.kind=cosmos", "tokenizer.path=/nowhere/cosmos"],
            r"tokenizer.path \(/nowhere/cosmos\) does not exist as a file or folder",
        ),
        (
            ["tokenizer.kind=omnitokenizer", "tokenizer.path=."],
            "tokenizer.kind omnitokenizer needs tokenizer.checkpoint",
        ),
        (
            ["evaluation.protocol=latte", "evaluation.extractor_path=/nowhere/i3d.pt"],
            r"extractor_path \(/nowhere/i3d.pt\) cannot be read",
        ),
        (["warm_start=[/nowhere/study]"], "/nowhere/study is not a study folder"),
    ],
    ids=["no path given", "no file", "no checkpoint given", "no I3D", "no earlier study"],
)
def test_what_the_settings_name_and_is_not_there(overrides: list[str], sentence: str, tmp_path: Path) -> None:
    """Found before anything is written: a study whose folder exists could not be told of another place."""
    space = small_space(tmp_path, "data.clip_frames=17", "data.size_px=16", *overrides)
    with pytest.raises(ReCoTuneError, match=sentence):
        run(space, tmp_path / "study", Options(track=False))
    assert not (tmp_path / "study").exists()


def test_weights_that_were_copied_are_not_missed(tmp_path: Path) -> None:
    """The cache folder holds its own copy, so the files may go."""
    experiment = plan(
        small_space(tmp_path, "tokenizer.kind=cosmos", "tokenizer.path=/nowhere/cosmos", "data.size_px=16")
    ).shared
    with pytest.raises(SettingsError, match="does not exist as a file"):
        check_files(experiment)
    tokenizer_path(experiment, source="").mkdir(parents=True)
    check_files(experiment)


def test_out_of_memory_names_what_is_needed_and_what_is_there(tmp_path: Path) -> None:
    """A real refusal of the allocator: no machine has 2**60 bytes."""
    experiment = plan(small_space(tmp_path, "model.width=8192", "model.depth=4")).shared
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    said = sentence(refused.value, experiment)
    assert re.match(
        rf"it ran out of memory \(.*{2**60} bytes.*\): a worker needs more than"
        rf" {memory_by_phase(experiment, experiment).training / 2**30:.1f} GiB",
        said,
    )
    assert re.search(r"its machine has \d+\.\d in total; raise training.micro_batches", said)
    assert sentence(DataError("a file is gone"), experiment) == "a file is gone"


NATIVE = r"evaluation.protocol \(native\) learns its features from the classes .* set it to native-random or native-pca"
OBJECTIVE = (
    r"objectives: class_accuracy needs classes, but this data set of data.layout \w+ has none; use another metric"
)
ASKED = ("evaluation.protocol=native-pca", "objectives={class_accuracy: maximize, fvd: minimize}")


@pytest.mark.parametrize(
    ("files", "overrides", "sentence"),
    [
        pytest.param(["a.mp4"], ["data.layout=flat"], NATIVE, id="a layout without classes"),
        pytest.param(["a/1.mp4", "a/2.mp4"], ["data.layout=class_folders"], NATIVE, id="one class"),
        pytest.param(["a/1.mp4", "a/2.mp4"], ["data.layout=class_folders", *ASKED], OBJECTIVE, id="an objective"),
        pytest.param(["a/1.mp4", "b/1.mp4"], ["data.layout=class_folders"], "", id="two classes"),
    ],
)
def test_what_needs_classes_is_refused_before_a_video_is_opened(
    files: list[str], overrides: list[str], sentence: str, tmp_path: Path
) -> None:
    """It was refused once all videos were encoded."""
    for name in files:
        file = tmp_path / "videos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no video")
    space = small_space(tmp_path, f"data.root={tmp_path / 'videos'}", "data.split=time", *overrides)
    if not sentence:
        check_files(plan(space).shared, space)
        return
    with pytest.raises(SettingsError, match=sentence):
        run(space, tmp_path / "study", Options(track=False))
    assert not (tmp_path / "study").exists() and not (tmp_path / "cache").exists()
