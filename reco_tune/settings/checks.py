"""Checks of the settings of one experiment against each other. Each field checks its own value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from reco_tune.errors import SettingsError
from reco_tune.settings.grids import HOLISTIC, TokenGrid
from reco_tune.settings.protocols import PUBLISHED
from reco_tune.settings.sections import Sections, Training, Window

ALTERNATIVES = (
    ("window.length_tokens", "window.length_blocks"),
    ("window.stride_tokens", "window.stride_fraction"),
    ("training.steps", "training.epochs"),
)
"""Pairs of keys that set the same thing in two ways. Overriding one clears the other."""

MOST_TOKENS = 2**20
"""Limit on the tokens of a clip: every arm is compared with training on all of them at once."""


def _changed(experiment: Sections, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Those settings that differ from their defaults, with their values."""
    for key in keys:
        section, _, name = key.partition(".")
        own = getattr(experiment, section)
        if (value := getattr(own, name)) != type(own).model_fields[name].default:
            yield key, value


def check_shapes(experiment: Sections) -> None:
    """Checks the shapes of clip, tokens and layers, which a window in tokens depends on.

    Raises:
        SettingsError: if two settings do not fit together.
    """
    data, tokenizer, model = experiment.data, experiment.tokenizer, experiment.model
    if data.grid is not None and data.layout != "tokens":
        raise SettingsError(
            f"data.grid ({list(data.grid)}) is for data.layout tokens only, but data.layout is {data.layout}; leave it"
            " out"
        )
    if data.grid is None:
        _check_frames(experiment)
    if experiment.grid.num_tokens > MOST_TOKENS:
        raise SettingsError(
            f"a clip has {experiment.grid.num_tokens:,} tokens, more than the limit of {MOST_TOKENS:,};"
            " lower data.size_px or data.clip_frames"
        )
    if model.width % model.heads:
        raise SettingsError(f"model.heads ({model.heads}) must divide model.width ({model.width}); change one of them")
    if data.layout != "tokens" and tokenizer.kind == "kmeans" and tokenizer.first_frame_codes >= tokenizer.num_codes:
        raise SettingsError(
            f"tokenizer.first_frame_codes ({tokenizer.first_frame_codes}) must be less than "
            f"tokenizer.num_codes ({tokenizer.num_codes}); lower it"
        )
    _check_holistic(experiment)


def _check_frames(experiment: Sections) -> None:
    """The tokenizer's strides must divide the clip."""
    data, tokenizer = experiment.data, experiment.tokenizer
    if data.size_px % tokenizer.spatial_stride:
        raise SettingsError(
            f"data.size_px ({data.size_px}) must be a multiple of tokenizer.spatial_stride"
            f" ({tokenizer.spatial_stride}); change one of them"
        )
    if (data.clip_frames - 1) % tokenizer.temporal_stride:
        raise SettingsError(
            f"data.clip_frames ({data.clip_frames}) must be 1 more than a multiple of tokenizer.temporal_stride "
            f"({tokenizer.temporal_stride}), because the first frame is a block of its own; change one of them"
        )


def _check_holistic(experiment: Sections) -> None:
    """Refuses settings that need frames if the codes have none."""
    data, window, kind = experiment.data, experiment.window, experiment.tokenizer.kind
    if kind not in HOLISTIC:
        return
    clip = HOLISTIC[kind]
    if (data.clip_frames, data.size_px) != (clip.frames, clip.size_px):
        raise SettingsError(
            f"data.clip_frames ({data.clip_frames}) and data.size_px ({data.size_px}) must be {clip.frames} and"
            f" {clip.size_px} if tokenizer.kind is {kind}; change them"
        )
    if window.scheme.startswith("fewer_frames"):
        raise SettingsError(
            f"window.scheme ({window.scheme}) cuts clips at frames, but the codes of {kind} have no frames; use"
            " another scheme"
        )
    if window.length_blocks is not None or (window.length_tokens is None and window.scheme != "full"):
        raise SettingsError(
            f"window.length_tokens is missing; give it, because the codes of tokenizer.kind {kind} have no frames to"
            " count blocks in"
        )
    if experiment.objective.continuity_neighbours == "sites":
        raise SettingsError(
            f"objective.continuity_neighbours (sites) compares frames, but the codes of {kind} have no frames; use"
            " tokens"
        )
    if experiment.evaluation.analyses:
        raise SettingsError(
            f"evaluation.analyses (true) measures frame by frame, but the codes of {kind} have no frames; set"
            " evaluation.analyses=false"
        )


