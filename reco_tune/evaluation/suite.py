"""The whole evaluation of one trained model: generated clips, their distances to real ones, and the analyses of where
they go wrong.

Knows models, generation and the measures beside it; writes nothing but samples.npz. Batches of generated clips
(`sampling_plan`) are spread over the ranks of a group and gathered in their order: the result does not depend on how
many there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reco_tune import quantities as q
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import SettingsError
from reco_tune.evaluation.clip_score import ClipScore
from reco_tune.evaluation.clock import Clock
from reco_tune.evaluation.error_growth import error_growth, fit_growth
from reco_tune.evaluation.flow import CLIPS as FLOW_CLIPS
from reco_tune.evaluation.flow import flow_changes, unexplained
from reco_tune.evaluation.frechet import frechet_bias, frechet_interval, interval_of_mean, mean_interval
from reco_tune.evaluation.kernel import kernel_interval
from reco_tune.evaluation.loss_distribution import loss_by_block, training_clips
from reco_tune.evaluation.motion import motion_distance, motion_features
from reco_tune.evaluation.prompted_digits import motion_signs, prompt_hits
from reco_tune.evaluation.protocols import EvaluationReference, classes_of, prepare_together
from reco_tune.evaluation.sampling_plan import Asked, asked_for, batches_of, seed_of
from reco_tune.evaluation.smoothness import smoothness
from reco_tune.generation import Request, generate_clips, sample_tokens
from reco_tune.model import Decoder
from reco_tune.parts import load as load_part
from reco_tune.progress import Progress, quiet
from reco_tune.settings import Experiment
from reco_tune.settings.protocols import CODES_ALONE
from reco_tune.tokenizers import load_tokenizer
from reco_tune.training import Group, build_scheme, scheme_class

SHOWN_CLIPS = 8
"""Number of clips in samples.npz. They have the same labels and seeds for all arms, so arms can be shown side by side.
"""
ANALYSED_CLIPS = 256
"""Number of clips for the loss distribution, the error growth and the steps of h."""


@dataclass(frozen=True)
class EvaluationResult:
    """The results for a model's clips, the same on all ranks."""

    metrics: dict[str, float]
    """Scalars of `quantities`."""
    curves: dict[str, list[float]]
    """Curves of `quantities.CURVES`."""
    provenance: dict[str, Any]
    """What makes the numbers comparable, as JSON values."""


def evaluate(
    model: Decoder,
    experiment: Experiment,
    cache: TokenCache,
    group: Group = Group(),
    folder: Path | None = None,
    progress: Progress = quiet,
) -> EvaluationResult:
    """Generates `evaluation.samples` clips per sampling seed and compares them with the real ones.

    Where the cache holds codes alone (`data.layout: tokens`), nothing is compared; the curves by block and the steps of
    h are all.

    Args:
        model: on its device, the same on all ranks.
        folder: where rank 0 writes samples.npz; None writes nothing.

    Raises:
        SettingsError, DataError: see `prepare_evaluation`.
    """
    clock = Clock(model.device)
    was_training = model.training
    model.eval()
    try:
        if not cache.has_pixels:
            curves, scalars, growth = _analysed(
                model, experiment, cache, None, asked_for(experiment, cache).given_N, group
            )
            return EvaluationResult(
                scalars,
                curves,
                {"protocol": _codes_protocol(experiment)} | ({"error_growth": growth} if growth else {}),
            )
        with clock.measure("evaluation"):
            reference = prepare_together(experiment, cache, group)
        clips = _generated(model, experiment, cache, reference, group, clock, progress)
        with clock.measure("evaluation"):
            metrics = _distances(clips, reference, experiment.evaluation.sampling_seeds)
            metrics |= _prompts_followed(clips, cache.class_names)
            curves, scalars, growth = _analysed(model, experiment, cache, clips.tokens_AT, clips.given_N, group)
            metrics |= scalars
            bias = frechet_bias(clips.features_ND[: experiment.evaluation.samples], reference.statistics)
            curves[q.FVD_BY_SAMPLES] = bias.distance
            if clips.frame_class_NF is not None:
                curves[q.FRAME_ACCURACY] = (clips.frame_class_NF == clips.labels_N[:, None]).mean(axis=0).tolist()
                metrics[q.LAST_FRAME_ACCURACY.name] = curves[q.FRAME_ACCURACY][-1]
            if folder is not None and group.leads:
                folder.mkdir(parents=True, exist_ok=True)
                shown: dict[str, Any] = {"video": clips.shown_SFCHW, "labels": clips.labels_N[: len(clips.shown_SFCHW)]}
                if len(cache.clips("test")):
                    shown["real"] = _real(cache, experiment, shown["labels"])
                if clips.prompts_N is not None:
                    shown["prompts"] = np.array(clips.prompts_N[: len(clips.shown_SFCHW)])
                np.savez_compressed(folder / "samples.npz", allow_pickle=False, **shown)
    finally:
        model.train(was_training)
    metrics |= clock.totals(group)
    provenance = {
        "protocol": reference.protocol,
        "extractor": reference.extractor.hash,
        "extractor_quality": reference.extractor.quality,
        "interval": "95%, delete-group jackknife over generated clips, reference held fixed",
        "covariance_divisor": reference.statistics.divisor,
        "fvd_bias": {"samples": bias.samples, "limit": bias.limit if math.isfinite(bias.limit) else None},
        "rank_deficient": (
            experiment.evaluation.samples <= reference.statistics.dimensions or reference.statistics.rank_deficient
        ),
        **reference.facts,
    }
    if model.device.type == "cuda":
        provenance["float32"] = {
            "matrices": torch.get_float32_matmul_precision(),
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        }
    return EvaluationResult(metrics, curves, provenance | ({"error_growth": growth} if growth else {}))


