"""Training: what a step computes, the loop around it, and its checkpoints. Never hears of Ray or MLflow."""

from reco_tune.training.arms import Arm, build_arm
from reco_tune.training.checkpoint import CacheInfo, LoadedModel, load_model, save_model
from reco_tune.training.distributed import Group, joined, prepare_device
from reco_tune.training.loop import FitResult, RungMeasurement, fit
from reco_tune.training.objectives import LossTerms, window_loss

__all__ = [
    "Arm",
    "CacheInfo",
    "FitResult",
    "Group",
    "LoadedModel",
    "LossTerms",
    "RungMeasurement",
    "build_arm",
    "fit",
    "joined",
    "load_model",
    "prepare_device",
    "save_model",
    "window_loss",
]
