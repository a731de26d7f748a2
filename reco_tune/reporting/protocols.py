"""A study under one of the protocols that its models were scored under. A table has one protocol: the study's own, or
the one that is named.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from reco_tune.errors import ComparisonError
from reco_tune.quantities import JUDGED
from reco_tune.reporting.numbers import quoted
from reco_tune.study_log import RunRecord, StudyRecord


def other_protocols(study: StudyRecord) -> dict[str, int]:
    """Other protocols that runs were scored under, with the number of runs."""
    counts: dict[str, int] = {}
    for run in study.runs.values():
        for protocol in run.rescored:
            counts[protocol] = counts.get(protocol, 0) + 1
    return counts


def under_protocol(study: StudyRecord, given: str) -> StudyRecord:
    """The study with the numbers of another protocol in place of its own. Unchanged if the protocol is the study's own.

    Args:
        given: the protocol, or a part of its name that no other protocol has, for example its first word.

    Raises:
        ComparisonError: if no protocol matches, or more than one.
    """
    own = {str(run.provenance["protocol"]) for run in study.runs.values() if "protocol" in run.provenance}
    known = list(dict.fromkeys([*sorted(own), *other_protocols(study)]))
    meant = [name for name in known if name == given] or [name for name in known if given in name]
    if len(meant) != 1:
        raise ComparisonError(
            f"--protocol {given} means {'no' if not meant else 'more than one'} protocol of the study, which has"
            f" {', '.join(map(quoted, known)) or 'none'}; `reco-tune rescore` adds one"
        )
    if meant[0] in own:
        return study
    return replace(study, runs={trial: _scored(run, meant[0]) for trial, run in study.runs.items()})


def reference_of(protocol: str) -> str:
    """The real clips that the FVD of a protocol compares with, as text; empty if the protocol does not name them."""
    for part in protocol.split("/"):
        found = re.fullmatch(r"(train|test|both)(\d+)", part)
        if found:
            split = "held-out" if found[1] == "test" else "training"
            return f"{int(found[2]):,} {split} clips"
    return ""


def _scored(run: RunRecord, protocol: str) -> RunRecord:
    """A run with the numbers of the other protocol; without them if its model was not scored."""
    score: dict[str, Any] = run.rescored.get(protocol, {})
    other = {name: value for name, value in score.get("metrics", {}).items() if name in JUDGED}
    facts = {name: run.provenance[name] for name in _OF_THE_RUN if name in run.provenance}
    return replace(
        run,
        metrics={name: value for name, value in run.metrics.items() if name not in JUDGED} | other,
        curves=score.get("curves", {}),
        provenance=facts | score.get("provenance", {}),
        settings=run.settings | score.get("settings", {}),
        reason="" if run.state == "evaluated" else run.reason,
    )


_OF_THE_RUN = ("host", "pid", "device", "data_fingerprint", "tokenizer_fingerprint")
"""Provenance of a run that does not depend on the evaluation."""
