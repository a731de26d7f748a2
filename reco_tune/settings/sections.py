"""The settings of one experiment, section by section: meaning, type, default and range of each.

The dotted name of a field (`window.length_tokens`) is its name everywhere: file, command line, search space, MLflow
parameter, table column.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from reco_tune import parts
from reco_tune.errors import SettingsError
from reco_tune.files import refuse_address
from reco_tune.settings.grids import HOLISTIC, TokenGrid
from reco_tune.settings.protocols import I3D_SHA256, protocol_defaults

LocalPath = Annotated[Path, AfterValidator(refuse_address)]
"""A file or folder at a path that is the same on every machine."""
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Seed of a random generator, in the range that all libraries accept."""


class _Named:
    """Type of a part's name or import path. Its code is imported only when it is used."""

    def __init__(self, group: str) -> None:
        self._group = group

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        path = {"type": "string", "pattern": f"^{parts.IMPORT_PATH.pattern}$"}
        names = list(parts.BUILT_IN[self._group])
        return {"anyOf": [*([{"type": "string", "enum": names}] if names else []), path]}

    def _known(self, name: str) -> str:
        try:
            return parts.check_name(self._group, name)
        except SettingsError as error:
            raise ValueError(str(error)) from error


Options = dict[str, Any]
"""Options of a part that is not built in. The part's own class checks them."""
ModelKind = Annotated[str, _Named("models")]
TokenizerKind = Annotated[str, _Named("tokenizers")]
Layout = Annotated[str, _Named("layouts")]
SchemeName = Annotated[str, _Named("schemes")]
LossTerm = Annotated[str, _Named("losses")]
Measure = Annotated[str, _Named("measures")]
SamplerKind = Annotated[str, _Named("samplers")]


