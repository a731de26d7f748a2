"""From videos to a token cache: list clips, decode them, encode them with a tokenizer, write the cache.

This is the only place where data and tokenizers meet.
"""

from reco_tune.preparation.cache_paths import check_weights
from reco_tune.preparation.prepare import check_data, classes_known, prepare_tokenizer, prepare_tokens

__all__ = ["check_data", "check_weights", "classes_known", "prepare_tokenizer", "prepare_tokens"]