def window_in_tokens(window: Window, grid: TokenGrid) -> Window:
    """Converts W and S to tokens, and clears the settings that gave them in other units.

    Raises:
        SettingsError: if the window does not fit the clip, or its settings contradict each other.
    """
    for first, second in ALTERNATIVES[:2]:
        a, b = first.removeprefix("window."), second.removeprefix("window.")
        if getattr(window, a) is not None and getattr(window, b) is not None:
            raise SettingsError(
                f"{first} ({getattr(window, a)}) and {second} ({getattr(window, b)}) set the same thing; give one"
            )
    length = window.length_tokens or (window.length_blocks or 2) * grid.tokens_per_block
    if window.scheme == "full":  # a full step has no window, so shared settings of windows are cleared here
        length = grid.num_tokens
        window = window.model_copy(
            update={
                "schedule": "constant",
                "full_fraction": 0.0,
                "prefix_tokens": None,
                "prefix_keep": 1.0,
                "prefix_resampled": 0.0,
            }
        )
    stride = window.stride_tokens or max(1, round((window.stride_fraction or 0.5) * length))
    if length > grid.num_tokens:
        raise SettingsError(
            f"window.length_tokens ({length}) must not exceed the clip's {grid.num_tokens} tokens "
            f"({grid.blocks} blocks of {grid.rows}x{grid.columns}); shorten the window"
        )
    if stride > length:
        raise SettingsError(
            f"window.stride_tokens ({stride}) must not exceed window.length_tokens ({length}); lower the stride"
        )
    probability = window.first_frame_probability
    if probability != "uniform" and not 0 <= probability <= 1:
        raise SettingsError(
            f"window.first_frame_probability ({probability}) must lie in [0, 1] or be `uniform`; change it"
        )
    return window.model_copy(
        update={"length_tokens": length, "stride_tokens": stride, "length_blocks": None, "stride_fraction": None}
    )


def training_in_steps(experiment: Sections) -> Training:
    """Converts epochs to steps.

    Raises:
        SettingsError: if the number of clips is unknown, or steps and epochs are both given and differ.
    """
    training, clips = experiment.training, experiment.data.train_clips
    if training.epochs is None:
        return training
    if clips is None:
        raise SettingsError(
            f"training.epochs ({training.epochs:g}) counts passes over data.train_clips, which is missing; give it, or"
            " training.steps"
        )
    steps = max(1, round(training.epochs * clips / training.batch_size))
    if "steps" in training.model_fields_set and training.steps != steps:
        raise SettingsError(
            f"training.steps ({training.steps}) and training.epochs ({training.epochs:g}, which is {steps} steps of"
            f" {training.batch_size} out of {clips} clips) contradict each other; give one"
        )
    return training.model_copy(update={"steps": steps})


def _check_data(experiment: Sections) -> None:
    data, scheme = experiment.data, experiment.window.scheme
    if data.clip_stride is not None and data.clips_per_video is not None:
        raise SettingsError(
            f"data.clip_stride ({data.clip_stride}) spaces clips evenly, but data.clips_per_video"
            f" ({data.clips_per_video}) draws their starts; give one"
        )
    for key, most in (("train_clips", data.train_clips), ("test_clips", data.test_clips)):
        if most is not None and most < data.min_clips:
            raise SettingsError(
                f"data.min_clips ({data.min_clips}) must not exceed data.{key} ({most}); change one of them"
            )
    evaluation = experiment.evaluation
    if data.layout == "tokens" and (evaluation.protocol != "native" or evaluation.flow):
        key, value = ("flow", "true") if evaluation.flow else ("protocol", evaluation.protocol)
        raise SettingsError(
            f"evaluation.{key} ({value}) needs pixels, but data.layout tokens has none; leave it out and compare by"
            " val_cross_entropy"
        )
    if data.layout == "tokens" and scheme == "fewer_frames":
        raise SettingsError(
            "window.scheme fewer_frames re-encodes pieces of clips, but data.layout tokens has no pixels; use"
            " fewer_frames_tokens"
        )


