"""What a study says about each claim of the paper: supported, contradicted or not resolved, from intervals, in words
with the numbers.

A claim is read off paired differences of FVD between two arms; an interval that holds zero resolves nothing. At one
training seed the interval holds sampling noise only, and the words say so: another training seed may turn a verdict
round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Literal, NamedTuple

import pandas as pd

from reco_tune import quantities
from reco_tune.reporting.ablation import ArmResult, arm_results
from reco_tune.reporting.aggregate import Difference, Ratio, holm, paired_difference, paired_ratio
from reco_tune.reporting.runs import WHOLE, at_budget, budget_order, comparable
from reco_tune.reporting.tables import number, p_value, signed
from reco_tune.settings import BASELINE

Outcome = Literal["supported", "contradicted", "not resolved", "not tested"]
MARGIN = 0.25
"""How much of the baseline's FVD an arm may lose and still count as having recovered it: the whole interval must lie
below.
"""
PAPER_SPEEDUP = 2.0
"""The paper's speed-up per step of balanced windows."""
BUDGET_WORDS = {
    "equal_steps": "at equal steps",
    "equal_compute": "at equal compute",
    "half_compute": "at half the compute",
}
_ANY_BUDGET = "per step"
_ONE_SEED = {
    "supported": "One training seed: this run supports the claim",
    "contradicted": "One training seed: this run contradicts the claim",
    "not resolved": "One training seed: this run does not settle the claim",
}
Results = Mapping[tuple[str, str], ArmResult]


class Verdict(NamedTuple):
    """One claim at one budget."""

    claim: str
    budget: str
    """`equal_steps`, `equal_compute`, `half_compute`, or `per step` for the speed-up, which no budget changes."""
    outcome: Outcome
    words: str


class _Part(NamedTuple):
    outcome: Outcome
    words: str
    seeds: int = 0
    """Fewest training seeds that a comparison in it rests on; 0 where nothing was compared by seed."""


def verdicts(runs: pd.DataFrame) -> list[Verdict]:
    """One verdict a claim and budget, in the order of the paper's ladder; the control of the continuity term is one of
    them.

    Half the compute is no budget of the paper: the one question there is whether any arm reaches the baseline all the
    same.
    """
    results = arm_results(runs)
    found = []
    for budget in budget_order(runs):
        if budget == "half_compute":
            found.append(
                _verdict("Half of the baseline's compute is enough to reach its FVD", budget, [_reached(results)])
            )
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
            ("The continuity term makes h smoother, not only smaller", [_smoother(runs, budget)]),
        ):
            found.append(_verdict(claim, budget, parts))
    speed = _speed(results)
    found.append(Verdict(f"Windowed steps are {PAPER_SPEEDUP:g}x as fast", _ANY_BUDGET, speed.outcome, speed.words))
    return found


def _verdict(claim: str, budget: str, parts: list[_Part]) -> Verdict:
    outcomes = {part.outcome for part in parts}
    order: tuple[Outcome, ...] = ("contradicted", "not resolved", "not tested", "supported")
    outcome = next(kind for kind in order if kind in outcomes)
    words = " ".join(part.words for part in parts)
    if outcome != "not tested" and any(part.seeds == 1 for part in parts):
        words += f" {_ONE_SEED[outcome]}, and the noise of the training seed is not in these intervals."
    return Verdict(claim, budget, outcome, words)


def _worse(results: Results, budget: str, worse: str, better: str) -> _Part:
    """Whether `worse` has the larger FVD."""
    difference = _difference(results, budget, worse, better)
    if difference is None:
        return _missing(results, budget, worse, better)
    outcome: Outcome = (
        "not resolved" if not difference.resolved else "supported" if difference.delta > 0 else "contradicted"
    )
    tail = _undetected(difference) if outcome == "not resolved" else ""
    return _Part(outcome, f"{_means(results, budget, worse, better)}: {_numbers(difference)}.{tail}", difference.seeds)


