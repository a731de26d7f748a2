"""Finds metrics that a run cannot measure with its settings. As an objective, such a metric would fail every run.
Properties of the data, such as classes, are known only after preparation.
"""

from __future__ import annotations

from reco_tune import quantities as q
from reco_tune.settings.sections import Sections

CLASSLESS = ("flat", "faceforensics", "skytimelapse", "taichi")
"""Layouts whose videos have no classes."""

_CLASSES = {q.CLASS_ACCURACY.name, q.LAST_FRAME_ACCURACY.name}
_PROMPTS = {q.PROMPT_DIGIT_ACCURACY.name, q.PROMPT_DIRECTION_ACCURACY.name}
_FLOW = {q.FLOW_UNEXPLAINED.name}
_CLIPS = {q.FVD.name, q.KERNEL_DISTANCE.name, q.MOTION_DISTANCE.name}
_BOTH = {name + end for name in (q.FVD_HELDOUT.name, q.COPY_RATE.name) for end in ("", "_low", "_high")}
_DISTANCES = {name + end for name in _CLIPS for end in ("", "_low", "_high")}
_CLIP_SCORE = {q.CLIP_SCORE.name, q.CLIP_SCORE_LOW.name, q.CLIP_SCORE_HIGH.name}
_PIXELS = _DISTANCES | _BOTH | _CLASSES | _PROMPTS | _FLOW | _CLIP_SCORE | {q.OWN_MEASURE.name}
_GROWTH = {q.ERROR_GROWTH_RATE.name, q.ERROR_GROWTH_SLOPE.name, q.ERROR_GROWTH_AIC.name}
_ANALYSES = {quantity.name for quantity in q.STEPS_OF_H} | {q.FIRST_FRAME_GAP.name} | _GROWTH


def unmeasured(metric: str, experiment: Sections, classes: bool | None = None) -> str:
    """Why runs with these settings cannot measure a metric, and what to change. Empty if they can.

    Args:
        classes: whether the data have classes, if known.
    """
    data, evaluation, blocks = experiment.data, experiment.evaluation, experiment.grid.blocks
    if metric in _PIXELS and data.layout == "tokens":
        return "needs pixels, but data.layout tokens has none; use val_cross_entropy"
    if metric == q.OWN_MEASURE.name and evaluation.measure is None:
        return "is not measured without evaluation.measure; give it"
    if metric in _CLIP_SCORE and evaluation.clip is None:
        return "is not measured without evaluation.clip; give it"
    if metric in _BOTH and evaluation.reference_split != "both":
        return f"is not measured if evaluation.reference_split is {evaluation.reference_split}; set it to both"
    if metric in _FLOW and not evaluation.flow:
        return "is not measured if evaluation.flow is false; set it to true"
    if metric in _ANALYSES and not evaluation.analyses:
        return "is not measured if evaluation.analyses is false; set it to true"
    if metric in _GROWTH and blocks < q.FEWEST_GROWTH_BLOCKS:
        return f"needs clips of {q.FEWEST_GROWTH_BLOCKS} blocks, but these have {blocks}; lengthen data.clip_frames"
    if metric in _PROMPTS and (experiment.model.condition != "text" or data.layout != "digits"):
        return "reads the captions of data.layout digits; set model.condition to text there, or use another metric"
    if metric in _CLASSES and experiment.model.condition == "none":
        return "compares with the class asked for, but model.condition is none; set it to class"
    if metric in _CLASSES and not data.class_conditional:
        return "needs classes, but data.class_conditional is false; set it to true"
    if metric in _CLASSES and (classes is False or data.layout in CLASSLESS):
        return f"needs classes, but this data set of data.layout {data.layout} has none; use another metric"
    return ""
