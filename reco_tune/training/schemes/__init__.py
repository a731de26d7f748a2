"""What one micro-batch of each scheme computes: on which tokens, from which start, with which loss. One class a scheme.

    scheme                 model sees             loss on                 start
    full                   the clip, T tokens     all T                   0
    window                 prefix and window      the window, W tokens    drawn (`windows.WindowSchedule`)
    masked_full            the clip, T tokens     the window, W tokens    drawn; a control: same loss, nothing saved
    chunked_full           the clip, T tokens     all T                   0; the gradient of full, W tokens at a time
    stale_prefix           the window             the window, W tokens    0, W, 2W, ... of the same clips, a step each
    fewer_frames           a piece of k blocks    all of the piece        0; pieces are sub-clips encoded by themselves
    fewer_frames_tokens    a piece of k blocks    all of a piece at 0,    drawn; the piece is cut out of the clip's own
                                                  else all but block 0    tokens, so its block 0 may be a later one

A window's length is W, or follows `window.schedule` over the steps of the run. What a scheme returns for a `WindowSpan`
holds for the length of that span.
"""

from __future__ import annotations

from reco_tune import parts
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError
from reco_tune.settings import Experiment
from reco_tune.training.conditions import num_conditions
from reco_tune.training.schemes.base import Batch, Scheme
from reco_tune.training.schemes.full import Full

__all__ = ["SCHEMES", "Batch", "Full", "Scheme", "build_scheme", "plan_scheme", "scheme_class"]

SCHEMES = tuple(parts.BUILT_IN["schemes"])
"""Names of `window.scheme` that are built in."""


def scheme_class(experiment: Experiment) -> type[Scheme]:
    """The class of the experiment's scheme."""
    found: type[Scheme] = parts.load("schemes", experiment.window.scheme)
    return found


def plan_scheme(experiment: Experiment) -> Scheme:
    """The scheme for planning, from settings alone. The number of classes is unknown before the data is read, and does
    not change the cost.
    """
    return scheme_class(experiment)(experiment, experiment.tokenizer.num_codes, num_classes=1)


def build_scheme(experiment: Experiment, cache: TokenCache) -> Scheme:
    """The scheme of an experiment on a token cache.

    Raises:
        DataError: if the cache was made for clips of another shape.
    """
    if tuple(cache.grid) != tuple(experiment.grid):
        raise DataError(
            f"the token cache {cache.path} has clips of {'x'.join(map(str, cache.grid))} tokens, but data and tokenizer"
            f" settings give {'x'.join(map(str, experiment.grid))}; prepare the tokens again with these settings"
        )
    return scheme_class(experiment)(experiment, cache.num_codes, num_conditions(experiment, cache))