def _recovers(results: Results, budget: str, arm: str, baseline: str) -> _Part:
    """Whether `arm` is not worse than the baseline by more than `MARGIN` of it."""
    difference = _difference(results, budget, arm, baseline)
    if difference is None:
        return _missing(results, budget, arm, baseline)
    margin = MARGIN * _mean(results[budget, baseline])
    words = f"{_means(results, budget, arm, baseline)}: {_numbers(difference)}."
    loss = f"{number(margin)} ({MARGIN:.0%} of the baseline)"
    outcome: Outcome = (
        "supported" if difference.high < margin else "contradicted" if difference.low > margin else "not resolved"
    )
    if difference.high < 0:
        told = f"`{arm}` is better"
    elif outcome == "contradicted":
        told = f"`{arm}` is worse than `{baseline}` by more than {loss}"
    elif difference.low > 0:
        told = (
            f"`{arm}` is worse,"
            f" {'but by less than' if outcome == 'supported' else 'and it is open whether by more than'} {loss}"
        )
    elif outcome == "supported":
        told = f"`{arm}` is not worse by {loss} or more"
    else:
        told = f"No difference is resolved, but a loss above {loss} is not ruled out"
    tail = _undetected(difference) if outcome == "not resolved" else ""
    return _Part(outcome, f"{words} {told}.{tail}", difference.seeds)


def _control(results: Results, budget: str) -> _Part:
    part = _worse(results, budget, "norm_penalty", "reco")
    if part.outcome == "supported":
        return part
    if part.outcome == "not tested":
        return part._replace(words=f"{part.words} Without this control nothing can be said about continuity itself.")
    return part._replace(
        words=f"{part.words} The control does no worse as far as this study can see: no claim about continuity itself."
    )


def _smoother(runs: pd.DataFrame, budget: str, arm: str = "reco", plain: str = "local_balanced") -> _Part:
    """Whether the steps of h shrink relative to |h|, along tokens: the raw ones can be shrunk by scale alone."""
    kept = comparable(runs[runs["arm"].isin([arm, plain])])
    kept = kept[at_budget(kept["budget"], budget)]

    def by_seed(name: str, values: pd.Series) -> dict[int, float]:
        own = (kept["arm"] == name).to_numpy()
        return dict(zip(kept["seed"][own].astype(int), values[own], strict=True))

    steps = {quantity: kept[quantity.name].astype(float) for quantity in quantities.STEPS_OF_H}
    sizes = steps[quantities.LIPSCHITZ_TOKENS] / steps[quantities.LIPSCHITZ_TOKENS_RELATIVE]
    raw, relative, frames, frames_relative, scale = (
        paired_ratio(by_seed(arm, values), by_seed(plain, values)) for values in (*steps.values(), sizes)
    )
    if raw is None or relative is None or scale is None:
        return _Part(
            "not tested", f"The study has not measured the steps of h of `{arm}` and `{plain}` {BUDGET_WORDS[budget]}."
        )
    words = (
        f"Of `{plain}`'s, `{arm}`'s steps of h along tokens are {_times(raw)} raw and {_times(relative)} relative"
        " to |h|"
    )
    if frames is not None and frames_relative is not None:
        words += f"; across frames {_times(frames)} and {_times(frames_relative)}"
    outcome: Outcome = "supported" if relative.high < 1 else "contradicted" if relative.low > 1 else "not resolved"
    moved = {
        name: abs(math.log(ratio.value))
        for name, ratio in (("scale", scale), ("smoothness", relative))
        if not ratio.low <= 1 <= ratio.high
    }
    told = (
        f"What moved most is the {max(moved, key=lambda name: moved[name])}"
        if moved
        else "Neither is told from no change"
    )
    return _Part(outcome, f"{words}; |h| is {_times(scale)}. {told}.", relative.seeds)


def _times(ratio: Ratio) -> str:
    return f"{number(ratio.value)}x" + (
        f" [{number(ratio.low)}, {number(ratio.high)}]" if math.isfinite(ratio.high) else ""
    )


