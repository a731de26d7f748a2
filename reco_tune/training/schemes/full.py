"""The baseline: every step trains on the whole clip."""

from reco_tune.training.schemes.base import Scheme


class Full(Scheme):
    """Computes the whole clip, T tokens, with a loss on all of them."""
