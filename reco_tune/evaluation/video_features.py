"""Feature extractors of video: they turn a clip into 48 numbers, whose distribution FVD compares.

Knows pixels, class labels and how to fit, save and load an extractor; not token models, sampling or distances. Every
extractor is fitted on raw training clips. The fit is bit-identical for the same clips on the same machine type (one
thread). The hash of the weights is stored with every number that the extractor produces.

    B clips   F frames   C = 3 channels   H, W pixels   D = 48 features
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from reco_tune.errors import DataError, SettingsError
from reco_tune.evaluation.feature_networks import (
    BATCH_CLIPS,
    SEED,
    Clips,
    PixelProjection,
    VideoNetwork,
    motion_targets,
    pixels,
)
from reco_tune.progress import Progress, quiet
from reco_tune.threads import one_thread

Protocol = Literal["native", "native-random", "native-pca"]
Labels = NDArray[np.int64]

VERSION = 1
"""Version of the extractors: raise it whenever the same weights would give other features for the same clips."""
FIT_STEPS, FIT_PASSES, FIT_BATCH_CLIPS, LEARNING_RATE = 640, 60, 64, 5e-3
"""Upper limits of steps and of passes over the clips. The network memorises a few hundred clips long before 640
steps.
"""
MOTION_WEIGHT, FRAME_WEIGHT = 0.3, 0.3
NO_CLASSES = (
    "evaluation.protocol (native) learns its features from the classes of the clips, but this data set has fewer than"
    " two classes; set it to native-random or native-pca"
)


class ClipDescription(NamedTuple):
    """Output of an extractor for some clips. The classes are None if it was not trained on classes."""

    features_BD: NDArray[np.float64]
    class_B: Labels | None
    frame_class_BF: Labels | None


@dataclass(frozen=True)
class Extractor:
    """A fitted extractor."""

    protocol: Protocol
    network: VideoNetwork | PixelProjection
    quality: dict[str, float]
    """Held-out accuracy on its training tasks (`native` only)."""
    hash: str
    """SHA-256 of protocol, version and weights."""

    def describe(self, video_BFCHW: Tensor | Clips, device: str = "cpu") -> ClipDescription:
        """Features of uint8 clips; for `native` also the class of every clip and of every frame."""
        self.network.to(device)
        parts = []
        with torch.no_grad():
            for start in range(0, len(video_BFCHW), BATCH_CLIPS):
                parts.append(self.network.describe(pixels(video_BFCHW[start : start + BATCH_CLIPS], device)))
        features, classes, frame_classes = ([part[i] for part in parts] for i in range(3))
        return ClipDescription(_joined(features), _joined(classes), _joined(frame_classes))

    def save(self, folder: Path) -> None:
        """Writes extractor.safetensors and extractor.json."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.cpu().contiguous() for name, value in self.network.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "extractor.safetensors")
        described = {
            "version": VERSION,
            "protocol": self.protocol,
            "quality": self.quality,
            "hash": self.hash,
            **self.network.shape,
        }
        (folder / "extractor.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def fit_extractor(
    protocol: Protocol,
    clips_NFCHW: Clips,
    labels_N: Labels,
    num_classes: int,
    heldout_NFCHW: Clips,
    heldout_labels_N: Labels,
    progress: Progress = quiet,
    device: str = "cpu",
) -> Extractor:
    """Fits the extractor of a protocol on raw training clips.

    native: a small 3D CNN. It learns the clip's class and four motion numbers computed from the pixels
        (`motion_targets`), so its features capture both content and motion. A small 2D CNN beside it learns the
        class of single frames.
    native-random: the same 3D CNN with fixed random weights.
    native-pca: principal components of all pixels of a clip.

    The features are centred and divided by one number, so that over the training clips their mean is 0 and their mean
    variance is 1. The distances of all protocols then have one order of magnitude. They are still not comparable.

    Raises:
        SettingsError: for `native` on data without classes.
        DataError: with fewer than 2 clips.
    """
    if len(clips_NFCHW) < 2:
        raise DataError(
            f"a feature extractor needs at least 2 training clips, but the token cache keeps {len(clips_NFCHW)}; add"
            " videos"
        )
    if protocol == "native" and num_classes < 2:
        raise SettingsError(NO_CLASSES)
    quality: dict[str, float] = {}
    with one_thread():
        network: VideoNetwork | PixelProjection
        if protocol == "native-pca":
            network = PixelProjection.fit(clips_NFCHW)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                network = VideoNetwork(num_classes if protocol == "native" else 0)
            network.to(device)
            if protocol == "native":
                _train(network, clips_NFCHW, labels_N, progress)
        network.eval()
        plain = Extractor(protocol, network, {}, "").describe(clips_NFCHW[:1024], device).features_BD
        network.center.copy_(torch.from_numpy(plain.mean(axis=0)))
        network.scale.fill_(1 / max(1e-12, float(plain.var(axis=0).mean()) ** 0.5))
        if isinstance(network, VideoNetwork) and network.num_classes and len(heldout_NFCHW):
            quality = _quality(network, clips_NFCHW, heldout_NFCHW, heldout_labels_N, device)
    return Extractor(protocol, network.to("cpu"), quality, _hash(protocol, network))


