"""The words of the page, each in a sentence or two; docs/reference/glossary.md has the same."""

from __future__ import annotations

from markupsafe import Markup

from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.quality import FVD
from reco_tune.reporting.render.text import with_code
from reco_tune.reporting.section import Section

GLOSSARY = {
    "arm": "A named set of settings that a study compares, for example `full` or `reco`.",
    "baseline": "The arm `full`: every step trains on the whole clip. All other arms are compared with it.",
    "block": "One latent frame of the tokenizer. Block 0 is the first frame alone. Each later block holds"
    " `tokenizer.temporal_stride` frames.",
    "budget": "The rule for how long each arm trains: for as many steps as the baseline, or at the same cost. At the"
    " same cost, an arm that is twice as fast takes twice as many steps.",
    "calibration": "The benchmark that measures an arm's speed-up before training.",
    "configuration": "One set of settings, with all its training seeds: an arm, or a sampled run.",
    "continuity term": "A term of the loss that penalises steps of h, the last hidden states, from one token of the"
    " window to the next.",
    "device hour": "One hour of a GPU, or of a worker without a GPU.",
    "first-frame probability": "The probability that a window starts at the first frame.",
    "fixed arm, fixed run": "An arm that the space file names, and its runs. The settings of sampled runs come from"
    " the search.",
    "frontier": "The configurations that no other one beats in both speed-up and quality.",
    "FVD": "Fréchet video distance: how far the features of generated clips are from those of real clips. Lower is"
    " better.",
    "hypervolume": "How much of the plane of speed and quality the frontier covers. Higher is better.",
    "knee": "The point of the frontier that lies farthest below the line between its two ends: much speed for little"
    " quality.",
    "λ (lambda)": "The weight of the continuity term, `objective.continuity_weight`.",
    "loss token": "A token with a loss. A window of W tokens has W of them, a full step all T tokens of a clip.",
    "not resolved": "The data cannot tell two arms apart. This does not mean that they are equal.",
    "prefix": "The tokens before the window. The window attends to them, but they get no loss and no gradient.",
    "protocol": "Everything that changes an FVD number without changing the model: features, frames, resizing,"
    " number of clips.",
    "run": "One training of one configuration with one seed, and its evaluation.",
    "rung": "A point in a run where the run validates, reports, and writes a checkpoint.",
    "seed": "The number that fixes the random choices of a run: initial weights, order of clips, window starts.",
    "speed-up": "Seconds per step of the baseline, divided by those of the arm. The limit is the speed-up that the"
    " FLOPs allow.",
    "stride (S)": "The distance between possible window starts, in tokens.",
    "trial": "A run, as Ray Tune and Optuna call it. `trials` in a space file is the number of sampled runs.",
    "tuning run": "A run that helps to choose settings of its arm before the table (`tune`). The ablation table has"
    " neither these runs nor their seeds.",
    "window (W)": "The tokens of a clip that get a loss and a gradient in one training step.",
    "worker group": "The Ray Train workers that train one run together. A group trains one run after another.",
}
"""Word -> meaning, with `names` in backquotes."""


def build(evidence: Evidence) -> Section:
    """The glossary. Without pixels there is no FVD, and its words are left out."""
    known = {word: told for word, told in GLOSSARY.items() if evidence.quality is FVD or "FVD" not in word + told}
    entries = (Markup("<dt>{}</dt><dd>{}</dd>").format(word, with_code(told)) for word, told in known.items())
    return Section("glossary", "Glossary", markup=Markup("<dl>{}</dl>").format(Markup("").join(entries)))
