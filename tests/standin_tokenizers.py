"""Small networks with the interfaces of published tokenizers: what a folder of weights or of their authors' code looks
like on disk.

Each sees colours: a site's code is the colour that its pixels have on average, so a wrong range of pixels, order of
axes or number of the first code shows as a wrong colour.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

OMNI_CODES, LARP_CODES = 40, 30


class CosmosEncoder(nn.Module):
    """indices, codes and a loss of a video in [-1, 1]: 8 levels a colour channel, and three more channels of 5 levels
    that say nothing.
    """

    def __init__(self, temporal: int, spatial: int, offset: int) -> None:
        super().__init__()
        self.temporal, self.spatial, self.offset = temporal, spatial, offset
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def forward(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        assert video.dtype == torch.bfloat16
        video = video.float()
        first = functional.avg_pool3d(video[:, :, :1], [1, self.spatial, self.spatial])
        if video.shape[2] > 1:
            later = functional.avg_pool3d(video[:, :, 1:], [self.temporal, self.spatial, self.spatial])
            first = torch.cat([first, later], dim=2)
        digits = torch.cat([((first + 1) / 2 * 7).round(), torch.full_like(first, 2.0)], dim=1)
        halves = torch.tensor([4.0, 4.0, 4.0, 2.0, 2.0, 2.0]).view(1, 6, 1, 1, 1)
        places = torch.tensor([1.0, 8.0, 64.0, 512.0, 2560.0, 12800.0]).view(1, 6, 1, 1, 1)
        indices = (digits * places).sum(dim=1).to(torch.int32) + self.offset
        return indices, ((digits - halves) / halves).to(torch.bfloat16), digits.mean()


class CosmosDecoder(nn.Module):
    def __init__(self, temporal: int, spatial: int, offset: int) -> None:
        super().__init__()
        self.temporal, self.spatial, self.offset = temporal, spatial, offset

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        places = torch.tensor([1, 8, 64]).view(1, 3, 1, 1, 1)
        colours = ((indices.long() - self.offset).unsqueeze(1) // places) % 8 / 7.0 * 2 - 1
        wide = colours.repeat_interleave(self.spatial, 3).repeat_interleave(self.spatial, 4)
        return torch.cat([wide[:, :, :1], wide[:, :, 1:].repeat_interleave(self.temporal, 2)], dim=2).to(torch.bfloat16)


def write_cosmos(
    folder: Path, temporal: int = 4, spatial: int = 8, offset: int = 0, encoder: nn.Module | None = None
) -> Path:
    """`encoder.jit` and `decoder.jit`."""
    folder.mkdir(parents=True)
    torch.jit.script(encoder or CosmosEncoder(temporal, spatial, offset)).save(str(folder / "encoder.jit"))
    torch.jit.script(CosmosDecoder(temporal, spatial, offset)).save(str(folder / "decoder.jit"))
    return folder


_OMNI = """
import pretend_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from .modules import LPIPS


class NLayerDiscriminator(nn.Module):
    def __init__(self, *args, **kwargs):
        raise RuntimeError("no loss is needed")


NLayerDiscriminator3D = NLayerDiscriminator


class Codebook(nn.Module):
    def __init__(self, n_codes, dim):
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(n_codes, dim))
        self._need_init = True

    def forward(self, z):
        if self.training:
            raise RuntimeError("a codebook in training moves")
        flat = z.movedim(1, -1)
        return {"embeddings": z, "encodings": (flat[..., None, :] - self.embeddings).square().sum(-1).argmin(-1)}