def _reached(results: Results) -> _Part:
    """Whether any arm at half the compute has at most the whole baseline's FVD: yes for one, no for all, or not
    resolved.

    Yes needs an arm that is better after Holm's correction over the arms, because the best of many is looked at. No
    needs all to be worse, each by itself: that all of them err is rarer than that one does.
    """
    budget = "half_compute"
    differences = {
        arm: _difference(results, budget, arm, WHOLE) for at, arm in results if at == budget and arm != WHOLE
    }
    known = {arm: difference for arm, difference in differences.items() if difference is not None}
    if not known:
        return _Part(
            "not tested",
            f"The study has no arm {BUDGET_WORDS[budget]} and `{BASELINE}` at its whole budget with a common seed.",
        )
    p_values = dict(zip(known, holm([difference.p_value for difference in known.values()]), strict=True))
    clear = {arm: known[arm].resolved and (p_values[arm] < 0.05 or math.isnan(p_values[arm])) for arm in known}
    best = min(known, key=lambda arm: (known[arm].delta, arm))
    words = f"Best of {len(known)} arms: {_means(results, budget, best, WHOLE)}: {_numbers(known[best])}"
    words += f", p {p_value(p_values[best]) or 'unknown'} after Holm over the arms."
    seeds = min(difference.seeds for difference in known.values())
    better = [arm for arm in known if clear[arm] and known[arm].delta < 0]
    if better:
        return _Part(
            "supported",
            f"{words} Better than the baseline at its whole budget: {', '.join(f'`{arm}`' for arm in better)}.",
            seeds,
        )
    if all(difference.low > 0 for difference in known.values()):
        tail = (
            "Every arm is worse than the baseline at its whole budget (each interval by itself, which a no to all of"
            " them asks for)."
        )
        return _Part("contradicted", f"{words} {tail}", seeds)
    open_ = ", ".join(f"`{arm}`" for arm, difference in known.items() if difference.low <= 0)
    return _Part(
        "not resolved",
        f"{words} Not told apart from the baseline at its whole budget: {open_}.{_undetected(known[best])}",
        seeds,
    )


def _speed(results: Results) -> _Part:
    arm = next((result for (_, name), result in results.items() if name == "reco"), None)
    if arm is None:
        return _Part("not tested", "The study has no evaluated run of `reco`.")
    low, high, limit = (arm.means[name] for name in ("speedup_low", "speedup_high", "speedup_limit"))
    words = f"`reco` takes {number(arm.means['speedup'])}x as many steps per second as `full`"
    words += f" (95% interval [{number(low, 3)}, {number(high, 3)}]"
    words += f"; its arithmetic allows {number(limit)}x)." if number(limit) else ")."
    if not (number(low) and number(high)):
        return _Part("not resolved", f"{words} The speed-up has no interval.")
    outcome: Outcome = (
        "supported" if low >= PAPER_SPEEDUP else "contradicted" if high < PAPER_SPEEDUP else "not resolved"
    )
    return _Part(outcome, f"{words} This is speed alone; what it costs in quality stands in the other verdicts.")


def _difference(results: Results, budget: str, a: str, b: str) -> Difference | None:
    if (budget, a) not in results or (budget, b) not in results:
        return None
    return paired_difference(results[budget, a].fvd, results[budget, b].fvd)


def _missing(results: Results, budget: str, *arms: str) -> _Part:
    absent = [f"`{arm}`" for arm in arms if (budget, arm) not in results]
    if absent:
        return _Part("not tested", f"The study has no evaluated run of {' or '.join(absent)} {BUDGET_WORDS[budget]}.")
    return _Part("not tested", f"`{arms[0]}` and `{arms[1]}` share no training seed.")


def _means(results: Results, budget: str, a: str, b: str) -> str:
    """Over the seeds that both have, so that they differ by the difference that is told beside them."""
    one, two = results[budget, a], results[budget, b]
    shared = one.fvd.keys() & two.fvd.keys()
    return f"FVD {number(_mean(one, shared))} (`{a}`) against {number(_mean(two, shared))} (`{b}`)"


def _mean(result: ArmResult, seeds: Set[int] | None = None) -> float:
    values = [run.value for seed, run in result.fvd.items() if seeds is None or seed in seeds]
    return sum(values) / len(values)


def _numbers(difference: Difference) -> str:
    if difference.low == -float("inf"):
        return f"difference {signed(difference.delta)}, without an interval"
    p = f", p {p_value(difference.p_value)} by itself" if p_value(difference.p_value) else ""
    return (
        f"difference {signed(difference.delta)}, 95% interval [{signed(difference.low)}, {signed(difference.high)}]{p}"
    )


def _undetected(difference: Difference) -> str:
    return (
        f" A true difference below {number(difference.detectable)} would most likely go unseen here."
        if number(difference.detectable)
        else ""
    )
