"""The way from videos to a token cache: clips are listed, decoded, encoded by a tokenizer and written.

The only place where data and tokenizers meet.
"""

from reco_tune.preparation.cache_paths import check_weights
from reco_tune.preparation.prepare import check_data, classes_known, prepare_tokenizer, prepare_tokens

__all__ = ["check_data", "check_weights", "classes_known", "prepare_tokenizer", "prepare_tokens"]
