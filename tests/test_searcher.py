from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.samplers import NSGAIISampler
from optuna.trial import TrialState
from small_study import small_space

from reco_tune.cost import plan
from reco_tune.errors import SettingsError
from reco_tune.settings import Bound, Range, Sampler, Space
from reco_tune.study import samplers
from reco_tune.study.searcher import Proposal, Search, broken_constraints
from reco_tune.study_log import replay

RANGES = {"window.length_tokens": Range(int=(9, 27)), "objective.continuity_weight": Range(float=(0.01, 1.0), log=True)}


def make_space(folder: Path, kind: str = "tpe", trials: int = 30, search: dict[str, Range] = RANGES) -> Space:
    space = small_space(folder, f"sampler.kind={kind}", f"trials={trials}")
    return space.model_copy(update={"search": search})


def evaluated(proposal: Proposal) -> dict[str, Any]:
    """What a run of this proposal gives, in closed form: longer windows are slower and better; FVD is known to 0.02."""
    length, weight = (
        proposal.event["params"]["window.length_tokens"],
        proposal.event["params"].get("objective.continuity_weight", 0.0),
    )
    return {
        "event": "evaluated",
        "trial": proposal.trial,
        "metrics": {"speedup": 27 / length, **around("fvd", 30 - length + weight, 0.02)},
    }


def around(name: str, value: float, half_width: float) -> dict[str, float]:
    """A metric and its interval."""
    return {name: value, f"{name}_low": value - half_width, f"{name}_high": value + half_width}


