"""A cluster of three machines, each a raylet of its own here: one is lost, and the study goes on on the others.

Where the machines share no file system, each raylet has a mount namespace of its own, in which the folders of the
driver are empty.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient
from small_study import WatchedStudy, begun, descendants
from struck import Struck, assert_nothing_lost, lines_about

from reco_tune.cli.watch import PlainLines
from reco_tune.errors import StudyError
from reco_tune.study import Options, ray_internals, resume
from reco_tune.study.storage import scratch
from reco_tune.study_log import StudyFolder, read_study
from reco_tune.training import load_model

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


MEMORY = 100 * 2**20
"""Of a machine's object store."""


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that trains nothing. It has a token, without which Ray starts no head where the person has none; not in a
    file, because machines may not see each other's.
    """
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray_internals.forget_token()
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": True}
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def three_machines(head: Cluster) -> Cluster:
    """The head and two machines of one CPU each."""
    for _ in range(2):
        head.add_node(num_cpus=1, object_store_memory=MEMORY)
    return head


@contextmanager
def another_machine(cluster: Cluster, *hidden: Path) -> Iterator[None]:
    """A machine of one CPU that joins, to which these folders are empty ones of its own."""
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        f"--address={cluster.address}",
        "--num-cpus=1",
        f"--object-store-memory={MEMORY}",
    ]
    if hidden:
        empty = " && ".join(f"mount -t tmpfs tmpfs {shlex.quote(str(folder))}" for folder in hidden)
        command = ["unshare", "--mount", "sh", "-c", f"{empty} && exec {shlex.join(command)}"]
    before = alive(cluster)
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, start_new_session=True, stdout=silent, stderr=silent)
    try:
        while alive(cluster) == before:
            assert process.poll() is None
            time.sleep(0.5)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def alive(cluster: Cluster) -> int:
    return sum(node["Alive"] for node in cluster.global_state.node_table())


def lose(raylet: int) -> None:
    """A machine, with all that runs there."""
    for process in [raylet, *descendants(raylet)]:
        os.kill(process, signal.SIGKILL)


def raylet_of(worker: int) -> int:
    return int(Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[1])


def strike_machine_of(folder: StudyFolder) -> Struck:
    """Loses the machine of whichever run reports first."""

    def strike(event: dict[str, Any], workers: dict[str, int]) -> bool:
        if event["event"] != "reported":
            return False
        lose(raylet_of(workers[event["trial"]]))
        return True

    return Struck(folder, strike)


def test_a_lost_machine(
    finished_study: WatchedStudy, three_machines: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = begun(finished_study, tmp_path / "study")
    watcher = strike_machine_of(folder)
    result = resume(folder.path, Options(address=three_machines.address, track=False), watcher)
    assert_nothing_lost(result.study, folder, finished_study)
    victim = watcher.event["trial"]
    assert result.study.runs[victim].attempt > 1
    told = lines_about(capfd.readouterr(), "retried")
    assert told and all(victim in line for line in told)


class Joined(PlainLines):
    """Has a second machine join at the first report of a study, which stands still until a run begins there; at that
    run's first report the machine is lost.
    """

    def __init__(self, folder: StudyFolder, join: Callable[[], object]) -> None:
        super().__init__(folder.path, trials=0)
        self._joining, self._first = threading.Thread(target=join, daemon=True), raylets()
        self._workers: dict[str, int] = {}
        self._stands, self.victim = 0, ""

    def on_event(self, event: dict[str, Any]) -> None:
        trial = event.get("trial", "")
        if event["event"] == "started":
            self._workers[trial] = event["provenance"]["pid"]
            if self._stands and raylet_of(self._workers[trial]) not in self._first:
                os.kill(self._stands, signal.SIGCONT)
        elif event["event"] == "reported" and not self._stands:
            self._stands = self._workers[trial]
            os.kill(self._stands, signal.SIGSTOP)
            self._joining.start()
        elif event["event"] == "reported" and not self.victim:
            raylet = raylet_of(self._workers[trial])
            if raylet not in self._first:
                self.victim = trial
                lose(raylet)
        super().on_event(event)


def raylets() -> set[int]:
    return {pid for pid, command in descendants().items() if "/raylet/raylet" in command.split(" ")[0]}


def test_a_machine_that_joins_is_used_and_may_leave_again(
    finished_study: WatchedStudy, head: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    head.add_node(num_cpus=1, object_store_memory=MEMORY)
    folder = begun(finished_study, tmp_path / "study")
    with ExitStack() as machines:
        watcher = Joined(folder, lambda: machines.enter_context(another_machine(head)))
        result = resume(folder.path, Options(address=head.address, track=False), watcher)
    assert_nothing_lost(result.study, folder, finished_study)
    victim = result.study.runs[watcher.victim]
    assert victim.attempt > 1 and victim.metrics["moves"] == 1
    said = capfd.readouterr()
    assert "2 worker groups instead of 1" in "".join(said)
    told = lines_about(said, "retried")
    assert told and all(watcher.victim in line for line in told)


def test_a_lost_machine_where_none_sees_another_s_files(
    finished_study: WatchedStudy,
    head: Cluster,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Everything goes through `resources.storage`: the cache to the machines, checkpoints from the lost one to the
    other, results back.
    """
    if not shutil.which("unshare") or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let tests make mount namespaces")
    hidden = (tmp_path_factory.getbasetemp(), scratch())
    with tempfile.TemporaryDirectory() as store, another_machine(head, *hidden), another_machine(head, *hidden):
        folder = begun(finished_study, tmp_path / "study")
        with pytest.raises(
            StudyError,
            match=r"the study folder .* is not visible from .*; put it on storage .*, or set resources.storage",
        ):
            resume(folder.path, Options(address=head.address, track=False))
        folder = begun(finished_study, tmp_path / "study", resources={"storage": f"file://{store}"})
        watcher = strike_machine_of(folder)
        result = resume(folder.path, Options(address=head.address, track=False), watcher)
        assert_nothing_lost(result.study, folder, finished_study)
        victim = result.study.runs[watcher.event["trial"]]
        assert victim.attempt > 1 and victim.reports[0]["step"] == watcher.event["step"]
        assert list(Path(store, "tokens").rglob("*.whole")) and not list(Path(store, "studies").rglob("*.whole"))
        tokenizers = Path(finished_study.space.experiment["data"]["cache_dir"], "tokenizers")
        for name in result.study.runs:
            assert folder.history(name).read_bytes() and not (folder.trial(name) / "checkpoint").exists()
            remembered = load_model(folder.trial(name) / "model")
            assert (tokenizers / Path(remembered.cache.tokenizer_path).name).is_dir()
            assert remembered.experiment.cache_dir == tokenizers.parent
        told = lines_about(capfd.readouterr(), "retried")
        assert told and all(victim.trial in line for line in told)


def test_a_study_handed_in_as_a_job(finished_study: WatchedStudy, three_machines: Cluster, tmp_path: Path) -> None:
    """`ray job submit`: the driver runs on the head, which trains nothing, and finds its cluster by
    `--address auto`."""
    folder = begun(finished_study, tmp_path / "study")
    client = JobSubmissionClient(f"http://{three_machines.head_node.webui_url}")
    job = client.submit_job(
        entrypoint=shlex.join([sys.executable, "-m", "reco_tune", "resume", str(folder.path), "--address", "auto"])
    )
    while (status := client.get_job_status(job)) in (JobStatus.PENDING, JobStatus.RUNNING):
        time.sleep(1)
    said = client.get_job_logs(job)
    assert status == JobStatus.SUCCEEDED, said
    assert_nothing_lost(read_study(folder.path), folder, finished_study)
    assert lines_about(said, "retried") == []
