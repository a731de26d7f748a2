"""Whole clips read by a model without gradient, so that what exists at once does not grow with clips and codes.

Validation and the analyses of a trained model look at models through this. Pieces are as large as they may be: what
fits at once gives the bits that no cutting gives.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from reco_tune.model.shape import ModelSettings
from reco_tune.model.transformer import VideoTransformer

LOGITS_BYTES = 2**28
"""Of the logits, in float32, that exist at once."""

STATES_BYTES = 2**31
"""Of what a forward pass over the clips of one batch holds at once."""

_STATE_COPIES = 64
"""Bytes for each token and unit of width: in float32 the stream, its norm, the MLP's hidden units before and after
GELU, and two copies in float64 where states are compared.
"""


def clips_at_once(settings: ModelSettings, most: int) -> int:
    """Clips of a batch, at most `most`, whose states fit into `STATES_BYTES`."""
    return max(1, min(most, STATES_BYTES // (_STATE_COPIES * settings.num_tokens * settings.width)))


@torch.no_grad()
def logits_of_clips(model: VideoTransformer, tokens_BT: Tensor, labels_B: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [N, V] and the codes [N] that they predict, a stretch of the clips' tokens after another."""
    hidden_ND = model.hidden(tokens_BT, labels_B, 0, model.settings.num_tokens).flatten(0, 1)
    rows = max(1, LOGITS_BYTES // (4 * model.settings.num_codes))
    for hidden, codes in zip(hidden_ND.split(rows), tokens_BT.flatten().long().split(rows), strict=True):
        yield model.head(model.final_norm(hidden)), codes
