"""CLIP score (Hessel et al. 2021, arXiv 2104.08718): how well generated clips fit the texts that they were asked for,
as the cosine between CLIP's vectors of a frame and of the text.

    score of a clip = mean over its frames of cos(image, text)        scale `cosine`
                      max(100 x that mean, 0)                         scale `percent`

Published scores differ in model, frames, scale and captions, so all of them are in the protocol of a run. Knows pixels
and texts, but not where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from reco_tune.errors import SettingsError
from reco_tune.pretrained import MODEL_AND_WORDS, package_of_extra, pinned_source, source_of
from reco_tune.settings import Experiment

KEY = "evaluation.clip"
IMAGES_AT_ONCE = 64


def clip_protocol(experiment: Experiment) -> str:
    """The protocol of CLIP scores, without the caption rule. Empty if they are not measured.

    Raises:
        SettingsError: where there is no such model.
    """
    evaluation = experiment.evaluation
    if evaluation.clip is None:
        return ""
    name, _, pin = pinned_source(evaluation.clip, None, KEY, MODEL_AND_WORDS).rpartition("@")
    return f"CLIP {name.rstrip('/').rpartition('/')[2]} {pin[:12]} {evaluation.clip_scale} {evaluation.clip_frames}"


class ClipScore:
    """A CLIP model on a device."""

    def __init__(self, path: str, frames: str, scale: str, device: torch.device) -> None:
        """
        Args:
            path: folder or hub name, pinned or not.
            frames: `all` or `first`.
            scale: `cosine` or `percent`.

        Raises:
            SettingsError: where transformers is missing or cannot load it.
        """
        transformers = package_of_extra("transformers", "hf", KEY)
        source, revision = source_of(path, None, KEY, MODEL_AND_WORDS)
        # the other processor needs torchvision, and scales images slightly differently
        processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        try:
            self._model, info = transformers.CLIPModel.from_pretrained(
                source, revision=revision, dtype=torch.float32, output_loading_info=True
            )
            if lacking := sorted(info["missing_keys"]):
                raise ValueError(f"it has no weights for {lacking[0]}, which would be random")
            self._images = processor.from_pretrained(source, revision=revision)
            self._words = transformers.AutoTokenizer.from_pretrained(source, revision=revision)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            said = " ".join(str(error).split())[:200]
            raise SettingsError(f"{KEY} ({path}): transformers cannot load this CLIP ({said}); correct it") from error
        self._model = self._model.to(device).eval()
        self._frames, self._scale, self._device = frames, scale, device

    @torch.no_grad()
    def __call__(self, video_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores of uint8 clips and their texts, float64 [B]. A text that is too long for CLIP is cut."""
        shown_BFCHW = video_BFCHW[:, :1] if self._frames == "first" else video_BFCHW
        images_ND = self._vectors(list(shown_BFCHW.flatten(0, 1).cpu().numpy()))
        cosine_BF = (images_ND.unflatten(0, shown_BFCHW.shape[:2]) * self._texts(prompts)[:, None]).sum(dim=-1)
        mean_B: Tensor = cosine_BF.mean(dim=1).cpu()
        return mean_B if self._scale == "cosine" else (100 * mean_B).clamp(min=0)

    def _vectors(self, images: list[Any]) -> Tensor:
        found = []
        for first in range(0, len(images), IMAGES_AT_ONCE):
            pixels = self._images(
                images[first : first + IMAGES_AT_ONCE], return_tensors="pt", input_data_format="channels_first"
            )
            found.append(
                self._unit(self._model.get_image_features(pixel_values=pixels["pixel_values"].to(self._device)))
            )
        return torch.cat(found)

    def _texts(self, prompts: Sequence[str]) -> Tensor:
        longest = self._model.config.text_config.max_position_embeddings
        words = self._words(list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        told = {name: words[name].to(self._device) for name in ("input_ids", "attention_mask")}
        return self._unit(self._model.get_text_features(**told))

    @staticmethod
    def _unit(found: Any) -> Tensor:
        """Vectors of length 1. Older versions of transformers return a plain tensor."""
        vectors: Tensor = getattr(found, "pooler_output", found)
        return F.normalize(vectors.double(), dim=-1)
