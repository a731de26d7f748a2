"""Preparations that were killed and never gone on with: removed after a week, never while somebody holds them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from reco_tune.data.token_cache import ABANDONED_DAYS, TokenCacheWriter

WRITE = """
import os, signal
from pathlib import Path
import numpy as np
from reco_tune.data.token_cache import TokenCacheWriter

with TokenCacheWriter(Path({parent!r}), {key!r}) as writer:
    writer.create("values", (8,), np.int32)[:4] = 7
    writer.note("values", 0)
    if {killed}:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def start(parent: Path, key: str, killed: bool = False) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITE.format(parent=str(parent), key=key, killed=killed)])


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What a process that was really killed has left."""
    assert start(tmp_path, "gone", killed=True).wait(timeout=250) == -signal.SIGKILL
    return tmp_path / ".partial-gone"


def grow_old(folder: Path) -> None:
    before = time.time() - 86_400 * (ABANDONED_DAYS + 1)
    for path in (*folder.iterdir(), folder):
        os.utime(path, (before, before))


def test_another_run_removes_it_after_a_week_and_says_so(left: Path) -> None:
    said: list[str] = []
    with TokenCacheWriter(left.parent, "other", lambda done, total, what: said.append(what)):
        assert left.is_dir() and not said, "its settings may come back tomorrow"
    grow_old(left)
    with TokenCacheWriter(left.parent, "other", lambda done, total, what: said.append(what)) as writer:
        assert list(left.parent.iterdir()) == [writer.folder]
    assert set(said) == {f"removing an unfinished preparation from 8 days ago ({left.name})"}


def test_the_same_run_goes_on_however_long_it_was_away(left: Path) -> None:
    grow_old(left)
    with TokenCacheWriter(left.parent, "gone") as writer:
        assert writer.done("values") == {0}
        assert writer.create("values", (8,), np.int32).tolist() == [7] * 4 + [0] * 4


def test_who_holds_it_keeps_it_however_old_its_files_are(left: Path) -> None:
    """Fitting a tokenizer writes nothing for hours. Two processes sweep at once, first beside one that lives, then for
    real.
    """
    with TokenCacheWriter(left.parent, "gone"):
        grow_old(left)
        assert [process.wait(timeout=250) for process in [start(left.parent, key) for key in ("a", "b")]] == [0, 0]
        assert (left / "values.npy").exists()
    grow_old(left)
    assert [process.wait(timeout=250) for process in [start(left.parent, key) for key in ("a", "b")]] == [0, 0]
    assert sorted(path.name for path in left.parent.iterdir()) == [".partial-a", ".partial-b"]
