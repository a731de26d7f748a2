"""Generated clips as grid videos: the same labels and seeds side by side, real clips in the first column.

Reads trials/ID/samples.npz (`video` uint8 [S, F, C, H, W], `labels` [S], optionally `real` like `video`); writes small
mp4 files.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from reco_tune.data.video import write_video
from reco_tune.reporting.budgets import BUDGETS, at_budget
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.render.text import breakable, data_uri
from reco_tune.reporting.section import Section, file_stem
from reco_tune.settings import BASELINE, SEARCH
from reco_tune.study_log import StudyFolder, StudyRecord

ROWS = 2
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


def build(evidence: Evidence) -> Section:
    samples = read_samples(evidence.study, evidence.folder, evidence.budgets) if evidence.folder else {}
    if not samples:
        return Section("samples", "Samples")
    return Section(
        "samples",
        "Samples",
        "A row has the same class and sampling seed in every column. All arms generate whole clips in the ordinary way,"
        " except the fewer-frames arms.",
        markup=_columns(samples),
        write=lambda folder: write_grids(samples, folder / "samples"),
    )


def read_samples(study: StudyRecord, folder: StudyFolder, budgets: Sequence[str]) -> dict[str, dict[str, Samples]]:
    """budget -> arm -> clips of the arm's first run that has some."""
    found: dict[str, dict[str, Samples]] = {}
    runs = [run for run in sorted(study.runs.values(), key=lambda run: run.index) if run.state == "evaluated"]
    for budget in budgets:
        for arm in dict.fromkeys([*study.arms, *(run.arm for run in runs)]):
            own = [run for run in runs if run.arm == arm != SEARCH and at_budget(run.budget, budget)]
            paths = (folder.trial(run.trial) / "samples.npz" for run in own)
            if path := next((path for path in paths if path.exists()), None):
                found.setdefault(budget, {})[arm] = _read(path)
    return found


def write_grids(samples: Mapping[str, Mapping[str, Samples]], folder: Path) -> None:
    """One video for each arm, with a row for each label. The columns are the real clip, then the arm at each budget."""
    folder.mkdir(parents=True, exist_ok=True)
    for arm in dict.fromkeys(arm for arms in samples.values() for arm in arms):
        own = [arms[arm] for arms in samples.values() if arm in arms]
        if arm == BASELINE:  # one run stands under both budgets
            own = own[:1]
        columns = ([own[0].real] if own[0].real is not None else []) + [clips.video for clips in own]
        write_video(folder / f"{file_stem(arm)}.mp4", grid(columns), fps=FPS)


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


def _columns(samples: Mapping[str, Mapping[str, Samples]]) -> Markup:
    """Columns of clips by budget: real ones first, then the arms, each a small video of the same labels."""
    parts = [Markup("<p><button class='play' type='button'>Pause</button></p>")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "column.mp4"
        for number, (budget, arms) in enumerate(samples.items()):
            title = BUDGETS[budget].title
            around = ("<details><summary>{}</summary>", "</details>") if number else ("<h3>{}</h3>", "")
            parts.append(Markup(around[0]).format(title))
            parts.append(
                Markup('<div class="clips" tabindex="0" role="region" aria-label="Sample clips, {}">').format(
                    title.lower()
                )
            )
            real = next((clips.real for clips in arms.values() if clips.real is not None), None)
            columns = {} if real is None else {"real clips": real}
            for name, video in (columns | {arm: own.video for arm, own in arms.items()}).items():
                write_video(path, grid([video[:ROWS]]), fps=FPS)
                parts.append(
                    Markup(
                        "<figure><figcaption><span>{}</span></figcaption>"
                        '<video src="{}" muted loop playsinline aria-label="{} clips: {}, {}"></video></figure>'
                    ).format(breakable(name), data_uri(path, "video/mp4"), min(ROWS, len(video)), name, title.lower())
                )
            parts.append(Markup("</div>" + around[1]))
    return Markup("").join(parts)
