"""Ctrl-C, as a terminal sends it, to the driver and to everything that it started; and SIGTERM, as `kill` sends it to
the driver and a batch system to every process, which ends the cluster too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_study import WatchedStudy, begun, ray_processes_left
from struck import assert_nothing_lost, lines_about

from reco_tune.study import Options, resume
from reco_tune.study_log import read_study

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

COMMAND_LINE = """
import os, signal, sys
from reco_tune.cli import main
from reco_tune.cli.watch import PlainLines

how, times, sent = sys.argv[2], int(sys.argv[3]), 0

def press():
    global sent
    if sent < times:
        sent += 1
        if how == "Ctrl-C":
            os.killpg(os.getpgrp(), signal.SIGINT)
        elif how == "to the driver":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            os.killpg(os.getpgrp(), signal.SIGTERM)

class Pressed(PlainLines):
    def on_event(self, event):
        if event["event"] == "reported" and not sent:
            press()
        super().on_event(event)

    def on_phase(self, done, total, what):
        super().on_phase(done, total, what)
        if what.startswith("stopping"):
            press()

import reco_tune.cli.watch
reco_tune.cli.watch.PlainLines = Pressed
main(["resume", sys.argv[1]])
"""


@pytest.mark.parametrize(
    ("how", "times"),
    [("Ctrl-C", 1), ("Ctrl-C", 2), ("to the driver", 1), ("to everybody", 1)],
    ids=[
        "Ctrl-C: trials leave with a checkpoint",
        "Ctrl-C twice: at once",
        "SIGTERM to the driver: as Ctrl-C",
        "SIGTERM to everybody: the cluster ends under the driver",
    ],
)
def test_an_interrupted_study_goes_on(
    how: str, times: int, finished_study: WatchedStudy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = begun(finished_study, tmp_path / "study")
    command = [sys.executable, "-c", COMMAND_LINE, str(folder.path), how, str(times)]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True)
    assert stopped.returncode == 130, stopped.stderr
    assert len(lines_about(stopped.stderr, f"stops at once; `reco-tune resume {folder.path}` continues")) == 1
    if how != "to everybody":  # there the process may have to be ended where Ray does not let it go
        *_, last = stopped.stderr.splitlines()
        way_on = f"`reco-tune resume {folder.path}` continues the study"
        assert last == f"reco-tune: stopped; finished work is kept, and {way_on}"
    assert not folder.live and ray_processes_left() == []
    left = read_study(folder.path)
    assert not left.finished and not any(run.state == "failed" for run in left.runs.values())
    result = resume(folder.path, Options(track=False))
    assert_nothing_lost(result.study, folder, finished_study)
    lines_about(capfd.readouterr(), "retried")
