"""What a study says about each claim of the paper: supported, contradicted or not resolved. Each verdict follows from
an interval and comes with its numbers.

The verdicts use paired differences of FVD (or the metric of `quality`) between two arms. If the interval contains zero,
the claim is not resolved. With one training seed, the interval includes sampling noise only, and the text says so:
another training seed may reverse the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from markupsafe import Markup

from reco_tune import quantities
from reco_tune.reporting.aggregate import Difference, Ratio, holm, paired_difference, paired_ratio
from reco_tune.reporting.budgets import BUDGETS, WHOLE, is_share
from reco_tune.reporting.comparisons import ArmResult, Results, estimates
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import number, p_value, signed
from reco_tune.reporting.protocols import reference_of
from reco_tune.reporting.quality import FVD, Quality, quality_of
from reco_tune.reporting.render.text import with_code
from reco_tune.reporting.section import Column, RowGroup, Section, Table
from reco_tune.settings import BASELINE

Verdict = Literal["supported", "contradicted", "not resolved", "not tested"]
LEAST_CALIBRATION_SECONDS = 2.0
"""A shorter calibration takes too few steps for its interval to be trusted."""
BUSY_LOAD = 1.0
"""Load per core above which steps wait for other processes."""
CLIP_MARGIN = 0.01
"""Share of the baseline's CLIP score that an arm may lose and still count as comparable. Published text-to-video models
differ by a few hundredths.
"""
HALF_THE_COST = 0.55
"""Largest share of the baseline's training cost that counts as half of it."""
PAPER_SPEEDUP = 2.0
"""The paper's speed-up per step of balanced windows."""
_ANY_BUDGET = "per step"
_ONE_SEED = {
    "supported": "One training seed: this run supports the claim",
    "contradicted": "One training seed: this run contradicts the claim",
    "not resolved": "One training seed: this run does not settle the claim",
}
_SIGNS = {"supported": "✓", "contradicted": "✕", "not resolved": "?", "not tested": "–"}


class Claim(NamedTuple):
    """One claim at one budget."""

    claim: str
    budget: str
    """A budget of the study, or `per step` for the speed-up, which does not depend on a budget."""
    verdict: Verdict
    words: str


class _Finding(NamedTuple):
    verdict: Verdict
    words: str
    seeds: int = 0
    """Smallest number of training seeds in any of its comparisons; 0 if nothing was compared by seed."""


def build(evidence: Evidence) -> Section:
    found = claims(evidence)
    tested = [one for one in found if one.verdict != "not tested"]
    columns = (
        Column("verdict", "verdict", lambda row: str(row["verdict"]), "count"),
        Column("claim", "claim", lambda row: f"{row['claim']} ({_when(row['budget'])})", "text"),
    )
    rows = [RowGroup("", [one._asdict() for one in tested])] if tested else []
    untested = _untested([one for one in found if one.verdict == "not tested"])
    return Section(
        "verdicts",
        "Claims of the paper",
        _note(evidence) if tested else "",
        [Table("claims", "", columns, rows, untested, files=(), terminal=("verdict", "claim"), shown=False)],
        markup=_chips(tested) + Markup('<p class="note">{}</p>').format(untested) if found else None,
    )


def _note(evidence: Evidence) -> str:
    quality = evidence.quality
    against = {words for result in evidence.results.values() if (words := reference_of(result.protocol))}
    rest = f" They rest on FVD against {' and '.join(sorted(against))}." if quality is FVD and against else ""
    return (
        f"Each verdict follows from the 95% interval of a paired {quality.name} difference (below zero, the first arm"
        " is better). If the interval contains zero, the claim is not resolved. These intervals and p-values are not"
        f" corrected for the number of claims. Those of the ablation table are corrected.{rest}"
    )


def _untested(found: Sequence[Claim]) -> str:
    """One line about the claims that the study has no runs for."""
    budgets = {
        claim: [one.budget for one in found if one.claim == claim]
        for claim in dict.fromkeys(one.claim for one in found)
    }
    named = "; ".join(f"{claim} ({', '.join(map(_when, own))})" for claim, own in budgets.items())
    return f"This study did not test: {named}." if found else ""


