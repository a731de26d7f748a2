"""The autoregressive decoders over the codes of a clip. Knows nothing of videos, tokenizers, losses or
optimisers."""

from reco_tune.model.decoder import Decoder, Inputs, WindowOutput
from reco_tune.model.huggingface import HuggingFaceDecoder, LoraOptions
from reco_tune.model.shape import DecoderSettings, ModelSettings
from reco_tune.model.transformer import VideoTransformer

__all__ = [
    "Decoder",
    "DecoderSettings",
    "HuggingFaceDecoder",
    "Inputs",
    "LoraOptions",
    "ModelSettings",
    "VideoTransformer",
    "WindowOutput",
]
