"""One owner at a time, whoever is killed, on file systems with and without flock; and a sentence says who it is."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reco_tune.errors import StudyError
from reco_tune.locks import HeldError, holder, lock, marker
from reco_tune.study.study_writer import locked
from reco_tune.study_log import StudyFolder

CODES = {"flock": 0, "ENOSYS": errno.ENOSYS, "EOPNOTSUPP": errno.EOPNOTSUPP, "ENOLCK": errno.ENOLCK}
"""What the file system's flock answers: Lustre without `-o flock` the second, NFS without its daemon the last."""


@pytest.fixture(params=CODES.values(), ids=CODES)
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The file system of this process, and of those that `owning` starts."""
    if request.param:
        monkeypatch.setattr(fcntl, "flock", refusing(request.param))
    return int(request.param)


def refusing(code: int) -> object:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return flock


@contextmanager
def owning(path: Path, code: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock; it is killed, so it never says that it leaves."""
    program = "import errno, fcntl, os, sys, time; from pathlib import Path\n"
    if code:
        program += f"def flock(*_): raise OSError({code}, '')\nfcntl.flock = flock\n"
    program += (
        "from reco_tune.locks import lock\nwith lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_one_owner_at_a_time_and_the_next_after_it_was_killed(code: int, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert holder(path) == "" and list(tmp_path.iterdir()) == [], "asking leaves nothing behind"
    with owning(path, code) as owner:
        said = f"process {owner.pid} on {socket.gethostname()}"
        assert holder(path).startswith(said)
        with pytest.raises(HeldError, match=re.escape(said)), lock(path):
            pass
    assert holder(path) == ""
    with lock(path):
        assert holder(path).startswith(f"process {os.getpid()} on ")
    assert holder(path) == ""


def test_who_waits_gets_it_when_it_is_free(code: int, tmp_path: Path) -> None:
    path, got = tmp_path / ".lock", threading.Event()

    def wait() -> None:
        with lock(path, seconds=-1):
            got.set()

    with lock(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not got.wait(0.3)
    waiting.join(10)
    assert got.is_set()


def test_a_study_says_who_drives_it_and_what_its_file_system_cannot(code: int, tmp_path: Path) -> None:
    """It said `is running (process ?)` for every study on a file system without flock."""
    folder = StudyFolder(tmp_path)
    with owning(folder.lock, code) as owner:
        assert folder.live
        with pytest.raises(StudyError, match=rf"is running \(process {owner.pid} on {socket.gethostname()}") as refused:
            locked(folder).__enter__()
        assert str(refused.value).endswith("; wait for it or stop it")
    hint = f"the file system has no locks that end with their process, .* remove {folder.lock}.marker"
    assert bool(re.search(hint, str(refused.value))) == bool(code)
    assert not folder.live
    with locked(folder):
        assert folder.live


def test_what_a_process_of_another_machine_left_is_named_and_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EOPNOTSUPP))
    folder = StudyFolder(tmp_path)
    for file in (folder.lock, marker(folder.lock)):
        file.write_text("4194305\nnode-7\n")
    with pytest.raises(StudyError, match=r"process 4194305 on node-7; .* remove .*/\.lock\.marker"):
        locked(folder).__enter__()
    assert folder.live
    marker(folder.lock).unlink()
    assert not folder.live
    with locked(folder):
        pass


def test_the_lock_of_an_earlier_version_is_understood(tmp_path: Path) -> None:
    """It named its process alone."""
    path = tmp_path / ".lock"
    path.write_text("4711")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert holder(path) == "process 4711"
    with lock(path):
        pass
