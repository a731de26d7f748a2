"""Turns a model into clips: the whole sequence at once, or piece after piece if the model was trained on pieces.

Knows models, tokenizers and the training scheme of a model, not how single codes are drawn.

    whole clips             one sequence of all blocks, then decoded
    continued by a frame    a piece is decoded; its last frame, encoded again, is block 0 of the next piece, and so on
    continued by a block    the last block of a piece starts the next one as it is; everything is decoded at the end
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
    """int64 codes. None if the clip was joined in pixels, because then no single sequence of codes represents it."""


@torch.no_grad()
def generate_clips(
    model: Decoder,
    experiment: Experiment,
    tokenizer: Tokenizer,
    grid: TokenGrid,
    requests: Sequence[Request],
    progress: Progress = quiet,
) -> Iterator[Generated]:
    """Generates clips, request by request. The same labels and seed give the same clips, whatever else is requested.

    Args:
        model: a model trained with `experiment.window.scheme`.
        grid: token grid of the whole clip.
    """
    continues_by = scheme_class(experiment).continues_by
    if continues_by == "frame":
        frames = 1 + (grid.blocks - 1) * tokenizer.temporal_stride

        def roll(draw: Draw, labels_B: Tensor) -> Tensor:
            return _pixel_rollout(draw, tokenizer, grid, labels_B, frames)

        for video_BFCHW in made_of(roll, model, experiment, requests, progress):
            yield Generated(video_BFCHW, None)
        return
    # All codes first: this frees the cache of keys and values before pixels need the memory.
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
    """int64 codes [B, T] of each request: the model's own length, or continued by blocks to a whole grid."""

    def roll(draw: Draw, labels_B: Tensor) -> Tensor:
        return draw(labels_B) if continued_to is None else _token_rollout(draw, continued_to, labels_B)

    return made_of(roll, model, experiment, requests, progress)


def _pixel_rollout(draw: Draw, tokenizer: Tokenizer, grid: TokenGrid, labels_B: Tensor, frames: int) -> Tensor:
    """Joins pieces at a shared frame, which ends one piece and is encoded again to start the next. Cut to
    `frames`.
    """
    video_BFCHW = _decode(tokenizer, grid, draw(labels_B))
    while video_BFCHW.shape[1] < frames:
        prompt_BP = in_halves(tokenizer.encode, video_BFCHW[:, -1:]).flatten(1)
        piece_BFCHW = _decode(tokenizer, grid, draw(labels_B, prompt_BP=prompt_BP))
        video_BFCHW = torch.cat([video_BFCHW, piece_BFCHW[:, 1:]], dim=1)  # the first frame repeats the last one
    return video_BFCHW[:, :frames]


def _token_rollout(draw: Draw, grid: TokenGrid, labels_B: Tensor) -> Tensor:
    """Joins pieces at a shared block. Cut to the tokens of the clip."""
    tokens_BT = draw(labels_B)
    while tokens_BT.shape[1] < grid.num_tokens:
        piece_BT = draw(labels_B, prompt_BP=tokens_BT[:, -grid.tokens_per_block :])
        tokens_BT = torch.cat([tokens_BT, piece_BT[:, grid.tokens_per_block :]], dim=1)
    return tokens_BT[:, : grid.num_tokens]


def _decode(tokenizer: Tokenizer, grid: TokenGrid, tokens_BT: Tensor) -> Tensor:
    """Codes of any number of whole blocks -> uint8 [B, F, C, H, W]."""
    return in_halves(tokenizer.decode, tokens_BT.unflatten(1, (-1, grid.rows, grid.columns)))