def claims(evidence: Evidence) -> list[Claim]:
    """One verdict for each claim and budget, in the order of the paper's steps from `full` to `reco`. The control of
    the continuity term is one of the claims.

    The paper has no budgets of a share of the compute. There, the only claim is whether any arm still reaches the
    baseline.
    """
    results = evidence.results
    found = []
    for budget in evidence.budgets:
        if is_share(budget):
            claim = (
                f"{BUDGETS[budget].portion} of the baseline's compute is enough to reach its {evidence.quality.name}"
            )
            found.append(_claim(claim, budget, [_reached(results, budget)]))
            continue
        for claim, parts in (
            ("Training on fewer frames costs quality", [_worse(results, budget, "fewer_frames", BASELINE)]),
            (
                "Balancing the first frame helps",
                [_worse(results, budget, arm, "local_balanced") for arm in ("local_first", "local")],
            ),
            ("The continuity term improves on balanced windows", [_worse(results, budget, "local_balanced", "reco")]),
            ("Windows with the continuity term recover the baseline", [_recovers(results, budget, "reco", BASELINE)]),
            ("The gain needs continuity: a plain norm penalty does worse", [_control(results, budget)]),
            ("The continuity term makes h smoother, not only smaller", [_smoother(results, budget)]),
        ):
            found.append(_claim(claim, budget, parts))
        if budget == "equal_steps" and any(
            estimates(own.runs, quantities.CLIP_SCORE) for (at, _), own in results.items() if at == budget
        ):
            claim = "Text to video: windows are comparable at half the training cost"
            parts = [_recovers(results, budget, "reco", BASELINE), _keeps_clip_score(results, budget)]
            found.append(_claim(claim, budget, [*parts, _half_the_cost(results, budget)]))
    speed = _speed(results)
    found.append(Claim(f"Windowed steps are {PAPER_SPEEDUP:g}x as fast", _ANY_BUDGET, speed.verdict, speed.words))
    return found


def _claim(claim: str, budget: str, parts: list[_Finding]) -> Claim:
    verdicts = {part.verdict for part in parts}
    order: tuple[Verdict, ...] = ("contradicted", "not resolved", "not tested", "supported")
    verdict = next(kind for kind in order if kind in verdicts)
    words = " ".join(part.words for part in parts)
    if verdict != "not tested" and any(part.seeds == 1 for part in parts):
        words += f" {_ONE_SEED[verdict]}, and these intervals do not include the noise between training seeds."
    return Claim(claim, budget, verdict, words)


def _worse(results: Results, budget: str, worse: str, better: str) -> _Finding:
    """Whether `worse` has the larger value. Larger is worse."""
    difference = _difference(results, budget, worse, better)
    if difference is None:
        return _missing(results, budget, worse, better)
    verdict: Verdict = (
        "not resolved" if not difference.resolved else "supported" if difference.delta > 0 else "contradicted"
    )
    quality = _quality(results[budget, worse])
    tail = _undetected(difference, quality) if verdict == "not resolved" else ""
    words = f"{_means(results, budget, worse, better)}: {_numbers(difference, quality)}.{tail}"
    return _Finding(verdict, words, difference.seeds)


def _recovers(results: Results, budget: str, arm: str, baseline: str) -> _Finding:
    """Whether `arm` is not worse than the baseline by more than `MARGIN` of it."""
    difference = _difference(results, budget, arm, baseline)
    if difference is None:
        return _missing(results, budget, arm, baseline)
    quality = _quality(results[budget, arm])
    margin = quality.margin * results[budget, baseline].mean()
    words = f"{_means(results, budget, arm, baseline)}: {_numbers(difference, quality)}."
    loss = f"{number(margin, quality.digits)} ({quality.margin:.0%} of the baseline)"
    verdict: Verdict = (
        "supported" if difference.high < margin else "contradicted" if difference.low > margin else "not resolved"
    )
    if difference.high < 0:
        told = f"`{arm}` is better"
    elif verdict == "contradicted":
        told = f"`{arm}` is worse than `{baseline}` by more than {loss}"
    elif difference.low > 0:
        told = (
            f"`{arm}` is worse,"
            f" {'but by less than' if verdict == 'supported' else 'and it is not resolved whether by more than'} {loss}"
        )
    elif verdict == "supported":
        told = f"If `{arm}` is worse, then by less than {loss}"
    else:
        told = f"No difference is resolved, but a loss above {loss} is not ruled out"
    tail = _undetected(difference, quality) if verdict == "not resolved" else ""
    return _Finding(verdict, f"{words} {told}.{tail}", difference.seeds)