def _check_best(experiment: Sections) -> None:
    """`evaluation.checkpoint: best` needs kept weights, and a validation cross-entropy that selects them."""
    if experiment.evaluation.checkpoint != "best":
        return
    if not experiment.training.keep_best:
        raise SettingsError(
            "evaluation.checkpoint (best) needs weights that training.keep_best (false) does not keep; set it to true,"
            " or set evaluation.checkpoint to last"
        )
    if experiment.window.scheme.startswith("fewer_frames"):
        raise SettingsError(
            "evaluation.checkpoint (best) is selected by the validation cross-entropy, which window.scheme"
            f" ({experiment.window.scheme}) does not measure; use last"
        )


def check_combinations(experiment: Sections) -> None:
    """Checks everything else that must fit between two sections.

    Raises:
        SettingsError: if they do not.
    """
    _check_data(experiment)
    _check_best(experiment)
    window, training, grid = experiment.window, experiment.training, experiment.grid
    assert window.length_tokens is not None
    if window.scheme.startswith("fewer_frames") and window.length_tokens % grid.tokens_per_block:
        raise SettingsError(
            f"window.length_tokens ({window.length_tokens}) must be whole blocks of {grid.tokens_per_block} tokens if"
            f" window.scheme is {window.scheme}; give window.length_blocks instead"
        )
    if window.scheme.startswith("fewer_frames") and window.length_tokens < 2 * grid.tokens_per_block:
        raise SettingsError(
            f"window.length_tokens ({window.length_tokens}) must hold 2 blocks if window.scheme is {window.scheme};"
            " lengthen it"
        )
    if window.length_tokens == 1 and experiment.objective.continuity_weight > 0:
        raise SettingsError(
            "objective.continuity_weight needs two neighbouring tokens, but window.length_tokens is 1; lengthen the"
            " window or set it to 0"
        )
    if training.warmup_steps and training.warmup_fraction:
        raise SettingsError(
            f"training.warmup_steps ({training.warmup_steps}) and training.warmup_fraction"
            f" ({training.warmup_fraction:g}) both give the warm-up; leave one out"
        )
    _check_window_variants(window)
    _check_chunks(experiment)
    _check_resampling(experiment)
    _check_cache(experiment)
    _check_sites(experiment)
    resources = experiment.resources
    if 0 < resources.gpus_per_worker < 1 and not resources.calibrate_on_shared_gpus:
        raise SettingsError(
            f"resources.gpus_per_worker ({resources.gpus_per_worker:g}) lets trials share a GPU, so measured speeds"
            " would be unreliable; give 1, or set resources.calibrate_on_shared_gpus to true"
        )
    if resources.shard_state and resources.storage is not None:
        raise SettingsError(
            "resources.shard_state lets every worker write its part of a checkpoint into one shared folder, but with"
            f" resources.storage ({resources.storage}) each machine has its own folder; leave one of them out"
        )
    if training.residual == "bfloat16" and training.precision != "bfloat16":
        raise SettingsError(
            f"training.residual (bfloat16) needs training.precision bfloat16, but that is {training.precision}; change"
            " it, or leave training.residual out"
        )
    if resources.deterministic and resources.gpus_per_worker == 0:
        raise SettingsError(
            "resources.deterministic (true) selects GPU kernels, but resources.gpus_per_worker is 0, and CPU runs are"
            " deterministic anyway; leave it out"
        )
    if resources.attention != "auto" and resources.gpus_per_worker == 0:
        raise SettingsError(
            f"resources.attention ({resources.attention}) is for GPUs, but resources.gpus_per_worker is 0; leave it out"
        )
    _check_protocol(experiment)
    _check_condition(experiment)
    _check_own_model(experiment)
    parts = training.micro_batches * experiment.resources.workers
    if training.batch_size % parts:
        raise SettingsError(
            f"training.batch_size ({training.batch_size}) must be a multiple of training.micro_batches x"
            f" resources.workers ({parts}); change one of them"
        )
    if experiment.sampling.guidance != 1 and training.class_dropout == 0:
        raise SettingsError(
            f"sampling.guidance ({experiment.sampling.guidance}) needs the null class, which training.class_dropout (0)"
            " never trains; raise training.class_dropout"
        )


