"""Generates clips from a trained model: samples tokens and decodes them, for every training scheme. Knows nothing of
metrics or files.
"""

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
