"""Tokenizers turn pixels into codes and back. One protocol, several kinds."""

from reco_tune.tokenizers.base import Tokenizer
from reco_tune.tokenizers.kinds import fit_tokenizer, load_tokenizer, open_pretrained

__all__ = ["Tokenizer", "fit_tokenizer", "load_tokenizer", "open_pretrained"]