def searched(space: Space, at_once: int = 3) -> list[dict[str, Any]]:
    """The log of a whole search: trials end in random order, some fail, some are pruned."""
    search, log, running, chance = Search(space), [], [], random.Random(0)

    def write(event: dict[str, Any]) -> None:
        log.append(event)
        search.apply(event)

    while True:
        if len(running) < at_once and (proposal := search.ask()) is not None:
            write({"event": "asked", **proposal.event})
            running.append(proposal)
            continue
        if not running:
            return log
        proposal = running.pop(chance.randrange(len(running)))
        outcome = chance.random()
        if outcome < 0.1:
            write({"event": "failed", "trial": proposal.trial, "reason": "it was drawn"})
        elif outcome < 0.2:
            write({"event": "pruned", "trial": proposal.trial, "step": 1, "reason": "it was drawn"})
        else:
            write(evaluated(proposal))


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "sobol", "random", "gp"])
@pytest.mark.parametrize("bounds", [{}, {"fvd": Bound(max=15)}], ids=["free", "constrained"])
def test_a_search_rebuilt_from_any_prefix_of_its_log_goes_on_in_the_same_way(
    tmp_path: Path, kind: str, bounds: dict[str, Bound]
) -> None:
    trials = 30 if kind != "gp" else 8  # a Gaussian process takes a second a proposal
    space = make_space(tmp_path, kind, trials).model_copy(update={"constraints": bounds})
    log = searched(space)
    asked = [index for index, event in enumerate(log) if event["event"] == "asked"]
    assert len(asked) == trials
    for index in asked[:: trials // 4]:
        rebuilt = Search(space)
        for event in log[:index]:
            rebuilt.apply(event)
        proposal = rebuilt.ask()
        assert proposal is not None and {"event": "asked", **proposal.event} == log[index]


def test_states_are_what_happened(tmp_path: Path) -> None:
    """Ray's own searcher tells pruned trials as complete and leaves those without a finite objective running
    for ever."""
    search = Search(make_space(tmp_path))
    endings: list[dict[str, Any]] = [
        {"event": "evaluated", "metrics": {"speedup": 2.0, "fvd": 5.0}},
        {"event": "evaluated", "metrics": {"speedup": 2.0}},
        {"event": "evaluated", "metrics": {"speedup": 2.0, "fvd": math.nan}},
        {"event": "pruned", "step": 10, "reason": "dominated"},
        {"event": "failed", "reason": "its worker died"},
    ]
    for ending in endings:
        proposal = search.ask()
        assert proposal is not None
        search.apply({"event": "asked", **proposal.event})
        search.apply({**ending, "trial": proposal.trial})
    states = [trial.state for trial in search.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL, TrialState.PRUNED, TrialState.FAIL]
    assert search.trials[0].values == [2.0, 5.0]


def test_a_known_configuration_is_told_its_result_and_not_run_again(tmp_path: Path) -> None:
    space = make_space(tmp_path, "random", trials=12, search={"window.length_tokens": Range(int=(9, 18), step=1)})
    log = searched(space, at_once=1)
    asked = [event for event in log if event["event"] == "asked"]
    skipped = [skip for event in asked for skip in event.get("skipped", [])]
    first = [event["params"]["window.length_tokens"] for event in asked[:8]]
    assert len(set(first)) == 8
    results = {event["params"]["window.length_tokens"]: 27 / event["params"]["window.length_tokens"] for event in asked}
    told = [skip for skip in skipped if skip["metrics"] is not None]
    assert told and all(
        skip["metrics"]["speedup"] == pytest.approx(results[skip["params"]["window.length_tokens"]]) for skip in told
    )


def test_a_known_configuration_is_run_with_the_next_seed_where_that_is_asked_for(tmp_path: Path) -> None:
    space = make_space(tmp_path, "random", trials=30, search={"window.length_tokens": Range(int=(9, 12))})
    asked = [
        event
        for event in searched(space.model_copy(update={"repeats": "new_seed"}), at_once=1)
        if event["event"] == "asked"
    ]
    assert len({(event["params"]["window.length_tokens"], event["seed"]) for event in asked}) == 30
    assert not any("skipped" in event for event in asked)
    assert all(event["settings"]["training.seed"] == event["seed"] for event in asked)


def test_sobol_points_are_spread_from_the_first_on(tmp_path: Path) -> None:
    """Sixteen points of a Sobol sequence: one in every sixteenth of each range, however many are under way."""
    search, weights = Search(make_space(tmp_path, "sobol", trials=16)), []
    while (proposal := search.ask()) is not None:
        search.apply({"event": "asked", **proposal.event})
        weights.append(proposal.event["params"]["objective.continuity_weight"])
    assert sorted(int(16 * (math.log10(weight) + 2) / 2) for weight in weights) == list(range(16))


def test_constraints_are_told_and_what_breaks_them_is_marked(tmp_path: Path) -> None:
    space = make_space(tmp_path, "random").model_copy(
        update={"constraints": {"fvd": Bound(max=10), "speedup": Bound(min=1.5)}}
    )
    search = Search(space)
    for fvd, speedup in ((8.0, 2.0), (12.0, 1.0), (8.0, None)):
        proposal = search.ask()
        assert proposal is not None
        search.apply({"event": "asked", **proposal.event})
        metrics = {"fvd": fvd} | ({"speedup": speedup} if speedup else {})
        search.apply({"event": "evaluated", "trial": proposal.trial, "metrics": metrics})
    assert [trial.constraints for trial in search.trials] == [
        {"fvd": -2.0, "speedup": -0.5},
        {"fvd": 2.0, "speedup": 0.5},
        {},
    ]
    assert search.trials[2].state == TrialState.FAIL, "nobody can say whether it keeps them"
    assert broken_constraints(space, {"fvd": 8.0, "speedup": 2.0}) == ""
    broken = broken_constraints(space, {"fvd": 12.0, "speedup": 1.0})
    assert "fvd is 12, not at most 10" in broken and "speedup is 1, not at least 1.5" in broken


@pytest.mark.parametrize(
    "override", ["constraints={fvd: {}}", "constraints={speed: {max: 1}}"], ids=["no-end", "no-metric"]
)
def test_a_constraint_that_says_nothing_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(SettingsError, match=r"needs min or max|speed is not a metric"):
        plan(small_space(tmp_path, override))


def test_a_warm_start_knows_what_an_earlier_study_found(tmp_path: Path) -> None:
    earlier = replay([{**event, "time": 0.0} for event in searched(make_space(tmp_path, "tpe", trials=12))])
    space = make_space(tmp_path, "tpe", trials=20)
    known = Search(space).known_from(earlier)
    assert len(known) == sum(run.state == "evaluated" for run in earlier.runs.values()) > 5
    log: list[dict[str, Any]] = [{"event": "known", **event} for event in known]
    search, rebuilt = Search(space), Search(space)
    for event in log:
        search.apply(event)
        rebuilt.apply(event)
    assert [trial.params for trial in search.trials] == [event["params"] for event in known] and search.asked == 0
    first, again = search.ask(), rebuilt.ask()
    assert first is not None and again is not None and first.event == again.event
    assert first.event["params"] not in [event["params"] for event in known]


@pytest.mark.parametrize(
    ("override", "search"),
    [("training.steps=61", RANGES), ("trials=12", {**RANGES, "window.length_tokens": Range(int=(28, 40))})],
    ids=["another-experiment", "out-of-the-ranges"],
)
def test_a_warm_start_takes_nothing_that_this_study_could_not_have_found(
    tmp_path: Path, override: str, search: dict[str, Range]
) -> None:
    earlier = replay([{**event, "time": 0.0} for event in searched(make_space(tmp_path, "random", trials=5))])
    assert Search(small_space(tmp_path, override).model_copy(update={"search": search})).known_from(earlier) == []


def test_a_fixed_arm_is_known_to_the_search(tmp_path: Path) -> None:
    space = make_space(tmp_path, "grid", trials=2, search={"window.length_tokens": Range(choice=(9, 18))})
    search = Search(space)
    proposal = search.ask()
    assert proposal is not None
    rebuilt = Search(space)
    rebuilt.apply({**proposal.event, "event": "planned", "trial": "my_arm-equal_steps-s0"})
    other = rebuilt.ask()
    assert other is not None and other.event["params"] == {"window.length_tokens": 18}


def test_what_settings_refuse_is_replaced(tmp_path: Path) -> None:
    """27 tokens are the whole clip: longer windows cannot be."""
    space = make_space(tmp_path, "random", trials=10, search={"window.length_tokens": Range(int=(20, 40))})
    search = Search(space)
    proposals = []
    while (proposal := search.ask()) is not None:
        search.apply({"event": "asked", **proposal.event})
        search.apply(evaluated(proposal))
        proposals.append(proposal)
    assert len(proposals) == 10 and all(proposal.experiment.window.length_tokens <= 27 for proposal in proposals)  # type: ignore[operator]
    refused = [
        skip
        for proposal in proposals
        for skip in proposal.event.get("skipped", [])
        if "must not exceed" in skip["reason"]
    ]
    assert refused and [trial.state for trial in search.trials].count(TrialState.FAIL) >= len(refused)


def test_ranges_of_which_nothing_can_run_are_named(tmp_path: Path) -> None:
    search = Search(make_space(tmp_path, search={"window.length_tokens": Range(int=(28, 40))}))
    with pytest.raises(SettingsError, match="change the ranges"):
        search.ask()


def test_a_grid_is_walked_once(tmp_path: Path) -> None:
    ranges = {"window.length_blocks": Range(int=(1, 3)), "window.stride_fraction": Range(float=(0.5, 1.0), step=0.25)}
    search = Search(make_space(tmp_path, "grid", trials=100, search=ranges))
    points = []
    while (proposal := search.ask()) is not None:
        search.apply({"event": "asked", **proposal.event})
        points.append(tuple(proposal.event["params"].values()))
    assert points == [(blocks, fraction) for blocks in (1, 2, 3) for fraction in (0.5, 0.75, 1.0)]
    assert search.exhausted


def test_a_grid_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="needs a step for objective"):
        Search(make_space(tmp_path, "grid"))


