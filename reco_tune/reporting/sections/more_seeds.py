"""Arms that more training seeds would resolve, the number of seeds, and the command. Only formulas and text; nothing
here runs a study.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reco_tune.bundled import bundled
from reco_tune.reporting.budgets import BUDGETS, reference
from reco_tune.reporting.comparisons import MOST_SEEDS, Unresolved
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import quoted, signed
from reco_tune.reporting.runs import arm_order
from reco_tune.reporting.section import STUDY_DIR, Section
from reco_tune.settings import BASELINE, TUNE

PEEKING = (
    "Suppose you add seeds because of the first results, and then test all seeds together. You then find false"
    " differences more often than once in twenty. For a claim, test the new seeds alone."
)
"""Warning about testing the same data twice (docs/reference/fvd-protocols.md gives the size of the effect)."""


def build(evidence: Evidence) -> Section:
    found = evidence.unresolved
    return Section(
        "more-seeds",
        "More training seeds",
        words=in_words(found, evidence.quality.digits),
        commands=seeds_commands(found, evidence.own, evidence.study.tuned),
    )


def in_words(found: Sequence[Unresolved], digits: int = 2) -> list[str]:
    """What more seeds would resolve and what they would not: a sentence for each arm and budget."""
    lines = []
    for one in found:
        told = (
            f"{quoted(one.arm)} against {quoted(reference(one.budget))} {BUDGETS[one.budget].words}: the difference is"
            f" {signed(one.difference.delta, digits)}."
        )
        if one.needed is None:
            lines.append(f"{told} More than {MOST_SEEDS} seeds would be needed to resolve it.")
        else:
            lines.append(
                f"{told} If the true difference is this large, about {one.needed} seeds would resolve it (it has"
                f" {one.difference.seeds})."
            )
    if any(one.needed is not None for one in found):
        lines.append(PEEKING)
    return lines


def seeds_commands(
    found: Sequence[Unresolved], runs: pd.DataFrame, tuned: Mapping[str, Mapping[str, Any]] | None = None
) -> list[str]:
    """Commands that run the missing seeds; empty if no number of seeds would help. The first adds them to this study,
    for all arms. For a claim, others run them in a new study and then compare the two.

    Args:
        runs: of the study.
        tuned: settings that were chosen for the study's arms. The new study must have them, too.
    """
    wanted = [one for one in found if one.needed is not None]
    if not wanted:
        return []
    arms = [arm for arm in arm_order(runs) if arm == BASELINE or arm in {one.arm for one in wanted}]
    used, tuning = (set(runs["seed"][own].astype(int)) for own in (runs["budget"] != TUNE, runs["budget"] == TUNE))
    more = max(one.needed - one.difference.seeds for one in wanted if one.needed is not None)
    free = (seed for seed in itertools.count(max(used) + 1) if seed not in tuning)
    seeds = ",".join(map(str, itertools.islice(free, more)))
    budgets = ",".join(dict.fromkeys(one.budget for one in wanted))
    name = f"{runs['study'].iloc[0]}-more"
    run = ["reco-tune", "run", f"{STUDY_DIR}/settings.yaml", "--name", name]
    run += ["--arms", ",".join(arms), "--seeds", seeds, "--trials", "0", "--set", f"budgets=[{budgets}]"]
    run += ["--set", "tune=null"] if tuned else []
    for arm in arms:
        for key, value in (tuned or {}).get(arm, {}).items():
            run += ["--set", f"arms.{arm}.{key}={json.dumps(value)}"]
    compare = ["python", str(_script("compare_studies.py")), STUDY_DIR, f"studies/{name}"]
    extend = ["reco-tune", "extend", STUDY_DIR, "--seeds", seeds]
    return [
        shlex.join(extend) + "  # in this study, for all its arms",
        shlex.join(run) + "  # in a study of their own, for a claim",
        shlex.join(compare) + "  # both studies together",
    ]


def _script(name: str) -> Path:
    """Path of an analysis script: in the checkout that the command runs in, or in the installed package."""
    path = bundled("analysis") / name
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
