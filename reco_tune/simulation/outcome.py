"""The results of a simulated study, as numbers and one figure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reco_tune.pareto import hypervolume
from reco_tune.settings import Space
from reco_tune.simulation.simulate import Simulated
from reco_tune.study_log import StudyRecord

SHARE = 0.95
"""Share of the final hypervolume."""
POINTS = 200
"""Points of a curve."""


@dataclass(frozen=True)
class Progress:
    """Hypervolume over time, relative to the final one."""

    seconds: NDArray[np.float64]
    shares: NDArray[np.float64]

    @property
    def reached(self) -> float:
        """Seconds until it reaches `SHARE`."""
        return float(self.seconds[np.argmax(self.shares >= SHARE)])


def progress(space: Space, study: StudyRecord) -> Progress | None:
    """Hypervolume over the evaluated runs that have every objective. None if there are fewer than two. The reference
    point is their worst value of each objective.
    """
    names = list(space.objectives)
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in space.objectives.values()])
    whole = [run for run in study.runs.values() if run.state == "evaluated" and all(n in run.metrics for n in names)]
    if len(whole) < 2:
        return None
    whole.sort(key=lambda run: run.ended or 0.0)
    points = np.array([[run.metrics[name] for name in names] for run in whole]) * signs
    reference = points.max(axis=0) + 1e-9
    counts = np.unique(np.linspace(1, len(whole), POINTS).astype(int))
    volumes = np.array([hypervolume(points[:count], reference) for count in counts])
    seconds = np.array([whole[count - 1].ended or 0.0 for count in counts])
    return Progress(seconds, volumes / volumes[-1]) if volumes[-1] > 0 else None


def states(study: StudyRecord) -> Counter[str]:
    return Counter(run.state for run in study.runs.values())


def draw(found: Simulated, covered: Progress | None, path: Path) -> None:
    """Draws the busy worker groups and the hypervolume over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True)
    changes = sorted(found.work)
    hours = np.array([at for at, _ in changes]) / 3600
    top.step(hours, np.cumsum([change for _, change in changes]), where="post", color="#0072b2", linewidth=0.8)
    top.set_ylabel(f"busy groups\n(of {found.groups})")
    top.set_ylim(0, None)
    if covered is not None:
        bottom.plot(covered.seconds / 3600, covered.shares, color="#009e73")
        bottom.axvline(covered.reached / 3600, color="#7f7f7f", linewidth=0.8, linestyle="--")
        bottom.axhline(SHARE, color="#7f7f7f", linewidth=0.8, linestyle="--")
    bottom.set_ylabel("hypervolume\n(share of final)")
    bottom.set_xlabel("simulated hours")
    figure.savefig(path, dpi=150)
