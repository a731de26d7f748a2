"""The networks behind the feature extractors, and how clips become their inputs. Knows pixels only, no files or
fitting.

B clips   F frames   C = 3 channels   h, w pixels   D = 48 features
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Clips = NDArray[np.uint8]

NUM_FEATURES = 48
SIDE_PX = 32
"""Larger frames are averaged down to this side. The extractor judges layout and motion, and should take seconds, not
minutes.
"""
SEED = 0
"""Seed of the initial weights and of every random draw while fitting."""
BATCH_CLIPS = 64


class VideoNetwork(nn.Module):
    """3D CNN of 16, 32 and 48 channels, averaged over time and space. With classes, also a 2D CNN for single
    frames.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, num_classes: int) -> None:
        """With `num_classes` 0, the network gives features only."""
        super().__init__()
        self.num_classes = num_classes
        self.trunk = nn.Sequential(
            *_convolution(nn.Conv3d(3, 16, 3, stride=(1, 2, 2), padding=1, bias=False), nn.BatchNorm3d(16)),
            *_convolution(nn.Conv3d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm3d(32)),
            *_convolution(nn.Conv3d(32, NUM_FEATURES, 3, padding=1, bias=False), nn.BatchNorm3d(NUM_FEATURES)),
        )
        self.register_buffer("center", torch.zeros(NUM_FEATURES))
        self.register_buffer("scale", torch.ones(()))
        if num_classes:
            self.class_head = nn.Linear(NUM_FEATURES, num_classes)
            self.motion_head = nn.Linear(NUM_FEATURES, 4)
            self.frame_trunk = nn.Sequential(
                *_convolution(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)),
                *_convolution(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)),
                *_convolution(
                    nn.Conv2d(32, NUM_FEATURES, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(NUM_FEATURES)
                ),
            )
            self.frame_head = nn.Linear(NUM_FEATURES, num_classes)

    @property
    def shape(self) -> dict[str, int]:
        return {"num_classes": self.num_classes}

    def features(self, pixels_BCFHW: Tensor) -> Tensor:
        """Unscaled features [B, D]."""
        maps_BCFHW: Tensor = self.trunk(pixels_BCFHW)
        return maps_BCFHW.mean(dim=(2, 3, 4))

    def frame_logits(self, frames_NCHW: Tensor) -> Tensor:
        """Class logits of single frames."""
        logits: Tensor = self.frame_head(self.frame_trunk(frames_NCHW).mean(dim=(2, 3)))
        return logits

    def describe(self, pixels_BCFHW: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        features = self.features(pixels_BCFHW)
        scaled = (features.double() - self.center) * self.scale
        if not self.num_classes:
            return scaled, None, None
        batch, _, frames = pixels_BCFHW.shape[:3]
        frame_classes = self.frame_logits(pixels_BCFHW.transpose(1, 2).flatten(0, 1)).argmax(dim=1)
        return scaled, self.class_head(features).argmax(dim=1), frame_classes.view(batch, frames)


class PixelProjection(nn.Module):
    """Principal components of the pixels of whole clips."""

    mean: Tensor
    components: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, num_pixels: int, num_components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_pixels))
        self.register_buffer("components", torch.zeros(num_pixels, num_components))
        self.register_buffer("center", torch.zeros(num_components))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def fit(cls, clips_NFCHW: Clips) -> PixelProjection:
        """Finds the first `NUM_FEATURES` components (fewer where there are fewer clips) by subspace iteration from a
        fixed seed.
        """
        flat = torch.cat(
            [
                pixels(clips_NFCHW[i : i + BATCH_CLIPS]).flatten(1)
                for i in range(0, min(len(clips_NFCHW), 2048), BATCH_CLIPS)
            ]
        )
        kept = min(NUM_FEATURES, len(flat) - 1, flat.shape[1])
        projection = cls(flat.shape[1], kept)
        projection.mean.copy_(flat.mean(dim=0))
        flat -= projection.mean
        basis = torch.randn(flat.shape[1], min(kept + 16, flat.shape[1]), generator=torch.Generator().manual_seed(SEED))
        for _ in range(8):
            basis = torch.linalg.qr(flat.T @ (flat @ basis)).Q
        _, _, rotation = torch.linalg.svd(flat @ basis, full_matrices=False)
        projection.components.copy_((basis @ rotation.T)[:, :kept])
        return projection

    @property
    def shape(self) -> dict[str, list[int]]:
        return {"sizes": list(self.components.shape)}

    def describe(self, pixels_BCFHW: Tensor) -> tuple[Tensor, None, None]:
        features = (pixels_BCFHW.flatten(1) - self.mean) @ self.components
        return (features.double() - self.center) * self.scale, None, None


def motion_targets(pixels_BCFHW: Tensor) -> Tensor:
    """Four numbers [B, 4] that describe a clip's motion, computed from its pixels alone.

    They are the mean path of the brightness centroid per frame (vertical, horizontal) and the root mean square frame
    difference at lags 1 and 2.
    """
    grey_BFHW = pixels_BCFHW.mean(dim=1)
    mass = grey_BFHW - grey_BFHW.amin(dim=(2, 3), keepdim=True) + 1e-6
    mass = mass / mass.sum(dim=(2, 3), keepdim=True)
    rows, columns = (torch.linspace(-1, 1, size, device=mass.device) for size in mass.shape[2:])
    paths = [(mass.sum(dim=3) * rows).sum(dim=2), (mass.sum(dim=2) * columns).sum(dim=2)]
    centroids = [path.diff(dim=1).abs().mean(dim=1) for path in paths]
    lags = [min(lag, grey_BFHW.shape[1] - 1) for lag in (1, 2)]
    differences = [(grey_BFHW[:, lag:] - grey_BFHW[:, :-lag]).square().mean(dim=(1, 2, 3)).sqrt() for lag in lags]
    return torch.stack(centroids + differences, dim=1)


def pixels(video_BFCHW: Tensor | Clips, device: torch.device | str = "cpu") -> Tensor:
    """uint8 clips -> float32 [B, C, F, h, w] in [-1, 1], h and w at most `SIDE_PX`; sent to the device as bytes."""
    video = torch.from_numpy(np.array(video_BFCHW)) if isinstance(video_BFCHW, np.ndarray) else video_BFCHW
    values = video.to(device).transpose(1, 2).float() / 127.5 - 1
    height, width = (min(side, SIDE_PX) for side in values.shape[3:])
    return (
        values
        if values.shape[3:] == (height, width)
        else F.adaptive_avg_pool3d(values, (values.shape[2], height, width))
    )


def _convolution(*layers: nn.Module) -> tuple[nn.Module, ...]:
    return (*layers, nn.ReLU())
