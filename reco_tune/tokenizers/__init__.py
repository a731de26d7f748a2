"""Pixels to codes and back: one protocol and the tokenizers behind it."""

from reco_tune.tokenizers.base import Tokenizer
from reco_tune.tokenizers.kinds import fit_tokenizer, load_tokenizer, open_pretrained

__all__ = ["Tokenizer", "fit_tokenizer", "load_tokenizer", "open_pretrained"]
