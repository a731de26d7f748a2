"""A small causal 3D-convolutional autoencoder with discrete codes, trained on the clips in minutes.

There are two ways to quantize. VQ-VAE rounds a vector to the nearest one of a learned codebook. Finite scalar
quantization (Mentzer et al. 2023, arXiv 2309.15505) rounds each of a few channels to one of a few levels. Its
codebook is a fixed grid, so no code falls out of use.

The first frame and each later group of `temporal_stride` frames are cut into patches, so that all convolutions work
on blocks. Time is padded only in the past, and norms act on single positions. So a block's codes depend on nothing
after it, and a clip of any number of blocks can be encoded and decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from reco_tune import settings
from reco_tune.progress import Progress, quiet
from reco_tune.settings import FSQ_LEVELS
from reco_tune.threads import one_thread
from reco_tune.tokenizers.base import PixelRange, SavedParts, check_frames, fingerprint, save_parts

KIND = "vq"
_CODE_WIDTH = 16
"""Channels of a code vector."""
_COMMITMENT = 0.25
_DECAY = 0.9
"""Decay of the codebook's moving averages."""
_DEAD = 0.1
"""A code is dead if its average uses per step fall below this share of uniform use. It is then reset to a vector of
the batch.
"""
_LEVEL_MARGIN = 1e-3
"""Relative margin that keeps bounded values from rounding to a level outside the grid."""
_ENCODE_CLIPS = 16


class VectorQuantizedTokenizer:
    """The trained network and codebook as a `Tokenizer`."""

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
        return torch.cat(
            [network.nearest(network.encode(_to_float(part))) for part in video_BFCHW.split(_ENCODE_CLIPS)]
        )

    @torch.no_grad()
    def decode(self, codes_Btrc: torch.Tensor) -> torch.Tensor:
        """int64 [B, blocks, rows, columns] -> uint8 [B, F, 3, H, W]."""
        network = self._network.to(codes_Btrc.device)
        return torch.cat(
            [_to_pixels(network.decode(network.codebook[part])) for part in codes_Btrc.split(_ENCODE_CLIPS)]
        )

    def save(self, path: Path) -> None:
        save_parts(path, KIND, self._network.settings(), self._network.state_dict(), self.pixels)

    @classmethod
    def from_parts(cls, parts: SavedParts) -> VectorQuantizedTokenizer:
        network = VideoAutoencoder(**parts.settings)
        network.load_state_dict(parts.weights)
        return cls(network)


class VideoAutoencoder(nn.Module):
    """Patches -> causal convolutions -> code vectors, and back. The codebook is a buffer updated by moving averages,
    or a grid of levels.
    """

    codebook: torch.Tensor

    def __init__(
        self, num_codes: int, spatial_stride: int, temporal_stride: int, width: int, levels: Sequence[int] = ()
    ) -> None:
        """`levels`: number of levels of each channel of a code vector; their product is `num_codes`. Empty for a
        learned codebook.
        """
        super().__init__()
        self.num_codes, self.width, self.levels = num_codes, width, tuple(levels)
        self.spatial_stride, self.temporal_stride = spatial_stride, temporal_stride
        self.halves = spatial_stride % 2 == 0
        """Whether patches are half as wide as a code's site; a strided convolution then halves the grid."""
        self.patch = spatial_stride // 2 if self.halves else spatial_stride
        pixels, wide, channels = 3 * self.patch**2, 2 * width, len(levels) or _CODE_WIDTH
        self.first_in, self.later_in = nn.Linear(pixels, width), nn.Linear(pixels * temporal_stride, width)
        self.encoder = nn.Sequential(
            _Residual(width),
            _CausalConv(width, wide, stride=2 if self.halves else 1),
            _Residual(wide),
            _Residual(wide),
            _ChannelNorm(wide),
            nn.Conv3d(wide, channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv3d(channels, wide, 1),
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
        self.register_buffer(
            "codebook", level_grid(levels) if levels else torch.zeros(num_codes, channels), persistent=not levels
        )

    def settings(self) -> dict[str, Any]:
        return {
            "num_codes": self.num_codes,
            "spatial_stride": self.spatial_stride,
            "temporal_stride": self.temporal_stride,
            "width": self.width,
            **({"levels": list(self.levels)} if self.levels else {}),
        }

    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        """float [B, F, 3, H, W] in [-1, 1] -> vectors [B, blocks, rows, columns, code width]."""
        first = self.first_in(self._cut(video_BFCHW[:, :1], 1))
        later = self.later_in(self._cut(video_BFCHW[:, 1:], self.temporal_stride))
        vectors = self.encoder(torch.cat([first, later], dim=1).movedim(-1, 1)).movedim(1, -1)
        return bounded(vectors, self.levels) if self.levels else vectors

    def decode(self, vectors_BtrcE: torch.Tensor) -> torch.Tensor:
        """Vectors -> float [B, F, 3, H, W]."""
        hidden = self.decoder(vectors_BtrcE.movedim(-1, 1)).movedim(1, -1)
        first = self._paste(self.first_out(hidden[:, :1]), 1)
        later = self._paste(self.later_out(hidden[:, 1:]), self.temporal_stride)
        return torch.cat([first, later], dim=1)

    def nearest(self, vectors_BtrcE: torch.Tensor) -> torch.Tensor:
        """int64 [B, blocks, rows, columns]: argmin |c|² - 2 v·c. On a grid this is the nearest level of each
        channel.
        """
        if self.levels:
            return level_codes(vectors_BtrcE, self.levels)
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
    """Trains on uint8 `clips` [N, F, 3, H, W] with squared and absolute error. A learned codebook uses moving
    averages and a commitment loss.
    """
    random = torch.Generator().manual_seed(tokenizer.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tokenizer.seed)
        levels = FSQ_LEVELS[tokenizer.num_codes] if tokenizer.quantizer == "fsq" else ()
        network = VideoAutoencoder(
            tokenizer.num_codes, tokenizer.spatial_stride, tokenizer.temporal_stride, tokenizer.width, levels
        )
    network.to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=tokenizer.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4
    )
    rise = 0.1 if tokenizer.fit_steps != 10 else 0.2  # at 10 steps, OneCycleLR would divide by zero
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, tokenizer.learning_rate, total_steps=tokenizer.fit_steps, pct_start=rise
    )
    codebook = None if network.levels else CodebookFit(network.codebook, random)
    for step in range(tokenizer.fit_steps):
        rows = torch.randint(len(clips), (tokenizer.fit_batch_size,), generator=random)
        video = _to_float(torch.from_numpy(clips[np.sort(rows.numpy())]).to(device))
        vectors = network.encode(video)
        codes = codebook.follow(network, vectors.detach()) if codebook else network.nearest(vectors.detach())
        quantized = network.codebook[codes]
        error = network.decode(straight_through(vectors, quantized)) - video
        loss = error.square().mean() + 0.1 * error.abs().mean()
        if codebook:
            loss = loss + _COMMITMENT * functional.mse_loss(vectors, quantized)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step + 1, tokenizer.fit_steps, "training the tokenizer")
    return VectorQuantizedTokenizer(network.cpu())


