"""Generated clips as grid videos: the same labels and seeds side by side, real clips in the first column.

Reads trials/ID/samples.npz (`video` uint8 [S, F, C, H, W], `labels` [S], optionally `real` like `video`); writes small
mp4 files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reco_tune.data.video import write_video
from reco_tune.reporting.runs import BUDGETS, SEARCH, at_budget
from reco_tune.settings import BASELINE
from reco_tune.study_log import StudyFolder, StudyRecord

ROWS = 4
"""Clips of an arm that the page shows; the files show all."""
LEAST_SIDE_PX = 96
"""Small clips are enlarged by whole factors, without smoothing, until a side has this many pixels."""
GAP_PX = 4
FPS = 6.0


class Samples(NamedTuple):
    """Clips of one run."""

    video: np.ndarray
    """uint8 [S, F, C, H, W]."""
    labels: np.ndarray
    """[S]."""
    real: np.ndarray | None
    """Real clips of the same labels, like `video`."""


def read_samples(study: StudyRecord, folder: StudyFolder) -> dict[str, dict[str, Samples]]:
    """budget -> arm -> clips of the arm's first run that has some."""
    found: dict[str, dict[str, Samples]] = {}
    runs = sorted(study.runs.values(), key=lambda run: run.index)
    arms = [arm for arm in dict.fromkeys([*study.arms, *(run.arm for run in runs)]) if arm != SEARCH]
    by_arm = {arm: [run for run in runs if run.arm == arm] for arm in arms}
    asked = {run.budget for run in runs}
    for budget in [name for name in BUDGETS if name in asked] if "half_compute" in asked else BUDGETS[:2]:
        for arm in arms:
            for run in by_arm[arm]:
                path = folder.trial(run.trial) / "samples.npz"
                if at_budget(run.budget, budget) and run.state == "evaluated" and path.exists():
                    found.setdefault(budget, {})[arm] = _read(path)
                    break
    if all(set(arms_) <= {BASELINE} for arms_ in found.values()):  # a study of the baseline alone has one budget
        found.pop("equal_compute", None)
    return found


def write_grids(samples: Mapping[str, Mapping[str, Samples]], folder: Path) -> list[Path]:
    """One video an arm: a row a label; columns are the real clip, then the arm at each budget."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for arm in dict.fromkeys(arm for arms in samples.values() for arm in arms):
        own = [arms[arm] for arms in samples.values() if arm in arms]
        if arm == BASELINE:  # one run stands under both budgets
            own = own[:1]
        columns = ([own[0].real] if own[0].real is not None else []) + [clips.video for clips in own]
        path = folder / f"{arm}.mp4"
        write_video(path, grid(columns), fps=FPS)
        written.append(path)
    return written


def column_video(clips: np.ndarray, path: Path) -> None:
    """The first clips of one run below each other, for the page."""
    write_video(path, grid([clips[:ROWS]]), fps=FPS)


def grid(columns: list[np.ndarray]) -> np.ndarray:
    """Columns of clips uint8 [S, F, C, H, W] as one video uint8 [F, H', W', 3], enlarged, with thin gaps; sides are
    even.
    """
    count, frames = min(len(clips) for clips in columns), min(clips.shape[1] for clips in columns)
    side = max(columns[0].shape[-2:])
    factor = max(1, math.ceil(LEAST_SIDE_PX / side))
    tiles = [
        [clips[row, :frames].repeat(factor, axis=-2).repeat(factor, axis=-1) for clips in columns]
        for row in range(count)
    ]
    height, width = tiles[0][0].shape[-2:]
    canvas_height, canvas_width = count * (height + GAP_PX) - GAP_PX, len(columns) * (width + GAP_PX) - GAP_PX
    canvas = np.full(
        (frames, canvas_height + canvas_height % 2, canvas_width + canvas_width % 2, 3), 128, dtype=np.uint8
    )
    for row, line in enumerate(tiles):
        for column, tile in enumerate(line):
            top, left = row * (height + GAP_PX), column * (width + GAP_PX)
            canvas[:, top : top + height, left : left + width] = tile.transpose(0, 2, 3, 1)
    return canvas


def _read(path: Path) -> Samples:
    with np.load(path, allow_pickle=False) as stored:
        return Samples(stored["video"], stored["labels"], stored.get("real"))
