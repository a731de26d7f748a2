"""Figures are drawn by processes of their own, and whatever keeps one from being drawn comes back from there."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reco_tune.errors import RunFailedError
from reco_tune.reporting.drawing import Painter
from reco_tune.reporting.effort import HISTORY_COLUMNS
from reco_tune.reporting.importance import COLUMNS, Searched, importance_of

SHARES = pd.DataFrame(
    [["fvd", "window.length_tokens", 0.7, 20], ["fvd", "window.stride_fraction", 0.3, 20]], columns=list(COLUMNS)
)


def test_what_there_is_to_draw_is_drawn_in_the_order_of_the_page(tmp_path: Path) -> None:
    with Painter() as painter:
        painter.draw("importance", tmp_path, SHARES)
        painter.draw(
            "hypervolume",
            tmp_path,
            pd.DataFrame([["equal_steps", n, n, n, ""] for n in (1, 2, 3)], columns=list(HISTORY_COLUMNS)),
        )
        painter.draw("lambda", tmp_path, pd.DataFrame(), ["full"])
        drawn = painter.finish().files
    assert list(drawn.items()) == [(name, tmp_path / f"{name}.png") for name in ("hypervolume", "importance")]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "hypervolume.pdf",
        "hypervolume.png",
        "importance.pdf",
        "importance.png",
    ]


def test_what_is_computed_there_is_drawn_and_comes_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((40, 1))
    runs = Searched([{"a": float(value), "b": 1 - float(value)} for (value,) in values], ["a", "b"], ["fvd"], values)
    with Painter() as painter:
        painter.compute_and_draw("importance", tmp_path, importance_of, runs)
        drawn = painter.finish()
    assert list(drawn.files) == ["importance"]
    pd.testing.assert_frame_equal(drawn.computed["importance"], importance_of(runs))


def test_nobody_waits_for_a_process_that_is_busy(tmp_path: Path) -> None:
    """A job larger than what a pipe holds; written to it directly, it would only go through when the process
    reads it."""
    history = pd.DataFrame(
        [["equal_steps", n, n, n, "x" * 1_000_000] for n in (1, 2, 3)], columns=list(HISTORY_COLUMNS)
    )
    with Painter() as painter:
        for process in painter._processes:
            process.popen.send_signal(signal.SIGSTOP)
        painter.draw("hypervolume", tmp_path, history)
        for process in painter._processes:
            process.popen.send_signal(signal.SIGCONT)
        assert list(painter.finish().files) == ["hypervolume"]


def test_what_cannot_be_written_is_told_as_if_it_had_been_drawn_here(tmp_path: Path) -> None:
    with Painter() as painter:
        painter.draw("importance", tmp_path / "away", SHARES)
        with pytest.raises(FileNotFoundError, match="away"):
            painter.finish()


def test_a_lost_process_is_one_sentence(tmp_path: Path) -> None:
    with Painter() as painter:
        for process in painter._processes:
            process.popen.kill()
            process.popen.wait()
        painter.draw("importance", tmp_path, SHARES)
        with pytest.raises(RunFailedError, match="a process that draws figures ended with status -9"):
            painter.finish()
