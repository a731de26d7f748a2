"""The autoregressive transformer over the codes of a clip. Knows nothing of videos, tokenizers, losses or
optimisers."""

from reco_tune.model.shape import ModelSettings
from reco_tune.model.transformer import VideoTransformer, WindowOutput

__all__ = ["ModelSettings", "VideoTransformer", "WindowOutput"]
