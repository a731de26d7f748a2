"""Limits of a study (`stop_after`): whether one is reached, and whether the fixed arms fit within them. Knows settings,
the log and the forecast; stops nothing itself.
"""

from __future__ import annotations

import math

import torch

from reco_tune.cost import forecast
from reco_tune.cost.forecast import Forecast
from reco_tune.cost.planning import Plan
from reco_tune.errors import SettingsError
from reco_tune.settings import SEARCH, Space
from reco_tune.study_log import ENDED, StudyRecord


def limit_reached(space: Space, study: StudyRecord, idle_seconds: float = 0.0) -> str:
    """The limit that a study has reached, in words; empty if none.

    Args:
        idle_seconds: seconds since the last event in its log, if the study is running.
    """
    limits, tried = space.stop_after, 0
    if limits.trials is not None:
        tried = sum(run.arm == SEARCH and not run.repeats and run.state in ENDED for run in study.runs.values())
    spent = {
        "device_hours": study.device_seconds / 3600 if limits.device_hours is not None else 0.0,
        "wall_hours": (study.worked_seconds + idle_seconds) / 3600,
        "trials": tried,
    }
    for name, value in spent.items():
        most = getattr(limits, name)
        if most is not None and value >= most:
            return f"stop_after.{name} ({most:g}) is reached: {value:.3g}"
    return ""


def check_affordable(planned: Plan, here: bool, at_once: int) -> None:
    """Refuses a study whose fixed arms exceed its limits by the forecast.

    Args:
        here: whether it runs on this machine, whose speed can be measured.
        at_once: number of runs at the same time.

    Raises:
        SettingsError: with the forecast.
    """
    limits, shared = planned.space.stop_after, planned.shared
    visible = shared.device_type == "cpu" or torch.cuda.is_available()
    if not (here and visible) or not planned.fixed or (limits.device_hours is None and limits.wall_hours is None):
        return
    cost = forecast(planned)
    fixed = Forecast(cost.runs[: len(planned.fixed)], cost.rates)
    needed = {
        "device_hours": fixed.device_seconds / 3600,
        "wall_hours": fixed.wall_seconds(at_once, shared.resources.workers) / 3600,
    }
    for name, hours in needed.items():
        most = getattr(limits, name)
        if hours > (math.inf if most is None else most):
            raise SettingsError(
                f"stop_after.{name} ({most:g}) is less than the forecast for the fixed arms alone ({hours:.3g}); raise"
                " it, lower training.steps, or leave out arms, seeds or budgets"
            )
