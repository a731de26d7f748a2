"""A small causal 3D-convolutional VQ-VAE, trained on the clips in minutes.

The first frame and each later group of `temporal_stride` frames are cut into patches, so that all convolutions work on blocks. Time is
padded in the past alone and norms act on single positions: a block's codes depend on nothing after it, and a clip of any number of blocks
can be encoded and decoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from reco_tune import settings
from reco_tune.progress import Progress, quiet
from reco_tune.threads import one_thread
from reco_tune.tokenizers.base import Parts, PixelRange, check_frames, fingerprint, save_parts

KIND = "vq"
_CODE_WIDTH = 16
"""Channels of a code vector."""
_COMMITMENT = 0.25
_DECAY = 0.9
"""Of the moving averages that the codebook follows."""
_DEAD = 0.1
"""A code whose average number of uses per step falls below this share of an even use moves to a vector of the batch."""
_ENCODE_CLIPS = 16


class VectorQuantizedTokenizer:
    """Network and codebook behind the tokenizer protocol."""

    pixels = PixelRange(-1, 1)

    def __init__(self, network: VideoAutoencoder) -> None:
        self._network = network.eval().requires_grad_(False)
        self.num_codes = network.num_codes
        self.spatial_stride, self.temporal_stride = network.spatial_stride, network.temporal_stride
        self.fingerprint = fingerprint(KIND, network.settings(), network.state_dict())

    @torch.no_grad()
    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        """uint8 [B, F, 3, H, W] -> int64 [B, blocks, rows, columns]."""
        check_frames(video_BFCHW.shape[1], self.temporal_stride)
        network = self._network.to(video_BFCHW.device)
        return torch.cat([network.nearest(network.encode(_to_float(part))) for part in video_BFCHW.split(_ENCODE_CLIPS)])

    @torch.no_grad()
    def decode(self, codes_Btrc: torch.Tensor) -> torch.Tensor:
        """int64 [B, blocks, rows, columns] -> uint8 [B, F, 3, H, W]."""
        network = self._network.to(codes_Btrc.device)
        return torch.cat([_to_pixels(network.decode(network.codebook[part])) for part in codes_Btrc.split(_ENCODE_CLIPS)])

    def save(self, path: Path) -> None:
        save_parts(path, KIND, self._network.settings(), self._network.state_dict(), self.pixels)

    @classmethod
    def from_parts(cls, parts: Parts) -> VectorQuantizedTokenizer:
        network = VideoAutoencoder(**parts.settings)
        network.load_state_dict(parts.weights)
        return cls(network)


class VideoAutoencoder(nn.Module):
    """Patches -> causal convolutions -> code vectors, and back; the codebook is a buffer that follows its vectors."""

    codebook: torch.Tensor

    def __init__(self, num_codes: int, spatial_stride: int, temporal_stride: int, width: int) -> None:
        super().__init__()
        self.num_codes, self.width = num_codes, width
        self.spatial_stride, self.temporal_stride = spatial_stride, temporal_stride
        self.halves = spatial_stride % 2 == 0
        """Whether patches are half a site wide and a strided convolution does the rest."""
        self.patch = spatial_stride // 2 if self.halves else spatial_stride
        pixels, wide = 3 * self.patch**2, 2 * width
        self.first_in, self.later_in = nn.Linear(pixels, width), nn.Linear(pixels * temporal_stride, width)
        self.encoder = nn.Sequential(
            _Residual(width),
            _CausalConv(width, wide, stride=2 if self.halves else 1),
            _Residual(wide),
            _Residual(wide),
            _ChannelNorm(wide),
            nn.Conv3d(wide, _CODE_WIDTH, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv3d(_CODE_WIDTH, wide, 1),
            _Residual(wide),
            _Residual(wide),
            _Residual(wide),
            nn.Upsample(scale_factor=(1, 2, 2) if self.halves else (1, 1, 1)),
            _CausalConv(wide, width),
            _Residual(width),
            _Residual(width),
            _ChannelNorm(width),
        )
        self.first_out, self.later_out = nn.Linear(width, pixels), nn.Linear(width, pixels * temporal_stride)
        self.register_buffer("codebook", torch.zeros(num_codes, _CODE_WIDTH))

    def settings(self) -> dict[str, Any]:
        return {
            "num_codes": self.num_codes,
            "spatial_stride": self.spatial_stride,
            "temporal_stride": self.temporal_stride,
            "width": self.width,
        }

    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        """float [B, F, 3, H, W] in [-1, 1] -> vectors [B, blocks, rows, columns, code width]."""
        first = self.first_in(self._cut(video_BFCHW[:, :1], 1))
        later = self.later_in(self._cut(video_BFCHW[:, 1:], self.temporal_stride))
        return self.encoder(torch.cat([first, later], dim=1).movedim(-1, 1)).movedim(1, -1)

    def decode(self, vectors_BtrcE: torch.Tensor) -> torch.Tensor:
        """Vectors -> float [B, F, 3, H, W]."""
        hidden = self.decoder(vectors_BtrcE.movedim(-1, 1)).movedim(1, -1)
        first = self._paste(self.first_out(hidden[:, :1]), 1)
        later = self._paste(self.later_out(hidden[:, 1:]), self.temporal_stride)
        return torch.cat([first, later], dim=1)

    def nearest(self, vectors_BtrcE: torch.Tensor) -> torch.Tensor:
        """int64 [B, blocks, rows, columns]: argmin |c|² - 2 v·c."""
        return (self.codebook.square().sum(1) - 2 * vectors_BtrcE @ self.codebook.T).argmin(-1)

    def _cut(self, video: torch.Tensor, frames: int) -> torch.Tensor:
        batch, length, channels, height, width = video.shape
        side = self.patch
        parts = video.reshape(batch, length // frames, frames, channels, height // side, side, width // side, side)
        return parts.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4)

    def _paste(self, patches: torch.Tensor, frames: int) -> torch.Tensor:
        batch, blocks, rows, columns, _ = patches.shape
        side = self.patch
        parts = patches.reshape(batch, blocks, rows, columns, frames, 3, side, side)
        return parts.permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(batch, blocks * frames, 3, rows * side, columns * side)


@one_thread()
def fit_vector_quantized(
    tokenizer: settings.Tokenizer, clips: np.ndarray, progress: Progress = quiet, device: str = "cpu"
) -> VectorQuantizedTokenizer:
    """Trains on uint8 `clips` [N, F, 3, H, W]: squared and absolute error plus commitment; the codebook by moving averages."""
    random = torch.Generator().manual_seed(tokenizer.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tokenizer.seed)
        network = VideoAutoencoder(tokenizer.num_codes, tokenizer.spatial_stride, tokenizer.temporal_stride, tokenizer.width)
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=tokenizer.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
    rise = 0.1 if tokenizer.fit_steps != 10 else 0.2  # OneCycleLR divides by the steps of the rise less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, tokenizer.learning_rate, total_steps=tokenizer.fit_steps, pct_start=rise)
    codebook = _Codebook(network.codebook, random)
    for step in range(tokenizer.fit_steps):
        rows = torch.randint(len(clips), (tokenizer.fit_batch_size,), generator=random)
        video = _to_float(torch.from_numpy(clips[np.sort(rows.numpy())]).to(device))
        vectors = network.encode(video)
        codes = codebook.follow(network, vectors.detach())
        quantized = network.codebook[codes]
        error = network.decode(vectors + (quantized - vectors).detach()) - video
        loss = error.square().mean() + 0.1 * error.abs().mean() + _COMMITMENT * functional.mse_loss(vectors, quantized)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step + 1, tokenizer.fit_steps, "training the tokenizer")
    return VectorQuantizedTokenizer(network.cpu())


class _Codebook:
    """Moving averages of what each code stands for; codes that nothing uses are moved to where vectors are."""

    def __init__(self, codebook: torch.Tensor, random: torch.Generator) -> None:
        self._random = random
        self._counts = torch.zeros(len(codebook), device=codebook.device)
        self._sums = torch.zeros_like(codebook)

    @torch.no_grad()
    def follow(self, network: VideoAutoencoder, vectors_BtrcE: torch.Tensor) -> torch.Tensor:
        """Codes of the batch, after the codebook moved towards it."""
        flat = vectors_BtrcE.flatten(0, -2)
        codes = network.nearest(flat)
        used = torch.bincount(codes, minlength=network.num_codes).float()
        sums = torch.zeros_like(self._sums).index_add_(0, codes, flat)
        self._counts.mul_(_DECAY).add_(used, alpha=1 - _DECAY)
        self._sums.mul_(_DECAY).add_(sums, alpha=1 - _DECAY)
        even = len(flat) / network.num_codes
        dead = (self._counts < _DEAD * even).nonzero().flatten()
        if len(dead):
            self._counts[dead] = even
            self._sums[dead] = even * flat[torch.randint(len(flat), (len(dead),), generator=self._random).to(flat.device)]
        network.codebook.copy_(self._sums / self._counts[:, None])
        return network.nearest(vectors_BtrcE)


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of each position: unlike a group norm it lets no block see a later one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BCtrc: torch.Tensor) -> torch.Tensor:
        return self.norm(x_BCtrc.movedim(1, -1)).movedim(-1, 1)


class _CausalConv(nn.Module):
    """3 x 3 in space, this block and the one before in time."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, (2, 3, 3), stride=(1, stride, stride))

    def forward(self, x_BCtrc: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.pad(x_BCtrc, (1, 1, 1, 1, 1, 0)))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_ChannelNorm(channels), _CausalConv(channels, channels), nn.SiLU(), nn.Conv3d(channels, channels, 1))

    def forward(self, x_BCtrc: torch.Tensor) -> torch.Tensor:
        return x_BCtrc + self.body(x_BCtrc)


def _to_float(video: torch.Tensor) -> torch.Tensor:
    return video.float() / 127.5 - 1


def _to_pixels(video: torch.Tensor) -> torch.Tensor:
    return ((video + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
