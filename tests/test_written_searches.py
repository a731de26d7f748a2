"""Searches that people write: ranges with conditions, points of their own, samplers of their own; and the file in which
Optuna's own tools find the search.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from reco_tune.cost import plan
from reco_tune.errors import SettingsError
from reco_tune.settings import Space, load_space
from reco_tune.study.optuna_journal import OptunaJournal
from reco_tune.study.searcher import Proposal, Search, rehearse

SPACE: dict[str, Any] = {
    "question": "Which schedule?",
    "experiment": {
        "data": {"layout": "digits", "clip_frames": 9, "size_px": 12},
        "tokenizer": {"num_codes": 16, "first_frame_codes": 4},
        "model": {"width": 16, "depth": 1, "heads": 2},
        "window": {"length_blocks": 2},
    },
    "arms": {"full": None, "reco": None},
    "search": {
        "window.schedule": {"choice": ["constant", "short_to_long"]},
        "window.full_fraction": {"float": [0.1, 0.5], "when": {"window.schedule": "short_to_long"}},
        "objective.continuity_weight": {"float": [0.01, 1.0], "log": True},
    },
    "trials": 12,
}
LENGTHS = {"window.length_tokens": {"int": [9, 27], "step": 9}, "objective.continuity_weight": {"choice": [0.0, 0.1]}}
Event = dict[str, Any]


def space_of(folder: Path, **changes: Any) -> Space:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**SPACE, **changes}.items() if value is not None}))
    return load_space(path)


def result(trial: str, settings: dict[str, Any]) -> Event:
    """What a run gives, in closed form."""
    fvd = 10 * settings["window.full_fraction"] + settings["objective.continuity_weight"] + 1
    return {
        "event": "evaluated",
        "trial": trial,
        "metrics": {"speedup": settings["window.length_tokens"] / 9, "fvd": fvd},
    }


def planned_arms(space: Space) -> list[Event]:
    """The fixed runs of a space, planned with the speed that was measured of the arm, and evaluated without it."""
    found: list[Event] = []
    for one in plan(space).runs:
        told: Event = {"trial": one.trial, "arm": one.arm, "budget": one.budget, "seed": one.seed}
        told |= {"settings": one.experiment.flat(), "settings_hash": one.experiment.result_hash()}
        ended = result(one.trial, told["settings"])
        speed = {"speedup": ended["metrics"].pop("speedup")}
        found += [{"event": "planned", **told, "metrics": speed}, ended]
    return found


def searched(
    space: Space, before: Sequence[Event] = (), listen: Callable[[Search], object] = lambda _: None
) -> list[Event]:
    """The log of a whole search, two trials at once, one in five pruned and one in ten failed."""
    search, chance = Search(space), random.Random(3)
    log: list[Event] = []
    running: list[Proposal] = []

    def write(event: Event) -> None:
        log.append(event)
        search.apply(event)
        listen(search)

    for event in before:
        write(event)
    while True:
        if len(running) < 2 and (proposal := search.ask()) is not None:
            write({"event": "asked", **proposal.event})
            running.append(proposal)
            continue
        if not running:
            return log
        proposal, outcome = running.pop(chance.randrange(len(running))), chance.random()
        if outcome < 0.3:
            write({"event": "pruned" if outcome < 0.2 else "failed", "trial": proposal.trial, "step": 1, "reason": ""})
        else:
            write(result(proposal.trial, proposal.event["settings"]))


def points(log: list[Event]) -> list[dict[str, Any]]:
    return [event["params"] for event in log if event["event"] == "asked"]


def check_replay(space: Space, log: list[Event]) -> None:
    """Rebuilt from any prefix that ends before a proposal, a search makes that proposal."""
    for end, event in enumerate(log):
        if event["event"] != "asked" or end % 3:
            continue
        rebuilt = Search(space)
        for earlier in log[:end]:
            rebuilt.apply(earlier)
        proposal = rebuilt.ask()
        assert proposal is not None and {"event": "asked", **proposal.event} == event


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random", "gp", "sobol"])
def test_a_conditional_setting_is_drawn_where_its_condition_holds_and_replays(tmp_path: Path, kind: str) -> None:
    space = space_of(tmp_path, sampler=kind)
    log = searched(space)
    asked = points(log)
    assert len(asked) == 12 and {point["window.schedule"] for point in asked} == {"constant", "short_to_long"}
    for event in log:
        if event["event"] == "asked":
            drawn = event["params"]["window.schedule"] == "short_to_long"
            assert ("window.full_fraction" in event["params"]) is drawn
            assert (event["settings"]["window.full_fraction"] > 0) is drawn, "else it stays what the experiment says"
    check_replay(space, log)


def test_a_grid_has_a_conditional_setting_once_where_it_is_not_drawn(tmp_path: Path) -> None:
    search = {
        "window.full_fraction": {"choice": [0.1, 0.3], "when": {"window.schedule": ["short_to_long"]}},
        "window.schedule": {"choice": ["constant", "short_to_long", "long_to_short"]},
    }
    asked = points(searched(space_of(tmp_path, search=search, sampler="grid")))
    expected = [
        {"window.schedule": "constant"},
        {"window.full_fraction": 0.1, "window.schedule": "short_to_long"},
        {"window.full_fraction": 0.3, "window.schedule": "short_to_long"},
        {"window.schedule": "long_to_short"},
    ]
    assert len(asked) == 4 and all(point in asked for point in expected)


def test_known_points_are_tried_first_and_the_sampler_draws_what_they_leave_out(tmp_path: Path) -> None:
    given = [{"objective.continuity_weight": 0.05, "window.schedule": "constant"}, {"objective.continuity_weight": 0.5}]
    space = space_of(tmp_path, points=given, trials=6)
    log = searched(space)
    asked = points(log)
    assert asked[0] == given[0] and asked[1]["objective.continuity_weight"] == 0.5 and "window.schedule" in asked[1]
    assert len(asked) == 6 and len({point["objective.continuity_weight"] for point in asked[2:]}) == 4
    check_replay(space, log)


@pytest.mark.parametrize(
    "changes",
    [{"search": None}, {"search": LENGTHS, "sampler": "grid"}, {"search": LENGTHS, "sampler": {"kind": "grid"}}],
    ids=["points-alone", "a-grid-of-points", "written-out"],
)
def test_points_alone_are_the_whole_search(tmp_path: Path, changes: dict[str, Any]) -> None:
    given = [
        {"window.length_tokens": length, "objective.continuity_weight": weight}
        for length, weight in ((9, 0.1), (27, 0.0), (18, 0.1))
    ]
    space = space_of(tmp_path, **{**changes, "points": given, "trials": None})
    assert space.trials == 3 and space.sampler.kind == "grid"
    assert points(searched(space)) == given
    assert Space.model_validate(space.model_dump(mode="json")).points == space.points, "as the log keeps it"


def test_fixed_arms_that_the_search_could_have_proposed_are_known_to_the_sampler(tmp_path: Path) -> None:
    """`reco` is a point of these ranges; `full` is none."""
    space = space_of(tmp_path, search={"window.stride_fraction": {"float": [0.25, 1.0], "step": 0.25}, **LENGTHS})
    arms = planned_arms(space)
    search = Search(space)
    for event in arms:
        search.apply(event)
    told = [trial for trial in search.trials if trial.state == TrialState.COMPLETE]
    assert [trial.params for trial in told] == [
        {"window.stride_fraction": 0.5, "window.length_tokens": 18, "objective.continuity_weight": 0.1}
    ]
    assert told[0].values == [2.0, 1.1] and search.asked == 0 and search.names == {0: "reco-equal_steps-s0"}
    log = searched(space, arms)
    assert told[0].params not in points(log), "it is not run again"
    check_replay(space, log)
    quiet = Search(space_of(tmp_path, search=LENGTHS, sampler={"tell_arms": False}))
    for event in arms:
        quiet.apply(event)
    assert quiet.trials == []


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random", "gp", "sobol"])
def test_the_first_proposals_do_not_depend_on_which_fixed_arms_have_ended(tmp_path: Path, kind: str) -> None:
    """A driver that goes on asks when other runs have ended than in the study that was not stopped."""
    ranges: dict[str, Any] = {
        "window.stride_fraction": {"float": [0.25, 1.0]},
        "window.length_tokens": {"int": [9, 27]},
    }
    weight = {"objective.continuity_weight": {"float": [0.01, 1.0]}}
    arms = {f"at_{weight}": {"objective.continuity_weight": weight} for weight in (0.1, 0.2, 0.3, 0.4)}
    space = space_of(tmp_path, search=ranges | weight, arms={"full": None, **arms}, sampler=kind)
    planned = planned_arms(space)
    early, late = Search(space), Search(space)
    for event in planned:
        early.apply(event)
        if event["event"] == "planned":
            late.apply(event)
    assert len(early.trials) == 4 and late.trials == []
    for _ in range(3):
        proposals = early.ask(), late.ask()
        for search, proposal in zip((early, late), proposals, strict=True):
            assert proposal is not None
            search.apply({"event": "asked", **proposal.event})
        assert proposals[0] == proposals[1]


class Lowest(optuna.samplers.RandomSampler):
    """A sampler of one's own: always the lowest value, but for a seed that shows."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.shown = seed

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        if isinstance(distribution, optuna.distributions.FloatDistribution):
            return distribution.low + (self.shown % 7) / 100
        return distribution.choices[0]


