"""How a clip comes out of a model: the whole sequence at once, or piece after piece where the model knows pieces only.

Knows models, tokenizers and the scheme that a model was trained with; refuses to know how single codes are drawn.

    whole clips             one sequence of all blocks, then decoded
    continued by a frame    a piece, decoded; its last pixel frame encoded again is block 0 of the next piece, and so on
    continued by a block    a piece; its last block is given to the next one as it is; all decoded together in the end
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reco_tune.device import in_halves
from reco_tune.generation.codes import Draw, Request, made_of
from reco_tune.model import Decoder
from reco_tune.progress import Progress, quiet
from reco_tune.settings import Experiment, TokenGrid
from reco_tune.tokenizers import Tokenizer
from reco_tune.training import scheme_class


class Generated(NamedTuple):
    """Clips on the model's device."""

    video_BFCHW: Tensor
    """uint8."""
    tokens_BT: Tensor | None
    """int64 codes; None where the clip was put together in pixels, so that no one sequence of codes stands for it."""


@torch.no_grad()
def generate_clips(
    model: Decoder,
    experiment: Experiment,
    tokenizer: Tokenizer,
    grid: TokenGrid,
    requests: Sequence[Request],
    progress: Progress = quiet,
) -> Iterator[Generated]:
    """Clips, request by request: the same labels and seed give the same clips, whatever is asked for beside them.

    Args:
        model: trained with `experiment.window.scheme`.
        grid: of the whole clip's tokens.
    """
    continues_by = scheme_class(experiment).continues_by
    if continues_by == "frame":
        frames = 1 + (grid.blocks - 1) * tokenizer.temporal_stride

        def roll(draw: Draw, labels_B: Tensor) -> Tensor:
            return _pixel_rollout(draw, tokenizer, grid, labels_B, frames)

        for video_BFCHW in made_of(roll, model, experiment, requests, progress):
            yield Generated(video_BFCHW, None)
        return
    # All codes first: the cache of their keys and values is gone before pixels take its place.
    made = list(sample_tokens(model, experiment, requests, grid if continues_by == "block" else None, progress))
    for tokens_BT in made:
        yield Generated(_decode(tokenizer, grid, tokens_BT), tokens_BT)


def sample_tokens(
    model: Decoder,
    experiment: Experiment,
    requests: Sequence[Request],
    continued_to: TokenGrid | None = None,
    progress: Progress = quiet,
) -> Iterator[Tensor]:
    """int64 codes [B, T] of each request: as many as the model knows, or continued by blocks to a whole grid."""

    def roll(draw: Draw, labels_B: Tensor) -> Tensor:
        return draw(labels_B) if continued_to is None else _token_rollout(draw, continued_to, labels_B)

    return made_of(roll, model, experiment, requests, progress)


def _pixel_rollout(draw: Draw, tokenizer: Tokenizer, grid: TokenGrid, labels_B: Tensor, frames: int) -> Tensor:
    """Pieces joined at a frame that the earlier one decoded and the later one encoded again; cut to `frames`."""
    video_BFCHW = _decode(tokenizer, grid, draw(labels_B))
    while video_BFCHW.shape[1] < frames:
        prompt_BP = in_halves(tokenizer.encode, video_BFCHW[:, -1:]).flatten(1)
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
    return in_halves(tokenizer.decode, tokens_BT.unflatten(1, (-1, grid.rows, grid.columns)))
