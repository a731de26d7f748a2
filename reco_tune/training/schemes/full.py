"""The baseline: every step is on the whole clip."""

from reco_tune.training.schemes.base import Scheme


class Full(Scheme):
    """The clip, T tokens, with a loss on all of them."""