def load_extractor(folder: Path) -> Extractor:
    """Reads what `Extractor.save` wrote.

    Raises:
        DataError: if a file is missing, damaged or of another version.
    """
    try:
        described = json.loads((folder / "extractor.json").read_text(encoding="utf-8"))
        weights = safetensors.torch.load_file(folder / "extractor.safetensors")
        network: VideoNetwork | PixelProjection
        with torch.random.fork_rng(devices=[]):  # layers draw initial weights, which the loaded ones replace
            network = (
                PixelProjection(*described["sizes"])
                if described["protocol"] == "native-pca"
                else VideoNetwork(described["num_classes"])
            )
        network.load_state_dict(weights)
        extractor = Extractor(described["protocol"], network.eval(), described["quality"], described["hash"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"{folder} holds no readable feature extractor; delete that folder, and it is fitted again"
        ) from error
    if extractor.hash != _hash(extractor.protocol, network):
        raise DataError(
            f"{folder} holds a feature extractor whose weights do not match their hash; delete that folder, and it is"
            " fitted again"
        )
    return extractor


def fit_steps(clips: int) -> int:
    """Training steps of the `native` network for this number of clips."""
    return min(FIT_STEPS, FIT_PASSES * -(-clips // FIT_BATCH_CLIPS))


def _train(network: VideoNetwork, clips_NFCHW: Clips, labels_N: Labels, progress: Progress) -> None:
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(SEED)
    center, spread = _motion_scale(clips_NFCHW)
    center, spread = center.to(device), spread.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.01)
    steps = fit_steps(len(clips_NFCHW))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    network.train()
    order = torch.empty(0, dtype=torch.long)
    batch_clips = min(FIT_BATCH_CLIPS, len(clips_NFCHW))
    for step in range(steps):
        if len(order) < batch_clips:
            order = torch.randperm(len(clips_NFCHW), generator=generator)
        chosen, order = np.sort(order[:batch_clips].numpy()), order[batch_clips:]  # sorted: faster from a memory map
        batch = pixels(clips_NFCHW[chosen], device)
        labels = torch.from_numpy(labels_N[chosen]).to(device)
        frame = torch.randint(batch.shape[2], (len(batch),), generator=generator)
        features = network.features(batch)
        loss = F.cross_entropy(network.class_head(features), labels)
        loss = loss + MOTION_WEIGHT * F.mse_loss(
            network.motion_head(features), (motion_targets(batch) - center) / spread
        )
        loss = loss + FRAME_WEIGHT * F.cross_entropy(
            network.frame_logits(batch[torch.arange(len(batch)), :, frame]), labels
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, steps, "fitting the feature extractor")


def _motion_scale(clips_NFCHW: Clips) -> tuple[Tensor, Tensor]:
    """Centre and spread [4] of the motion targets over the first training clips."""
    first = [clips_NFCHW[start : start + BATCH_CLIPS] for start in range(0, min(1024, len(clips_NFCHW)), BATCH_CLIPS)]
    targets = torch.cat([motion_targets(pixels(part)) for part in first])
    return (
        targets.mean(dim=0),
        targets.std(dim=0) + 1e-3,
    )  # the floor keeps rounding noise from being scaled up when clips have no motion


def _quality(
    network: VideoNetwork, clips_NFCHW: Clips, heldout_NFCHW: Clips, labels_N: Labels, device: str
) -> dict[str, float]:
    """Held-out accuracies, and the share of the motion targets' variance that the features explain."""
    center, spread = _motion_scale(clips_NFCHW)
    hits = frame_hits = 0.0
    errors, targets = [], []
    with torch.no_grad():
        for start in range(0, len(heldout_NFCHW), BATCH_CLIPS):
            batch = pixels(heldout_NFCHW[start : start + BATCH_CLIPS], device)
            labels = torch.from_numpy(labels_N[start : start + BATCH_CLIPS]).to(device)
            _, classes, frame_classes = network.describe(batch)
            assert classes is not None and frame_classes is not None
            hits += float((classes == labels).sum())
            frame_hits += float((frame_classes == labels[:, None]).float().mean(dim=1).sum())
            wanted = (motion_targets(batch).cpu() - center) / spread
            errors.append(network.motion_head(network.features(batch)).cpu() - wanted)
            targets.append(wanted)
    unexplained = torch.cat(errors).square().mean() / torch.cat(targets).var(dim=0, correction=0).mean().clamp_min(
        1e-12
    )
    count = len(heldout_NFCHW)
    return {"class_accuracy": hits / count, "frame_accuracy": frame_hits / count, "motion_r2": float(1 - unexplained)}


def _joined(parts: list[Any]) -> Any:
    return None if parts[0] is None else torch.cat(parts).cpu().numpy()


def _hash(protocol: Protocol, network: nn.Module) -> str:
    digest = hashlib.sha256(f"{protocol}/{VERSION}".encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"/{name}/{list(value.shape)}/{value.dtype}/".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
