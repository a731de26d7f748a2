"""Clips from a trained model: sampled tokens, decoded, for every way of training. Knows nothing of metrics or files."""

from reco_tune.generation.codes import RESERVED_BYTES, Request, clips_that_fit, drawing_of
from reco_tune.generation.rollout import Generated, generate_clips, sample_tokens

__all__ = [
    "RESERVED_BYTES",
    "Generated",
    "Request",
    "clips_that_fit",
    "drawing_of",
    "generate_clips",
    "sample_tokens",
]
