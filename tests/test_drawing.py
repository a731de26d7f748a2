"""Figures are drawn by processes of their own, and whatever keeps one from being drawn comes back from there."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from reco_tune.errors import RunFailedError
from reco_tune.reporting.drawing import Painter
from reco_tune.reporting.section import Figure
from reco_tune.reporting.sections import hypervolume, importance


def shares(settings: dict[str, float]) -> Figure:
    rows = [["fvd", name, share, 20] for name, share in settings.items()]
    table = pd.DataFrame(rows, columns=list(importance.COLUMNS))
    return Figure("importance", "", "", importance.draw_importance, (table,))


def growth(trial: str = "") -> Figure:
    rows = [["equal_steps", n, n, n, trial] for n in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=list(hypervolume.COLUMNS))
    return Figure("hypervolume", "", "", hypervolume.draw_hypervolume, (table,))


SHARES = shares({"window.length_tokens": 0.7, "window.stride_fraction": 0.3})


def test_what_there_is_to_draw_is_drawn(tmp_path: Path) -> None:
    with Painter() as painter:
        painter.draw(SHARES, tmp_path)
        painter.draw(growth(), tmp_path)
        painter.draw(replace(shares({}), name="nothing"), tmp_path)
        assert painter.finish() == {"hypervolume", "importance"}
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "hypervolume.pdf",
        "hypervolume.png",
        "importance.pdf",
        "importance.png",
    ]


def test_nobody_waits_for_a_process_that_is_busy(tmp_path: Path) -> None:
    """A job larger than what a pipe holds; written to it directly, it would only go through when the process
    reads it."""
    with Painter() as painter:
        for process in painter._processes:
            process.popen.send_signal(signal.SIGSTOP)
        painter.draw(growth("x" * 1_000_000), tmp_path)
        for process in painter._processes:
            process.popen.send_signal(signal.SIGCONT)
        assert painter.finish() == {"hypervolume"}


def test_what_cannot_be_written_is_told_as_if_it_had_been_drawn_here(tmp_path: Path) -> None:
    with Painter() as painter:
        painter.draw(SHARES, tmp_path / "away")
        with pytest.raises(FileNotFoundError, match="away"):
            painter.finish()


def test_a_lost_process_is_one_sentence(tmp_path: Path) -> None:
    with Painter() as painter:
        for process in painter._processes:
            process.popen.kill()
            process.popen.wait()
        painter.draw(SHARES, tmp_path)
        with pytest.raises(RunFailedError, match="a process that draws figures ended with status -9"):
            painter.finish()