def _codes_protocol(experiment: Experiment) -> str:
    """The protocol of cross-entropies on the same codes."""
    evaluation = experiment.evaluation
    return f"{CODES_ALONE}/{evaluation.validation_clips} held-out clips/{evaluation.checkpoint}"


class _GeneratedClips(NamedTuple):
    """Features of all generated clips in a fixed order: one sampling seed after another."""

    labels_N: NDArray[np.int64]
    given_N: NDArray[np.int64]
    """The conditions of the model: classes, or the words of prompts."""
    prompts_N: tuple[str, ...] | None
    features_ND: NDArray[np.float64]
    motion_ND: NDArray[np.float64]
    class_N: NDArray[np.int64] | None
    """Classes that the extractor recognises; None without a classifier or without classes."""
    frame_class_NF: NDArray[np.int64] | None
    moves_N2: NDArray[np.int64]
    """`motion_signs`; empty if no prompt names a direction."""
    flow_C2: NDArray[np.float64]
    """`flow_changes` of the first clips; empty if they are not measured."""
    own_N: NDArray[np.float64]
    """Values of the user's own measure; empty without one."""
    clip_N: NDArray[np.float64]
    """CLIP scores; empty if they are not measured."""
    shown_SFCHW: NDArray[np.uint8]
    tokens_AT: Tensor | None
    """Codes of the first clips; None if they are not kept."""


