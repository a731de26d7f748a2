"""More seeds where they would settle something: how many, for which arms, and a command that runs."""

from __future__ import annotations

import math
import shlex
import subprocess

import numpy as np
import pytest
from scipy import stats
from toy_study import record_study

from reco_tune.cli.options import only_arms
from reco_tune.errors import ComparisonError, SettingsError
from reco_tune.reporting import Evidence, ablation_table, load_runs
from reco_tune.reporting.aggregate import Difference, needed_seeds, paired_ratio, sign_flip_floor
from reco_tune.reporting.comparisons import MOST_SEEDS, Unresolved
from reco_tune.reporting.section import STUDY_DIR
from reco_tune.reporting.sections.ablation import caption
from reco_tune.reporting.sections.more_seeds import in_words, seeds_commands
from reco_tune.reporting.studies import comparison_table, pooled
from reco_tune.settings import load_space


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return record_study(tmp_path_factory.mktemp("seeds") / "toy", seeds=(0, 1, 2), searched=2, files=False)


@pytest.fixture(scope="module")
def runs(study):
    return load_runs(study)


def difference(delta, spread, seeds):
    """As `paired_difference` makes it from differences of that standard deviation."""
    half = float(stats.t.ppf(0.975, seeds - 1)) * spread / math.sqrt(seeds)
    return Difference(delta, delta - half, delta + half, 0.5, 0.0, seeds)


def test_the_number_of_seeds_is_the_first_with_the_power():
    needed = needed_seeds(difference(1.0, 0.6, 3), 30)
    assert needed is not None and needed > 3

    def power(seeds):
        """Of the paired t test itself, from the noncentral t distribution."""
        reach, shift = stats.t.ppf(0.975, seeds - 1), math.sqrt(seeds) / 0.6
        return 1 - stats.nct.cdf(reach, seeds - 1, shift) + stats.nct.cdf(-reach, seeds - 1, shift)

    assert power(needed) == pytest.approx(0.8, abs=0.1) and power(needed - 1) < 0.8


@pytest.mark.parametrize(
    ("delta", "spread", "seeds", "expected"),
    [(0.0, 1.0, 3, None), (0.01, 1.0, 3, None), (10.0, 0.1, 2, 3), (1.0, math.inf, 3, None)],
    ids=["no difference", "too close", "never below 3", "noise unknown"],
)
def test_edges(delta, spread, seeds, expected):
    assert needed_seeds(difference(delta, spread, seeds), MOST_SEEDS) == expected


def test_only_unresolved_arms_are_named(runs):
    table = ablation_table(runs).set_index(["budget", "arm"])
    found = {(one.budget, one.arm): one for one in Evidence(runs).unresolved}
    assert ("equal_steps", "full_continuity") in found and ("equal_steps", "fewer_frames") not in found
    assert set(found) == {place for place in table.index if table.loc[place, "fvd_p_value"] >= 0.05}
    assert (
        found["equal_steps", "full_continuity"].difference.delta
        == table.loc[("equal_steps", "full_continuity"), "fvd_delta"]
    )


