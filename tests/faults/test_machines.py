"""A cluster of three machines, each a raylet of its own here: one is lost, and the study goes on on the others."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient
from small_study import WatchedStudy, begun, descendants
from struck import Struck, assert_nothing_lost, lines_about

from reco_tune.study import Options, resume
from reco_tune.study_log import read_study

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.fixture
def three_machines() -> Iterator[Cluster]:
    """A head that trains nothing and two machines of one CPU each."""
    memory = 100 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": True})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=memory)
        yield cluster
    finally:
        cluster.shutdown()


def test_a_lost_machine(finished_study: WatchedStudy, three_machines: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = begun(finished_study, tmp_path / "study")

    def strike(event: dict[str, Any], workers: dict[str, int]) -> bool:
        if event["event"] != "reported":
            return False
        worker = Path(f"/proc/{workers[event['trial']]}/stat").read_text()
        raylet = int(worker.rsplit(")", 1)[1].split()[1])
        for process in [raylet, *descendants(raylet)]:
            os.kill(process, signal.SIGKILL)
        return True

    watcher = Struck(folder, strike)
    outcome = resume(folder.path, Options(address=three_machines.address, track=False), watcher)
    assert_nothing_lost(outcome.study, folder, finished_study)
    victim = watcher.event["trial"]
    assert outcome.study.runs[victim].attempt > 1
    told = lines_about(capfd.readouterr(), "retried")
    assert told and all(victim in line for line in told)


def test_a_study_handed_in_as_a_job(finished_study: WatchedStudy, three_machines: Cluster, tmp_path: Path) -> None:
    """`ray job submit`: the driver runs on the head, which trains nothing, and finds its cluster by `--address auto`."""
    folder = begun(finished_study, tmp_path / "study")
    client = JobSubmissionClient(f"http://{three_machines.head_node.webui_url}")
    job = client.submit_job(entrypoint=shlex.join([sys.executable, "-m", "reco_tune", "resume", str(folder.path), "--address", "auto"]))
    while (status := client.get_job_status(job)) in (JobStatus.PENDING, JobStatus.RUNNING):
        time.sleep(1)
    said = client.get_job_logs(job)
    assert status == JobStatus.SUCCEEDED, said
    assert_nothing_lost(read_study(folder.path), folder, finished_study)
    assert lines_about(said, "retried") == []
