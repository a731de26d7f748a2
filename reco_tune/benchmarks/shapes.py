"""Benchmark inputs: named sizes of model and clip, their experiments, and random tokens to train on. It measures
nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from reco_tune.data.clips import Clip
from reco_tune.data.layouts import SPLITS
from reco_tune.data.token_cache import TokenCache, TokenCacheWriter
from reco_tune.errors import SettingsError
from reco_tune.model import ModelSettings
from reco_tune.progress import Progress, quiet
from reco_tune.settings import ARMS, BASELINE, PRESETS, Experiment, make_experiment

BLOCKS, WINDOW_BLOCKS = 5, 2
"""Latent frames of a clip and of a window, as in the paper. Starts lie on whole blocks, except for `local`, which may
start anywhere.
"""

ARM_NAMES = ("full", "fewer_frames", "masked_full", "local", "local_balanced", "reco")
"""What `bench steps` compares by default."""

CLASSES = 10
_PIXELS, _FRAMES = 4, 2
"""Strides of the tokenizer in the settings. No tokenizer runs."""


class Shape(NamedTuple):
    """A model and its clips."""

    name: str
    side: int
    """Codes per row and per column of a block."""
    width: int
    depth: int
    heads: int
    num_codes: int
    batch_size: int
    """Clips per micro-batch."""
    micro_batches: int = 1
    """Micro-batches per step, as in the shipped experiments. It matters, because the optimiser runs once per step."""

    @property
    def num_tokens(self) -> int:
        return BLOCKS * self.side**2

    @property
    def model(self) -> ModelSettings:
        return ModelSettings(
            num_codes=self.num_codes,
            num_tokens=self.num_tokens,
            num_classes=CLASSES,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
        )


def _preset(name: str, side: int, batch_size: int, micro_batches: int) -> Shape:
    preset = PRESETS[name]
    return Shape(
        f"{name}-{BLOCKS * side**2}",
        side,
        preset["width"],
        preset["depth"],
        preset["heads"],
        num_codes=8192,
        batch_size=batch_size,
        micro_batches=micro_batches,
    )


_CPU = (
    Shape("debug-45", 3, width=64, depth=3, heads=4, num_codes=256, batch_size=32),
    Shape("debug-320", 8, width=128, depth=4, heads=4, num_codes=256, batch_size=4),
    Shape("debug-1280", 16, width=128, depth=4, heads=4, num_codes=256, batch_size=1),
)
_GPU = (
    _preset("110M", 16, batch_size=24, micro_batches=4),
    _preset("110M", 32, batch_size=6, micro_batches=16),
    _preset("343M", 32, batch_size=4, micro_batches=10),
)
SHAPES = {shape.name: shape for shape in (*_CPU, *_GPU)}
"""Shapes by name. The name ends with the number of tokens in a clip."""


class BenchOptions(NamedTuple):
    """Time limit and device of all measurements."""

    seconds: float
    """Time limit of each comparison without warm-up. At least `timing.FEWEST_ROUNDS` rounds run."""
    threads: int = 1
    gpu: bool = False
    """On a GPU everything runs compiled and in bfloat16."""
    progress: Progress = quiet

    def experiment(self, shape: Shape, arm: str) -> Experiment:
        """Experiment of an arm at a shape."""
        return self.pair(shape, arm)[0]

    def pair(self, shape: Shape, arm: str, model: dict[str, Any] | None = None) -> tuple[Experiment, Experiment]:
        """An arm at a shape, and the baseline for its speed-up. Both use another model if `model` is given."""
        nested: dict[str, Any] = {
            "data": {"layout": "digits", "clip_frames": 1 + (BLOCKS - 1) * _FRAMES, "size_px": _PIXELS * shape.side},
            "tokenizer": {
                "num_codes": shape.num_codes,
                "first_frame_codes": 1,
                "spatial_stride": _PIXELS,
                "temporal_stride": _FRAMES,
            },
            "model": model or {"width": shape.width, "depth": shape.depth, "heads": shape.heads},
            "window": {"length_blocks": WINDOW_BLOCKS, "stride_fraction": 1 / WINDOW_BLOCKS},
            "training": {
                "batch_size": shape.batch_size * shape.micro_batches,
                "micro_batches": shape.micro_batches,
            },
            "resources": {"cpus_per_worker": self.threads, "gpus_per_worker": int(self.gpu)},
        }
        if self.gpu:
            nested["training"] |= {"precision": "bfloat16", "compile": model is None}
        one, other = (make_experiment(nested, ARMS[name], where=f"arm `{name}`") for name in (arm, BASELINE))
        return one, other

    @property
    def dtype(self) -> torch.dtype:
        """Dtype for measurements outside a training step; the step itself has autocast."""
        return torch.bfloat16 if self.gpu else torch.float32


def shapes_named(names: Sequence[str] | None) -> list[Shape]:
    """Shapes by name. None gives those that fit this machine.

    Raises:
        SettingsError: if a name is unknown.
    """
    if names is None:
        return list(_GPU if torch.cuda.is_available() else _CPU)
    return [SHAPES[name] for name in _known(names, SHAPES, "--shapes")]


def arms_named(names: Sequence[str] | None) -> list[str]:
    """Arms by name. None gives those of the paper's table.

    Raises:
        SettingsError: if a name is unknown.
    """
    return _known(names or ARM_NAMES, ARMS, "--arms")


def _known(names: Sequence[str], known: Mapping[str, object], option: str) -> list[str]:
    for name in names:
        if name not in known:
            raise SettingsError(f"{option} {name} is not known; choose from {', '.join(known)}")
    return list(names)


@contextmanager
def random_tokens(shape: Shape) -> Iterator[TokenCache]:
    """A token cache of random codes in a temporary folder. Speed does not depend on the values of the codes."""
    generator = np.random.default_rng(0)
    clips = [Clip(Path("random.avi"), i, i % CLASSES) for i in range(2 * shape.batch_size)]
    with TemporaryDirectory(prefix="reco-bench-") as folder, TokenCacheWriter(Path(folder)) as writer:
        for split in SPLITS:
            codes = generator.integers(shape.num_codes, size=(len(clips), shape.num_tokens), dtype=np.int32)
            pieces = np.stack([codes[:, : WINDOW_BLOCKS * shape.side**2]] * (BLOCKS - WINDOW_BLOCKS + 1), axis=1)
            writer.create(f"{split}.labels", (len(clips),), np.int64)[:] = [clip.label for clip in clips]
            writer.create(f"{split}.tokens", codes.shape, np.int32)[:] = codes
            writer.create(f"{split}.pieces-{WINDOW_BLOCKS}", pieces.shape, np.int32)[:] = pieces
        yield writer.finish(
            Path(folder) / "tokens",
            fingerprint="random",
            data_fingerprint="random",
            tokenizer_fingerprint="random",
            tokenizer_path=Path(folder) / "none",
            grid=BenchOptions(0).experiment(shape, "full").grid,
            num_codes=shape.num_codes,
            class_names=[str(label) for label in range(CLASSES)],
            clips=dict.fromkeys(SPLITS, clips),
            skipped=[],
        )
