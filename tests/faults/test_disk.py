"""A disk runs full under a study, or its storage is gone: one sentence, nothing of it is damaged, it goes on when that
is mended.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_study import WatchedStudy, begun, small_space
from struck import MEGABYTE, Struck, assert_nothing_lost, fill, lines_about

from reco_tune.data.token_cache import create_array
from reco_tune.errors import RunFailedError, StudyError
from reco_tune.preparation import prepare_tokens
from reco_tune.settings import arm_experiment
from reco_tune.study import Options, resume
from reco_tune.study_log import EventLog, read_events

OPENED: dict[str, Any] = {"name": "toy", "question": "?", "arms": [], "provenance": {}}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={24 * MEGABYTE}", "tmpfs", str(disk)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("this machine does not let tests mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True, capture_output=True)


def test_a_full_disk_leaves_a_whole_log(small_disk: Path) -> None:
    """A write that found room for a part of its line looked like a success."""
    log = EventLog(small_disk / "study" / "events.jsonl")
    log.append("study", **OPENED)
    fields: dict[str, Any] = {
        "trial": "full-s0",
        "step": 1,
        "metrics": {f"metric_{number}": 0.5 for number in range(300)},
    }
    ballast = fill(small_disk)  # what is left is the rest of the log's own page, less than a long line
    log.append("started", trial="full-s0", attempt=1)
    with pytest.raises(
        StudyError, match=r"events.jsonl cannot be written to \(no space left on device\); check its disk"
    ):
        log.append("reported", **fields)
    assert log.path.read_bytes().endswith(b"\n")
    ballast.unlink()
    written = log.append("reported", **fields)
    assert [event["event"] for event in read_events(log.path)] == ["study", "started", "reported"]
    assert list(read_events(log.path))[2] == written


PREPARE = """
import sys
from pathlib import Path
from struck import fill
from reco_tune.errors import no_space
from reco_tune.evaluation import prepare_evaluation
from reco_tune.settings import arm_experiment, load_space
from reco_tune.preparation import prepare_tokens

disk = Path(sys.argv[1])
experiment = arm_experiment(load_space(disk / "small.yaml"), "full")
for kilobytes in (0, 300, 700, 20_000):
    fill(disk, leave=kilobytes * 1000)
    try:
        cache = prepare_tokens(experiment, piece_blocks=(2,))
        prepare_evaluation(experiment, cache)
    except Exception as error:
        if not no_space(error):
            raise
        print(f"full with {kilobytes} kB", flush=True)
        continue
    print(cache.fingerprint, flush=True)
    break
"""


@pytest.mark.faults
def test_a_full_disk_while_data_is_prepared(small_disk: Path, tmp_path: Path) -> None:
    """Wherever it strikes, the next call goes on. Maps were sparse files, and a full disk was told by a signal that
    killed the process.
    """
    small_space(small_disk)
    expected = prepare_tokens(arm_experiment(small_space(tmp_path), "full")).fingerprint
    command = [sys.executable, "-c", PREPARE, str(small_disk)]
    told = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert told.returncode == 0, f"{told.returncode}: {told.stdout} {told.stderr}"
    *attempts, fingerprint = told.stdout.splitlines()
    assert attempts[0] == "full with 0 kB" and fingerprint == expected
    assert not list(small_disk.rglob(".writing-*"))


def test_the_room_of_an_array_is_taken_when_it_is_made(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as full:
        create_array(small_disk / "big.npy", (40 * MEGABYTE,), np.uint8)
    assert full.value.filename == str(small_disk / "big.npy")


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "at", ["started", "reported"], ids=["while a checkpoint is written", "while the log is written"]
)
def test_a_full_disk_while_a_study_runs(
    at: str, finished_study: WatchedStudy, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """After `started` the next to write is the worker, its checkpoint; after a report it may be the driver, another
    run's event.
    """
    folder = begun(finished_study, small_disk / "study")

    def strike(event: dict[str, Any], workers: dict[str, int]) -> bool:
        if event["event"] == at:
            fill(small_disk)
        return event["event"] == at

    with pytest.raises(
        RunFailedError,
        match=r"run\(s\) are unfinished \(.*cannot be written.*disk.*`reco-tune resume .*` continues them",
    ):
        resume(folder.path, Options(track=False), Struck(folder, strike))
    assert folder.events.read_bytes().endswith(b"\n")
    assert not any(event["event"] == "failed" for event in read_events(folder.events)), "it is not the run's fault"
    (small_disk / "ballast").unlink()
    result = resume(folder.path, Options(track=False))
    assert_nothing_lost(result.study, folder, finished_study)
    lines_about(capfd.readouterr(), "failed")


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_storage_that_stops_answering(
    finished_study: WatchedStudy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With everything that lay in it: no run has failed, and a resumed study lays its cache there again."""
    store = tmp_path / "store"
    folder = begun(finished_study, tmp_path / "study", resources={"storage": store.as_uri()})

    def strike(event: dict[str, Any], workers: dict[str, int]) -> bool:
        if event["event"] == "reported":
            store.rename(tmp_path / "gone")
            store.write_text("no folder any more")
        return event["event"] == "reported"

    with pytest.raises(
        RunFailedError,
        match=r"unfinished \(the storage file://.* cannot be used \(.*`reco-tune resume .*` continues them",
    ):
        resume(folder.path, Options(track=False), Struck(folder, strike))
    assert not any(event["event"] == "failed" for event in read_events(folder.events)), "it is not the run's fault"
    store.unlink()
    result = resume(folder.path, Options(track=False))
    assert_nothing_lost(result.study, folder, finished_study)
    lines_about(capfd.readouterr(), "failed")


def test_a_limit_on_the_size_of_files_is_a_full_disk_too(tmp_path: Path) -> None:
    """Where no small file system can be mounted: the same error from another limit."""
    code = """
import resource, signal, sys
from pathlib import Path
from reco_tune.errors import StudyError
from reco_tune.study_log import EventLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = EventLog(Path(sys.argv[1]))
log.append("study", name="toy", question="?", arms=[], provenance={})
resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 20, resource.RLIM_INFINITY))
try:
    log.append("reported", trial="a", step=1, metrics={})
except StudyError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.append("finished")
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY or os.getuid() == 0
    path = tmp_path / "events.jsonl"
    said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{path} cannot be written to (file too large)") and "disk" in said
    assert [event["event"] for event in read_events(path)] == ["study", "finished"]