def _check_condition(experiment: Sections) -> None:
    """Checks settings of texts."""
    model, guidance = experiment.model, experiment.sampling.guidance
    if model.condition == "none" and guidance != 1:
        raise SettingsError(
            f"sampling.guidance ({guidance}) compares with no condition, but model.condition is none; set it to 1"
        )
    if model.condition == "text":
        return
    of_text = "model.text_tokens", "model.text_tokenizer", "data.caption_rule", "evaluation.clip"
    for key, value in _changed(experiment, of_text):
        raise SettingsError(
            f"{key} ({value}) is of captions, but model.condition is {model.condition}; set that to text, or leave it"
            " out"
        )


def _check_own_model(experiment: Sections) -> None:
    """Refuses settings of the built-in transformer if the model is another."""
    model = experiment.model
    if model.kind == "transformer":
        return
    for name in ("width", "depth", "heads"):
        if getattr(model, name) != (default := type(model).model_fields[name].default):
            raise SettingsError(
                f"model.{name} ({getattr(model, name)}) is for the built-in transformer, but model.kind is"
                f" {model.kind}, which takes its sizes from model.options; leave it out (or give {default})"
            )
    for key, value in _changed(experiment, ("training.compile", "training.residual", "resources.attention")):
        raise SettingsError(
            f"{key} ({value}) is for the built-in transformer, but model.kind is {model.kind}; leave it out"
        )


def _check_protocol(experiment: Sections) -> None:
    evaluation, frames = experiment.evaluation, experiment.data.clip_frames
    published = PUBLISHED.get(evaluation.protocol)
    if published is None:
        return
    if evaluation.extractor_path is None:
        raise SettingsError(
            f"evaluation.protocol ({evaluation.protocol}) needs I3D: set evaluation.extractor_path to the file"
            " i3d_torchscript.pt (docs/reference/fvd-protocols.md says where to get it), or use the protocol native"
        )
    if frames < published.frames:
        raise SettingsError(
            f"evaluation.protocol ({evaluation.protocol}) is computed over {published.frames} frames, but"
            f" data.clip_frames is {frames}; lengthen the clips or use another protocol"
        )


def _check_window_variants(window: Window) -> None:
    one_length = "chunked_full", "stale_prefix", "fewer_frames", "fewer_frames_tokens"
    if window.scheme in one_length and (window.schedule != "constant" or window.full_fraction > 0):
        key, value = (
            ("schedule", window.schedule) if window.schedule != "constant" else ("full_fraction", window.full_fraction)
        )
        raise SettingsError(
            f"window.{key} ({value}) changes the length of windows, but window.scheme {window.scheme} trains pieces of"
            " one length; leave it out"
        )
    if window.scheme not in ("masked_full", *one_length):
        return
    for name, default in (("prefix_tokens", None), ("prefix_keep", 1.0), ("prefix_resampled", 0.0)):
        if (found := getattr(window, name)) != default:
            raise SettingsError(
                f"window.{name} ({found}) needs a prefix, but window.scheme {window.scheme} computes none; leave it out"
            )


