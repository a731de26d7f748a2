"""Evaluation: how good a model's clips are, and where they go wrong. Knows nothing of Ray, tracking or reports."""

from reco_tune.evaluation.frechet import FeatureStatistics, Interval, frechet_distance, frechet_interval
from reco_tune.evaluation.kernel import kernel_distance
from reco_tune.evaluation.protocols import EvaluationReference, check_extractor, prepare_evaluation
from reco_tune.evaluation.rungs import KernelAtRungs
from reco_tune.evaluation.suite import EvaluationResult, evaluate

__all__ = [
    "EvaluationReference",
    "EvaluationResult",
    "FeatureStatistics",
    "Interval",
    "KernelAtRungs",
    "check_extractor",
    "evaluate",
    "frechet_distance",
    "frechet_interval",
    "kernel_distance",
    "prepare_evaluation",
]
