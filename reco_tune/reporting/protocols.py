"""A study under one of the protocols that its models were scored by. Tables hold one protocol: the study's own, or the
one that is named.
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
    """Protocols that runs were scored by beside their study's own, and how many runs."""
    counts: dict[str, int] = {}
    for run in study.runs.values():
        for protocol in run.rescored:
            counts[protocol] = counts.get(protocol, 0) + 1
    return counts


def under_protocol(study: StudyRecord, given: str) -> StudyRecord:
    """The study with the numbers of another protocol in place of its own; the study itself where it is its own.

    Args:
        given: the protocol, or a part of it that no other has, for example its first word.

    Raises:
        ComparisonError: where no protocol, or more than one, is meant.
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
    """Which real clips the FVD of a protocol is measured against, in words; empty where it does not say."""
    for part in protocol.split("/"):
        found = re.fullmatch(r"(train|test|both)(\d+)", part)
        if found:
            split = "held-out" if found[1] == "test" else "training"
            return f"{int(found[2]):,} {split} clips"
    return ""


def _scored(run: RunRecord, protocol: str) -> RunRecord:
    """A run as the other protocol judges it; without a number of its own where its model was not scored."""
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
"""What of a run's provenance no evaluation gives."""