def _generated(
    model: Decoder,
    experiment: Experiment,
    cache: TokenCache,
    reference: EvaluationReference,
    group: Group,
    clock: Clock,
    progress: Progress,
) -> _GeneratedClips:
    """Generates this rank's batches, computes their features, and gathers the results of all ranks."""
    evaluation, data = experiment.evaluation, experiment.data
    tokenizer = load_tokenizer(cache.tokenizer_path)
    asked, seeds = asked_for(experiment, cache), evaluation.sampling_seeds
    digits = asked.prompts_N is not None and data.layout == "digits"
    device = str(model.device)
    measure = None if evaluation.measure is None else load_part("measures", evaluation.measure)()
    scored = None
    if evaluation.clip is not None:
        scored = ClipScore(evaluation.clip, evaluation.clip_frames, evaluation.clip_scale, model.device)
    whole = not scheme_class(experiment).trains_pieces
    mine: dict[str, list[Tensor]] = {
        "place": [torch.empty(0, dtype=torch.long)],
        "features": [torch.empty(0, reference.features_MD.shape[1], dtype=torch.float64)],
        "motion": [torch.empty(0, reference.motion_MD.shape[1], dtype=torch.float64)],
        "class": [torch.empty(0, 1 + data.clip_frames, dtype=torch.long)],
        "moves": [torch.empty(0, 2, dtype=torch.long)],
        "flow": [torch.empty(0, 2, dtype=torch.float64)],
        "own": [torch.empty(0, dtype=torch.float64)],
        "clip": [torch.empty(0, dtype=torch.float64)],
        "shown": [torch.empty(0, data.clip_frames, 3, data.size_px, data.size_px, dtype=torch.uint8)],
        "tokens": [torch.empty(0, cache.grid.num_tokens, dtype=torch.long)],
    }
    batches = list(batches_of(evaluation.samples, seeds, experiment.sampling.batch_size))
    own = batches[group.rank :: group.size]
    requests = [Request(torch.from_numpy(asked.given_N[batch.start : batch.stop]), batch.draw_seed) for batch in own]
    made = generate_clips(model, experiment, tokenizer, cache.grid, requests, progress)
    for done, batch in enumerate(own, 1):
        with clock.measure("generation"):
            generated = next(made)
        with clock.measure("evaluation"):
            first = batch.start + batch.sampling_seed * evaluation.samples
            places = torch.arange(first, first + len(generated.video_BFCHW))
            described = reference.extractor.describe(generated.video_BFCHW, device)
            mine["place"].append(places)
            mine["features"].append(torch.from_numpy(described.features_BD))
            mine["motion"].append(torch.from_numpy(motion_features(generated.video_BFCHW)))
            if reference.classifier is not None:
                known = classes_of(generated.video_BFCHW, described, reference.extractor, reference.classifier, device)
                assert known.class_B is not None and known.frame_class_BF is not None
                mine["class"].append(torch.from_numpy(np.column_stack([known.class_B, known.frame_class_BF])))
            if measure is not None:
                mine["own"].append(_measured(measure, generated.video_BFCHW, asked.part(batch)))
            if scored is not None:
                mine["clip"].append(scored(generated.video_BFCHW, asked.part(batch).prompts_N or ()))
            if digits:
                mine["moves"].append(motion_signs(generated.video_BFCHW).cpu())
            if evaluation.flow:
                mine["flow"].append(torch.from_numpy(flow_changes(_below(generated.video_BFCHW, first, FLOW_CLIPS))))
            mine["shown"].append(_below(generated.video_BFCHW, first, SHOWN_CLIPS).cpu())
            if whole and generated.tokens_BT is not None and evaluation.analyses:
                mine["tokens"].append(_below(generated.tokens_BT, first, ANALYSED_CLIPS).cpu())
        progress(done, len(own), "generating clips")
    with clock.measure("evaluation"):
        joint = {name: torch.cat(group.gather(torch.cat(parts))) for name, parts in mine.items()}
        order = joint["place"].argsort()
    classes = joint["class"][order].numpy() if reference.classifier is not None else None
    return _GeneratedClips(
        np.concatenate([asked.labels_N] * seeds),
        np.concatenate([asked.given_N] * seeds),
        asked.prompts_N and asked.prompts_N * seeds,
        joint["features"][order].numpy(),
        joint["motion"][order].numpy(),
        None if classes is None else classes[:, 0],
        None if classes is None else classes[:, 1:],
        joint["moves"][order].numpy() if digits else joint["moves"].numpy(),
        joint["flow"][_order_below(joint["place"], FLOW_CLIPS)].numpy() if evaluation.flow else joint["flow"].numpy(),
        joint["own"][order].numpy() if measure is not None else joint["own"].numpy(),
        joint["clip"][order].numpy() if scored is not None else joint["clip"].numpy(),
        joint["shown"][_order_below(joint["place"], SHOWN_CLIPS)].numpy(),
        joint["tokens"][_order_below(joint["place"], ANALYSED_CLIPS)] if len(joint["tokens"]) else None,
    )


