"""Settings: what is resolved at the door, what is refused there and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reco_tune.errors import SettingsError
from reco_tune.settings import TokenGrid, arm_experiment, load_experiment, load_space, make_experiment

MINI: dict[str, Any] = {"data": {"layout": "digits", "clip_frames": 9, "size_px": 12}, "model": {"preset": "debug"}}
SPACE = """
question: Does it load?
experiment:
  data: {layout: digits, clip_frames: 9, size_px: 12}
  model.preset: debug
  window: {length_blocks: 2, stride_fraction: 0.5}
arms: {full: {}, reco: {objective.continuity_weight: 0.2}}
"""


def mini(**overrides: Any) -> Any:
    return make_experiment(MINI, {key.replace("__", "."): value for key, value in overrides.items()}, where="test")


def space_file(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_grid_has_the_first_frame_as_a_block_of_its_own() -> None:
    assert mini().grid == TokenGrid(blocks=5, rows=3, columns=3)
    assert mini().grid.num_tokens == 45


@pytest.mark.parametrize(
    ("overrides", "length", "stride"),
    [
        pytest.param({}, 18, 9, id="two blocks, half the window by default"),
        pytest.param({"window__length_blocks": 3}, 27, 14, id="length in blocks"),
        pytest.param({"window__length_tokens": 10, "window__stride_fraction": 1.0}, 10, 10, id="stride as a fraction"),
        pytest.param({"window__scheme": "full"}, 45, 22, id="the full sequence is one window"),
    ],
)
def test_window_is_resolved_to_tokens(overrides: dict[str, Any], length: int, stride: int) -> None:
    window = mini(**overrides).window
    assert (window.length_tokens, window.stride_tokens) == (length, stride)
    assert window.length_blocks is None and window.stride_fraction is None


def test_same_settings_said_two_ways_are_one_setting() -> None:
    assert mini(window__length_blocks=2).result_hash() == mini(window__length_tokens=18).result_hash()


def test_where_it_runs_does_not_change_what_it_is() -> None:
    assert mini(resources__workers=2).result_hash() == mini().result_hash()
    assert mini(training__seed=1).result_hash() != mini().result_hash()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        pytest.param({"window__lenght_tokens": 9}, "did you mean window.length_tokens?", id="unknown key"),
        pytest.param(
            {"window__stride_tokens": 19},
            r"window.stride_tokens \(19\) must not exceed window.length_tokens \(18\)",
            id="stride > window",
        ),
        pytest.param({"window__length_tokens": 46}, "must not exceed the clip's 45 tokens", id="window > clip"),
        pytest.param({"window__first_frame_probability": 1.5}, r"must lie in \[0, 1\]", id="probability"),
        pytest.param(
            {"objective__continuity_weight": -0.1}, r"objective.continuity_weight \(-0.1\)", id="negative lambda"
        ),
        pytest.param(
            {"window__length_tokens": 1, "objective__continuity_weight": 0.1},
            "needs two neighbouring tokens",
            id="W = 1 with lambda",
        ),
        pytest.param(
            {"window__scheme": "fewer_frames", "window__length_tokens": 10},
            "whole blocks of 9",
            id="piece of half a block",
        ),
        pytest.param({"data__size_px": 13}, "multiple of tokenizer.spatial_stride", id="size"),
        pytest.param({"data__clip_frames": 10}, "1 more than a multiple of tokenizer.temporal_stride", id="frames"),
        pytest.param(
            {"data__min_clips": 9, "data__test_clips": 8},
            r"data.min_clips \(9\) must not exceed data.test_clips \(8\)",
            id="too few clips",
        ),
        pytest.param({"model__heads": 5}, r"model.heads \(5\) must divide model.width \(64\)", id="heads"),
        pytest.param({"model__preset": "120M"}, "use one of debug, 110M", id="preset"),
        pytest.param(
            {"training__batch_size": 3, "resources__workers": 2}, "must be a multiple", id="batch over workers"
        ),
        pytest.param({"resources__gpus_per_worker": 0.5}, "lets trials share a GPU", id="calibration on a shared GPU"),
        pytest.param({"sampling__guidance": 1.5}, "raise training.class_dropout", id="guidance without null class"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        mini(**overrides)
    assert "\n" not in str(caught.value)


def test_an_override_of_one_way_clears_the_other(tmp_path: Path) -> None:
    space = load_space(space_file(tmp_path, SPACE), ["window.length_tokens=27"])
    assert arm_experiment(space, "reco").window.length_tokens == 27
    assert arm_experiment(space, "local_balanced").window.stride_tokens == 14
    assert (
        arm_experiment(space, "local").window.stride_tokens == 1
    )  # the arm's own stride wins over the shared fraction


def test_arms_are_settings_on_top_of_the_shared_ones(tmp_path: Path) -> None:
    space = load_space(space_file(tmp_path, SPACE))
    assert arm_experiment(space, "full").window.scheme == "full"
    assert arm_experiment(space, "reco").objective.continuity_weight == 0.2
    assert arm_experiment(space, None, {"objective.continuity_weight": 0.3}).objective.continuity_weight == 0.3


@pytest.mark.parametrize(
    ("arm", "scheme", "first", "continuity", "norm"),
    [
        ("full", "full", None, 0.0, 0.0),
        ("masked_full", "masked_full", 0.5, 0.0, 0.0),
        ("full_continuity", "full", None, 0.1, 0.0),
        ("fewer_frames", "fewer_frames", None, 0.0, 0.0),
        ("fewer_frames_tokens", "fewer_frames_tokens", None, 0.0, 0.0),
        ("local", "window", 0.0, 0.0, 0.0),
        ("local_first", "window", "uniform", 0.0, 0.0),
        ("local_balanced", "window", 0.5, 0.0, 0.0),
        ("reco", "window", 0.5, 0.1, 0.0),
        ("norm_penalty", "window", 0.5, 0.0, 0.1),
    ],
    ids=str,
)
def test_an_arms_name_says_what_it_trains(
    arm: str, scheme: str, first: object, continuity: float, norm: float, tmp_path: Path
) -> None:
    """First: the probability of a window at the first frame, where the scheme draws one."""
    experiment = arm_experiment(load_space(space_file(tmp_path, SPACE.replace("0.2", "0.1"))), arm)
    assert experiment.window.scheme == scheme
    assert first is None or experiment.window.first_frame_probability == first
    assert (experiment.objective.continuity_weight, experiment.objective.norm_weight) == (continuity, norm)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("question: [", "is not YAML", id="not YAML"),
        pytest.param("- a\n- b\n", "must hold a mapping", id="a list"),
        pytest.param(
            SPACE + "serach: {}\n",
            "serach is not a key of a search space; did you mean search?",
            id="unknown space key",
        ),
        pytest.param(
            SPACE + "search: {window.lenght_tokens: {int: [9, 18]}}\ntrials: 2\n",
            "did you mean window.length_tokens",
            id="unknown search key",
        ),
        pytest.param(SPACE + "trials: 2\n", "search has no ranges", id="trials without a search"),
        pytest.param(
            SPACE.replace("reco:", "recoo:").replace("objective.continuity_weight: 0.2", ""),
            "is not a known arm",
            id="unknown arm",
        ),
        pytest.param(
            SPACE.replace("full: {}, ", "") + "budgets: [equal_compute]\n",
            "arms has no `full`",
            id="compute without baseline",
        ),
        pytest.param(SPACE.replace("0.2", "-1"), "objective.continuity_weight", id="an arm that cannot be"),
    ],
)
def test_space_files_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_space(space_file(tmp_path, text))
    assert "\n" not in str(caught.value)


SEARCHED = SPACE + "trials: 2\n"


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        pytest.param("window.length_tokens: {choice: [[9, 18]]}", r"window.length_tokens \(\[9, 18\]\)", id="a-list"),
        pytest.param("training.schedule: {choice: [{a: 1}]}", r"training.schedule \(\{'a': 1\}\)", id="a-mapping"),
        pytest.param("training.learning_rate: {choice: [2024-01-31]}", "training.learning_rate .*number", id="a-date"),
        pytest.param("training.learning_rate: {choice: [.nan]}", "training.learning_rate .*finite", id="nan"),
        pytest.param("objective.continuity_weight: {float: [0, .inf]}", "float.* finite", id="infinite"),
        pytest.param("training.learning_rate: {choice: [low, high]}", r"\('low'\): .*number", id="words-for-numbers"),
        pytest.param(
            "window.length_tokens: {choice: [true]}", "true and false are not numbers", id="true-for-a-number"
        ),
        pytest.param("window.length_tokens: {choice: [9, 9.0]}", "choice 9 is given twice", id="twice-the-same"),
        pytest.param(
            "training.schedule: {int: [0, 1]}", r"training.schedule \(0\): .*'cosine'", id="numbers-for-words"
        ),
        pytest.param(
            "training.compile: {int: [0, 1]}", "training.compile: a range of numbers", id="numbers-for-yes-no"
        ),
        pytest.param(
            "window.length_tokens: {float: [9, 18]}", "window.length_tokens .*integer", id="fractions-of-tokens"
        ),
        pytest.param(
            "training.learning_rate: {float: [0, 1]}", r"training.learning_rate \(0.0\)", id="an-end-that-cannot-be"
        ),
        pytest.param(
            "window.length_tokens: {int: [9, 18], step: 4}", "steps of 4.*; end it at 17", id="a-step-too-far"
        ),
        pytest.param("window.length_tokens: {int: [9, 18], step: 1.5}", "a step of 1.5; give a whole", id="half-steps"),
        pytest.param(
            "window.stride_fraction: {float: [0.1, 1], step: 0.25}", "; end it at 0.85", id="a-real-step-too-far"
        ),
        pytest.param("model.preset: {choice: [debug, 120M]}", "model.preset .*'debug'", id="no-preset"),
        pytest.param("window.lenght_tokens: {int: [9, 18]}", "did you mean window.length_tokens", id="no-setting"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_the_door(tmp_path: Path, ranges: str, words: str) -> None:
    """It was found out after the fixed arms had trained, or told by a library with its source lines."""
    with pytest.raises(SettingsError, match=words) as caught:
        load_space(space_file(tmp_path, SEARCHED + f"search: {{{ranges}}}\n"))
    assert "\n" not in str(caught.value)


def test_what_can_be_drawn(tmp_path: Path) -> None:
    ranges = """search:
  window.stride_fraction: {float: [0.1, 1.0], step: 0.1}
  window.first_frame_probability: {choice: [uniform, 0.5]}
  training.learning_rate: {choice: [1e-3, 3.0e-3]}
  window.prefix_tokens: {choice: [null, 9]}
