"""Training: what a step computes, the loop around it, and its checkpoints. Never hears of Ray or MLflow."""

from reco_tune.training.checkpoint import CacheInfo, LoadedModel, load_model, save_model
from reco_tune.training.conditions import conditions, sees_classes
from reco_tune.training.distributed import Group, joined, prepare_device
from reco_tune.training.loop import FitResult, RungMeasurement, fit
from reco_tune.training.objectives import LossOptions, LossTerms, window_loss
from reco_tune.training.schemes import Scheme, build_scheme, plan_scheme, scheme_class

__all__ = [
    "CacheInfo",
    "FitResult",
    "Group",
    "LoadedModel",
    "LossOptions",
    "LossTerms",
    "RungMeasurement",
    "Scheme",
    "build_scheme",
    "conditions",
    "fit",
    "joined",
    "load_model",
    "plan_scheme",
    "prepare_device",
    "save_model",
    "scheme_class",
    "sees_classes",
    "window_loss",
]