def _keeps_clip_score(results: Results, budget: str, arm: str = "reco") -> _Finding:
    """Whether the arm's CLIP score is not lower than the baseline's by more than `CLIP_MARGIN` of it."""
    sides = [
        estimates(results[budget, name].runs, quantities.CLIP_SCORE) if (budget, name) in results else {}
        for name in (arm, BASELINE)
    ]
    difference = paired_difference(*sides)
    if difference is None:
        return _Finding("not tested", f"`{arm}` and `{BASELINE}` have no CLIP score {BUDGETS[budget].words}.")
    mine, theirs = (sum(one.value for one in side.values()) / len(side) for side in sides)
    margin = CLIP_MARGIN * abs(theirs)
    verdict: Verdict = (
        "supported" if difference.low > -margin else "contradicted" if difference.high < -margin else "not resolved"
    )
    ends = f", 95% interval [{signed(difference.low, 3)}, {signed(difference.high, 3)}]"
    told = {
        "supported": "If the score is lower, then by less than",
        "contradicted": "It is lower by more than",
        "not resolved": "This study does not rule out a loss above",
    }[verdict]
    return _Finding(
        verdict,
        f"CLIP score {number(mine, 3)} (`{arm}`) against {number(theirs, 3)} (`{BASELINE}`): difference"
        f" {signed(difference.delta, 3)}{ends if math.isfinite(difference.low) else ''}. {told} {number(margin, 3)}"
        f" ({CLIP_MARGIN:.0%} of the baseline).",
        difference.seeds,
    )


def _half_the_cost(results: Results, budget: str, arm: str = "reco") -> _Finding:
    """Whether training costs about half of the baseline's: the ratio of their steps, divided by the speed-up."""
    if (budget, arm) not in results or (budget, BASELINE) not in results:
        return _missing(results, budget, arm, BASELINE)
    own, theirs = results[budget, arm], results[budget, BASELINE]
    steps = float(own.runs[quantities.STEPS.name].mean()) / float(theirs.runs[quantities.STEPS.name].mean())
    cost, low, high = (steps / own.means[name] for name in ("speedup", "speedup_high", "speedup_low"))
    words = f"Training costs {number(cost)} of the baseline's"
    if not (math.isfinite(low) and math.isfinite(high)):
        return _Finding("not resolved", f"{words}, without an interval.{_doubt(own)}")
    verdict: Verdict = (
        "supported" if high <= HALF_THE_COST else "contradicted" if low > HALF_THE_COST else "not resolved"
    )
    told = f"half means at most {number(HALF_THE_COST)} here"
    return _Finding(verdict, f"{words} (95% interval [{number(low)}, {number(high)}]; {told}).{_doubt(own)}")


def _control(results: Results, budget: str) -> _Finding:
    part = _worse(results, budget, "norm_penalty", "reco")
    if part.verdict == "supported":
        return part
    if part.verdict == "not tested":
        return part._replace(
            words=f"{part.words} Without this control, the study says nothing about continuity itself."
        )
    return part._replace(
        words=f"{part.words} This study does not show that the control is worse, so it supports no claim about"
        " continuity itself."
    )