"""
    space = load_space(space_file(tmp_path, SEARCHED + ranges))
    assert space.search["training.learning_rate"].choice == (0.001, 0.003), "1e-3 is a string to YAML"
    assert space.search["window.prefix_tokens"].choice == (None, 9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(
            "constraints: {speedup: {min: 3, max: 2}}", r"min \(3\) must not exceed its max \(2\)", id="min>max"
        ),
        pytest.param("constraints: {speedup: {max: .nan}}", "finite", id="no-bound"),
        pytest.param("objectives: {}", "objectives is empty", id="no-objective"),
        pytest.param("seeds: [-1]", r"seeds.0 \(-1\)", id="a-seed-below-0"),
        pytest.param("seeds: [4294967296]", r"seeds.0 \(4294967296\)", id="a-seed-too-large"),
        pytest.param("trials: 2\ntrials: 3", "line .* gives trials a second time", id="a-key-twice"),
    ],
)
def test_spaces_that_cannot_be_meant(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_space(space_file(tmp_path, SPACE + text + "\n"))


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("a" * 300, "at most 100"),
        ("search-0000", "`search-0000` has the name of sampled runs"),
        ("search-0001-s2", "has the name of sampled runs"),
        ("search", "has the name of sampled runs"),
        ("Reco", "differ only in upper and lower case"),
        ("reco", "gives reco a second time"),
    ],
)
def test_names_that_an_arm_cannot_have(tmp_path: Path, arm: str, words: str) -> None:
    text = SPACE.replace("{full: {}", f"{{full: {{}}, {arm}: {{window.scheme: full}}")
    with pytest.raises(SettingsError, match=words):
        load_space(space_file(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.widht=3", "--set: model.widht is not a setting; did you mean model.width?"),
        ("widht=3", "--set: widht is not a setting"),
        ("model.width=many", r"--set: model.width \('many'\)"),
        ("objective.continuity_weight=0.3", "no run would change; .* --set arms.reco.objective.continuity_weight=0.3"),
        ("training.seed=3", "give --seeds 3"),
    ],
)
def test_a_mistake_of_the_command_line_is_told_as_one(tmp_path: Path, override: str, words: str) -> None:
    """It was told as a mistake of the first arm, or changed nothing without a word."""
    with pytest.raises(SettingsError, match=words):
        load_space(space_file(tmp_path, SPACE), [override])


def test_a_mistake_of_the_shared_settings_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"space.yaml: experiment: model.widht is not a setting"):
        load_space(space_file(tmp_path, SPACE.replace("model.preset: debug", "model.widht: 3")))
    with pytest.raises(SettingsError, match=r"space.yaml: experiment: model.width \('x'\)"):
        load_space(space_file(tmp_path, SPACE.replace("model.preset: debug", "model.width: x")))


def test_an_arms_own_setting_can_be_set_from_the_command_line(tmp_path: Path) -> None:
    space = load_space(space_file(tmp_path, SPACE), ["arms.reco.objective.continuity_weight=0.3"])
    assert arm_experiment(space, "reco").objective.continuity_weight == 0.3


def test_an_arm_of_another_preset_has_its_sizes(tmp_path: Path) -> None:
    """Sizes that the shared settings give won over the arm's preset: it was the baseline's model under another name."""
    text = SPACE.replace("model.preset: debug", "model: {width: 32, depth: 2, heads: 2}")
    space = load_space(space_file(tmp_path, text.replace("{objective", "{model.preset: debug, objective")))
    assert arm_experiment(space, "full").model.width == 32
    assert arm_experiment(space, "reco").model == make_experiment({"model": {"preset": "debug"}}, {}, "test").model


def test_hashes_are_those_of_the_studies_that_there_are() -> None:
    """A setting that comes later is named in `experiments.LATER`, or no search knows its earlier runs again.

    The number is what `Experiment().result_hash()` gave at commit 8f65a46.
    """
    assert make_experiment({}, {}, "test").result_hash() == "9bf3110d1c4d7aab"
    grid = {"data.layout": "tokens", "data.grid": [5, 3, 3]}
    assert (
        make_experiment({}, grid, "test").result_hash()
        != make_experiment({}, {"data.layout": "tokens"}, "test").result_hash()
    )


def test_a_grid_of_codes_needs_no_made_up_pixels() -> None:
    own = {"data.layout": "tokens", "data.grid": [3, 8, 16], "tokenizer.num_codes": 64}
    experiment = make_experiment({}, own, "test")
    assert experiment.grid == TokenGrid(3, 8, 16), "neither first_frame_codes nor pixels stand in the way"
    with pytest.raises(SettingsError, match=r"data.grid \(\[3, 8, 16\]\) .* data.layout is digits"):
        make_experiment({}, {**own, "data.layout": "digits"}, "test")


def test_missing_file_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load_experiment(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(
            SPACE.replace("{full: {}", "{full: 3"), "arm `full` must hold settings, .*got 3", id="a number for an arm"
        ),
        pytest.param(
            SPACE.split("arms:")[0] + "arms: [full, reco]\n",
            "arms must be a mapping of names to settings",
            id="a list of arms",
        ),
        pytest.param(
            SPACE.split("arms:")[0] + "arms: 3\n", "arms must be a mapping of names to settings", id="a number for arms"
        ),
        pytest.param(
            SPACE.replace("{full: {}", "{../full: {window.scheme: full}"),
            "'../full' must have a name of letters",
            id="a path",
        ),
        pytest.param(
            SPACE.replace("{full: {}", "{1: {window.scheme: full}"),
            "the arm 1 must have a string as its name",
            id="a numbered arm",
        ),
        pytest.param(SPACE + "budgets: []\n", "budgets is empty", id="no budget"),
        pytest.param(SPACE + "7: x\n", "7 is not a key of a search space", id="a number for a key"),
        pytest.param(SPACE.split("\n", 2)[2], "question is missing; give it", id="no question"),
        pytest.param(
            "question: q\narms: {full: }\nexperiment: 3\n", "experiment must be a path or a mapping", id="no experiment"
        ),
        pytest.param(
            "question: q\narms: {full: }\nexperiment: {data: 5}\n",
            r"data \(5\) is a group of settings",
            id="no section",
        ),
        pytest.param(SPACE + "search: 5\n", r"search \(5\): must be a mapping", id="no ranges"),
        pytest.param(SPACE + "seeds: x\n", r"seeds \('x'\): must be a list", id="no seeds"),
        pytest.param(
            SPACE + "search: {window: {int: [1, 2]}}\ntrials: 2\n",
            "search: window is not a setting",
            id="search of a section",
        ),
        pytest.param(
            SPACE + "search: {window.length_tokens: {choice: []}}\ntrials: 2\n",
            "choice is empty; name the values",
            id="nothing to choose",
        ),
    ],
)
def test_space_files_of_the_wrong_shape(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        load_space(space_file(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_an_override_of_a_whole_section_is_refused_or_changes_only_what_it_names(tmp_path: Path) -> None:
    """An arm's own keys would bury a section that holds a number, and the override with it."""
    file = space_file(tmp_path, SPACE)
    with pytest.raises(
        SettingsError, match=r"--set: window \(5\) is a group of settings; give one of them, `window.KEY`"
    ):
        load_space(file, ["window=5"])
    window = arm_experiment(load_space(file, ["window={length_blocks: 3}"]), "reco").window
    assert (window.length_tokens, window.stride_tokens) == (27, 14)


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(SettingsError, match=r"objective\.continuity_weight"):
        mini(objective__continuity_weight=value)


def test_a_field_of_two_kinds_is_named_once() -> None:
    with pytest.raises(
        SettingsError, match=r"test: window.first_frame_probability \('often'\): .*valid number.*, or .*'uniform'"
    ):
        mini(window__first_frame_probability="often")
