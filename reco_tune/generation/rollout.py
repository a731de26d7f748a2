"""How a clip comes out of a model: the whole sequence at once, or piece after piece where the model knows pieces only.

Knows models, tokenizers and the scheme that a model was trained with; refuses to know how single codes are drawn.

    whole clips             one sequence of all blocks, then decoded
    continued by a frame    a piece, decoded; its last pixel frame encoded again is block 0 of the next piece, and so on
    continued by a block    a piece; its last block is given to the next one as it is; all decoded together in the end
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from reco_tune.model import VideoTransformer
from reco_tune.settings import Experiment, TokenGrid
from reco_tune.tokenizers import Tokenizer
from reco_tune.training import scheme_class

Draw = Callable[..., Tensor]
"""(labels_B, prompt_BP=None) -> tokens of one piece or clip."""


class Generated(NamedTuple):
    """Clips on the CPU."""

    video_BFCHW: Tensor
    """uint8."""
    tokens_BT: Tensor | None
    """int64 codes; None where the clip was put together in pixels, so that no one sequence of codes stands for it."""


@torch.no_grad()
def generate_clips(
    model: VideoTransformer, experiment: Experiment, tokenizer: Tokenizer, grid: TokenGrid, labels_B: Tensor, seed: int
) -> Generated:
    """Clips of the given classes, all at once: the same labels and seed give the same clips.

    Args:
        model: trained with `experiment.window.scheme`.
        grid: of the whole clip's tokens.
        labels_B: classes, at most a sampling batch of them.
        seed: of this call's draws alone.
    """
    device = model.position_embedding.device
    sampling = experiment.sampling
    draw = partial(
        model.generate,
        generator=torch.Generator(device).manual_seed(seed),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        guidance=sampling.guidance,
    )
    labels_B = labels_B.to(device)
    continues_by = scheme_class(experiment).continues_by
    if continues_by == "frame":
        frames = 1 + (grid.blocks - 1) * tokenizer.temporal_stride
        return Generated(_pixel_rollout(draw, tokenizer, grid, labels_B, frames).cpu(), None)
    tokens_BT = _token_rollout(draw, grid, labels_B) if continues_by == "block" else draw(labels_B)
    return Generated(_decode(tokenizer, grid, tokens_BT).cpu(), tokens_BT.cpu())


def _pixel_rollout(draw: Draw, tokenizer: Tokenizer, grid: TokenGrid, labels_B: Tensor, frames: int) -> Tensor:
    """Pieces joined at a frame that the earlier one decoded and the later one encoded again; cut to `frames`."""
    video_BFCHW = _decode(tokenizer, grid, draw(labels_B))
    while video_BFCHW.shape[1] < frames:
        prompt_BP = tokenizer.encode(video_BFCHW[:, -1:]).flatten(1)
        piece_BFCHW = _decode(tokenizer, grid, draw(labels_B, prompt_BP=prompt_BP))
        video_BFCHW = torch.cat([video_BFCHW, piece_BFCHW[:, 1:]], dim=1)  # its first frame is the last one, seen again
    return video_BFCHW[:, :frames]


def _token_rollout(draw: Draw, grid: TokenGrid, labels_B: Tensor) -> Tensor:
    """Pieces joined at a block that both share; cut to the clip's tokens."""
    tokens_BT = draw(labels_B)
    while tokens_BT.shape[1] < grid.num_tokens:
        piece_BT = draw(labels_B, prompt_BP=tokens_BT[:, -grid.tokens_per_block :])
        tokens_BT = torch.cat([tokens_BT, piece_BT[:, grid.tokens_per_block :]], dim=1)
    return tokens_BT[:, : grid.num_tokens]


def _decode(tokenizer: Tokenizer, grid: TokenGrid, tokens_BT: Tensor) -> Tensor:
    """Tokens of any number of whole blocks -> uint8 [B, F, C, H, W]."""
    return tokenizer.decode(tokens_BT.unflatten(1, (-1, grid.rows, grid.columns)))
