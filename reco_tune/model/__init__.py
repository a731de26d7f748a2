"""The autoregressive transformer over the codes of a clip. Knows nothing of videos, tokenizers, losses or
optimisers."""

from reco_tune.model.transformer import ModelSettings, VideoTransformer, WindowOutput

__all__ = ["ModelSettings", "VideoTransformer", "WindowOutput"]
