"""Reads whole clips with a model, without gradient. Memory does not grow with the number of clips and codes.

Validation and the analyses of a trained model use this. Clips are read in the largest pieces that fit. If all clips fit
at once, the result is bit-identical to that of a single pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from reco_tune.model.decoder import Decoder
from reco_tune.model.shape import DecoderSettings

LOGITS_BYTES = 2**28
"""Bytes that logits may take at once, in float32."""

STATES_BYTES = 2**31
"""Bytes that a forward pass over the clips of one batch may take."""

ANALYSED_AT_ONCE = 32
"""Largest number of clips in one batch of an analysis."""

_STATE_COPIES = 64
"""Bytes per token and unit of width: the residual stream, its norm and the MLP's hidden units before and after GELU in
float32, and two copies in float64 where states are compared.
"""


def clips_at_once(settings: DecoderSettings) -> int:
    """Number of clips whose states fit into `STATES_BYTES`."""
    return max(1, min(ANALYSED_AT_ONCE, STATES_BYTES // (_STATE_COPIES * settings.num_tokens * settings.width)))


def analysis_bytes(settings: DecoderSettings) -> int:
    """Bytes that an analysis takes beside the weights: states of a batch, logits of a stretch, their copy in float32
    and their logarithms.
    """
    clips = clips_at_once(settings)
    states = clips * _STATE_COPIES * settings.num_tokens * settings.width
    return states + 3 * 4 * settings.num_codes * min(clips * settings.num_tokens, logits_at_once(settings))


@torch.no_grad()
def logits_of_clips(model: Decoder, tokens_BT: Tensor, labels_B: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [N, V] and the codes [N] that they predict, one stretch of the clips' tokens after another."""
    hidden_ND = model.hidden(tokens_BT, labels_B, 0, model.settings.num_tokens).flatten(0, 1)
    rows = logits_at_once(model.settings)
    for hidden, codes in zip(hidden_ND.split(rows), tokens_BT.flatten().long().split(rows), strict=True):
        yield model.logits(hidden), codes


def logits_at_once(settings: DecoderSettings) -> int:
    """Number of tokens whose logits are in memory at once."""
    return max(1, LOGITS_BYTES // (4 * settings.num_codes))
