"""Clips from a trained model: sampled tokens, decoded, for every way of training. Knows nothing of metrics or files."""

from reco_tune.generation.rollout import Generated, generate_clips

__all__ = ["Generated", "generate_clips"]
