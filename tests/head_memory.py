"""What a study takes of a cluster's head node: `python tests/head_memory.py 2 8`. Not a test.

Two raylets on this machine: a head that trains nothing and a node that holds the worker groups. For each number of
groups a study of as many runs at once; when every run has reported a rung, the memory (proportional set size) and the
CPU of each process below the head's raylet and of the driver are read, and those of the node's raylet beside them.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from ray.cluster_utils import Cluster
from small_study import descendants, small_space

from reco_tune.study_log import StudyFolder, read_events

MEMORY = 100 * 2**20
"""Of a machine's object store."""
CPU_SECONDS = 30.0
"""Over which CPU is counted."""


def free_port() -> int:
    """For the dashboard: another cluster of this machine may have Ray's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def megabytes(pid: int) -> float:
    """Proportional set size of a process: what it shares with others is divided among them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kind(pid: int) -> str:
    title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return title.split("(")[0].split()[0].rsplit("/", 1)[-1][:40]


def measure(groups: int) -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "object_store_memory": MEMORY,
            "include_dashboard": True,
            "dashboard_port": free_port(),
        },
    )
    node = cluster.add_node(num_cpus=groups, object_store_memory=MEMORY)
    raylets = [node.all_processes["raylet"][0].process.pid for node in (cluster.head_node, node)]
    with tempfile.TemporaryDirectory() as temp:
        folder = StudyFolder(Path(temp) / "study")
        path = Path(temp) / "small.yaml"
        small_space(Path(temp))  # writes it
        path.write_text(path.read_text().replace("concurrent_trials: 2", f"concurrent_trials: {groups}"))
        asked = [
            "arms={}",
            "budgets=[equal_steps]",
            f"trials={groups}",
            "sampler.kind=random",
            "training.steps=1000000",
            "training.rungs=1000",
        ]
        script = (
            "import sys; from pathlib import Path; from reco_tune.settings import load_space;"
            "from reco_tune.study import Options, run;"
            "space = load_space(Path(sys.argv[1]), sys.argv[4:]);"
            "run(space, Path(sys.argv[2]), Options(address=sys.argv[3], track=False))"
        )
        arguments = [str(path), str(folder.path), cluster.address, *asked]
        began = time.monotonic()
        driver = subprocess.Popen([sys.executable, "-c", script, *arguments])
        started: dict[str, float] = {}
        reported: set[str] = set()
        while len(reported) < groups and driver.poll() is None:
            time.sleep(1)
            for event in read_events(folder.events) if folder.events.exists() else ():
                if event["event"] == "started":
                    started.setdefault(event["trial"], time.monotonic() - began)
                if event["event"] == "reported":
                    reported.add(event["trial"])
        print(
            f"{groups} groups: first and last run began after {min(started.values()):.0f} and "
            f"{max(started.values()):.0f} s, load {os.getloadavg()[0]:.0f}",
            flush=True,
        )
        print(f"  the driver has used {cpu_seconds(driver.pid):.0f} CPU seconds so far", flush=True)
        places = {
            "driver": [driver.pid],
            "head": [raylets[0], *descendants(raylets[0])],
            "node": [raylets[1], *descendants(raylets[1])],
        }
        used = {pid: cpu_seconds(pid) for pids in places.values() for pid in pids}
        time.sleep(CPU_SECONDS)
        for place, pids in places.items():
            found: dict[str, list[float]] = defaultdict(list)
            busy = 0.0
            for pid in pids:
                try:
                    found[kind(pid)].append(megabytes(pid))
                    busy += (cpu_seconds(pid) - used[pid]) / CPU_SECONDS
                except (OSError, KeyError):
                    continue
            told = ", ".join(f"{len(each)} {name} {sum(each):.0f}" for name, each in sorted(found.items()))
            print(f"  {place}: {sum(map(sum, found.values())):.0f} MiB, {busy:.0%} of a core ({told})", flush=True)
        driver.kill()
        driver.wait()
    cluster.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", type=int, nargs="+")
    for groups in parser.parse_args().groups:
        measure(groups)