def finalists_by_hand(log: list[dict[str, Any]]) -> tuple[set[str], set[str]]:
    """Evaluated runs that no other dominates, and those of them that another could, by looking at every pair."""
    points = {
        event["trial"]: event["metrics"]
        for event in log
        if event["event"] == "evaluated" and "-s" not in event["trial"]
    }

    def beats(one: dict[str, float], other: dict[str, float], own: str = "fvd", its: str = "fvd") -> bool:
        return one != other and one["speedup"] >= other["speedup"] and one[own] <= other[its]

    front = {name for name, own in points.items() if not any(beats(other, own) for other in points.values())}
    return front, {
        name for name in front if any(beats(other, points[name], "fvd_low", "fvd_high") for other in points.values())
    }


def finalist_space(folder: Path, seeds: int = 2, **fields: Any) -> Space:
    """Few window lengths, so that runs dominate each other."""
    search = {**RANGES, "window.length_tokens": Range(int=(9, 12))}
    return make_space(folder, "random", 16, search).model_copy(update={"finalist_seeds": seeds, **fields})


def asked(search: Search) -> list[Proposal]:
    """All that is to be sampled, under way at once."""
    proposals = []
    while (proposal := search.ask()) is not None:
        search.apply({"event": "asked", **proposal.event})
        proposals.append(proposal)
    return proposals


