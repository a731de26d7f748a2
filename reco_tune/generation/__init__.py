"""Clips from a trained model: sampled tokens, decoded, for every way of training. Knows nothing of metrics or files."""

from reco_tune.generation.codes import Request
from reco_tune.generation.rollout import Generated, generate_clips, sample_tokens

__all__ = ["Generated", "Request", "generate_clips", "sample_tokens"]
