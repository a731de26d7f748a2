"""Where in a clip a model is unsure: cross-entropy per block, on training clips and on the model's own samples.

A model can be sure of its own samples but not of real clips, or the reverse, and this can differ by block. Either
points to exposure bias, which a single mean hides. Knows models and tokens, not pixels. For a model that was trained
on pieces of clips, "clip" means a piece.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reco_tune.data.token_cache import TokenCache
from reco_tune.model import Decoder
from reco_tune.model.teacher_forcing import clips_at_once, logits_of_clips
from reco_tune.training import Scheme, conditions


@torch.no_grad()
def loss_by_block(model: Decoder, tokens_BT: Tensor, labels_B: Tensor, tokens_per_block: int) -> list[float]:
    """Teacher-forced cross-entropy of every block in nats per token. The mean over blocks is the loss of the
    clips.
    """
    device = model.device
    sums = torch.zeros(model.settings.num_tokens // tokens_per_block, dtype=torch.float64)
    at_once = clips_at_once(model.settings)
    for tokens, labels in zip(tokens_BT.split(at_once), labels_B.split(at_once), strict=True):
        parts = logits_of_clips(model, tokens.to(device), labels.to(device))
        losses_N = torch.cat([F.cross_entropy(logits.float(), codes, reduction="none") for logits, codes in parts])
        sums += losses_N.view(len(tokens), -1, tokens_per_block).double().sum(dim=(0, 2)).cpu()
    return (sums / (len(tokens_BT) * tokens_per_block)).tolist()


def training_clips(scheme: Scheme, cache: TokenCache, clips: int) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] and labels of the first training clips as the scheme sees them: whole clips, or piece i modulo P
    of clip i.
    """
    labels = torch.from_numpy(conditions(scheme.experiment, cache, "train")[:clips])
    tokens = scheme.tokens(cache, "train")[: len(labels)]
    if scheme.trains_pieces:
        clip = np.arange(len(labels))
        columns = scheme.piece_columns(scheme.piece_start(clip % (cache.grid.blocks - scheme.piece_blocks + 1)))
        tokens = tokens[clip[:, None], columns]
    return torch.from_numpy(np.array(tokens)).long(), labels