def _smoother(results: Results, budget: str, arm: str = "reco", plain: str = "local_balanced") -> _Finding:
    """Whether the steps of h shrink relative to |h|, along tokens. Scaling h down shrinks the raw steps, too, so they
    are not enough.
    """

    def ratio(quantity: quantities.Quantity, over: quantities.Quantity | None = None) -> Ratio | None:
        """Ratio of both arms' values of a quantity, or of one quantity over another."""
        sides = []
        for name in (arm, plain):
            if (budget, name) not in results:
                return None
            own = results[budget, name].runs
            values = own[quantity.name].astype(float)
            values = values / own[over.name].astype(float) if over else values
            sides.append(dict(zip(own["seed"].astype(int), values, strict=True)))
        return paired_ratio(*sides)

    raw, relative, frames, frames_relative = map(ratio, quantities.STEPS_OF_H)
    scale = ratio(quantities.LIPSCHITZ_TOKENS, quantities.LIPSCHITZ_TOKENS_RELATIVE)
    if raw is None or relative is None or scale is None:
        return _Finding(
            "not tested", f"The study has not measured the steps of h of `{arm}` and `{plain}` {BUDGETS[budget].words}."
        )
    words = (
        f"Steps of h of `{arm}` over those of `{plain}`: along tokens {_times(raw)}, and {_times(relative)} relative to"
        " |h|"
    )
    if frames is not None and frames_relative is not None:
        words += f"; across frames {_times(frames)}, and {_times(frames_relative)} relative to |h|"
    verdict: Verdict = "supported" if relative.high < 1 else "contradicted" if relative.low > 1 else "not resolved"
    moved = {
        name: abs(math.log(ratio.value))
        for name, ratio in (("scale", scale), ("smoothness", relative))
        if not ratio.low <= 1 <= ratio.high
    }
    told = f"The {max(moved, key=lambda name: moved[name])} changed most" if moved else "Neither change is resolved"
    return _Finding(verdict, f"{words}. |h| itself: {_times(scale)}. {told}.", relative.seeds)


def _times(ratio: Ratio) -> str:
    return f"{number(ratio.value)}x" + (
        f" [{number(ratio.low)}, {number(ratio.high)}]" if math.isfinite(ratio.high) else ""
    )


def _reached(results: Results, budget: str) -> _Finding:
    """Whether any arm at a share of the compute has at most the FVD or cross-entropy of the baseline's whole run: yes
    for at least one arm, no for all, or not resolved.

    Yes needs an arm that is better after Holm's correction over the arms, because we look at the best of many. No needs
    every arm to be worse, without correction: all tests are wrong together no more often than a single one.
    """
    differences = {
        arm: _difference(results, budget, arm, WHOLE) for at, arm in results if at == budget and arm != WHOLE
    }
    known = {arm: difference for arm, difference in differences.items() if difference is not None}
    if not known:
        return _Finding(
            "not tested",
            f"The study has no arm {BUDGETS[budget].words} and `{BASELINE}` at its whole budget with a common seed.",
        )
    p_values = dict(zip(known, holm([difference.p_value for difference in known.values()]), strict=True))
    clear = {arm: known[arm].resolved and (p_values[arm] < 0.05 or math.isnan(p_values[arm])) for arm in known}
    best = min(known, key=lambda arm: (known[arm].delta, arm))
    quality = _quality(results[budget, best])
    words = f"Best of {len(known)} arms. {_means(results, budget, best, WHOLE)}: {_numbers(known[best], quality)}"
    words += f", p {p_value(p_values[best]) or 'unknown'} after Holm over the arms."
    seeds = min(difference.seeds for difference in known.values())
    better = [arm for arm in known if clear[arm] and known[arm].delta < 0]
    if better:
        return _Finding(
            "supported",
            f"{words} Better than the baseline at its whole budget: {', '.join(f'`{arm}`' for arm in better)}.",
            seeds,
        )
    if all(difference.low > 0 for difference in known.values()):
        tail = (
            "Every arm is worse than the baseline at its whole budget: each interval lies above zero. This answer for"
            " all arms at once needs no correction."
        )
        return _Finding("contradicted", f"{words} {tail}", seeds)
    open_ = ", ".join(f"`{arm}`" for arm, difference in known.items() if difference.low <= 0)
    return _Finding(
        "not resolved",
        f"{words} Not resolved against the baseline at its whole budget: {open_}.{_undetected(known[best], quality)}",
        seeds,
    )


