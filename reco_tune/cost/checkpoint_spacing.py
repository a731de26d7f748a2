"""How far apart checkpoints should be: writing them costs time, and so does repeating work that was lost.

    share lost = write / (spacing + write) + (spacing / 2 + write) / M        M: mean time between failures of a run

To first order, the best spacing is sqrt(2 write M) (Young 1974). This module uses Daly's estimate of higher order
(2006, "A higher order estimate of the optimum checkpoint interval for restart dumps"). Pure arithmetic on seconds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from reco_tune.model.flops import parameter_count
from reco_tune.settings import Experiment
from reco_tune.training.schemes import plan_scheme

WRITE_BYTES_PER_SECOND = 1e9
"""Assumed write rate of the file system that holds the checkpoints."""
COPIES = 3
"""Size of a checkpoint in units of the weights in float32: the weights and two moments."""
GPUS_PER_MACHINE = 8
"""Assumed workers per machine, if a run has more workers than fit on one."""


class CheckpointAdvice(NamedTuple):
    """Advice for one run on machines that fail."""

    write_seconds: float
    machines: int
    spacing_seconds: float
    share_lost: float
    """Share of the run's time that is lost at that spacing."""
    share_lost_as_set: float
    """The same share at the spacing that is set, `training.checkpoint_minutes`."""


def advise(experiment: Experiment, mtbf_days: float) -> CheckpointAdvice:
    """
    Args:
        mtbf_days: mean days between failures of one machine. A run on several machines fails if one of them fails.
    """
    write = COPIES * 4 * parameter_count(plan_scheme(experiment).model_settings) / WRITE_BYTES_PER_SECOND
    machines = -(-experiment.resources.workers // GPUS_PER_MACHINE)
    mtbf = mtbf_days * 86400 / machines
    best, as_set = best_spacing(write, mtbf), 60 * experiment.training.checkpoint_minutes
    return CheckpointAdvice(write, machines, best, share_lost(best, write, mtbf), share_lost(as_set, write, mtbf))


def best_spacing(write: float, mtbf: float) -> float:
    """Daly's spacing; all times in seconds."""
    if write >= 2 * mtbf:
        return mtbf
    ratio = math.sqrt(write / (2 * mtbf))
    return math.sqrt(2 * write * mtbf) * (1 + ratio / 3 + ratio**2 / 9) - write


def share_lost(spacing: float, write: float, mtbf: float) -> float:
    """Share of a run's time that goes into writing checkpoints and repeating lost work."""
    return write / (spacing + write) + (spacing / 2 + write) / mtbf