def test_the_command_loads_and_holds_what_it_names(study, runs):
    near = runs.copy()
    reco = (near["arm"] == "reco") & (near["budget"] == "equal_compute")
    baseline = near[near["arm"] == "full"].sort_values("seed")["fvd"].to_numpy()
    near.loc[reco, "fvd"] = baseline + np.array([0.5, 1.2, 0.6])  # three seeds: 0.77 ± 0.93
    found = Evidence(near).unresolved
    lines, commands = in_words(found), seeds_commands(found, near)
    extend, command, together = (command.replace(STUDY_DIR, str(study)) for command in commands)
    assert any(
        line.startswith("`reco` against `full` at equal compute: the difference is +0.77. If the true")
        for line in lines
    )
    assert shlex.split(together, comments=True) == [
        "python",
        "analysis/compare_studies.py",
        str(study),
        "studies/toy-more",
    ]
    words = shlex.split(command, comments=True)
    assert shlex.split(extend, comments=True) == [
        "reco-tune",
        "extend",
        str(study),
        "--seeds",
        words[words.index("--seeds") + 1],
    ]
    assert words[:3] == ["reco-tune", "run", f"{study}/settings.yaml"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given["--seeds"].startswith("3") and given["--trials"] == "0"
    space = only_arms(
        load_space(study / "settings.yaml", [given["--set"], f"seeds=[{given['--seeds']}]", "trials=0"]),
        given["--arms"],
    )
    assert "full" in space.arms and "reco" in space.arms and "fewer_frames" not in space.arms
    assert not set(space.seeds) & {0, 1, 2} and "equal_compute" in space.budgets


def test_a_shell_takes_both_commands_as_they_stand(runs):
    """Brackets are a pattern to zsh, a blank in a folder's name parts words; here each command is an echo."""
    found = [Unresolved("equal_steps", "reco", 5, difference(1.0, 0.6, 3))]
    commands = [command.replace(STUDY_DIR, shlex.quote("my study")) for command in seeds_commands(found, runs)]
    script = "set -e; reco-tune() { printf '%s\n' \"$@\"; }; python() { printf '%s\n' \"$@\"; }; shopt -s failglob\n"
    done = subprocess.run(["bash"], input=script + "\n".join(commands), capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    words = done.stdout.splitlines()
    assert "my study/settings.yaml" in words and "budgets=[equal_steps]" in words
    assert words[-3:] == ["analysis/compare_studies.py", "my study", "studies/toy-more"]


def test_an_arm_that_is_not_there_is_one_sentence(study):
    space = load_space(study / "settings.yaml")
    with pytest.raises(SettingsError, match=r"--arms full,rocco: rocco is not an arm of the space, which has full"):
        only_arms(space, "full,rocco")


def test_resolved_studies_need_nothing(runs):
    apart = runs[runs["arm"].isin(["full", "fewer_frames", "search"])]
    assert Evidence(apart).unresolved == [] and seeds_commands([], apart) == []


def test_two_studies_of_other_seeds_are_one(tmp_path_factory):
    parent = tmp_path_factory.mktemp("pool")
    first = load_runs(record_study(parent / "a", seeds=(0, 1, 2), searched=2, files=False))
    more = load_runs(record_study(parent / "b", arms=("full", "reco"), seeds=(3, 4), searched=0, files=False))
    table = ablation_table(pooled({"a": first, "b": more})).set_index(["budget", "arm"])
    assert table.loc[("equal_steps", "reco"), "seeds"] == 5 and table.loc[("equal_steps", "local"), "seeds"] == 3
    assert list(table.loc["equal_steps"].index) == list(
        ablation_table(first).set_index(["budget", "arm"]).loc["equal_steps"].index
    )
    compared = comparison_table({"a": first, "b": more})
    assert list(compared[(compared["arm"] == "reco") & (compared["budget"] == "equal_steps")]["seeds"]) == [3, 2, 5]
    assert set(comparison_table({"a": first, "again": first})["study"]) == {"a", "again"}
    with pytest.raises(ComparisonError, match="two studies hold the arm `full` at both with seed 0"):
        pooled({"a": first, "again": first})


def test_ratios_are_paired_by_seed_and_by_factor():
    ratio = paired_ratio({0: 1.0, 1: 4.0, 2: 9.0}, {0: 2.0, 1: 8.0, 3: 1.0})
    assert ratio is not None and (ratio.value, ratio.low, ratio.high, ratio.seeds) == pytest.approx((0.5, 0.5, 0.5, 2))
    assert paired_ratio({0: 1.0}, {1: 1.0}) is None and paired_ratio({0: math.nan}, {0: 1.0}) is None
    alone = paired_ratio({0: 1.0}, {0: 2.0})
    assert alone is not None and (alone.value, alone.low, alone.high) == (0.5, 0.0, math.inf)


@pytest.mark.parametrize(("seeds", "floor"), [(1, 1.0), (2, 0.5), (3, 0.25), (6, 0.03125)])
def test_the_smallest_p_of_a_sign_flip_test(seeds, floor, runs):
    """Counted: all sign patterns of differences that all point one way."""
    patterns = np.array(np.meshgrid(*[[-1, 1]] * seeds)).reshape(seeds, -1)
    assert sign_flip_floor(seeds) == floor == np.mean(np.abs(patterns.sum(axis=0)) >= seeds)
    assert "cannot give a p-value below 0.25 here" in caption(Evidence(runs))
