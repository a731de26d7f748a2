"""Ctrl-C, as a terminal sends it: to the driver and to everything that it started; SIGTERM, as `kill` does: to the
driver.
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

times, terminal, sent = int(sys.argv[2]), sys.argv[3] == "terminal", 0

def press():
    global sent
    if sent < times:
        sent += 1
        if terminal:
            os.killpg(os.getpgrp(), signal.SIGINT)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

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
    ("times", "by"),
    [(1, "terminal"), (2, "terminal"), (1, "kill")],
    ids=["once: trials leave with a checkpoint", "twice: at once", "SIGTERM is Ctrl-C"],
)
def test_an_interrupted_study_goes_on(
    times: int, by: str, finished_study: WatchedStudy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = begun(finished_study, tmp_path / "study")
    command = [sys.executable, "-c", COMMAND_LINE, str(folder.path), str(times), by]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True)
    assert stopped.returncode == 130, stopped.stderr
    *_, last = stopped.stderr.splitlines()
    assert last == f"reco-tune: stopped; what is finished is kept, `reco-tune resume {folder.path}` continues the study"
    assert len(lines_about(stopped.stderr, "Ctrl-C again stops at once")) == 1
    assert not folder.live and ray_processes_left() == []
    left = read_study(folder.path)
    assert not left.finished and not any(run.state == "failed" for run in left.runs.values())
    result = resume(folder.path, Options(track=False))
    assert_nothing_lost(result.study, folder, finished_study)
    lines_about(capfd.readouterr(), "retried")
