"""What a driver is at before its runs begin, as another process reads it from the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cli import say
from test_unchanged import begun

from reco_tune.study import Observer
from reco_tune.study.phases import Phases, current_phase
from reco_tune.study.study_writer import locked


def test_status_tells_what_is_prepared_and_since_when(tmp_path: Path) -> None:
    study, now = begun(tmp_path, "running"), [100.0]
    phases = Phases(study, Observer(), lambda: now[0])
    with locked(study):
        phases.on_phase(0, 500, "encoding train clips")
        now[0] = 100.2
        phases.on_phase(3, 500, "encoding train clips")
        phase = current_phase(study)
        assert phase is not None and phase.done == 0, "not more than once a second"
        now[0] = 102.0
        phases.on_phase(40, 500, "encoding train clips")
        phase = current_phase(study)
        assert phase is not None and phase.words(107.0) == "encoding train clips 40/500, for 7 s"
        assert "; encoding train clips 40/500, for " in say("status", str(study.path)).out
        phases.on_phase(0, 2, "starting Ray")
        assert "; starting Ray, for " in say("status", str(study.path)).out
        phases.on_event({"event": "calibrated", "key": "full"})
        assert current_phase(study) is not None
        phases.on_event({"event": "started", "trial": "full-s0"})
        assert current_phase(study) is None and "; running" in say("status", str(study.path)).out
        phases.on_phase(0, 1, "stopping")
    assert current_phase(study) is None, "what a driver that died has left says nothing"
    assert "; not running; `reco-tune resume" in say("status", str(study.path)).out


def test_a_folder_that_cannot_be_written_to_ends_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = begun(tmp_path, "running")

    def full(path: Path, value: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("reco_tune.study.phases.write_json", full)
    Phases(study, Observer()).on_phase(0, 5, "encoding train clips")
    assert not study.phase.exists()
