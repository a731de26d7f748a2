"""Where a cluster of this machine has its sockets and its token, whatever temporary folder and home are like."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from small_study import small_space

from reco_tune.errors import StudyError
from reco_tune.settings import Resources
from reco_tune.study import Options, run
from reco_tune.study import cluster as clusters
from reco_tune.study.cluster import LONGEST_PATH, cluster, socket_folder
from reco_tune.study.ray_internals import LONGEST_SOCKET


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """Gives this process a temporary folder, so many bytes longer than Ray's sockets leave room for."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:

        def make(bytes_too_long: int) -> str:
            sockets = f"/reco-01234567/{LONGEST_SOCKET.format(pid=os.getpid())}"
            folder = f"{short}/".ljust(LONGEST_PATH - len(sockets) + bytes_too_long, "x")
            Path(folder).mkdir()
            monkeypatch.setenv("TMPDIR", folder)
            monkeypatch.setattr(tempfile, "tempdir", folder)
            return folder

        yield make


def test_sockets_lie_where_their_paths_fit(
    temporary: Callable[[int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From about 28 bytes on a study failed after minutes, with the advice to try again when less runs here."""
    assert temporary(0) == str(socket_folder())
    room, long = len(temporary(1)) - 1, temporary(60)
    assert str(socket_folder()) == "/tmp"
    monkeypatch.setattr(clusters, "ELSEWHERE", (f"/{'y' * room}", "/none"))
    sentence = (
        rf"is suitable for Ray's sockets \({long} has {room + 60} bytes, /y+ has {room + 1} bytes, /none cannot be"
        rf" written to\): their paths may have {LONGEST_PATH} bytes, so the folder's path may have {room}; set"
    )
    with pytest.raises(StudyError, match=sentence):
        socket_folder()
    with pytest.raises(StudyError, match=sentence):
        run(small_space(tmp_path), tmp_path / "study", Options(track=False))
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("bytes_too_long", [0, 60], ids=["just fits", "as deep as a batch system's"])
def test_a_cluster_where_the_temporary_folder_is_deep_and_home_cannot_be_written_to(
    bytes_too_long: int, temporary: Callable[[int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers and service users have no home: Ray could not lay its token there and did not start."""
    folder = temporary(bytes_too_long)
    monkeypatch.setenv("HOME", "/dev/null")
    with cluster(None, Resources(), tmp_path / "temp"):
        own = Path((tmp_path / "temp").read_text())
        assert str(own.parent) == (folder if bytes_too_long == 0 else "/tmp")
        assert ray.get(ray.remote(tempfile.gettempdir).remote()) == folder, "a worker's own files lie where they should"
        assert stat.S_IMODE((own / "token").stat().st_mode) == 0o600
        sockets = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if str(own) in line}
        assert max(map(len, sockets)) == len(f"{own}/{LONGEST_SOCKET.format(pid=os.getpid())}") <= LONGEST_PATH
        assert any("/pymp-" in socket for socket in sockets), "multiprocessing's are among them"
    assert not own.exists() and not (tmp_path / "temp").exists()
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ and os.environ["TMPDIR"] == folder
