"""The settings of one experiment, section by section: meaning, type, default and range of each.

The dotted name of a field (`window.length_tokens`) is its name everywhere: file, command line, search space, MLflow
parameter, table column.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from reco_tune.errors import SettingsError
from reco_tune.files import refuse_address
from reco_tune.settings.grids import HOLISTIC, TokenGrid
from reco_tune.settings.protocols import I3D_SHA256, protocol_defaults

LocalPath = Annotated[Path, AfterValidator(refuse_address)]
"""A file or folder as every machine sees it."""
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of a random generator: what all the libraries' generators take."""


class SettingsSection(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class Data(SettingsSection):
    """Which clips, cut how."""

    layout: Literal[
        "digits",
        "ucf101",
        "class_folders",
        "flat",
        "faceforensics",
        "skytimelapse",
        "taichi",
        "frames",
        "csv",
        "tokens",
    ] = "ucf101"
    """How the folder is laid out; `digits` is the embedded data set, rendered to `root` in UCF101 layout on first use;
    `tokens` are codes that you made yourself, which train but cannot be looked at.
    """
    root: LocalPath | None = None
    """Folder of the videos; may be left out for `digits`, which then lies in the cache folder."""
    cache_dir: LocalPath | None = None
    """Folder of token caches, fitted tokenizers and feature extractors; by default `.cache/reco-tune` beside the data.
    """
    clip_frames: int = Field(17, ge=2)
    """Frames of a clip."""
    frame_stride: int = Field(1, ge=1)
    """Distance in source frames between two frames of a clip."""
    clip_stride: int | None = Field(None, ge=1)
    """Source frames between the starts of two clips of one video; by default clips do not overlap."""
    clips_per_video: int | None = Field(None, ge=1)
    """So many clips of each video, or all that there are, from random starts (drawn with `seed`) instead of evenly
    spaced ones.
    """
    short_videos: Literal["skip", "repeat_last", "loop"] = "skip"
    """A video shorter than a clip is left out, or gives one clip whose last frame is repeated or whose frames begin
    anew.
    """
    horizontal_flip: Literal["none", "random", "both"] = "none"
    """Training clips mirrored left to right: none, each with probability 0.5 (drawn with `seed`), or each as it is and
    mirrored.
    """
    min_clips: int = Field(1, ge=1)
    """Fewest clips of each split; a run that is left with fewer after broken videos fails."""
    decode_seconds: float = Field(120, gt=0)
    """Longest that one read of one video may take; a video that takes longer is left out."""
    size_px: int = Field(256, ge=4)
    """Height and width of a frame in pixels."""
    grid: tuple[Count, Count, Count] | None = None
    """Blocks, rows and columns of a clip's codes (layout `tokens` only); by default those that `clip_frames`, `size_px`
    and the tokenizer's strides make.
    """
    resize: Literal["crop", "stretch"] = "crop"
    """`crop` scales the short side and crops the centre; `stretch` scales both sides."""
    split: Literal["lists", "time"] = "lists"
    """`lists` reads the layout's official split files; `time` takes the last `test_fraction` of every video for test,
    no frame shared.
    """
    split_list: int = Field(1, ge=1, le=3)
    """Which of UCF101's three official splits."""
    test_fraction: float = Field(0.2, gt=0, lt=1)
    """Part of every video's frames that is held out where `split` is `time`."""
    train_clips: int | None = Field(None, ge=1)
    """At most this many training clips (drawn with `seed`); the number rendered for `digits`."""
    test_clips: int | None = Field(None, ge=1)
    """At most this many held-out clips (drawn with `seed`); the number rendered for `digits`."""
    class_conditional: bool = True
    """Whether the model is given the class of a clip; a layout without classes has one class."""
    seed: Seed = 0
    """Seed of rendering and of drawing clips."""


PRETRAINED: dict[str, dict[str, int]] = {
    "vidtok": {"spatial_stride": 8, "temporal_stride": 4, "num_codes": 32768},
    "cosmos": {"spatial_stride": 8, "temporal_stride": 4, "num_codes": 64000},
    "omnitokenizer": {"spatial_stride": 8, "temporal_stride": 4, "num_codes": 8192},
    "larp": {"spatial_stride": 1, "temporal_stride": 1, "num_codes": 8192},
}
"""Kinds of tokenizers that are not fitted here, with what their published weights have; other `tokenizer` keys override
it.
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
    """What turns pixels into codes and back."""

    kind: Literal["kmeans", "vq", "vidtok", "cosmos", "omnitokenizer", "larp"] = "kmeans"
    """`kmeans`: nearest tubelets, fitted in seconds; `vq`: a small causal 3D-convolutional VQ-VAE trained on the clips;
    the others are pretrained, and their strides and `num_codes` are those of the published weights where nothing else
    is given.
    """
    path: str | None = None
    """Weights of `vidtok` (folder or hub name) and `cosmos` (folder); the authors' code of `omnitokenizer` and `larp`
    (folder, is run).
    """
    checkpoint: str | None = None
    """Weights of `omnitokenizer` (a .ckpt file) and `larp` (a .pth file, folder or hub name)."""
    spatial_stride: int = Field(4, ge=1)
    """Pixels per token side."""
    temporal_stride: int = Field(2, ge=1)
    """Frames per block after the first frame, which is a block of its own."""
    num_codes: int = Field(256, ge=2)
    """Codes of the vocabulary, V."""
    quantizer: Literal["vq", "fsq"] = "vq"
    """How `vq` rounds its vectors: to the nearest of a learned codebook, or each channel to a few levels (finite scalar
    quantization), whose `num_codes` is 240, 1000, 4375, 15360 or 64000.
    """
    first_frame_codes: int = Field(96, ge=1)
    """How many of the codes belong to the first frame alone (`kmeans` only)."""
    fit_clips: int = Field(1024, ge=1)
    """At most this many training clips are used to fit the tokenizer."""
    fit_steps: int = Field(1000, ge=1)
    """Training steps (`vq` only)."""
    fit_batch_size: int = Field(16, ge=1)
    """Clips per training step (`vq` only)."""
    width: int = Field(32, ge=4)
    """Channels of the first convolution (`vq` only)."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of the fit (`vq` only)."""
    seed: Seed = 0
    """Seed of the fit."""

    @property
    def pretrained(self) -> bool:
        """Whether weights are given, not fitted."""
        return self.kind in PRETRAINED

    def grid(self, frames: int, size_px: int) -> TokenGrid:
        """Tokens of one clip: block 0 is the first frame, every later block `temporal_stride` frames; holistic ones are
        one row.
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
                    f"tokenizer.{name} ({getattr(self, name)}) has no meaning where tokenizer.kind is {self.kind}; "
                    f"leave it out, or take one of {', '.join(kinds)}"
                )
        if self.quantizer == "fsq" and self.kind != "vq":
            raise SettingsError(
                f"tokenizer.quantizer fsq belongs to tokenizer.kind vq, not {self.kind}; leave it out, or take vq"
            )
        if self.quantizer == "fsq" and self.num_codes not in FSQ_LEVELS:
            nearest = min(FSQ_LEVELS, key=lambda size: abs(math.log(size / self.num_codes)))
            raise SettingsError(
                f"tokenizer.num_codes ({self.num_codes}) is no product of levels of tokenizer.quantizer fsq; "
                f"take {nearest}, the nearest of {', '.join(map(str, FSQ_LEVELS))}"
            )
        return self


class Model(SettingsSection):
    """The autoregressive transformer over the codes of a clip."""

    width: int = Field(768, ge=8)
    """Residual width D."""
    depth: int = Field(12, ge=1)
    """Blocks."""
    heads: int = Field(12, ge=1)
    """Attention heads; must divide the width."""


PRESETS: dict[str, dict[str, int]] = {
    "debug": {"width": 64, "depth": 3, "heads": 4},
    "110M": {"width": 768, "depth": 12, "heads": 12},
    "343M": {"width": 1024, "depth": 24, "heads": 16},
    "770M": {"width": 1280, "depth": 36, "heads": 20},
}
"""`model.preset` names of the paper's sizes (and of one for laptops); other `model` keys override them."""


class Window(SettingsSection):
    """Which tokens of a clip one training step differentiates through."""

    scheme: Literal["window", "full", "masked_full", "fewer_frames", "fewer_frames_tokens"] = "window"
    """`window` is ReCo's, `full` the baseline, `masked_full` a window's loss over the full graph; `fewer_frames` trains
    on short pieces.
    """
    length_tokens: int | None = Field(None, ge=1)
    """Window length W in tokens; resolved from `length_blocks` where that is given."""
    length_blocks: int | None = Field(None, ge=1)
    """The other way to give W: in blocks (latent frames), 2 where neither is given; also the piece of the
    `fewer_frames` schemes.
    """
    stride_tokens: int | None = Field(None, ge=1)
    """Distance S of the grid of starts in tokens; resolved from `stride_fraction` where that is given."""
    stride_fraction: float | None = Field(None, gt=0, le=1)
    """Stride as a fraction of the window length: the other way to give S. 0.5 where neither is given."""
    first_frame_probability: float | Literal["uniform"] = 0.5
    """Probability p of start 0, from 0 to 1; `uniform` gives start 0 the same probability as every other start of the
    grid.
    """
    schedule: Literal["constant", "short_to_long", "long_to_short"] = "constant"
    """`short_to_long` lengthens the window from W to the whole clip in at most 4 equal parts of the run,
    `long_to_short` shortens it.
    """
    full_fraction: float = Field(0.0, ge=0, lt=1)
    """The last part of the steps that trains full sequences, as a fraction of all steps."""
    prefix_tokens: int | None = Field(None, ge=0)
    """Only the C tokens nearest to the window (and always the class) are its prefix; by default all earlier ones are.
    """
    prefix_keep: float = Field(1.0, ge=0, le=1)
    """Probability that a token before the window is shown as it is; else a random code stands in its place. Targets
    never change.
    """


class Objective(SettingsSection):
    """What is minimised beside cross-entropy."""

    continuity_weight: float = Field(0.0, ge=0)
    """λ of λ · mean ||h_{i+1} - h_i||²."""
    continuity_reduction: Literal["mean", "sum"] = "mean"
    """Over the width: `sum` is the formula as printed; `mean` divides it by D."""
    continuity_state: Literal["last_block", "final_norm"] = "last_block"
    """h is the output of the last block, or that after the final norm."""
    continuity_neighbours: Literal["tokens", "sites"] = "tokens"
    """i and i + 1, as in the paper, or the same site of adjacent frames: i and i + tokens per block."""
    norm_weight: float = Field(0.0, ge=0)
    """Weight of mean h² (same reduction and state), a control without any difference of neighbours."""


class Training(SettingsSection):
    """One training loop."""

    steps: int = Field(1000, ge=1)
    """Optimiser steps (of the baseline, where a budget says otherwise for an arm)."""
    batch_size: int = Field(32, ge=1)
    """Clips per optimiser step, over all workers and micro-batches."""
    micro_batches: int = Field(1, ge=1)
    """Micro-batches per optimiser step; each draws its own window start, the same on all workers."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After warm-up: cosine to zero, or constant."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's."""
    gradient_clip: float = Field(1.0, gt=0)
    """Largest global gradient norm."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """`bfloat16` is autocast; `tf32` multiplies matrices of float32 with 10 bits of mantissa (on a GPU; a CPU has no
    such thing). Weights and optimiser stay in float32.
    """
    residual: Literal["float32", "bfloat16"] = "float32"
    """What the residual stream is kept in where `precision` is `bfloat16`: half the memory and traffic in `bfloat16`;
    norms keep their statistics in float32.
    """
    compile: bool = False
    """Whether blocks and loss go through `torch.compile`: a few graphs for all starts, lengths and weights."""
    activation_checkpointing: bool = False
    """Whether blocks keep only their inputs and compute the rest again for backward: less memory, about a third more
    time.
    """
    loss_chunk_tokens: int | None = Field(None, ge=1)
    """At most this many tokens of a micro-batch have logits at once: less memory where the codebook is large; by
    default all have.
    """
    class_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that a clip's class is replaced by the null class (needed for guidance)."""
    rungs: int = Field(5, ge=1)
    """Equal parts of a run; at the end of each it validates, reports and writes a checkpoint."""
    keep_best: bool = False
    """Whether a run keeps its weights of the rung with the lowest validation cross-entropy beside its last."""
    checkpoint_minutes: float = Field(10, gt=0)
    """Longest time of training between two checkpoints; where a rung is longer, there are some within it."""
    seed: Seed = 0
    """Seed of initialisation, batch order and window starts."""


class Sampling(SettingsSection):
    """How clips are generated."""

    temperature: float = Field(1.0, gt=0)
    """Of the softmax."""
    top_k: int | None = Field(None, ge=1)
    """Only the k likeliest codes."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Only the smallest set of codes that holds this probability."""
    guidance: float = Field(1.0, ge=0)
    """Classifier-free guidance; 1 is none."""
    batch_size: int = Field(128, ge=1)
    """Clips whose draws come from one seed. A CPU samples so many at once, a GPU as many as its free memory holds."""


class Evaluation(SettingsSection):
    """How a trained model is judged."""

    protocol: Literal["native", "native-random", "native-pca", "stylegan-v", "latte", "larp", "omnitokenizer"] = (
        "native"
    )
    """Features of FVD: a small extractor trained on the data set's labels, the same at random weights, or pixels'
    principal components; or I3D as a published protocol uses it (`PUBLISHED`), which then also decides samples and
    reference where they are left out.
    """
    extractor_path: LocalPath | None = None
    """The file i3d_torchscript.pt of the published protocols."""
    extractor_sha256: str = I3D_SHA256
    """What `extractor_path` must hash to; give another hash to use another network of the same signature on purpose."""
    samples: int = Field(2048, ge=2)
    """Generated clips per sampling seed."""
    sampling_seeds: int = Field(1, ge=1)
    """Independent sets of generated clips; FVD is their mean."""
    reference_clips: int = Field(2048, ge=2)
    """At most this many real clips make the reference statistics."""
    reference_split: Literal["train", "test"] = "train"
    """Where the real clips come from; the field's convention is train."""
    reference: Literal["reconstructed", "raw"] = "reconstructed"
    """Real clips as they are, or through the tokenizer (so that its loss does not hide differences between arms)."""
    validation_clips: int = Field(512, ge=1)
    """Held-out clips of the validation cross-entropy (full-sequence, teacher-forced)."""
    checkpoint: Literal["last", "best"] = "last"
    """Which of a run's weights are judged: those of its last step, or those that `training.keep_best` has kept. It
    stands in the protocol: FVDs of both compare with each other in nothing.
    """
    analyses: bool = True
    """Whether the loss by frame, the error growth and the steps of h are measured after training."""
    flow: bool = False
    """Whether optical-flow consistency is measured, on the first 64 clips (needs the `flow` extra)."""

    @model_validator(mode="before")
    @classmethod
    def _follow_protocol(cls, values: Any) -> Any:
        return {**protocol_defaults(values.get("protocol")), **values} if isinstance(values, dict) else values


class Resources(SettingsSection):
    """Where a trial runs. None of these changes a result beyond float tolerance."""

    workers: int = Field(1, ge=1)
    """Train workers per trial (data parallel)."""
    cpus_per_worker: int = Field(1, ge=1)
    """CPUs, and threads, of a worker."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs of a worker; 0 trains on the CPU."""
    shard_state: bool = False
    """Whether weights, gradients and AdamW's moments are split over the workers of a run (FSDP2), for a model whose
    state does not fit one; all workers must see the run's folder.
    """
    attention: Literal["auto", "cudnn", "flash", "flash3", "efficient", "lower_right", "flex"] = "auto"
    """How attention is computed on a GPU: `auto` with the kernel that torch gives full sequences; the others are there
    to be compared (`reco-tune bench attention`).
    """
    deterministic: bool = False
    """Whether a GPU takes kernels that add in a fixed order: slower, but a run then ends in the same bits again on the
    same machine type, versions and number of workers.
    """
    concurrent_trials: int | None = Field(None, ge=1)
    """Trials at once; by default as many as the resources hold."""
    max_failures: int = Field(2, ge=0)
    """How often a trial is tried again after deaths of its workers that are its own fault: on machines that are still
    there, after another death and without a new checkpoint between. Any other death moves it, which costs nothing.
    """
    trial_deadline_seconds: float | None = Field(None, gt=0)
    """Longest that one attempt of a trial may take; one that hangs is asked to stop, then its workers are killed, and
    it has failed.
    """
    calibration_seconds: float = Field(10, gt=0)
    """Bound on the time that one calibration measures."""
    storage: str | None = None
    """Address (s3://bucket/folder, gs://, ...) through which machines give each other their files where they share no
    file system.
    """
    calibrate_on_shared_gpus: bool = False
    """Whether speeds may be measured while other trials work on the same GPU (`gpus_per_worker` below 1): they are then
    worth little.
    """


class Sections(SettingsSection):
    """Everything one run depends on, each section for itself; `Experiment` is this with its sections in agreement."""

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
        """So many clips of each split keep their pixels in the cache: what evaluation and the fitting of a tokenizer
        look at.
        """
        fitted = 0 if self.tokenizer.pretrained else self.tokenizer.fit_clips
        return max(self.evaluation.reference_clips, self.evaluation.validation_clips, fitted)

    @property
    def cache_dir(self) -> Path:
        """Folder of everything computed once for a data set."""
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
                raise SettingsError(f"model.preset ({preset}) is not known; take one of {', '.join(PRESETS)}")
            values = {**values, "model": {**PRESETS[preset], **model}}
        return values