def _measured(measure: Callable[..., Tensor], video_BFCHW: Tensor, asked: Asked) -> Tensor:
    """One float64 a clip.

    A measure is called with pixels and classes; one whose attribute `reads_prompts` is true also with the keyword
    argument `prompts`, the text that each clip was asked for (a list of str).

    Raises:
        SettingsError: where it gives anything else, or needs prompts that there are not.
    """
    labels_B, more = torch.from_numpy(asked.labels_N), {}
    if getattr(measure, "reads_prompts", False):
        if asked.prompts_N is None:
            raise SettingsError(
                "evaluation.measure reads prompts, which the model is not asked with; set model.condition to text"
            )
        more["prompts"] = list(asked.prompts_N)
    values = measure(video_BFCHW, labels_B, **more)
    if values.shape != (len(video_BFCHW),):
        raise SettingsError(
            f"evaluation.measure gives {tuple(values.shape)} for {len(video_BFCHW)} clips; give one number a clip"
        )
    return values.detach().double().cpu()


def _below(rows: Tensor, first: int, limit: int) -> Tensor:
    """The rows whose places are below `limit`. The rows have the places first, first + 1, ..."""
    return rows[: max(0, limit - first)]


def _order_below(place_N: Tensor, limit: int) -> Tensor:
    """The order of rows by place, for rows that only clips at places below `limit` have."""
    places = place_N.numpy()
    return torch.from_numpy(places[places < limit].argsort())


def _distances(clips: _GeneratedClips, reference: EvaluationReference, sampling_seeds: int) -> dict[str, float]:
    """Every distance for each sampling seed, then the mean over seeds."""
    parts = np.split(np.arange(len(clips.labels_N)), sampling_seeds)
    fvd = mean_interval(
        [frechet_interval(clips.features_ND[part], reference.statistics, clips.labels_N[part]) for part in parts]
    )
    kernels = [kernel_interval(clips.features_ND[part], reference.features_MD, clips.labels_N[part]) for part in parts]
    kernel = mean_interval(kernels, floor=-math.inf)
    metrics = {
        q.FVD.name: fvd.value,
        q.FVD_LOW.name: fvd.low,
        q.FVD_HIGH.name: fvd.high,
        q.KERNEL_DISTANCE.name: kernel.value,
        q.KERNEL_DISTANCE_LOW.name: kernel.low,
        q.KERNEL_DISTANCE_HIGH.name: kernel.high,
        q.MOTION_DISTANCE.name: float(
            np.mean([motion_distance(clips.motion_ND[part], reference.motion_MD) for part in parts])
        ),
    }
    if len(clips.clip_N):
        score = interval_of_mean(clips.clip_N)
        metrics |= {
            q.CLIP_SCORE.name: score.value,
            q.CLIP_SCORE_LOW.name: score.low,
            q.CLIP_SCORE_HIGH.name: score.high,
        }
    if len(clips.own_N):
        metrics[q.OWN_MEASURE.name] = float(clips.own_N.mean())
    if reference.memory is not None:
        against = [
            frechet_interval(clips.features_ND[part], reference.memory.heldout, clips.labels_N[part]) for part in parts
        ]
        other, copies = mean_interval(against), reference.memory.copies(clips.features_ND)
        metrics |= {q.FVD_HELDOUT.name: other.value, q.FVD_HELDOUT_LOW.name: other.low}
        metrics |= {q.FVD_HELDOUT_HIGH.name: other.high, q.COPY_RATE.name: copies.value}
        metrics |= {q.COPY_RATE_LOW.name: copies.low, q.COPY_RATE_HIGH.name: copies.high}
    if len(clips.flow_C2):
        metrics[q.FLOW_UNEXPLAINED.name] = unexplained(clips.flow_C2)
    if clips.class_N is not None:
        metrics[q.CLASS_ACCURACY.name] = float((clips.class_N == clips.labels_N).mean())
    return metrics


def _prompts_followed(clips: _GeneratedClips, class_names: Sequence[str]) -> dict[str, float]:
    """How often generated digits are those of their prompts. Empty for data other than the embedded digits."""
    if clips.prompts_N is None or clips.class_N is None or not len(clips.moves_N2):
        return {}
    digits = np.array([int(name.removeprefix("Digit")) for name in class_names])
    hits = prompt_hits(clips.prompts_N, digits[clips.class_N], clips.moves_N2)
    return {q.PROMPT_DIGIT_ACCURACY.name: hits.digit, q.PROMPT_DIRECTION_ACCURACY.name: hits.direction}