def test_finalists_run_again_with_further_seeds(tmp_path: Path) -> None:
    space = finalist_space(tmp_path)
    log = searched(space)
    asked = {event["trial"]: event for event in log if event["event"] == "asked"}
    again = [event for event in asked.values() if "repeats" in event]
    front, finalists = finalists_by_hand(log)
    assert 1 < len(finalists) < len(front) < 16 == len(asked) - len(again)
    by_seed = [[event["repeats"] for event in again if event["seed"] == seed] for seed in (1, 2)]
    assert by_seed[0] == by_seed[1] and set(by_seed[0]) == finalists, (
        "every finalist has its first further seed before any has two"
    )
    assert [event["repeats"] for event in again] == [*by_seed[0], *by_seed[1]]
    for event in again:
        first = asked[event["repeats"]]
        assert event["trial"] == f"{first['trial']}-s{event['seed']}" and event["params"] == first["params"]
        assert event["settings"] == {**first["settings"], "training.seed": event["seed"]} != first["settings"]


def test_finalists_are_named_when_the_last_run_has_ended_and_optuna_is_not_told_of_them(tmp_path: Path) -> None:
    space = finalist_space(tmp_path)
    log = searched(space)
    search, running = Search(space), 0
    for event in log:
        if search.asked == 16 and running:
            assert search.ask() is None and not search.exhausted, "later, not never"
        search.apply(event)
        running += 0 if "-s" in event["trial"] else 1 if event["event"] == "asked" else -1
    assert search.exhausted and search.ask() is None
    without = searched(finalist_space(tmp_path, seeds=0))
    assert log[: len(without)] == without, "the search itself is the same"
    assert len(search.trials) == 16 + sum(len(event.get("skipped", [])) for event in without)


def test_a_search_rebuilt_among_its_finalists_goes_on_in_the_same_way(tmp_path: Path) -> None:
    space = finalist_space(tmp_path, repeats="new_seed")
    log = searched(space)
    again = [index for index, event in enumerate(log) if "repeats" in event]
    assert len(again) >= 4
    for index in again:
        rebuilt = Search(space)
        for event in log[:index]:
            rebuilt.apply(event)
        proposal = rebuilt.ask()
        assert proposal is not None and {"event": "asked", **proposal.event} == log[index]


def test_only_whole_runs_that_break_no_constraint_are_finalists(tmp_path: Path) -> None:
    search = Search(finalist_space(tmp_path, seeds=1, trials=6, constraints={"fvd": Bound(min=2)}))
    endings: list[dict[str, Any]] = [
        {"event": "evaluated", "metrics": {"speedup": 2.0, **around("fvd", 5.0, 0.5)}},
        {"event": "evaluated", "metrics": {"speedup": 9.0, "fvd": 1.0}},
        {"event": "evaluated", "metrics": {"speedup": 9.0}},
        {"event": "pruned", "step": 10, "reason": "dominated"},
        {"event": "failed", "reason": "its worker died"},
        {"event": "evaluated", "metrics": {**around("speedup", 1.9, 0.1), "fvd": 5.1}},
    ]
    for proposal, ending in zip(asked(search), endings, strict=True):
        search.apply({**ending, "trial": proposal.trial})
    again = search.ask()
    assert again is not None and again.trial == "search-0000-s1"
    search.apply({"event": "asked", **again.event})
    search.apply({"event": "failed", "trial": again.trial, "reason": "its worker died"})
    assert search.ask() is None and search.exhausted


