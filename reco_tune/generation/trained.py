"""Generates clips of a trained model by class, prompt and seed, and arranges them in a grid for viewing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reco_tune.data.texts import padded
from reco_tune.errors import DataError, SettingsError
from reco_tune.generation.codes import Request
from reco_tune.generation.rollout import generate_clips
from reco_tune.progress import Progress
from reco_tune.settings import Experiment, TokenGrid
from reco_tune.tokenizers import Tokenizer, load_tokenizer
from reco_tune.training import LoadedModel, prepare_device

DEFAULT_CLIPS = 16
SHOWN_SIDE_PX = 96
"""Small clips are enlarged to about this height, so that 12-pixel digits are easy to see."""


def labels_of(class_names: list[str], chosen: list[str] | None, clips: int) -> NDArray[np.int64]:
    """One class per clip, cycling through the chosen classes.

    Raises:
        SettingsError: if the model does not know a class.
    """
    for name in chosen or []:
        if name not in class_names:
            raise SettingsError(
                f"--class {name} is not a class of this model; it knows {', '.join(class_names) or 'none'}"
            )
    labels = [class_names.index(name) for name in chosen] if chosen else list(range(max(1, len(class_names))))
    return np.resize(np.array(labels, dtype=np.int64), clips)


class Wanted(NamedTuple):
    """What the clips should show."""

    given_N: NDArray[np.int64]
    """Conditions for the model: classes [N], or words of prompts [N, C]."""
    names: tuple[str, ...]
    """The class or the prompt of each clip, as text."""
    unknown: tuple[str, ...] = ()
    """Words of the prompts that no training caption has. To the model they all look the same."""


def wanted(loaded: LoadedModel, classes: list[str] | None, prompts: list[str] | None, clips: int | None) -> Wanted:
    """One class or prompt per clip, cycling through the given ones.

    Args:
        clips: number of clips; None means one per prompt.

    Raises:
        SettingsError: if the model does not know a class or a prompt.
    """
    if loaded.words is None:
        if prompts:
            raise SettingsError(
                f"--prompt {prompts[0]!r}: this model was not trained on texts (model.condition is"
                f" {loaded.experiment.model.condition}); leave it out, or name classes with --class"
            )
        names = loaded.cache.class_names if loaded.experiment.model.condition == "class" else []
        labels = labels_of(names, classes, clips or DEFAULT_CLIPS)
        return Wanted(labels, tuple(names[label] if names else str(label) for label in labels.tolist()))
    if classes or not prompts:
        raise SettingsError("this model was trained on texts (model.condition text); say with --prompt what to show")
    words = loaded.words
    for prompt in prompts:
        if not (cut := words.encode(prompt)) or len(words.unknown(prompt)) == len(cut):
            raise SettingsError(f"--prompt {prompt!r} has no word of a training caption; use words of the captions")
    unknown = dict.fromkeys(word for prompt in prompts for word in words.unknown(prompt))
    texts = [prompts[place % len(prompts)] for place in range(clips or len(prompts))]
    length = loaded.experiment.model.text_tokens
    return Wanted(padded([words.encode(text) for text in texts], length, words.num_words), tuple(texts), tuple(unknown))


def tokenizer_of(loaded: LoadedModel, experiment: Experiment) -> Tokenizer:
    """The tokenizer that a model was trained with, at its old path or in the current cache folder.

    Raises:
        DataError: if it is in neither place.
    """
    known = Path(loaded.cache.tokenizer_path)
    if experiment.data.layout == "tokens":
        raise DataError(
            "the model was trained on data.layout tokens, and ReCo-Tune has no decoder for these codes, so it cannot"
            " generate clips"
        )
    for path in (known, experiment.cache_dir / "tokenizers" / known.name):
        if path.is_dir():
            tokenizer = load_tokenizer(path)
            if tokenizer.fingerprint == loaded.cache.tokenizer_fingerprint:
                return tokenizer
    raise DataError(
        f"the tokenizer that the model was trained with is no longer at {known}; give its cache folder with"
        " --set data.cache_dir=FOLDER, or fit it again from the same videos with `reco-tune evaluate`"
    )


def generated(
    loaded: LoadedModel, experiment: Experiment, given_N: NDArray[np.int64], seed: int, progress: Progress
) -> NDArray[np.uint8]:
    """Generates uint8 [N, F, C, H, W], one sampling batch at a time; each batch has its own seed.

    Raises:
        DataError: if the tokenizer is missing.
    """
    tokenizer = tokenizer_of(loaded, experiment)
    model = loaded.model.to(prepare_device(experiment))
    size = experiment.sampling.batch_size
    requests = [
        Request(torch.from_numpy(given_N[start : start + size]), seed + start) for start in range(0, len(given_N), size)
    ]
    made = generate_clips(model, experiment, tokenizer, TokenGrid(*loaded.cache.grid), requests, progress)
    return np.concatenate([clips.video_BFCHW.cpu().numpy() for clips in made])


def grid_video(video_BFCHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Clips side by side in a square grid, enlarged if they are tiny: [F, H, W, C]."""
    clips, frames, channels, height, width = video_BFCHW.shape
    across = math.ceil(math.sqrt(clips))
    down = math.ceil(clips / across)
    padded = np.zeros((down * across, frames, channels, height, width), dtype=np.uint8)
    padded[:clips] = video_BFCHW
    laid = padded.reshape(down, across, frames, channels, height, width).transpose(2, 0, 4, 1, 5, 3)
    zoom = max(1, SHOWN_SIDE_PX // height)
    return laid.reshape(frames, down * height, across * width, channels).repeat(zoom, axis=1).repeat(zoom, axis=2)
