"""Clips of a trained model, as a person asks for them: by class and seed, and laid side by side to look at."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from reco_tune.errors import DataError, SettingsError
from reco_tune.generation.codes import Request
from reco_tune.generation.rollout import generate_clips
from reco_tune.progress import Progress
from reco_tune.settings import Experiment, TokenGrid
from reco_tune.tokenizers import Tokenizer, load_tokenizer
from reco_tune.training import LoadedModel, prepare_device

SHOWN_SIDE_PX = 96
"""Clips are enlarged to about this height, so that a person sees 12-pixel digits."""


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