@pytest.mark.parametrize(
    ("other", "contested"),
    [
        ({"speedup": 2.5, **around("fvd", 6.0, 0.5)}, True),
        ({"speedup": 2.5, **around("fvd", 6.0, 0.4)}, False),
        ({"speedup": 2.5, "fvd": 6.0}, False),
        ({**around("speedup", 1.8, 0.1), "fvd": 4.0}, True),
        ({**around("speedup", 1.8, 0.05), "fvd": 4.0}, False),
        ({"speedup": 1.8, "fvd": 4.0}, False),
        ({**around("speedup", 1.8, 0.1), **around("fvd", 5.9, 0.4)}, True),
        ({"speedup": 2.5, **around("fvd", 20.0, 20.0)}, False),
    ],
    ids=[
        "fvd-overlaps",
        "fvd-apart",
        "fvd-exact",
        "speed-overlaps",
        "speed-apart",
        "speed-exact",
        "dominated-but-near",
        "infeasible",
    ],
)
def test_who_is_on_the_frontier_runs_again_only_where_another_could_take_its_place(
    tmp_path: Path, other: dict[str, float], contested: bool
) -> None:
    search = Search(finalist_space(tmp_path, seeds=1, trials=2, constraints={"fvd": Bound(max=10)}))
    own = {**around("speedup", 2.0, 0.1), **around("fvd", 5.0, 0.5)}
    for proposal, metrics in zip(asked(search), (own, other), strict=True):
        assert search.left == 2, "either may be a finalist"
        search.apply({"event": "evaluated", "trial": proposal.trial, "metrics": metrics})
    assert ("search-0000" in search.finalists) == contested and search.exhausted != contested
    assert search.left == len(search.finalists)


def test_a_finalist_takes_the_next_seed_that_has_not_run(tmp_path: Path) -> None:
    """A fixed arm may have the same settings; and a grid ends before the number of trials."""
    ranges = {"window.length_tokens": Range(choice=(9, 10))}
    search = Search(finalist_space(tmp_path, seeds=1, sampler=Sampler(kind="grid"), search=ranges))
    first, second = asked(search)
    settings = first.experiment.model_copy(
        update={"training": first.experiment.training.model_copy(update={"seed": 1})}
    )
    search.apply({"event": "planned", "trial": "my_arm-equal_steps-s1", "settings_hash": settings.result_hash()})
    for proposal in (first, second):
        search.apply({"event": "evaluated", "trial": proposal.trial, "metrics": {"speedup": 2.0, "fvd": 5.0}})
    again = search.ask()
    assert again is not None and (again.trial, again.experiment.training.seed) == ("search-0000-s2", 2)


def test_nsga2_that_remembers_what_trials_share_proposes_what_optuna_s_own_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = make_space(tmp_path, "nsga2", trials=60)
    proposed = [event["params"] for event in searched(space) if event["event"] == "asked"]
    monkeypatch.setattr(samplers, "_Nsga2", NSGAIISampler)
    assert proposed == [event["params"] for event in searched(space) if event["event"] == "asked"]
    assert len(proposed) == 60


def test_the_time_of_a_rebuild_grows_with_the_log_and_not_with_its_square(tmp_path: Path) -> None:
    """Ten thousand trials; four times as many as a quarter of them would take sixteen times as long."""
    space = make_space(tmp_path, "random", trials=10_001)
    proposal = Search(space).ask()
    assert proposal is not None

    def rebuilt(trials: int) -> tuple[Search, float]:
        search, began = Search(space), time.process_time()
        for number in range(trials):
            name = f"search-{number:04d}"
            search.apply({**proposal.event, "event": "asked", "trial": name, "settings_hash": str(number)})
            search.apply({"event": "evaluated", "trial": name, "metrics": {"speedup": 1.0, "fvd": float(number)}})
        return search, time.process_time() - began

    (_, quarter), (search, whole) = rebuilt(2_500), rebuilt(10_000)
    assert whole < 12 * quarter  # four times for a rebuild that reads the log once, sixteen for its square
    last = search.ask()
    assert last is not None and last.trial == "search-10000"


def test_a_long_search_by_gaussian_processes_goes_on_by_tpe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proposal took 13 seconds where a thousand trials were known."""
    monkeypatch.setattr(samplers, "GP_TRIALS", 0)
    by_tpe, by_gp = (searched(make_space(tmp_path, kind, trials=12)) for kind in ("tpe", "gp"))
    assert [event.get("params") for event in by_gp] == [event.get("params") for event in by_tpe]
