"""What the verbs on a single run share: pieces to encode, the cache a model was trained on, clips and how they are laid
out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError, SettingsError
from reco_tune.generation import Request, generate_clips
from reco_tune.preparation import prepare_tokens
from reco_tune.progress import Progress
from reco_tune.settings import Experiment, TokenGrid
from reco_tune.tokenizers import Tokenizer, load_tokenizer
from reco_tune.training import LoadedModel, plan_scheme, prepare_device

CHECKED_CLIPS, CHECKED_TOGETHER, CHECKED_SHOWN = 64, 16, 8
SHOWN_SIDE_PX = 96
"""Clips are enlarged to about this height, so that a person sees 12-pixel digits."""


def cache_of(loaded: LoadedModel, experiment: Experiment, progress: Progress) -> TokenCache:
    """The token cache that a model was trained on.

    Raises:
        DataError: where the data or the tokenizer are no longer the same.
    """
    cache = prepare_tokens(experiment, progress, piece_blocks=plan_scheme(experiment).encoded_piece_blocks)
    if cache.tokenizer_fingerprint != loaded.cache.tokenizer_fingerprint:
        raise DataError(
            f"the codes in {cache.path} are not those the model was trained on (another tokenizer or other data); "
            "give the old ones with --set data.root=FOLDER and --set data.cache_dir=FOLDER"
        )
    return cache


def labels_of(class_names: list[str], chosen: list[str] | None, clips: int) -> NDArray[np.int64]:
    """One class a clip, in turn.

    Raises:
        SettingsError: for a class that the model does not know.
    """
    for name in chosen or []:
        if name not in class_names:
            raise SettingsError(
                f"--class {name} is not a class of this model; it knows {', '.join(class_names) or 'none'}"
            )
    labels = [class_names.index(name) for name in chosen] if chosen else list(range(max(1, len(class_names))))
    return np.resize(np.array(labels, dtype=np.int64), clips)


def tokenizer_of(loaded: LoadedModel, experiment: Experiment) -> Tokenizer:
    """The tokenizer that a model was trained with: where it lay then, or in the cache folder that is given now.

    Raises:
        DataError: where it is in neither.
    """
    known = Path(loaded.cache.tokenizer_path)
    if experiment.data.layout == "tokens":
        raise DataError(
            "the model was trained on codes that were made elsewhere (data.layout tokens), which nothing here can turn"
            " into clips"
        )
    for path in (known, experiment.cache_dir / "tokenizers" / known.name):
        if path.is_dir():
            tokenizer = load_tokenizer(path)
            if tokenizer.fingerprint == loaded.cache.tokenizer_fingerprint:
                return tokenizer
    raise DataError(
        f"the tokenizer that the model was trained with is no longer at {known}; give the cache folder that holds it"
        " with --set data.cache_dir=FOLDER, or fit it again from the same videos with `reco-tune evaluate`"
    )


def generated(
    loaded: LoadedModel, experiment: Experiment, labels: NDArray[np.int64], seed: int, progress: Progress
) -> NDArray[np.uint8]:
    """uint8 [N, F, C, H, W], a sampling batch at a time; batch i draws with its own seed.

    Raises:
        DataError: where the tokenizer is gone.
    """
    tokenizer = tokenizer_of(loaded, experiment)
    model = loaded.model.to(prepare_device(experiment))
    size = experiment.sampling.batch_size
    requests = [
        Request(torch.from_numpy(labels[start : start + size]), seed + start) for start in range(0, len(labels), size)
    ]
    made = generate_clips(model, experiment, tokenizer, TokenGrid(*loaded.cache.grid), requests, progress)
    return np.concatenate([clips.video_BFCHW.cpu().numpy() for clips in made])


def grid_video(video_BFCHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Clips side by side in a square, enlarged where they are tiny: [F, H, W, C]."""
    clips, frames, channels, height, width = video_BFCHW.shape
    across = math.ceil(math.sqrt(clips))
    down = math.ceil(clips / across)
    padded = np.zeros((down * across, frames, channels, height, width), dtype=np.uint8)
    padded[:clips] = video_BFCHW
    laid = padded.reshape(down, across, frames, channels, height, width).transpose(2, 0, 4, 1, 5, 3)
    zoom = max(1, SHOWN_SIDE_PX // height)
    return laid.reshape(frames, down * height, across * width, channels).repeat(zoom, axis=1).repeat(zoom, axis=2)


class Reconstruction(NamedTuple):
    """How well held-out clips come back from their codes."""

    psnr_db: float
    codes_used: int
    """Different codes in all held-out clips."""
    perplexity: float
    """exp of the entropy of their codes: so many codes, each as often as the others, would say as much."""
    side_by_side_NFCHW: NDArray[np.uint8]
    """The first clips, the original to the left of what came back."""


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