class SettingsSection(BaseModel):
    """A frozen section of settings that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class Data(SettingsSection):
    """The videos, and how clips are cut from them."""

    layout: Layout = "ucf101"
    """How the folder is laid out: `ucf101`, `class_folders`, `flat`, `faceforensics`, `skytimelapse`, `taichi`,
    `frames`, `csv`, `msrvtt`, or the import path of your own layout. `digits` is the built-in data set, rendered to
    `root` in UCF101 layout on first use. `tokens` are your own codes: you can train on them, but there are no pixels to
    look at or to compute FVD from.
    """
    root: LocalPath | None = None
    """Folder of the videos. For `digits` it may be left out; the rendered videos then go to the cache folder."""
    cache_dir: LocalPath | None = None
    """Folder of token caches, fitted tokenizers and feature extractors. The default is `.cache/reco-tune` beside the
    data.
    """
    clip_frames: int = Field(17, ge=2)
    """Frames in a clip."""
    frame_stride: int = Field(1, ge=1)
    """Distance in source frames between two frames of a clip."""
    clip_stride: int | None = Field(None, ge=1)
    """Source frames between the starts of two clips of one video; by default clips do not overlap."""
    clips_per_video: int | None = Field(None, ge=1)
    """At most this many clips of each video, with random starts (drawn with `seed`). By default starts are evenly
    spaced.
    """
    short_videos: Literal["skip", "repeat_last", "loop"] = "skip"
    """What to do with a video that is shorter than a clip: leave it out (`skip`), repeat its last frame
    (`repeat_last`), or start again from its first frame (`loop`).
    """
    horizontal_flip: Literal["none", "random", "both"] = "none"
    """Mirrors training clips left to right: none of them (`none`), each with probability 0.5, drawn with `seed`
    (`random`), or every clip both as it is and mirrored (`both`).
    """
    min_clips: int = Field(1, ge=1)
    """Smallest number of clips in each split. A command that has fewer left after broken videos fails."""
    decode_seconds: float = Field(120, gt=0)
    """Time limit in seconds for one read of one video. A video that takes longer is left out."""
    size_px: int = Field(256, ge=4)
    """Height and width of a frame in pixels."""
    grid: tuple[Count, Count, Count] | None = None
    """Blocks, rows and columns of a clip's codes (layout `tokens` only). By default they follow from `clip_frames`,
    `size_px` and the tokenizer's strides.
    """
    resize: Literal["crop", "stretch"] = "crop"
    """`crop` scales the short side and crops the centre; `stretch` scales both sides."""
    split: Literal["lists", "time"] = "lists"
    """`lists` reads the split files or folders of the layout. `time` takes the last `test_fraction` of every video for
    test; train and test share no frame.
    """
    split_list: int = Field(1, ge=1, le=3)
    """Which of UCF101's three official splits to use."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of every video's frames that is held out if `split` is `time`."""
    train_clips: int | None = Field(None, ge=1)
    """At most this many training clips (drawn with `seed`). For `digits`, the number to render."""
    test_clips: int | None = Field(None, ge=1)
    """At most this many held-out clips (drawn with `seed`). For `digits`, the number to render."""
    class_conditional: bool = True
    """Whether the model sees the class of a clip. A layout without classes has one class."""
    caption_rule: Literal["first", "all", "random"] = "first"
    """Which caption to use for a video with several, if `model.condition` is `text`: the `first`, one drawn with
    `seed` (`random`), or `all`. With `all`, training draws one of them each time it uses the clip.
    """
    seed: Seed = 0
    """Seed of rendering and of drawing clips."""
    options: Options = {}
    """Options of your own layout."""


PRETRAINED: dict[str, dict[str, int]] = {
    "vidtok": {"spatial_stride": 8, "temporal_stride": 4, "num_codes": 32768},
    "cosmos": {"spatial_stride": 8, "temporal_stride": 4, "num_codes": 64000},
    "omnitokenizer": {"spatial_stride": 8, "temporal_stride": 4, "num_codes": 8192},
    "larp": {"spatial_stride": 1, "temporal_stride": 1, "num_codes": 8192},
}
"""Pretrained kinds of tokenizers, with the properties of their published weights. Other `tokenizer` keys override
them.
"""


FSQ_LEVELS: dict[int, tuple[int, ...]] = {
    240: (8, 6, 5),
    1000: (8, 5, 5, 5),
    4375: (7, 5, 5, 5, 5),
    15360: (8, 8, 8, 6, 5),
    64000: (8, 8, 8, 5, 5, 5),
}
"""Levels of each channel by the number of codes, which is their product: table 1 of Mentzer et al. 2023 (arXiv
2309.15505), for about 2^8, 2^10, 2^12, 2^14 and 2^16 codes.
"""


class Tokenizer(SettingsSection):
    """The tokenizer, which turns pixels into codes and back."""

    kind: TokenizerKind = "kmeans"
    """`kmeans`: nearest tubelets, fitted in seconds. `vq`: a small causal 3D-convolutional VQ-VAE, trained on the
    clips. `vidtok`, `cosmos`, `omnitokenizer` and `larp` are pretrained. Their strides and `num_codes` default to those
    of the published weights. Or the import path of your own tokenizer, which is fitted.
    """
    path: str | None = None
    """Weights of `vidtok` (folder or hub name) and `cosmos` (folder). For `omnitokenizer` and `larp`, the folder of the
    authors' code, which is executed.
    """
    checkpoint: str | None = None
    """Weights of `omnitokenizer` (a .ckpt file) and `larp` (a .pth file, folder or hub name)."""
    spatial_stride: int = Field(4, ge=1)
    """Height and width of a token in pixels."""
    temporal_stride: int = Field(2, ge=1)
    """Frames in each block after the first. The first block is the first frame alone."""
    num_codes: int = Field(256, ge=2)
    """Size V of the vocabulary."""
    quantizer: Literal["vq", "fsq"] = "vq"
    """How the tokenizer `vq` rounds its vectors. `vq` takes the nearest vector of a learned codebook. `fsq` (finite
    scalar quantization) rounds each channel to a few levels; `num_codes` must then be 240, 1000, 4375, 15360 or 64000.
    """
    first_frame_codes: int = Field(96, ge=1)
    """How many codes are used for the first frame alone (`kmeans` only)."""
    fit_clips: int = Field(1024, ge=1)
    """At most this many training clips are used to fit the tokenizer."""
    fit_steps: int = Field(1000, ge=1)
    """Training steps of the tokenizer (`vq` only)."""
    fit_batch_size: int = Field(16, ge=1)
    """Clips per training step (`vq` only)."""
    width: int = Field(32, ge=4)
    """Channels of the first convolution (`vq` only)."""
    learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of the tokenizer (`vq` only)."""
    seed: Seed = 0
    """Seed of the fit."""
    options: Options = {}
    """Options of your own tokenizer."""

    @property
    def pretrained(self) -> bool:
        """Whether the weights are given rather than fitted."""
        return self.kind in PRETRAINED

    def grid(self, frames: int, size_px: int) -> TokenGrid:
        """Token grid of one clip. Block 0 is the first frame, every later block `temporal_stride` frames. A holistic
        tokenizer has one row.
        """
        if self.kind in HOLISTIC:
            return TokenGrid(1, 1, HOLISTIC[self.kind].tokens)
        side = size_px // self.spatial_stride
        return TokenGrid(1 + (frames - 1) // self.temporal_stride, side, side)

    @model_validator(mode="before")
    @classmethod
    def _published(cls, values: Any) -> Any:
        return {**PRETRAINED.get(str(values.get("kind")), {}), **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check(self) -> Tokenizer:
        for name, kinds in (("path", tuple(PRETRAINED)), ("checkpoint", ("omnitokenizer", "larp"))):
            if getattr(self, name) is not None and self.kind not in kinds:
                raise SettingsError(
                    f"tokenizer.{name} ({getattr(self, name)}) has no meaning if tokenizer.kind is {self.kind}; leave"
                    f" it out, or use one of {', '.join(kinds)}"
                )
        if self.quantizer == "fsq" and self.kind != "vq":
            raise SettingsError(
                f"tokenizer.quantizer fsq belongs to tokenizer.kind vq, not {self.kind}; leave it out, or use vq"
            )
        if self.quantizer == "fsq" and self.num_codes not in FSQ_LEVELS:
            nearest = min(FSQ_LEVELS, key=lambda size: abs(math.log(size / self.num_codes)))
            raise SettingsError(
                f"tokenizer.num_codes ({self.num_codes}) is not a codebook size of tokenizer.quantizer fsq; use"
                f" {nearest}, the nearest of {', '.join(map(str, FSQ_LEVELS))}"
            )
        return self


class Model(SettingsSection):
    """The autoregressive decoder over the codes of a clip."""

    kind: ModelKind = "transformer"
    """`transformer` is built in. `huggingface` is any causal language model of the package transformers. Or the import
    path of your own decoder.
    """
    options: Options = {}
    """Options of a decoder that is not the built-in transformer, which has `width`, `depth` and `heads`."""
    width: int = Field(768, ge=8)
    """Residual width D."""
    depth: int = Field(12, ge=1)
    """Number of transformer layers L."""
    heads: int = Field(12, ge=1)
    """Attention heads. The number must divide the width."""
    condition: Literal["class", "text", "none"] = "class"
    """What the model is conditioned on: the class of the clip, its caption (`text`), or nothing."""
    text_tokens: int = Field(32, ge=2)
    """Length of a text in words, if `condition` is `text`. Shorter captions are padded, and the padding is masked.
    Longer captions are cut. Every step computes all positions.
    """
    text_tokenizer: str = "words"
    """The tokenizer of captions, if `condition` is `text`. `words`: a list of the words in the training captions. Or
    a tokenizer of transformers, given as a folder or a hub name (needs the `hf` extra).
    """

    @property
    def condition_tokens(self) -> int:
        """Number of inputs before the first code."""
        return self.text_tokens if self.condition == "text" else 1


PRESETS: dict[str, dict[str, int]] = {
    "debug": {"width": 64, "depth": 3, "heads": 4},
    "110M": {"width": 768, "depth": 12, "heads": 12},
    "343M": {"width": 1024, "depth": 24, "heads": 16},
    "770M": {"width": 1280, "depth": 36, "heads": 20},
}
"""`model.preset` names of the paper's sizes (and of one for laptops); other `model` keys override them."""


class Window(SettingsSection):
    """The window: which tokens of a clip get a loss and a gradient in one training step."""

    scheme: SchemeName = "window"
    """How a step trains. `full`: the whole clip (the baseline). `window`: ReCo's windows. `masked_full`: the loss of a
    window at the cost of a full step. `chunked_full`: the gradient of a full step in the memory of a window, which is
    slower. `stale_prefix`: windows in order, each after the keys and values of the step before (Transformer-XL).
    `fewer_frames`: short pieces; generation decodes a piece, encodes its last frame and continues.
    `fewer_frames_tokens`: the same, but pieces are joined by tokens. Or the import path of your own.
    """
    length_tokens: int | None = Field(None, ge=1)
    """Window length W in tokens. If `length_blocks` is given, it follows from that."""
    length_blocks: int | None = Field(None, ge=1)
    """Window length W in blocks (latent frames), instead of `length_tokens`. If you give neither, it is 2. For the
    `fewer_frames` schemes, the length of a piece.
    """
    stride_tokens: int | None = Field(None, ge=1)
    """Stride S: distance between possible window starts, in tokens. If `stride_fraction` is given, it follows from
    that.
    """
    stride_fraction: float | None = Field(None, gt=0, le=1)
    """Stride S as a fraction of the window length, instead of `stride_tokens`. If you give neither, it is 0.5."""
    first_frame_probability: float | Literal["uniform"] = 0.5
    """Probability p, from 0 to 1, that a window starts at the first token. `uniform` gives every start of the grid the
    same probability.
    """
    schedule: Literal["constant", "short_to_long", "long_to_short"] = "constant"
    """How the window length changes during the run. `short_to_long` lengthens the window from W to the whole clip, in
    at most 4 equal parts of the run. `long_to_short` shortens it in the same way.
    """
    full_fraction: float = Field(0.0, ge=0, lt=1)
    """Fraction of the steps, at the end of the run, that train on full sequences."""
    prefix_tokens: int | None = Field(None, ge=0)
    """Number C of tokens before the window that it can attend to, beside the class. By default it attends to all of
    them.
    """
    prefix_keep: float = Field(1.0, ge=0, le=1)
    """Probability that a token before the window keeps its code. Otherwise a random code replaces it. Targets never
    change.
    """
    prefix_resampled: float = Field(0.0, ge=0, le=1)
    """Fraction of the tokens before the window that the model draws itself, each after the true tokens before it
    (parallel scheduled sampling). It costs one more pass over the prefix. Targets never change.
    """
    options: Options = {}
    """Options of your own scheme."""


class Objective(SettingsSection):
    """The terms that are added to the cross-entropy loss."""

    continuity_weight: float = Field(0.0, ge=0)
    """Weight λ of the continuity term λ · mean ||h_{i+1} - h_i||²."""
    continuity_reduction: Literal["mean", "sum"] = "mean"
    """How the term is reduced over the width D of h: `sum`, as in the paper's formula, or `mean`, which divides by D.
    """
    continuity_state: Literal["last_block", "final_norm"] = "last_block"
    """Which h the term uses: the output of the last transformer layer, or that output after the final norm."""
    continuity_neighbours: Literal["tokens", "sites"] = "tokens"
    """Which pairs the term compares. `tokens`: i and i + 1, as in the paper. `sites`: the same site of adjacent frames,
    i and i + tokens per block.
    """
    norm_weight: float = Field(0.0, ge=0)
    """Weight of a penalty on mean h² (same reduction and state). It is a control: it compares no neighbours."""
    term: LossTerm | None = None
    """Import path of your own loss term."""
    term_weight: float = Field(0.0, ge=0)
    """Weight of `term`."""
    options: Options = {}
    """Options of `term`."""


class Training(SettingsSection):
    """The training loop."""

    steps: int = Field(1000, ge=1)
    """Optimiser steps of the baseline. Budgets determine the steps of the other arms."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the training clips, instead of `steps`. Needs `data.train_clips`, the number of training clips.
    Both `epochs` and `steps` are recorded. A pass counts every clip once, even if an arm trains on only a part of it.
    """
    batch_size: int = Field(32, ge=1)
    """Clips per optimiser step, summed over all workers and micro-batches."""
    micro_batches: int = Field(1, ge=1)
    """Micro-batches per optimiser step. Each draws one window start, which all workers share."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after warm-up: falls to zero as a cosine, or stays constant."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    """Warm-up as a share of a run's own steps, instead of `warmup_steps`. Under budgets that give arms different
    numbers of steps, the whole schedule then keeps its shape.
    """
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """β₁ of AdamW."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """β₂ of AdamW."""
    gradient_clip: float = Field(1.0, gt=0)
    """Largest norm of the whole gradient. A larger gradient is scaled down to it."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of a training step. `bfloat16` is autocast. `tf32` multiplies float32 matrices with a mantissa of 10
    bits (on a GPU only; a CPU does not have it). Weights and optimiser always stay in float32.
    """
    residual: Literal["float32", "bfloat16"] = "float32"
    """Precision of the residual stream if `precision` is `bfloat16`. `bfloat16` halves its memory and traffic. Norms
    still compute their statistics in float32.
    """
    compile: bool = False
    """Whether to compile transformer layers and loss with `torch.compile`. A few graphs work for all window starts,
    lengths and loss weights.
    """
    activation_checkpointing: bool = False
    """Whether transformer layers keep only their inputs and recompute the rest for backward. This saves memory and
    takes about a third more time.
    """
    loss_chunk_tokens: int | None = Field(None, ge=1)
    """Computes the logits of at most this many tokens of a micro-batch at once. This saves memory if the codebook is
    large. By default all logits exist at once.
    """
    class_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that the null class replaces the class of a clip, or that its text is left out. Guidance needs it
    above 0.
    """
    token_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that the model reads a random code in place of a token, in the window and before it. Targets never
    change.
    """
    rungs: int = Field(5, ge=1)
    """Number of equal parts of a run. At the end of each part, called a rung, the run validates, reports and writes a
    checkpoint.
    """
    keep_best: bool = False
    """Whether a run also keeps the weights of the rung with the lowest validation cross-entropy."""
    checkpoint_minutes: float = Field(10, gt=0)
    """Longest training time between two checkpoints, in minutes. A longer rung has further checkpoints within it."""
    seed: Seed = 0
    """Seed of initialisation, batch order and window starts."""


class Sampling(SettingsSection):
    """How clips are generated."""

    temperature: float = Field(1.0, gt=0)
    """Temperature of the softmax."""
    top_k: int | None = Field(None, ge=1)
    """Samples only from the k most likely codes."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Samples only from the smallest set of codes whose probabilities add up to at least this."""
    guidance: float = Field(1.0, ge=0)
    """Scale of classifier-free guidance. 1 means no guidance."""
    batch_size: int = Field(128, ge=1)
    """Number of clips that share one random seed. A CPU samples this many at once; a GPU samples as many as its free
    memory holds.
    """
    cache_precision: Literal["model", "int8"] = "model"
    """How keys and values of the past are stored: as the model computes them, or in 8 bits with a scale for each
    token and head (built-in transformer, CPU).
    """
    cache_blocks: int | None = Field(None, ge=1)
    """Number of latest blocks, including the current one, that sampling can attend to in addition to the first block.
    By default it attends to all (built-in transformer, CPU).
    """


class Evaluation(SettingsSection):
    """How a trained model is evaluated."""

    protocol: Literal["native", "native-random", "native-pca", "stylegan-v", "latte", "larp", "omnitokenizer"] = (
        "native"
    )
    """The features of FVD. `native`: a small network trained on the labels of the data set. `native-random`: the same
    network with random weights. `native-pca`: principal components of pixels. The others are I3D as a published
    protocol uses it. They also set `samples`, `reference_clips`, `reference_split` and `reference`, unless you give
    them.
    """
    extractor_path: LocalPath | None = None
    """The file i3d_torchscript.pt, which the published protocols need."""
    extractor_sha256: str = I3D_SHA256
    """SHA-256 that the file `extractor_path` must have. To use another network with the same signature, give its hash.
    """
    samples: int = Field(2048, ge=2)
    """Generated clips per sampling seed."""
    sampling_seeds: int = Field(1, ge=1)
    """Number of independent sets of generated clips. FVD is the mean over the sets."""
    reference_clips: int = Field(2048, ge=2)
    """Largest number of real clips to compare with."""
    reference_split: Literal["train", "test", "both"] = "train"
    """The split of the real clips. Published work uses `train`. `both` measures FVD against equally many clips of
    each split. It also measures the copy rate: the share of generated clips that lie closer to a training clip than
    95% of held-out clips do.
    """
    reference: Literal["reconstructed", "raw"] = "reconstructed"
    """Whether real clips are compared as they are (`raw`) or after passing through the tokenizer (`reconstructed`). The
    latter keeps the tokenizer's loss from hiding differences between arms.
    """
    validation_clips: int = Field(512, ge=1)
    """Number of held-out clips for the validation cross-entropy (full-sequence, teacher-forced)."""
    checkpoint: Literal["last", "best"] = "last"
    """Which weights of a run are evaluated: those of its last step, or those that `training.keep_best` kept. This is
    part of the protocol, so FVDs of the two are never compared.
    """
    analyses: bool = True
    """Whether to measure the loss by frame, the error growth and the steps of h after training."""
    measure: Measure | None = None
    """Import path of your own measure of generated clips."""
    clip: str | None = None
    """A CLIP model of the package transformers, as folder or hub name. With it, the CLIP score of generated clips and
    their texts is measured (`model.condition: text` only). A study records it with the hash of what the folder holds.
    """
    clip_frames: Literal["all", "first"] = "all"
    """Frames of a clip that the CLIP score is the mean of."""
    clip_scale: Literal["cosine", "percent"] = "percent"
    """Scale of the CLIP score: the cosine itself, or 100 times the cosine, but not below 0 (`percent`)."""
    flow: bool = False
    """Whether to measure optical-flow consistency, on the first 64 clips (needs the `flow` extra)."""

    @model_validator(mode="before")
    @classmethod
    def _follow_protocol(cls, values: Any) -> Any:
        return {**protocol_defaults(values.get("protocol")), **values} if isinstance(values, dict) else values


class Resources(SettingsSection):
    """Where and on what a run executes. These settings change no result beyond float tolerance."""

    workers: int = Field(1, ge=1)
    """Train workers per trial (data parallel)."""
    cpus_per_worker: int = Field(1, ge=1)
    """CPUs of a worker, which is also its number of threads."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs of a worker. 0 trains on the CPU."""
    shard_state: bool = False
    """Whether to split weights, gradients and AdamW's moments over the workers of a run (FSDP2), for a model whose
    state does not fit one worker. All workers must see the run's folder.
    """
    attention: Literal["auto", "cudnn", "flash", "flash3", "efficient", "lower_right", "flex"] = "auto"
    """Implementation of attention on a GPU. `auto` uses the kernel that torch picks for full sequences. The others
    exist for comparison (`reco-tune bench attention`).
    """
    deterministic: bool = False
    """Whether a GPU uses kernels that add in a fixed order. They are slower, but a run then ends with the same bits
    again, on the same machine type, with the same versions and number of workers.
    """
    concurrent_trials: int | None = Field(None, ge=1)
    """Largest number of trials that run at once. By default, as many as fit into the resources."""
    max_failures: int = Field(2, ge=0)
    """How often to retry a trial after failures of its own. A failure counts as its own if its workers died twice
    without a new checkpoint in between, while their machines stayed available. After any other death the trial moves
    to other workers, which does not count.
    """
    trial_deadline_seconds: float | None = Field(None, gt=0)
    """Time limit in seconds for one attempt of a trial. After it, the trial is asked to stop, its workers are killed,
    and it counts as failed.
    """
    calibration_seconds: float = Field(10, gt=0)
    """Longest measuring time of one calibration, in seconds."""
    storage: str | None = None
    """Address of an object store (s3://bucket/folder, gs://, ...) through which machines exchange files if they share
    no file system.
    """
    calibrate_on_shared_gpus: bool = False
    """Whether to measure speeds while other trials use the same GPU (`gpus_per_worker` below 1). Such speeds are
    unreliable.
    """

    @property
    def part_of_a_gpu(self) -> float:
        """The share of a GPU, and of its memory, that a worker has: 1, or less if trials share a GPU."""
        return min(1.0, self.gpus_per_worker)


class Sections(SettingsSection):
    """The settings of one run, each section checked by itself. `Experiment` also checks the sections against each
    other.
    """

    data: Data = Data()
    tokenizer: Tokenizer = Tokenizer()
    model: Model = Model()
    window: Window = Window()
    objective: Objective = Objective()
    training: Training = Training()
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()
    resources: Resources = Resources()

    @property
    def grid(self) -> TokenGrid:
        """Tokens of one clip."""
        if self.data.layout == "tokens" and self.data.grid is not None:
            return TokenGrid(*self.data.grid)
        return self.tokenizer.grid(self.data.clip_frames, self.data.size_px)

    @property
    def kept_clips(self) -> int:
        """Number of clips per split whose pixels stay in the cache, for evaluation and for fitting a tokenizer."""
        fitted = 0 if self.tokenizer.pretrained else self.tokenizer.fit_clips
        return max(self.evaluation.reference_clips, self.evaluation.validation_clips, fitted)

    @property
    def captions_name(self) -> str:
        """Folder name of the captions in a token cache. It depends on everything that determines how they are
        read.
        """
        model, data = self.model, self.data
        drawn = data.seed if data.caption_rule == "random" else None
        what = json.dumps([model.text_tokenizer, model.text_tokens, data.caption_rule, drawn])
        return f"captions-{hashlib.sha256(what.encode()).hexdigest()[:16]}"

    @property
    def cache_dir(self) -> Path:
        """Cache folder for everything that is computed once per data set."""
        if self.data.cache_dir is not None:
            return self.data.cache_dir
        return (self.data.root.parent if self.data.root is not None else Path()) / ".cache" / "reco-tune"

    @property
    def device_type(self) -> str:
        return "cuda" if self.resources.gpus_per_worker > 0 else "cpu"

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, values: Any) -> Any:
        model = values.get("model") if isinstance(values, dict) else None
        if isinstance(model, dict) and "preset" in model:
            model = dict(model)
            preset = model.pop("preset")
            if preset not in PRESETS:
                raise SettingsError(f"model.preset ({preset}) is not known; use one of {', '.join(PRESETS)}")
            values = {**values, "model": {**PRESETS[preset], **model}}
        return values
