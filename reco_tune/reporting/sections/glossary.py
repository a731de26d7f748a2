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
    "budget": "The rule for how long each arm trains: for the baseline's number of steps, or for the steps that a share"
    " of the baseline's cost buys at the arm's speed.",
    "calibration": "The benchmark that measures an arm's speed-up before training.",
    "frontier": "The arms that no other arm beats in both speed-up and quality.",
    "FVD": "Fréchet video distance: how far the features of generated clips are from those of real clips. Lower is"
    " better.",
    "λ (lambda)": "The weight of the continuity term, `objective.continuity_weight`.",
    "protocol": "Everything that changes an FVD number without changing the model: features, frames, resizing, number"
    " of clips.",
    "rung": "A point in a run where the run validates, reports, and writes a checkpoint.",
    "stride (S)": "The distance between possible window starts, in tokens.",
    "window (W)": "The tokens of a clip that get a loss and a gradient in one training step.",
}
"""Word -> meaning, with `names` in backquotes."""


def build(evidence: Evidence) -> Section:
    """The words; without pixels there is no FVD, and its words are left out."""
    known = {word: told for word, told in GLOSSARY.items() if evidence.quality is FVD or "FVD" not in word + told}
    entries = (Markup("<dt>{}</dt><dd>{}</dd>").format(word, with_code(told)) for word, told in known.items())
    return Section("glossary", "Glossary", markup=Markup("<dl>{}</dl>").format(Markup("").join(entries)))
