"""Every metric with its unit, its better direction and its symbol. Other modules never write such names out."""

from __future__ import annotations

from typing import Literal, NamedTuple

ARROWS = {"lower": " ↓", "higher": " ↑", "neither": ""}
"""Suffix of a heading: ↓ means lower is better, ↑ means higher is better."""


class Quantity(NamedTuple):
    """One metric of a run."""

    name: str
    label: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    deterministic: bool = True
    """Whether the same settings and seeds give the same bits on the same machine type (measured times never do)."""

    @property
    def heading(self) -> str:
        """Column heading: the label with its unit, and ↓ or ↑ for the better direction."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.label}{unit}{ARROWS[self.better]}"


def _q(
    name: str, label: str, unit: str, better: Literal["lower", "higher", "neither"], deterministic: bool = True
) -> Quantity:
    return Quantity(name, label, unit, better, deterministic)


FVD = _q("fvd", "FVD", "", "lower")
FVD_LOW = _q("fvd_low", "FVD, low end of the 95% interval", "", "lower")
FVD_HIGH = _q("fvd_high", "FVD, high end of the 95% interval", "", "lower")
FVD_HELDOUT = _q("fvd_heldout", "FVD against held-out clips", "", "lower")
FVD_HELDOUT_LOW = _q("fvd_heldout_low", "FVD against held-out clips, low end of the 95% interval", "", "lower")
FVD_HELDOUT_HIGH = _q("fvd_heldout_high", "FVD against held-out clips, high end of the 95% interval", "", "lower")
COPY_RATE = _q(
    "copy_rate", "Copy rate: share of generated clips as near to a training clip as 5% of new ones", "", "lower"
)
COPY_RATE_LOW = _q("copy_rate_low", "Copy rate, low end of the 95% interval", "", "lower")
COPY_RATE_HIGH = _q("copy_rate_high", "Copy rate, high end of the 95% interval", "", "lower")
KERNEL_DISTANCE = _q("kernel_distance", "Kernel distance (polynomial MMD²)", "", "lower")
KERNEL_DISTANCE_LOW = _q("kernel_distance_low", "Kernel distance, low end of the 95% interval", "", "lower")
KERNEL_DISTANCE_HIGH = _q("kernel_distance_high", "Kernel distance, high end of the 95% interval", "", "lower")
CLASS_ACCURACY = _q("class_accuracy", "Class accuracy of generated clips", "", "higher")
LAST_FRAME_ACCURACY = _q("last_frame_accuracy", "Class accuracy of last frames", "", "higher")
PROMPT_DIGIT_ACCURACY = _q("prompt_digit_accuracy", "Share of clips that show the digit of their prompt", "", "higher")
PROMPT_DIRECTION_ACCURACY = _q(
    "prompt_direction_accuracy", "Share of clips that move as their prompt says", "", "higher"
)
MOTION_DISTANCE = _q("motion_distance", "Motion distance", "", "lower")
FLOW_UNEXPLAINED = _q("flow_unexplained", "Share of change that optical flow does not explain", "", "lower")
CLIP_SCORE = _q("clip_score", "CLIP score", "", "higher")
CLIP_SCORE_LOW = _q("clip_score_low", "CLIP score, low end of the 95% interval", "", "higher")
CLIP_SCORE_HIGH = _q("clip_score_high", "CLIP score, high end of the 95% interval", "", "higher")
OWN_MEASURE = _q("own_measure", "Your own measure", "", "neither")
LIPSCHITZ_TOKENS = _q("lipschitz_tokens", "Step of h along tokens", "", "neither")
LIPSCHITZ_TOKENS_RELATIVE = _q("lipschitz_tokens_relative", "Step of h along tokens / |h|", "", "neither")
LIPSCHITZ_FRAMES = _q("lipschitz_frames", "Step of h across frames", "", "neither")
LIPSCHITZ_FRAMES_RELATIVE = _q("lipschitz_frames_relative", "Step of h across frames / |h|", "", "neither")
FIRST_FRAME_GAP = _q(
    "first_frame_gap",
    "First-frame gap: cross-entropy of block 0, own samples minus training clips",
    "nats/token",
    "neither",
)
ERROR_GROWTH_RATE = _q("error_growth_rate", "Error growth, exponential rate", "per block", "lower")
ERROR_GROWTH_SLOPE = _q("error_growth_slope", "Error growth, linear slope", "per block", "lower")
ERROR_GROWTH_AIC = _q(
    "error_growth_aic", "Error growth: AIC of the linear law minus AIC of the exponential law", "", "neither"
)
VAL_CROSS_ENTROPY = _q("val_cross_entropy", "Validation cross-entropy", "nats/token", "lower")
TRAIN_CROSS_ENTROPY = _q("train_cross_entropy", "Training cross-entropy", "nats/token", "lower")
CONTINUITY = _q("continuity", "Continuity term without λ", "", "neither")
HIDDEN_NORM = _q("hidden_norm", "Mean h²", "", "neither")
LEARNING_RATE = _q("learning_rate", "Learning rate", "", "neither")

SPEEDUP = _q("speedup", "Speed-up per step", "x", "higher", deterministic=False)
SPEEDUP_LOW = _q("speedup_low", "Speed-up, low end of the 95% interval", "x", "higher", deterministic=False)
SPEEDUP_HIGH = _q("speedup_high", "Speed-up, high end of the 95% interval", "x", "higher", deterministic=False)
SPEEDUP_LIMIT = _q("speedup_limit", "Speed-up limit (FLOPs)", "x", "higher")
LIMIT_FRACTION = _q("limit_fraction", "Speed-up divided by its limit", "", "higher", deterministic=False)
PEAK_MEMORY_RATIO = _q("peak_memory_ratio", "Peak memory divided by the baseline's", "x", "lower", deterministic=False)

STEPS = _q("steps", "Optimiser steps", "steps", "neither")
PASSES = _q("passes", "Passes over the training clips", "", "neither")
TOKENS_SEEN = _q("tokens_seen", "Tokens seen (prefix and window)", "tokens", "neither")
LOSS_TOKENS = _q("loss_tokens", "Tokens with a loss", "tokens", "neither")
TRAINED_PARAMETERS = _q("trained_parameters", "Weights that are trained", "", "neither")
TRAINING_FLOPS = _q("training_flops", "Training FLOPs", "FLOPs", "lower")
FORWARD_FLOPS = _q("forward_flops", "Training FLOPs, forward (window and prefix)", "FLOPs", "lower")
BACKWARD_FLOPS = _q("backward_flops", "Training FLOPs, backward", "FLOPs", "lower")
CALIBRATION_SECONDS = _q("calibration_seconds", "Calibration", "device s", "lower", deterministic=False)
CALIBRATION_LOAD = _q("calibration_load", "Processes per core when calibration began", "", "lower", deterministic=False)
CALIBRATION_CLOCK = _q("calibration_clock", "Clock speed during calibration", "MHz", "neither", deterministic=False)
COMPILE_SECONDS = _q("compile_seconds", "Compilation", "device s", "lower", deterministic=False)
TRAINING_SECONDS = _q("training_seconds", "Training", "device s", "lower", deterministic=False)
GENERATION_SECONDS = _q("generation_seconds", "Generation", "device s", "lower", deterministic=False)
EVALUATION_SECONDS = _q("evaluation_seconds", "Evaluation", "device s", "lower", deterministic=False)
TOKENS_PER_SECOND = _q("tokens_per_second", "Throughput", "tokens/s", "higher", deterministic=False)
DATA_WAIT_SHARE = _q("data_wait_share", "Share of training spent waiting for data", "", "lower", deterministic=False)
PEAK_MEMORY_BYTES = _q("peak_memory_bytes", "Peak memory", "bytes", "lower", deterministic=False)
GPU_HOURS = _q("gpu_hours", "Device hours (of GPUs, or of workers without a GPU)", "h", "lower", deterministic=False)
MOVES = _q("moves", "Moves to other workers", "", "lower", deterministic=False)

ALL: dict[str, Quantity] = {value.name: value for value in list(globals().values()) if isinstance(value, Quantity)}
"""Every scalar metric by name, in the order of the tables."""

JUDGED = tuple(ALL)[: list(ALL).index("val_cross_entropy")]
"""Metrics known only from the evaluation of a trained model. They can differ between protocols."""

STEPS_OF_H = (LIPSCHITZ_TOKENS, LIPSCHITZ_TOKENS_RELATIVE, LIPSCHITZ_FRAMES, LIPSCHITZ_FRAMES_RELATIVE)
"""Root mean squares along tokens and across frames, each raw and relative to |h|."""
STAGE_SECONDS = (CALIBRATION_SECONDS, COMPILE_SECONDS, TRAINING_SECONDS, GENERATION_SECONDS, EVALUATION_SECONDS)
"""Costs of a run by stage. Their sum is its device hours."""
SIGNED = {KERNEL_DISTANCE, CLIP_SCORE, FIRST_FRAME_GAP, ERROR_GROWTH_RATE, ERROR_GROWTH_SLOPE, ERROR_GROWTH_AIC}
"""Metrics that can be negative."""
FEWEST_GROWTH_BLOCKS = 4
"""Blocks that a clip needs for a fit of error growth: the disturbed block and three after it."""
RESOLVED_AIC = 2.0
"""Difference of AIC below which two growth laws count as equally good (Burnham and Anderson, 2002). Both fit a flat
curve.
"""

LOSS_BY_FRAME_TRAIN = "loss_by_frame_train"
"""Curve: cross-entropy per block on training clips; the step is the block."""
LOSS_BY_FRAME_GENERATED = "loss_by_frame_generated"
"""Curve: cross-entropy per block of the model on its own samples."""
ERROR_GROWTH = "error_growth"
"""Curve: relative divergence of h per block after block 0 was perturbed."""
FRAME_ACCURACY = "frame_accuracy"
"""Curve: class accuracy of single frames of generated clips; the step is the frame."""
FVD_BY_SAMPLES = "fvd_by_samples"
"""Curve: FVD of N / 2^k, ..., N / 2, N generated clips. It falls because of the bias. The run's `fvd_bias` holds the
numbers of clips.
"""
CURVES = (LOSS_BY_FRAME_TRAIN, LOSS_BY_FRAME_GENERATED, ERROR_GROWTH, FRAME_ACCURACY, FVD_BY_SAMPLES)
