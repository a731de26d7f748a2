"""A search that grows: new trials and other ranges, from what it knows already; rebuilt from its log, it goes on in the
same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from small_study import small_space
from test_searcher import evaluated

from reco_tune.settings import Range, Space
from reco_tune.study.searcher import Search

LENGTH, WEIGHT = "window.length_tokens", "objective.continuity_weight"
NARROW: dict[str, Range] = {LENGTH: Range(int=(9, 22)), WEIGHT: Range(choice=(0.01, 0.1, 1.0))}
WIDE: dict[str, Range] = {LENGTH: Range(int=(9, 27)), WEIGHT: Range(choice=(0.01, 0.1, 1.0, 2.0))}
OTHER: dict[str, Range] = {LENGTH: Range(int=(18, 27)), WEIGHT: Range(choice=(0.1, 2.0))}
"""Most of the lengths that were tried lie outside, and a choice is gone."""


def space_of(folder: Path, kind: str, trials: int, ranges: dict[str, Range]) -> Space:
    space = small_space(folder, f"sampler.kind={kind}", f"trials={trials}")
    return Space.model_validate(
        {**space.model_dump(), "search": {key: one.model_dump() for key, one in ranges.items()}}
    )


def settings(name: str, space: Space) -> dict[str, Any]:
    return {"event": name, "settings": space.model_dump(mode="json", exclude={"source"})}


def walked(search: Search, log: list[dict[str, Any]], running: int = 2) -> list[Any]:
    """Asks for all there is; so many runs stay under way at any time, the last ones for good."""
    under_way = []
    while (proposal := search.ask()) is not None:
        log.append({"event": "asked", **proposal.event})
        search.apply(log[-1])
        under_way.append(proposal)
        if len(under_way) > running:
            log.append(evaluated(under_way.pop(0)))
            search.apply(log[-1])
    return under_way


CASES = [(kind, to) for kind in ("tpe", "nsga2", "sobol", "grid") for to in ("NARROW", "WIDE", "OTHER")]


@pytest.mark.parametrize(("kind", "to"), [*CASES, ("gp", "OTHER")])
def test_a_search_that_grew_goes_on_from_what_it_knows(kind: str, to: str, tmp_path: Path) -> None:
    ranges = {"NARROW": NARROW, "WIDE": WIDE, "OTHER": OTHER}[to]
    first, more = (6, 10) if kind == "gp" else (14, 26)
    begun, grown = space_of(tmp_path, kind, first, NARROW), space_of(tmp_path, kind, more, ranges)
    search, log = Search(begun), [settings("study", begun)]
    under_way = walked(search, log)
    log.append(settings("extended", grown))
    search.apply(log[-1])
    for proposal in under_way:  # what was under way when the ranges changed ends after
        log.append(evaluated(proposal))
        search.apply(log[-1])
    before = len([event for event in log if event["event"] == "asked"])
    for proposal in walked(search, log):
        log.append(evaluated(proposal))
        search.apply(log[-1])
    asked = [event for event in log if event["event"] == "asked"]
    assert before == first and len(asked) == more
    new = [event["params"] for event in asked[first:]]
    low, high = ranges[LENGTH].int or (0, 0)
    assert all(low <= params[LENGTH] <= high and params[WEIGHT] in (ranges[WEIGHT].choice or ()) for params in new)
    assert len({event["settings_hash"] for event in asked}) == more, "nothing ran twice"
    whole = {event["trial"] for event in log if event["event"] == "evaluated"}
    assert set(search._feasible) == whole, "points outside the ranges still count on the frontier"
    places = [place for place, event in enumerate(log) if event["event"] == "asked"]
    for place in places[first - 1 :: 4]:
        rebuilt = Search(grown)  # the settings in the folder are the newest
        for event in log[:place]:
            rebuilt.apply(event)
        proposal = rebuilt.ask()
        assert proposal is not None and {"event": "asked", **proposal.event} == log[place]


def test_tpe_learns_from_points_outside_its_ranges(tmp_path: Path) -> None:
    """Shorter windows were better; narrowed to longer ones, it looks at the short end of those first."""
    begun = space_of(tmp_path, "tpe", 14, NARROW)
    search, log = Search(begun), [settings("study", begun)]
    walked(search, log, running=0)
    narrowed = {**NARROW, LENGTH: Range(int=(16, 20))}
    search.apply(settings("extended", space_of(tmp_path, "tpe", 20, narrowed)))
    complete = [trial for trial in search.trials if trial.state == TrialState.COMPLETE]
    assert len(complete) >= 14 and any(trial.params[LENGTH] < 16 for trial in complete)


def test_a_run_that_is_tried_again_is_told_as_it_then_ends(tmp_path: Path) -> None:
    begun = space_of(tmp_path, "tpe", 3, NARROW)
    search = Search(begun)
    proposal = search.ask()
    assert proposal is not None
    search.apply({"event": "asked", **proposal.event})
    search.apply({"event": "failed", "trial": proposal.trial, "reason": "its machine was lost"})
    search.apply({"event": "retried", "trial": proposal.trial, "attempt": 2, "reason": "it was asked for"})
    search.apply(evaluated(proposal))
    assert [trial.state for trial in search.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert proposal.trial in search._feasible and search.left == 2