_Analyses = tuple[dict[str, list[float]], dict[str, float], dict[str, Any] | None]
"""Curves by block, scalars of them and of the steps of h, and the law of the error's growth where there are blocks
enough to tell.
"""


def _analysed(
    model: Decoder,
    experiment: Experiment,
    cache: TokenCache,
    tokens_AT: Tensor | None,
    given_N: NDArray[np.int64],
    group: Group,
) -> _Analyses:
    """Rank 0 computes `_analyses`, and all ranks get the result."""
    if not experiment.evaluation.analyses:
        return {}, {}, None
    found = _analyses(model, experiment, cache, tokens_AT, given_N) if group.leads else ({}, {}, None)
    curves, scalars, growth = group.broadcast_json(found)
    return curves, scalars, growth


def _analyses(
    model: Decoder,
    experiment: Experiment,
    cache: TokenCache,
    tokens_AT: Tensor | None,
    given_N: NDArray[np.int64],
) -> _Analyses:
    scheme = build_scheme(experiment, cache)
    per_block = cache.grid.tokens_per_block
    tokens, labels = training_clips(scheme, cache, ANALYSED_CLIPS)
    if tokens_AT is not None:
        sampled, sampled_labels = tokens_AT, torch.from_numpy(given_N[: len(tokens_AT)])
    else:  # a model that was trained on pieces is judged on such pieces
        sampled_labels = torch.from_numpy(given_N[: min(ANALYSED_CLIPS, experiment.evaluation.samples)])
        sampled = _sampled_pieces(model, experiment, sampled_labels)
    growth = error_growth(model, tokens, labels, per_block)
    curves = {
        q.LOSS_BY_FRAME_TRAIN: loss_by_block(model, tokens, labels, per_block),
        q.LOSS_BY_FRAME_GENERATED: loss_by_block(model, sampled, sampled_labels, per_block),
        q.ERROR_GROWTH: growth,
    }
    steps = smoothness(model, tokens, labels, per_block)
    scalars = {quantity.name: value for quantity, value in zip(q.STEPS_OF_H, steps, strict=True)}
    scalars[q.FIRST_FRAME_GAP.name] = curves[q.LOSS_BY_FRAME_GENERATED][0] - curves[q.LOSS_BY_FRAME_TRAIN][0]
    law = fit_growth(growth)
    if law is not None:
        scalars |= {q.ERROR_GROWTH_RATE.name: law.exponential_rate, q.ERROR_GROWTH_SLOPE.name: law.linear_slope}
        scalars[q.ERROR_GROWTH_AIC.name] = law.aic_linear - law.aic_exponential
    return (
        curves,
        {name: value for name, value in scalars.items() if math.isfinite(value)},
        None if law is None else asdict(law),
    )


def _sampled_pieces(model: Decoder, experiment: Experiment, labels_B: Tensor) -> Tensor:
    parts = enumerate(labels_B.split(experiment.sampling.batch_size))
    requests = [Request(labels, seed_of("pieces", number)) for number, labels in parts]
    return torch.cat(list(sample_tokens(model, experiment, requests))).cpu()


def _real(cache: TokenCache, experiment: Experiment, labels_S: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Real clips [S, F, C, H, W] of the given classes. The n-th request for a class gets its n-th held-out clip, as
    decoded.
    """
    clips, known = cache.clips("test"), cache.labels("test")
    told = experiment.data.class_conditional and experiment.model.condition != "none"
    known = known[: len(clips)] if told else np.zeros(len(clips), dtype=np.int64)
    chosen = []
    for place, label in enumerate(labels_S):
        same = np.flatnonzero(known == label)
        candidates = same if len(same) else np.arange(len(clips))
        chosen.append(candidates[int((labels_S[:place] == label).sum()) % len(candidates)])
    return np.array(clips[chosen])
