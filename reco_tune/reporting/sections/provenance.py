"""Provenance of a study's tables: every run, where it ran, and how to make the report again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import quoted
from reco_tune.reporting.render.text import with_code
from reco_tune.reporting.section import STUDY_DIR, Section
from reco_tune.settings import TUNE

_FACTS = ("protocol", "extractor", "data_fingerprint", "tokenizer_fingerprint")


def build(evidence: Evidence) -> Section:
    study = evidence.study
    command = f" {quoted(str(study.provenance['command']))} made the study." if "command" in study.provenance else ""
    facts = (Markup("<dt>{}</dt><dd>{}</dd>").format(name, text) for name, text in _facts(evidence))
    commands = [
        f"reco-tune report {STUDY_DIR}                        # this page, from the event log",
        f"reco-tune report mlflow:{study.name} --output DIR   # the same tables, from MLflow",
        f"reco-tune resume {STUDY_DIR}                        # finish the unfinished runs, then report",
    ]
    return Section(
        "provenance",
        "Provenance",
        markup=Markup(
            "<dl>{}</dl><h3>Rebuild it</h3><pre tabindex='0' role='region' aria-label='Commands that rebuild"
            " this report'><code>{}</code></pre><p class='note'>{}</p>"
        ).format(
            Markup("").join(facts),
            "\n".join(commands),
            with_code(f"`{STUDY_DIR}` is the study's folder.{command}"),
        ),
    )


def _facts(evidence: Evidence) -> list[tuple[str, str]]:
    runs = evidence.own
    found = [
        (name.replace("_", " "), ", ".join(dict.fromkeys(str(value) for value in runs[name] if value)))
        for name in _FACTS
    ]
    found.append(
        ("seeds", ", ".join(str(seed) for seed in sorted({int(seed) for seed in runs["seed"][runs["budget"] != TUNE]})))
    )
    found += [("extended", _extension(one)) for one in evidence.study.extensions]
    for key, value in evidence.study.provenance.items():
        text = (
            ", ".join(f"{name} {version}" for name, version in value.items()) if isinstance(value, dict) else str(value)
        )
        found.append((key.replace("_", " "), text))
    return [(name, text) for name, text in found if text]


def _extension(one: dict[str, Any]) -> str:
    """Dates and contents of the study's extensions, as text."""
    when = datetime.fromtimestamp(one["time"], UTC).strftime("%Y-%m-%d %H:%M UTC: ") if one["time"] else ""
    calibrated = "; the speed of new arms was measured beside the baseline again" if one["arms"] else ""
    return f"{when}{', '.join(one['what'])}{calibrated}"
