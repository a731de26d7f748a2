"""Figures are drawn by processes of their own, and whatever keeps one from being drawn comes back from there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pandas as pd
import pytest

from reco_tune.errors import RunFailedError
from reco_tune.reporting.drawing import Painter
from reco_tune.reporting.effort import HISTORY_COLUMNS
from reco_tune.reporting.importance import COLUMNS

SHARES = pd.DataFrame([["fvd", "window.length_tokens", 0.7, 20], ["fvd", "window.stride_fraction", 0.3, 20]], columns=list(COLUMNS))


def test_what_there_is_to_draw_is_drawn_in_the_order_of_the_page(tmp_path: Path) -> None:
    with Painter() as painter:
        painter.draw("importance", tmp_path, SHARES)
        painter.draw(
            "hypervolume", tmp_path, pd.DataFrame([["equal_steps", n, n, n, ""] for n in (1, 2, 3)], columns=list(HISTORY_COLUMNS))
        )
        painter.draw("lambda", tmp_path, pd.DataFrame(), ["full"])
        drawn = painter.finish()
    assert list(drawn.items()) == [(name, tmp_path / f"{name}.png") for name in ("hypervolume", "importance")]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hypervolume.pdf", "hypervolume.png", "importance.pdf", "importance.png"]


def test_what_cannot_be_written_is_told_as_if_it_had_been_drawn_here(tmp_path: Path) -> None:
    with Painter() as painter:
        painter.draw("importance", tmp_path / "away", SHARES)
        with pytest.raises(FileNotFoundError, match="away"):
            painter.finish()


def test_a_lost_process_is_one_sentence(tmp_path: Path) -> None:
    with Painter() as painter:
        os.kill(painter._processes[0].pid, signal.SIGKILL)
        painter._processes[0].wait()
        painter.draw("importance", tmp_path, SHARES)
        with pytest.raises(RunFailedError, match="a process that draws figures ended with status -9"):
            painter.finish()