def _speed(results: Results) -> _Finding:
    arm = next((result for (_, name), result in results.items() if name == "reco"), None)
    if arm is None:
        return _Finding("not tested", "The study has no evaluated run of `reco`.")
    low, high, limit = (arm.means[name] for name in ("speedup_low", "speedup_high", "speedup_limit"))
    words = f"`reco` takes {number(arm.means['speedup'])}x as many steps per second as `full`"
    words += f" (95% interval [{number(low, 3)}, {number(high, 3)}]"
    words += f"; the FLOPs allow {number(limit)}x)." if number(limit) else ")."
    if not (number(low) and number(high)):
        return _Finding("not resolved", f"{words} The speed-up has no interval.")
    verdict: Verdict = (
        "supported" if low >= PAPER_SPEEDUP else "contradicted" if high < PAPER_SPEEDUP else "not resolved"
    )
    words += f" This is about speed alone. The other verdicts say what it costs in quality.{_doubt(arm)}"
    return _Finding(verdict, words)


def _doubt(arm: ArmResult) -> str:
    """Reasons why a measured speed is less certain than its interval: a short calibration, a busy machine."""
    told = ""
    seconds = (
        arm.runs["resources.calibration_seconds"].astype(float).min()
        if "resources.calibration_seconds" in arm.runs
        else math.nan
    )
    if seconds < LEAST_CALIBRATION_SECONDS:
        told += f" The calibration was short (resources.calibration_seconds {seconds:g}), so the speed-up is uncertain."
    load = arm.runs[quantities.CALIBRATION_LOAD.name].astype(float).max()
    if load > BUSY_LOAD:
        told += f" The machine was busy during calibration (load {load:.1f} per core), so the speed-up is uncertain."
    return told


def _difference(results: Results, budget: str, a: str, b: str) -> Difference | None:
    if (budget, a) not in results or (budget, b) not in results:
        return None
    return paired_difference(results[budget, a].values, results[budget, b].values)


def _missing(results: Results, budget: str, *arms: str) -> _Finding:
    absent = [f"`{arm}`" for arm in arms if (budget, arm) not in results]
    if absent:
        return _Finding(
            "not tested", f"The study has no evaluated run of {' or '.join(absent)} {BUDGETS[budget].words}."
        )
    return _Finding("not tested", f"`{arms[0]}` and `{arms[1]}` share no training seed.")


def _means(results: Results, budget: str, a: str, b: str) -> str:
    """Means over the seeds that both arms have, so that they match the difference given with them."""
    one, two = results[budget, a], results[budget, b]
    shared, quality = one.values.keys() & two.values.keys(), _quality(one)
    first, second = (number(result.mean(shared), quality.digits) for result in (one, two))
    return f"{quality.name[:1].upper()}{quality.name[1:]} {first} (`{a}`) against {second} (`{b}`)"


def _quality(result: ArmResult) -> Quality:
    return quality_of(result.runs)


def _numbers(difference: Difference, quality: Quality) -> str:
    delta, low, high = (signed(end, quality.digits) for end in (difference.delta, difference.low, difference.high))
    if difference.low == -float("inf"):
        return f"difference {delta}, without an interval"
    p = f", p {p_value(difference.p_value)} by itself" if p_value(difference.p_value) else ""
    return f"difference {delta}, 95% interval [{low}, {high}]{p}"


def _undetected(difference: Difference, quality: Quality) -> str:
    return (
        f" This study would most likely miss a true difference below {number(difference.detectable, quality.digits)}."
        if number(difference.detectable)
        else ""
    )


def _when(budget: str) -> str:
    return BUDGETS[budget].words if budget in BUDGETS else budget


def _chips(found: Sequence[Claim]) -> Markup:
    """The claims as HTML, each with its verdicts side by side."""
    parts = []
    for claim in dict.fromkeys(one.claim for one in found):
        parts.append(Markup('<div class="claim"><h3>{}</h3><div class="budgets">').format(claim))
        for one in found:
            if one.claim == claim:
                chip = Markup('<span class="chip {}">{} {}</span><span class="when">{}</span>').format(
                    one.verdict.replace(" ", "-"), _SIGNS[one.verdict], one.verdict, one.budget.replace("_", " ")
                )
                parts.append(Markup("<div>{}<p>{}</p></div>").format(chip, with_code(one.words)))
        parts.append(Markup("</div></div>"))
    return Markup("").join(parts)
