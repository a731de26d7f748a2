"""The MLflow server dies under a study: the study does not notice, and MLflow has everything once a server is back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer
from small_study import WatchedStudy, begun
from struck import Struck, assert_nothing_lost, lines_about

from reco_tune import study_log, tracking
from reco_tune.cli.study import mirror_sentence
from reco_tune.study import Options, resume

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def test_a_server_that_is_away_for_a_while(
    finished_study: WatchedStudy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From the first report on, until all runs are done: the mirror catches up by itself."""
    folder = begun(finished_study, tmp_path / "study")
    with MlflowServer(tmp_path / "server") as server:
        evaluated: list[str] = []

        def strike(event: dict[str, Any], workers: dict[str, int]) -> bool:
            if event["event"] == "evaluated":
                evaluated.append(event["trial"])
                if len(evaluated) == 3:
                    server.start()
                    return True
            elif event["event"] == "reported" and server.alive and not evaluated:
                server.kill()
            return False

        result = resume(folder.path, Options(tracking_uri=server.uri), Struck(folder, strike))
        assert_nothing_lost(result.study, folder, finished_study)
        tracking.sync(folder, server.uri)  # what the closing minute had no time for
        assert tracking.read_study("small", server.uri) == study_log.read_study(folder.path)
        lines_about(capfd.readouterr(), "retried")


def test_a_server_that_is_gone_for_good(
    finished_study: WatchedStudy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = begun(finished_study, tmp_path / "study")
    with MlflowServer(tmp_path / "server") as server:

        def strike(event: dict[str, Any], workers: dict[str, int]) -> bool:
            if event["event"] == "reported":
                server.kill()
            return event["event"] == "reported"

        result = resume(folder.path, Options(tracking_uri=server.uri), Struck(folder, strike))
        assert_nothing_lost(result.study, folder, finished_study)
        sentence = mirror_sentence(folder, server.uri)
        assert "does not answer" in sentence
        assert sentence.endswith(f"`reco-tune sync {folder.path} --tracking-uri {server.uri}` sends it")
    tracking.sync(folder)
    assert tracking.read_study("small", folder.mlflow_uri) == study_log.read_study(folder.path)
    lines_about(capfd.readouterr(), "retried")
