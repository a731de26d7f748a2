"""One self-contained page: everything inlined, readable offline, light and dark, sortable and usable by keyboard."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.quality import FVD
from reco_tune.reporting.render.text import data_uri, glued, with_code
from reco_tune.reporting.section import DPI, Figure, Section
from reco_tune.settings import SEARCH, TUNE
from reco_tune.settings.protocols import CODES_ALONE


def page(evidence: Evidence, sections: Sequence[Section], drawn: Mapping[str, Path]) -> str:
    """The page as HTML.

    Args:
        sections: in order; those with nothing to show are left out.
        drawn: PNG file by name of the figures for which there was something to draw.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = with_code
    environment.filters["glued"] = glued
    shown = [one for one in (_shown(section, drawn) for section in sections) if one]
    protocols = list(dict.fromkeys(result.protocol for result in evidence.results.values()))
    return environment.get_template("page.html.j2").render(
        study=evidence.study,
        evidence_is_fvd=evidence.quality is FVD,
        counts=_counts(evidence.own),
        protocols={protocol: _standing(protocol) for protocol in protocols},
        sections=shown,
        files=[f"{table.name}.{kind}" for section in sections for table in section.tables for kind in table.files],
    )


def _shown(section: Section, drawn: Mapping[str, Path]) -> dict[str, Any] | None:
    """The parts of a section for the page; None if it has nothing to show."""
    figures = [_figure(figure, drawn[figure.name]) for figure in section.figures if figure.name in drawn]
    tables = [table for table in section.tables if table.shown and (table.groups or (table.columns and table.caption))]
    words = [] if section.markup else section.words
    if not (figures or tables or words or section.markup):
        return None
    return {"section": section, "figures": figures, "tables": tables, "words": words}


def _figure(figure: Figure, path: Path) -> dict[str, str]:
    width, height = struct.unpack(">II", path.read_bytes()[16:24])  # PNG keeps its size there
    return {
        "title": figure.title,
        "about": figure.about,
        "source": data_uri(path, "image/png"),
        "alt": f"{figure.title}. {figure.about} {figure.words}",
        "width": str(round(width * 100 / DPI)),
        "height": str(round(height * 100 / DPI)),
    }


def _standing(protocol: str) -> str:
    """A sentence on what the numbers of a protocol may be compared with."""
    name = protocol.split("/")[0]
    if name == CODES_ALONE:
        return (
            "Its codes come without a decoder: no clips are generated and nothing is said of how they look. The"
            " validation cross-entropy compares with that of models of the same codes alone."
        )
    if name in ("native-random", "native-pca"):
        features = "a network at random weights" if name == "native-random" else "principal components of pixels"
        return (
            f"Illustrative only: its features are {features}. It ranks the arms of this study; do not compare its"
            " numbers with published ones."
        )
    if name == "native":
        return (
            "Its features were trained on this data set. It ranks the arms of this study; do not compare its numbers"
            " with published ones."
        )
    return ""


def _counts(runs: pd.DataFrame) -> list[str]:
    states = runs["state"].value_counts()
    again = len(runs.attrs.get("repeats", {}))
    fixed, sampled = int((runs["arm"] != SEARCH).sum()), int((runs["arm"] == SEARCH).sum()) - again
    tuning = int((runs["budget"] == TUNE).sum())
    words = (
        [f"{fixed - tuning} runs of fixed arms", f"{sampled} sampled runs"] if sampled else [f"{fixed - tuning} runs"]
    )
    words += [f"{tuning} runs that tuned the arms"] if tuning else []
    words += [f"{again} runs of finalists with further seeds"] if again else []
    return words + [
        f"{states[state]} {state}" for state in ("pruned", "failed", "running", "planned") if state in states
    ]
