"""One module for each result: it computes the tables, draws the figures and writes the text. The modules do not import
each other.
"""

from __future__ import annotations

from importlib import import_module

from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.section import Section

SECTIONS = [
    "answer",
    "frontier",
    "samples",
    "claims",
    "more_seeds",
    "ablation",
    "tuning",
    "measures",
    "configurations",
    "hypervolume",
    "compute",
    "passes",
    "memorising",
    "sampling",
    "cost_curve",
    "importance",
    "continuity_weight",
    "window_stride",
    "curves",
    "cost",
    "protocols",
    "every_run",
    "provenance",
    "glossary",
]
"""Modules of this package in the order of the page."""


def build(name: str, evidence: Evidence) -> Section:
    """The section of that module, which has a function `build(evidence) -> Section`."""
    section: Section = import_module(f"{__name__}.{name}" if "." not in name else name).build(evidence)
    return section