def made(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=2)


@pytest.mark.parametrize("name", ["Lowest", "made"])
def test_a_sampler_of_ones_own_by_import_path_replays_like_any(tmp_path: Path, name: str) -> None:
    space = space_of(tmp_path, sampler=f"test_written_searches:{name}", trials=6)
    log = searched(space)
    if name == "Lowest":
        weights = [point["objective.continuity_weight"] for point in points(log)]
        assert weights == [pytest.approx(0.01 + number / 100) for number in range(6)], "a new one for every proposal"
    check_replay(space, log)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a condition on what is not searched": (
        {"search": {"window.full_fraction": {"float": [0.1, 0.5], "when": {"window.schedule": "constant"}}}},
        r"window\.full_fraction is conditional on window\.schedule, which is not searched",
    ),
    "conditions in a circle": (
        {
            "search": {
                "window.full_fraction": {"choice": [0.1, 0.2], "when": {"window.prefix_keep": 0.5}},
                "window.prefix_keep": {"choice": [0.5, 1.0], "when": {"window.full_fraction": 0.1}},
            }
        },
        "form a circle",
    ),
    "a point outside": (
        {"points": [{"objective.continuity_weight": 7.0}]},
        r"objective\.continuity_weight of point 1 \(7\.0\) lies outside of its range",
    ),
    "a point between steps": (
        {"search": LENGTHS, "points": [{"window.length_tokens": 10}]},
        r"window\.length_tokens of point 1 \(10\) lies outside",
    ),
    "a point of something else": ({"points": [{"window.prefix_keep": 0.5}]}, "search has no range for"),
    "a point of nothing": ({"points": [{"window.lenght": 9}]}, "window.lenght is not a setting"),
    "points that differ": (
        {"search": None, "points": [{"window.length_tokens": 9}, {"window.length_blocks": 2}]},
        "only one of point 2 and the first has window.length_blocks",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        rehearse(space_of(tmp_path, **changes))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_optunas_own_tools_open_the_search(tmp_path: Path) -> None:
    """The file follows the search, is the same when it is written anew, and says how each trial ended."""
    space = space_of(tmp_path, constraints={"fvd": {"max": 3.0}}, trials=20)
    live = OptunaJournal(tmp_path / "optuna.journal", "written")
    log = searched(space, planned_arms(space), live.follow)

    def opened(name: str) -> optuna.Study:
        return optuna.load_study(study_name="written", storage=JournalStorage(JournalFileBackend(str(tmp_path / name))))

    search = Search(space)
    for event in log:
        search.apply(event)
    OptunaJournal(tmp_path / "again.journal", "written").follow(search)
    for name in ("optuna.journal", "again.journal"):
        study = opened(name)
        assert [one.name for one in study.directions] == ["MAXIMIZE", "MINIMIZE"]
        assert study.metric_names == ["speedup", "fvd"]
        ours = [(one.state, one.params, one.values, search.names.get(one.number)) for one in search.trials]
        assert [(one.state, one.params, one.values, one.user_attrs.get("run")) for one in study.trials] == ours
        ends = {event["trial"]: event["event"] for event in log if event["event"] in ("pruned", "failed", "evaluated")}
        states = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL, "evaluated": TrialState.COMPLETE}
        for one in study.trials:
            assert one.state == states[ends[one.user_attrs["run"]]]
        broken = {one.number for one in study.trials if one.values and one.values[1] > 3}
        assert broken == {
            one.number for one in study.trials if any(x > 0 for x in one.system_attrs.get("constraints", []))
        }
        front = {one.number for one in study.best_trials}
        assert broken and front and not front & broken, "what breaks a constraint is not among the best"
        figures = optuna.visualization.matplotlib
        assert figures.plot_pareto_front(study) is not None
        assert figures.plot_slice(study, target=lambda one: one.values[1], target_name="fvd") is not None
        assert (
            figures.plot_optimization_history(study, target=lambda one: one.values[0], target_name="speedup")
            is not None
        )


def test_a_file_that_cannot_be_written_does_not_stop_a_study(tmp_path: Path) -> None:
    space = space_of(tmp_path, trials=4)
    log = searched(space, listen=OptunaJournal(tmp_path / "no" / "folder" / "optuna.journal", "written").follow)
    assert len(points(log)) == 4
