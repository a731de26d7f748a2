"""A vocabulary of first-frame patches and of tubelets (patches over several frames), found by k-means in seconds.

Centroids are rounded to pixel values, so distances are exact sums of integers. A clip therefore has the same codes in
any batch and on any device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from reco_tune import settings
from reco_tune.progress import Progress, quiet
from reco_tune.tokenizers.base import PixelRange, SavedParts, check_frames, fingerprint, save_parts

KIND = "kmeans"
_MOST_VECTORS = 1 << 16
"""If there are more patches or tubelets than this, a seeded sample of them is fitted."""
_ENCODE_ROWS = 1 << 15
"""Vectors compared with the vocabulary at once; limits memory."""


class KMeansTokenizer:
    """Codes 0..A-1 are patches of the first frame; codes from A on are tubelets of `temporal_stride` frames."""

    pixels = PixelRange(0, 255)

    def __init__(
        self, first_AP: torch.Tensor, later_KQ: torch.Tensor, spatial_stride: int, temporal_stride: int
    ) -> None:
        """
        Args:
            first_AP: uint8 centroids of the first frame, pixels in the order row, column, channel.
            later_KQ: uint8 centroids of tubelets, in the order frame, row, column, channel.
        """
        self.first_AP, self.later_KQ = first_AP, later_KQ
        self.spatial_stride, self.temporal_stride = spatial_stride, temporal_stride
        self.num_codes = len(first_AP) + len(later_KQ)
        self.fingerprint = fingerprint(KIND, self._settings(), self._weights())

    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        """uint8 [B, F, 3, H, W] -> int64 [B, blocks, rows, columns]: the nearest centroid; the first one on a tie."""
        check_frames(video_BFCHW.shape[1], self.temporal_stride)
        first = nearest(to_patches(video_BFCHW[:, :1], self.spatial_stride, 1), self.first_AP)
        if video_BFCHW.shape[1] == 1:
            return first
        later = nearest(to_patches(video_BFCHW[:, 1:], self.spatial_stride, self.temporal_stride), self.later_KQ)
        return torch.cat([first, later + len(self.first_AP)], dim=1)

    def decode(self, codes_Btrc: torch.Tensor) -> torch.Tensor:
        """int64 [B, blocks, rows, columns] -> uint8 [B, F, 3, H, W].

        A code of the wrong kind of block is replaced by the nearest end of the right vocabulary.
        """
        split = len(self.first_AP)
        first = self.first_AP.to(codes_Btrc.device)[codes_Btrc[:, :1].clamp(max=split - 1)]
        later = self.later_KQ.to(codes_Btrc.device)[codes_Btrc[:, 1:].clamp(min=split) - split]
        return torch.cat(
            [to_pixels(first, self.spatial_stride, 1), to_pixels(later, self.spatial_stride, self.temporal_stride)],
            dim=1,
        )

    def save(self, path: Path) -> None:
        save_parts(path, KIND, self._settings(), self._weights(), self.pixels)

    @classmethod
    def from_parts(cls, parts: SavedParts) -> KMeansTokenizer:
        return cls(
            parts.weights["first"],
            parts.weights["later"],
            parts.settings["spatial_stride"],
            parts.settings["temporal_stride"],
        )

    def _settings(self) -> dict[str, Any]:
        return {"spatial_stride": self.spatial_stride, "temporal_stride": self.temporal_stride}

    def _weights(self) -> dict[str, torch.Tensor]:
        return {"first": self.first_AP, "later": self.later_KQ}


def fit_kmeans(tokenizer: settings.Tokenizer, clips: np.ndarray, progress: Progress = quiet) -> KMeansTokenizer:
    """Fits both vocabularies to uint8 `clips` [N, F, 3, H, W]. One thread, so the result is the same bits every
    time.
    """
    video = torch.from_numpy(np.array(clips))  # a copy: memory-mapped clips are read only
    spatial, temporal = tokenizer.spatial_stride, tokenizer.temporal_stride
    first = to_patches(video[:, :1], spatial, 1).flatten(0, -2).numpy()
    later = to_patches(video[:, 1:], spatial, temporal).flatten(0, -2).numpy()
    progress(0, 2, "fitting the vocabulary")
    first_centroids = _centroids(first, tokenizer.first_frame_codes, tokenizer.seed)
    progress(1, 2, "fitting the vocabulary")
    later_centroids = _centroids(later, tokenizer.num_codes - tokenizer.first_frame_codes, tokenizer.seed)
    progress(2, 2, "fitting the vocabulary")
    return KMeansTokenizer(first_centroids, later_centroids, spatial, temporal)


def _centroids(vectors: np.ndarray, codes: int, seed: int) -> torch.Tensor:
    """uint8 [codes, P]. If there are fewer different vectors than codes, copies of the last centroid fill the rest.
    They are never chosen, because the first of equals wins.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if len(vectors) > _MOST_VECTORS:
        vectors = vectors[np.random.default_rng(seed).choice(len(vectors), _MOST_VECTORS, replace=False)]
    distinct, counts = np.unique(vectors, axis=0, return_counts=True)
    if len(distinct) <= codes:
        centers = distinct.astype(np.float64)
    else:
        with threadpool_limits(1):
            means = KMeans(codes, n_init=1, random_state=seed, max_iter=60).fit(
                distinct.astype(np.float32), sample_weight=counts
            )
        centers = means.cluster_centers_
    centers = np.concatenate([centers, np.repeat(centers[-1:], codes - len(centers), axis=0)])
    return torch.from_numpy(np.rint(centers).clip(0, 255).astype(np.uint8))


def to_patches(video_BFCHW: torch.Tensor, side: int, frames: int) -> torch.Tensor:
    """[B, F, C, H, W] -> [B, F / frames, H / side, W / side, frames * side * side * C]."""
    batch, length, channels, height, width = video_BFCHW.shape
    cut = video_BFCHW.reshape(batch, length // frames, frames, channels, height // side, side, width // side, side)
    return cut.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4)


def to_pixels(patches_BtrcP: torch.Tensor, side: int, frames: int) -> torch.Tensor:
    """The inverse of `to_patches`."""
    batch, blocks, rows, columns, _ = patches_BtrcP.shape
    cut = patches_BtrcP.reshape(batch, blocks, rows, columns, frames, side, side, 3)
    return cut.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(batch, blocks * frames, 3, rows * side, columns * side)


def nearest(vectors: torch.Tensor, centroids_KP: torch.Tensor) -> torch.Tensor:
    """argmin |x - c|² = argmin |c|² - 2 x·c, in a dtype that holds every intermediate integer exactly."""
    exact = torch.float32 if 2 * 255**2 * centroids_KP.shape[1] < 2**24 else torch.float64
    centroids = centroids_KP.to(vectors.device, exact)
    offsets = centroids.square().sum(dim=1)
    flat = vectors.reshape(-1, vectors.shape[-1])
    codes = [(offsets - 2 * rows.to(exact) @ centroids.T).argmin(dim=1) for rows in flat.split(_ENCODE_ROWS)]
    return torch.cat(codes).reshape(vectors.shape[:-1])