class VQGAN(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args = args
        assert args.causal_in_peg and args.casual_in_peg, "either spelling of the repository's history"
        self.codebook = Codebook(args.n_codes, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.perceptual_model = LPIPS().eval()
        self.image_discriminator = NLayerDiscriminator(3)
        self.video_discriminator = NLayerDiscriminator3D(3)

    def encode(self, x, is_image, include_embeddings=False):
        assert not is_image and x.ndim == 5
        x = F.dropout(x, self.args.attn_dropout, training=True)
        s, t = self.args.patch_size, self.args.temporal_patch_size
        z = F.avg_pool3d(x[:, :, :1], (1, s, s))
        if x.shape[2] > 1:
            z = torch.cat([z, F.avg_pool3d(x[:, :, 1:], (t, s, s))], dim=2)
        return self.codebook(z * self.scale.view(1, 3, 1, 1, 1))["encodings"]

    def decode(self, encodings, is_image):
        assert not is_image
        if encodings.ndim != 4:
            raise RuntimeError("a flat sequence is folded for 256 x 256 only")
        z = F.embedding(encodings, self.codebook.embeddings).movedim(-1, 1)
        s, t = self.args.patch_size, self.args.temporal_patch_size
        z = z.repeat_interleave(s, 3).repeat_interleave(s, 4)
        return torch.cat([z[:, :, :1], z[:, :, 1:].repeat_interleave(t, 2)], dim=2)
"""


def write_omnitokenizer(folder: Path, **changes: object) -> tuple[Path, Path]:
    """The repository (importing the whole package fails, as it does without its data sets' packages) and a
    Lightning-like checkpoint.
    """
    package = folder / "repository" / "OmniTokenizer"
    (package / "modules").mkdir(parents=True)
    (package / "__init__.py").write_text("from .data import VideoData  # not there\n")
    (package / "omnitokenizer.py").write_text(_OMNI)
    (package / "modules" / "__init__.py").write_text(
        "class LPIPS:\n    def __init__(self): raise RuntimeError('it would download')\n"
    )
    (folder / "repository" / "pretend_lightning.py").write_text("")
    arguments = {
        "n_codes": OMNI_CODES,
        "patch_size": 8,
        "temporal_patch_size": 4,
        "casual_in_peg": True,
        "attn_dropout": 0.5,
        "data_path": ["ucf", "imagenet"],
        **changes,
    }
    colours = torch.rand(OMNI_CODES, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    weights = {"codebook.embeddings": colours, "scale": torch.ones(3), "perceptual_model.net.weight": torch.ones(2)}
    checkpoint = folder / "imagenet_ucf.ckpt"
    saved = {
        "state_dict": weights,
        "hyper_parameters": {"args": argparse.Namespace(**arguments)},
        "epoch": 3,
        "optimizer_states": [],
    }
    torch.save(saved, checkpoint)
    return folder / "repository", checkpoint


_LARP_INIT = """
models = {}


def register(name):
    def decorate(cls):
        models[name] = cls
        return cls

    return decorate


from . import larp_tokenizer
"""
_LARP = """
import torch
from torch import nn
from models import register


class Regularizer(nn.Module):
    def __init__(self, codes):
        super().__init__()
        self.embedding = nn.Embedding(codes, 3)
        self.deterministic = False

    def set_eval_deterministic(self, deterministic=True):
        self.deterministic = deterministic

    def forward(self, z):
        codes = (z[..., None, :] - self.embedding.weight).square().sum(-1).argmin(-1)
        return codes if self.deterministic else torch.randint_like(codes, len(self.embedding.weight))


class Bottleneck(nn.Module):
    def __init__(self, codes):
        super().__init__()
        self.regularizer = Regularizer(codes)

    def decode(self, codes):
        return self.regularizer.embedding(codes)


@register("larp_tokenizer")
class LARPTokenizer(nn.Module):
    def __init__(self, bottleneck, prior_model, bottleneck_token_num=1024, input_size=128, frame_num=16):
        super().__init__()
        assert prior_model["name"] == "none", "the prior is for training"
        self.bottleneck_token_num, self.input_size, self.frame_num = bottleneck_token_num, input_size, frame_num
        self.codebook_size = bottleneck["args"]["regularizer"]["args"]["codebook_size"]
        self.bottleneck = Bottleneck(self.codebook_size)

    def set_vq_eval_deterministic(self, deterministic=True):
        self.bottleneck.regularizer.set_eval_deterministic(deterministic)

    def encode(self, x):
        pooled = nn.functional.avg_pool3d(x, (4, 8, 8)).flatten(2).transpose(1, 2)
        return {"encoded": pooled, "bottleneck_rep": self.bottleneck.regularizer(pooled)}

    def decode_from_bottleneck(self, codes):
        z = self.bottleneck.decode(codes).transpose(1, 2).unflatten(2, (4, 16, 16))
        return z.repeat_interleave(4, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
"""


def write_larp(folder: Path) -> tuple[Path, Path, Path]:
    """The repository, a hub folder and a training checkpoint of the same weights."""
    repository = folder / "repository"
    (repository / "models").mkdir(parents=True)
    (repository / "models" / "__init__.py").write_text(_LARP_INIT)
    (repository / "models" / "larp_tokenizer.py").write_text(_LARP)
    config = {
        "bottleneck": {
            "name": "bottleneck",
            "args": {"regularizer": {"name": "vq", "args": {"codebook_size": LARP_CODES}}},
        },
        "prior_model": {"name": "gptc-S", "n_rounds": 2},
    }
    weights = {
        "bottleneck.regularizer.embedding.weight": torch.rand(
            LARP_CODES, 3, generator=torch.Generator().manual_seed(0)
        ),
        "prior_model.head.weight": torch.ones(2),
    }
    hub = folder / "LARP-L-long-tokenizer"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps(config))
    save_file(weights, hub / "model.safetensors")
    torch.save(
        {"model": {"name": "larp_tokenizer", "args": config, "sd": weights}, "epoch": 400}, folder / "epoch-last.pth"
    )
    return repository, hub, folder / "epoch-last.pth"


def write_vidtok(folder: Path) -> Path:
    """A small AutoencoderVidTok of random weights; needs diffusers."""
    from diffusers import AutoencoderVidTok

    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    network = AutoencoderVidTok(
        ch=32,
        ch_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        z_channels=5,
        double_z=False,
        regularizer="fsq",
        codebook_size=32768,
    )
    torch.random.set_rng_state(state)
    network.save_pretrained(folder / "vidtok_fsq_causal_488_32768_v1_1")
    return folder / "vidtok_fsq_causal_488_32768_v1_1"


def forget(*packages: str) -> None:
    """Another test's repository of the same name may be imported next."""
    import sys

    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]