def _check_resampling(experiment: Sections) -> None:
    """Checks resampling of the prefix: the model draws its tokens in an extra pass over the whole true prefix."""
    window = experiment.window
    if window.prefix_resampled == 0:
        return
    reasons = {
        "window.prefix_tokens": "cuts the prefix",
        "window.prefix_keep": "replaces tokens of the prefix too",
        "resources.shard_state": "gathers weights for one pass over the prefix",
        "resources.deterministic": "needs sums that a GPU adds in a fixed order",
    }
    for key, value in _changed(experiment, reasons):
        raise SettingsError(
            f"{key} ({value}) {reasons[key]}, so it cannot be combined with window.prefix_resampled"
            f" ({window.prefix_resampled:g}); leave one of them out"
        )


def _check_cache(experiment: Sections) -> None:
    """A sampling cache with fewer blocks or in 8 bits needs token-by-token sampling on a CPU."""
    sampling = experiment.sampling
    for name, default in (("cache_precision", "model"), ("cache_blocks", None)):
        if (value := getattr(sampling, name)) == default:
            continue
        for key, found, needed in (
            ("resources.gpus_per_worker", experiment.resources.gpus_per_worker, 0),
            ("model.kind", experiment.model.kind, "transformer"),
        ):
            if found != needed:
                raise SettingsError(
                    f"sampling.{name} ({value}) is for the built-in transformer on a CPU, but {key} is {found}; leave"
                    " it out"
                )
        if experiment.model.condition == "text":
            raise SettingsError(
                f"sampling.{name} ({value}) counts from the first block, but model.condition is text, whose words stand"
                " before it; leave it out"
            )


def _check_chunks(experiment: Sections) -> None:
    """Refuses settings that do not work for a clip that is computed piece by piece. `chunked_full` must have the
    gradient of the full sequence; `stale_prefix` keeps keys and values from step to step.
    """
    scheme, condition = experiment.window.scheme, experiment.model.condition
    reasons = {
        "training.compile": "compiles whole layers",
        "training.activation_checkpointing": "computes layers again",
        "resources.shard_state": "gathers weights for one pass",
        "model.kind": "has a past that only it can read",
        **({"model.condition": "puts words before the clip"} if condition == "text" else {}),
    }
    if scheme == "chunked_full":
        reasons |= {
            "objective.continuity_weight": "compares tokens of different chunks",
            "objective.term": "looks at all hidden states at once",
        }
    elif scheme == "stale_prefix":
        reasons |= {
            "training.micro_batches": "would need keys and values of several batches",
            "resources.workers": "would keep keys and values that no checkpoint holds",
        }
        _check_last_window(experiment)
    else:
        return
    for key, value in _changed(experiment, reasons):
        raise SettingsError(
            f"{key} ({value}) {reasons[key]}, so window.scheme {scheme} cannot have it; leave it out, or use another"
            " scheme"
        )


def _check_last_window(experiment: Sections) -> None:
    """With consecutive windows, the last one of a clip can be shorter. λ must still find neighbours in it."""
    window, objective, grid = experiment.window, experiment.objective, experiment.grid
    assert window.length_tokens is not None
    last = grid.num_tokens % window.length_tokens or window.length_tokens
    distance = grid.tokens_per_block if objective.continuity_neighbours == "sites" else 1
    if objective.continuity_weight > 0 and last <= distance:
        raise SettingsError(
            f"objective.continuity_weight compares tokens at distance {distance}, but with window.length_tokens"
            f" ({window.length_tokens}) the last window of a clip has {last}; change the length or set the weight to 0"
        )


def _check_sites(experiment: Sections) -> None:
    window, objective, per_block = experiment.window, experiment.objective, experiment.grid.tokens_per_block
    assert window.length_tokens is not None
    blocks = (
        3 if window.scheme == "fewer_frames_tokens" else 2
    )  # its pieces inside a clip have no loss on their first block
    if (
        objective.continuity_neighbours == "sites"
        and objective.continuity_weight > 0
        and window.length_tokens < blocks * per_block
    ):
        raise SettingsError(
            "objective.continuity_neighbours (sites) compares adjacent frames, so window.length_tokens"
            f" ({window.length_tokens}) must hold {blocks} blocks of {per_block} tokens; lengthen the window"
        )
