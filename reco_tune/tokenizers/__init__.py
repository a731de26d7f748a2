"""Pixels to codes and back: one protocol, the tokenizers behind it, and the way from videos to a token cache."""

from reco_tune.tokenizers.base import Tokenizer
from reco_tune.tokenizers.kinds import fit_tokenizer, load_tokenizer, open_pretrained
from reco_tune.tokenizers.places import check_weights
from reco_tune.tokenizers.prepare import prepare_tokenizer, prepare_tokens

__all__ = [
    "Tokenizer",
    "check_weights",
    "fit_tokenizer",
    "load_tokenizer",
    "open_pretrained",
    "prepare_tokenizer",
    "prepare_tokens",
]