def straight_through(vectors: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """The value of `quantized`, with the gradient going to `vectors`."""
    return vectors + (quantized - vectors).detach()


def bounded(vectors_E: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """Maps any float [..., E] into the range of the levels, as input for the rounding in `level_codes`. 0 stays 0."""
    count = vectors_E.new_tensor(levels)
    half = (count - 1) * (1 - _LEVEL_MARGIN) / 2
    offset = (count % 2 == 0) / 2  # an even number of levels has no centre: its grid is shifted by half a level
    return (torch.tanh(vectors_E + torch.atanh(offset / half)) * half - offset) / (count // 2)


def level_codes(vectors_E: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """Bounded float [..., E] -> int64 [...]: the nearest level of each channel. The first channel varies fastest."""
    count = torch.tensor(levels, device=vectors_E.device)
    digits = (vectors_E * (count // 2)).round().long() + count // 2
    return (digits * _place_values(count)).sum(-1)


def level_grid(levels: Sequence[int]) -> torch.Tensor:
    """float [product of the levels, E]: the vector of every code, in -1 .. 1."""
    count = torch.tensor(levels)
    codes = torch.arange(int(count.prod()))[:, None]
    return (codes // _place_values(count) % count - count // 2) / (count // 2)


def _place_values(count_E: torch.Tensor) -> torch.Tensor:
    return count_E.cumprod(0) // count_E


class CodebookFit:
    """Moving averages of the vectors that each code stands for. Unused codes are reset to vectors of the batch."""

    def __init__(self, codebook: torch.Tensor, random: torch.Generator) -> None:
        self._random = random
        self._counts = torch.zeros(len(codebook), device=codebook.device)
        self._sums = torch.zeros_like(codebook)

    @torch.no_grad()
    def follow(self, network: VideoAutoencoder, vectors_BtrcE: torch.Tensor) -> torch.Tensor:
        """Codes of the batch, after an update of the codebook."""
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
            self._sums[dead] = (
                even * flat[torch.randint(len(flat), (len(dead),), generator=self._random).to(flat.device)]
            )
        network.codebook.copy_(self._sums / self._counts[:, None])
        return network.nearest(vectors_BtrcE)


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of each position. Unlike a group norm, it does not leak later blocks into earlier
    ones.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BCtrc: torch.Tensor) -> torch.Tensor:
        normed_BtrcC: torch.Tensor = self.norm(x_BCtrc.movedim(1, -1))
        return normed_BtrcC.movedim(-1, 1)


class _CausalConv(nn.Module):
    """A 3 x 3 kernel in space; in time, this block and the one before."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, (2, 3, 3), stride=(1, stride, stride))

    def forward(self, x_BCtrc: torch.Tensor) -> torch.Tensor:
        convolved: torch.Tensor = self.conv(functional.pad(x_BCtrc, (1, 1, 1, 1, 1, 0)))
        return convolved


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _ChannelNorm(channels), _CausalConv(channels, channels), nn.SiLU(), nn.Conv3d(channels, channels, 1)
        )

    def forward(self, x_BCtrc: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.body(x_BCtrc)
        return x_BCtrc + change


def _to_float(video: torch.Tensor) -> torch.Tensor:
    return video.float() / 127.5 - 1


def _to_pixels(video: torch.Tensor) -> torch.Tensor:
    return ((video + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
