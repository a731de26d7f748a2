"""The other protocols under which the study's models were scored, and how to see the tables of one."""

from __future__ import annotations

import shlex

from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import quoted
from reco_tune.reporting.protocols import other_protocols
from reco_tune.reporting.section import STUDY_DIR, Section


def build(evidence: Evidence) -> Section:
    others = other_protocols(evidence.study)
    if not others:
        return Section("protocols", "Other protocols")
    shown = set(evidence.comparable["protocol"])
    words = [
        f"{count} run{'s were' if count > 1 else ' was'} scored under {quoted(protocol)} too."
        for protocol, count in others.items()
        if protocol not in shown
    ]
    words += [
        f"This page shows {quoted(protocol)}, which is not the study's own." for protocol in others if protocol in shown
    ]
    words.append(
        "Numbers of two protocols are not comparable. A table has one protocol: the study's own, or the one you name."
    )
    commands = [f"reco-tune report {STUDY_DIR} --protocol {shlex.quote(name)}" for name in others if name not in shown]
    if shown & others.keys():
        commands.append(f"reco-tune report {STUDY_DIR}")
    return Section("protocols", "Other protocols", words=words, commands=commands)
