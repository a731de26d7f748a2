"""Whole clips read by a model without gradient, so that what exists at once does not grow with clips and codes.

Validation and the analyses of a trained model look at models through this. Pieces are as large as they may be: what
fits at once gives the bits that no cutting gives.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from reco_tune.model.decoder import Decoder
from reco_tune.model.shape import DecoderSettings

LOGITS_BYTES = 2**28
"""Of the logits, in float32, that exist at once."""

STATES_BYTES = 2**31
"""Of what a forward pass over the clips of one batch holds at once."""

ANALYSED_AT_ONCE = 32
"""Clips of a batch of an analysis, where so many fit."""

_STATE_COPIES = 64
"""Bytes for each token and unit of width: in float32 the stream, its norm, the MLP's hidden units before and after
GELU, and two copies in float64 where states are compared.
"""


def clips_at_once(settings: DecoderSettings) -> int:
    """Clips of a batch whose states fit into `STATES_BYTES`."""
    return max(1, min(ANALYSED_AT_ONCE, STATES_BYTES // (_STATE_COPIES * settings.num_tokens * settings.width)))


def analysis_bytes(settings: DecoderSettings) -> int:
    """What an analysis takes beside weights: states of a batch, logits of a stretch, their copy in float32 and their
    logarithms.
    """
    clips = clips_at_once(settings)
    states = clips * _STATE_COPIES * settings.num_tokens * settings.width
    return states + 3 * 4 * settings.num_codes * min(clips * settings.num_tokens, logits_at_once(settings))


@torch.no_grad()
def logits_of_clips(model: Decoder, tokens_BT: Tensor, labels_B: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [N, V] and the codes [N] that they predict, a stretch of the clips' tokens after another."""
    hidden_ND = model.hidden(tokens_BT, labels_B, 0, model.settings.num_tokens).flatten(0, 1)
    rows = logits_at_once(model.settings)
    for hidden, codes in zip(hidden_ND.split(rows), tokens_BT.flatten().long().split(rows), strict=True):
        yield model.logits(hidden), codes


def logits_at_once(settings: DecoderSettings) -> int:
    """Tokens that have logits at once."""
    return max(1, LOGITS_BYTES // (4 * settings.num_codes))
