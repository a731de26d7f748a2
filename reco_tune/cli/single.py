"""Shared by the commands on a single run: the cache of a model, and reconstruction quality."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError
from reco_tune.preparation import prepare_tokens
from reco_tune.progress import Progress
from reco_tune.settings import Experiment
from reco_tune.tokenizers import load_tokenizer
from reco_tune.training import LoadedModel, plan_scheme

CHECKED_CLIPS, CHECKED_TOGETHER, CHECKED_SHOWN = 64, 16, 8


def cache_of(loaded: LoadedModel, experiment: Experiment, progress: Progress) -> TokenCache:
    """The token cache that a model was trained on.

    Raises:
        DataError: if data or tokenizer have changed.
    """
    cache = prepare_tokens(experiment, progress, piece_blocks=plan_scheme(experiment).encoded_piece_blocks)
    if cache.tokenizer_fingerprint != loaded.cache.tokenizer_fingerprint:
        raise DataError(
            f"the codes in {cache.path} are not the ones that the model was trained on (another tokenizer or other"
            " data); give the old folders with --set data.root=FOLDER and --set data.cache_dir=FOLDER"
        )
    if loaded.words is not None:
        captions = cache.captions(experiment.captions_name)
        if captions.tokenizer.fingerprint != loaded.words.fingerprint:
            raise DataError(
                f"the words of {captions.path} are not those the model was trained on (other captions); give the"
                " old ones with --set data.root=FOLDER and --set data.cache_dir=FOLDER"
            )
    return cache


class Reconstruction(NamedTuple):
    """How well held-out clips are reconstructed from their codes."""

    psnr_db: float
    codes_used: int
    """Different codes in all held-out clips."""
    perplexity: float
    """exp of the entropy of the codes: the number of equally frequent codes with the same entropy."""
    side_by_side_NFCHW: NDArray[np.uint8]
    """The first clips: on the left the original, on the right its reconstruction."""


def reconstruction(cache: TokenCache, device: str = "cpu") -> Reconstruction:
    """Encodes and decodes the first held-out clips; counts the codes of all."""
    cache.require_pixels()
    tokenizer = load_tokenizer(cache.tokenizer_path)
    video = torch.from_numpy(np.array(cache.clips("test")[:CHECKED_CLIPS]))
    back = torch.cat(
        [tokenizer.decode(tokenizer.encode(part.to(device))).cpu() for part in video.split(CHECKED_TOGETHER)]
    )
    error = float(((back.float() - video.float()) ** 2).mean())
    shares = np.bincount(cache.tokens("test").ravel(), minlength=cache.num_codes) / cache.tokens("test").size
    used = shares[shares > 0]
    return Reconstruction(
        10 * math.log10(255**2 / error) if error else math.inf,
        len(used),
        float(np.exp(-(used * np.log(used)).sum())),
        torch.cat([video, back], dim=-1)[:CHECKED_SHOWN].numpy(),
    )
