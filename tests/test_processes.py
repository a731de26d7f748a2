"""Calls in other processes: the order and the results of plain calls; then crashes, hangs and kills that are real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hostile_readers as hostile
import numpy as np
import pytest

from reco_tune.data.processes import FailedCall, Processes
from reco_tune.errors import RunFailedError


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_results_come_in_the_order_of_the_jobs(limit: int) -> None:
    with Processes(60, limit) as processes:
        assert list(processes.map(hostile.square, [3, None, 1, 2, None, *range(20)])) == [
            9,
            None,
            1,
            4,
            None,
            *(i * i for i in range(20)),
        ]
        assert list(processes.map(hostile.square, [])) == []


def test_large_results_come_whole() -> None:
    with Processes(60, 2) as processes:
        for found in processes.map(hostile.big, [3_000_000] * 5):
            assert isinstance(found, np.ndarray) and np.array_equal(found, np.arange(3_000_000))


def test_a_crash_costs_one_call() -> None:
    with Processes(60, 2) as processes:
        found = list(processes.map(hostile.obey, ["a", "crash", "b", "refuse", "break", "c"]))
    assert [outcome for outcome in found if isinstance(outcome, str)] == ["a", "b", "c"]
    assert found[1] == FailedCall("it crashes the process that reads it (SIGSEGV)", fatal=True)
    assert found[3] == FailedCall("a sentence; a way out", fatal=False)
    assert found[4] == FailedCall("ZeroDivisionError: by zero", fatal=False)


def test_a_call_whose_process_was_killed_is_made_again(tmp_path: Path) -> None:
    with Processes(60, 2) as processes:
        assert list(processes.map(hostile.obey, ["a", f"once:{tmp_path / 'marker'}", "b"])) == ["a", "second time", "b"]


def test_a_hang_ends_at_its_deadline() -> None:
    with Processes(0.5, 2) as processes:
        assert list(processes.map(hostile.obey, ["hang"])) == [
            FailedCall(
                "reading it takes longer than data.decode_seconds (0.5); raise the limit to wait longer", fatal=True
            )
        ]


def test_jobs_are_taken_a_few_ahead_only() -> None:
    taken = []

    def jobs() -> object:
        for number in range(100):
            taken.append(number)
            yield number

    with Processes(60, 2) as processes:
        results = processes.map(hostile.square, jobs())
        assert next(results) == 0 and len(taken) <= 4
        results.close()
        assert list(processes.map(hostile.square, [5])) == [25], "what was left unheard does not answer the next call"


def test_no_process_outlives_the_block_or_its_parent(tmp_path: Path) -> None:
    with Processes(60, 2) as processes:
        own = set(processes.map(hostile.process_id, range(8)))
    assert os.getpid() not in own
    for process in own:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    # This script has no `if __name__ == "__main__"`, which multiprocessing would demand.
    script = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r}); import hostile_readers as hostile\nfrom"
        " reco_tune.data.processes import Processes\nwith Processes(60, 1) as processes:"
        " print(next(processes.map(hostile.process_id, [0])), flush=True); time.sleep(600)\n"
    )
    (tmp_path / "script.py").write_text(script)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    while _runs(child):  # the test's time limit is the bound
        time.sleep(0.05)


def _runs(process: int) -> bool:
    """Whether it exists and is no zombie that nobody has collected."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_that_cannot_start_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/nowhere"])
    with (
        Processes(60, 1) as processes,
        pytest.raises(RunFailedError, match=r"cannot start a decoder process \(exit status 1\); run"),
    ):
        list(processes.map(hostile.square, [1]))
