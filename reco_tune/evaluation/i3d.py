"""I3D, loaded from the user's file: the features of published FVD protocols.

Knows pixels and one TorchScript network, not distances. The network is `i3d_torchscript.pt`, called as its authors
call it: forward(x, rescale, resize, return_features) -> 400 logits, with x [B, 3, F, H, W]. TorchScript's fuser is
off: it recompiles for every shape and has been seen to change results.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reco_tune.errors import DataError
from reco_tune.evaluation.feature_networks import Clips
from reco_tune.evaluation.video_features import ClipDescription
from reco_tune.settings.protocols import PublishedProtocol

SIDE_PX = 224
"""Height and width on which the network was trained."""
FEATURES = 400
CALLED_WITH = {"rescale", "resize", "return_features"}
BATCH_CLIPS = 8
"""Clips per forward pass; 17 frames of 224 x 224 pixels take about 0.3 GB of activations per clip."""


@dataclass(frozen=True)
class I3D:
    """A loaded network, and how a protocol preprocesses clips for it."""

    protocol: str
    published: PublishedProtocol
    network: Any
    hash: str
    """SHA-256 of the file."""
    quality: dict[str, float] = field(default_factory=dict)
    """Always empty: the network was not trained here."""

    def describe(self, video_BFCHW: Tensor | Clips, device: str = "cpu") -> ClipDescription:
        """Logits of the first frames of uint8 clips. They name no class of the data set."""
        network, parts = self.network.to(device), [np.empty((0, FEATURES))]
        with torch.no_grad(), _quiet_torchscript():
            for start in range(0, len(video_BFCHW), BATCH_CLIPS):
                shown = i3d_pixels(video_BFCHW[start : start + BATCH_CLIPS], self.published, device)
                logits = network(
                    shown, rescale=self.published.rescale, resize=self.published.resize, return_features=True
                )
                parts.append(_checked(logits).double().cpu().numpy())
        return ClipDescription(np.concatenate(parts), None, None)


def i3d_pixels(video_BFCHW: Tensor | Clips, published: PublishedProtocol, device: torch.device | str = "cpu") -> Tensor:
    """The first frames of uint8 clips, preprocessed as the protocol prescribes: float32 [B, 3, F, H, W] in 0..255 or
    [-1, 1].
    """
    video = torch.from_numpy(np.array(video_BFCHW)) if isinstance(video_BFCHW, np.ndarray) else video_BFCHW
    pixels_BFCHW = video[:, : published.frames].to(device).float()  # sent as bytes, converted on the device
    if not published.rescale:
        pixels_BFCHW = pixels_BFCHW / 127.5 - 1
    if not published.resize:
        flat = F.interpolate(pixels_BFCHW.flatten(0, 1), (SIDE_PX, SIDE_PX), mode="bilinear", align_corners=False)
        pixels_BFCHW = flat.unflatten(0, pixels_BFCHW.shape[:2])
    return pixels_BFCHW.transpose(1, 2).contiguous()


def load_i3d(path: Path, sha256: str, protocol: str, published: PublishedProtocol) -> I3D:
    """Loads the network and checks its hash: another network would give other numbers under the same protocol name.

    Raises:
        DataError: if the file is missing, has another hash, or holds no such network.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"evaluation.extractor_path ({path}) cannot be read ({error.strerror}); put i3d_torchscript.pt there"
            " (docs/reference/fvd-protocols.md says where to find it), or set evaluation.protocol to native"
        ) from error
    if found != sha256:
        raise DataError(
            f"evaluation.extractor_path ({path}) has the sha256 {found}, not {sha256}: fetch the file again, or, to use"
            f" another network on purpose, set evaluation.extractor_sha256 to {found}"
        )
    try:
        with _quiet_torchscript():
            network = torch.jit.load(str(path), map_location="cpu").eval()
        known = {argument.name for argument in network.forward.schema.arguments}
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        raise DataError(
            f"evaluation.extractor_path ({path}) is not a TorchScript network; give i3d_torchscript.pt"
        ) from error
    if not known >= CALLED_WITH:
        missing = ", ".join(sorted(CALLED_WITH - known))
        raise DataError(
            f"the network of evaluation.extractor_path ({path}) does not take {missing}; give i3d_torchscript.pt"
        )
    return I3D(protocol, published, network, found)


def _checked(logits: Any) -> Tensor:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] != FEATURES:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(
            f"the network of evaluation.extractor_path gave {shape} where I3D gives [clips, {FEATURES}]; give"
            " i3d_torchscript.pt"
        )
    return logits


@contextmanager
def _quiet_torchscript() -> Iterator[None]:
    """Turns off the fuser, and the warning that TorchScript is deprecated: published FVD needs this very file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*is deprecated", category=DeprecationWarning)
        before = torch.jit.set_fusion_strategy([("STATIC", 0), ("DYNAMIC", 0)])
        try:
            yield
        finally:
            torch.jit.set_fusion_strategy(before)
