"""What the study found, in plain words: which arm to take at which budget, what it costs, and what is open."""

from __future__ import annotations

from collections.abc import Sequence

from reco_tune.reporting.budgets import BUDGETS
from reco_tune.reporting.comparisons import MOST_SEEDS, ONE_SEED, Comparison, Unresolved
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import interval, number, quoted, setting, signed
from reco_tune.reporting.quality import FVD, Quality
from reco_tune.reporting.render.text import paragraphs
from reco_tune.reporting.section import Row, Section, records
from reco_tune.settings import SEARCH

FASTER = 1.05
"""Speed-up from which an arm counts as faster."""
_SHORT = {
    "window.length_tokens": "window",
    "window.stride_tokens": "stride",
    "window.first_frame_probability": "first-frame probability",
    "objective.continuity_weight": "λ",
}


def build(evidence: Evidence) -> Section:
    words = answer(evidence)
    return Section("answer", "What this study found", words=words, markup=paragraphs(words))


def answer(evidence: Evidence) -> list[str]:
    """A paragraph for each budget, equal compute first, then one on what is open. None before anything is evaluated."""
    order = sorted(evidence.budgets, key=lambda budget: budget != "equal_compute")
    found = [words for budget in order if (words := _at(evidence, budget))]
    if not found:
        nothing = evidence.own_comparable.empty
        return ["Nothing has been evaluated yet." if nothing else "Nothing faster than the baseline was evaluated."]
    return [*found, *_open(evidence)]


def _at(evidence: Evidence, budget: str) -> str:
    """The recommendation at one budget."""
    own = [one for one in evidence.own_comparisons if one.result.budget == budget]
    faster = [one for one in own if one.difference and one.result.means["speedup"] >= FASTER]
    faster = [one for one in faster if (budget, one.result.arm) not in _refused(evidence)]
    kept = [one for one in faster if not one.standing.startswith("worse")]
    near = [one for one in kept if _loss(one) <= evidence.quality.margin]
    sampled = _sampled(evidence, budget)
    if not faster and not sampled:
        return ""
    parts = []
    opening = BUDGETS[budget].words.capitalize()
    if near:
        best = max(near, key=lambda one: one.result.means["speedup"])
        parts.append(f"{opening}, take {_told(best, evidence.quality)}.")
    elif faster:
        best = min(kept or faster, key=_loss)
        finding = (
            f"no faster arm has a mean {evidence.quality.name} within {evidence.quality.margin:.0%} of that of"
            f" {quoted(best.baseline)}"
            if kept
            else f"every faster arm has a worse {evidence.quality.name} than {quoted(best.baseline)}"
        )
        parts.append(f"{opening}, {finding}. The best of them is {_told(best, evidence.quality)}.")
    front = {row["arm"] for row in records(evidence.frontier.non_dominated(budget))}
    fastest = max(faster, key=lambda one: one.result.means["speedup"], default=None)
    if fastest is not None and fastest is not best and fastest.result.arm in front:
        parts.append(f"The fastest arm on the frontier is {_told(fastest, evidence.quality)}.")
    if not parts:
        sampled[0] = f"{opening}, {sampled[0][:1].lower()}{sampled[0][1:]}"
    return " ".join([*parts, *sampled])


def _loss(one: Comparison) -> float:
    """How much worse the arm's mean is, as a share of the baseline's."""
    assert one.difference is not None  # of arms that were compared
    return one.difference.delta / (one.result.mean() - one.difference.delta)


def _told(one: Comparison, quality: Quality) -> str:
    """An arm with its speed, its quality, and the difference to the baseline."""
    means, difference = one.result.means, one.difference
    assert difference is not None  # of arms that were compared
    speed = interval(means["speedup_low"], means["speedup_high"])
    ends = interval(difference.low, difference.high, quality.digits)
    mean, delta = number(one.result.mean(), quality.digits), signed(difference.delta, quality.digits)
    verdict = one.standing.replace(ONE_SEED, " at one seed")
    return (
        f"{quoted(one.result.arm)}. Its steps are {number(means['speedup'])}x{f' {speed}' if speed else ''} as fast as"
        f" those of {quoted(one.baseline)}. Its {quality.name} is {mean}, a difference of"
        f" {delta}{f' {ends}' if ends else ''}: {verdict}"
    )


def _sampled(evidence: Evidence, budget: str) -> list[str]:
    """The knee of the frontier among sampled settings, or else the best of the faster ones."""
    quality = evidence.quality
    rows = [row for row in records(evidence.frontier.non_dominated(budget)) if row["arm"] == SEARCH]
    rows = [row for row in rows if row["speedup"] >= FASTER]
    if not rows:
        return []
    best = next((row for row in rows if row["knee"]), None) or min(rows, key=lambda row: float(row[quality.key]))
    more = f" {len(rows)} sampled settings are on the frontier." if len(rows) > 1 else ""
    return [f"Among the sampled settings, {_place(best, quality)}.{more}"]


def _place(row: Row, quality: Quality) -> str:
    values = ", ".join(f"{name} {setting(row[key])}" for key, name in _SHORT.items() if setting(row[key]))
    ends = interval(row[quality.low], row[quality.high], quality.digits)
    return (
        f"{quoted(row['trial'])} ({values}) is {number(row['speedup'])}x as fast per step, with {quality.name}"
        f" {number(row[quality.key], quality.digits)}"
        f"{f' {ends}' if ends else ''}"
    )


def _open(evidence: Evidence) -> list[str]:
    """A paragraph on what is not resolved, and how many seeds would resolve it."""
    found = []
    compared = [one for one in evidence.own_comparisons if one.difference]
    if any(one.pairs == 1 for one in compared):
        found.append(
            "With one training seed, the intervals do not include the noise between training seeds. Another seed may"
            " reverse these results."
            if evidence.quality is FVD
            else "With one training seed, nothing is resolved, because the noise between seeds is unknown."
        )
    if evidence.unresolved:
        arms: dict[str, list[str]] = {}
        for one in evidence.unresolved:
            arms.setdefault(one.budget, []).append(quoted(one.arm))
        named = "; ".join(f"{', '.join(own)} {BUDGETS[budget].words}" for budget, own in arms.items())
        found.append(f"Not resolved against the baseline: {named}. {_seeds(evidence.unresolved)}")
    return [" ".join(found)] if found else []


def _seeds(found: Sequence[Unresolved]) -> str:
    known = [one for one in found if one.needed is not None]
    if not known:
        return f"More than {MOST_SEEDS} training seeds would be needed to tell them apart."
    told = ", ".join(f"{quoted(one.arm)} {BUDGETS[one.budget].words} about {one.needed}" for one in known)
    rest = f" The others would need more than {MOST_SEEDS}." if len(known) < len(found) else ""
    return f"Training seeds that would probably resolve it: {told}.{rest}"


def _refused(evidence: Evidence) -> set[tuple[str, str]]:
    """(budget, arm) of arms that break a constraint."""
    points = evidence.frontier.points
    return {(row["budget"], row["arm"]) for row in records(points[points["infeasible"] != ""])}
