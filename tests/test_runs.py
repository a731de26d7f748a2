"""Runs as a table: complete, in planned order, and the same bytes whatever it was read from."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from toy_study import PROTOCOL, record_study

from reco_tune import quantities
from reco_tune.errors import ComparisonError, StudyError
from reco_tune.reporting import Evidence, ablation_table, frontier, load_runs, load_study
from reco_tune.reporting.budgets import meaning, searched_steps
from reco_tune.reporting.render.csv import csv_text
from reco_tune.reporting.render.latex import latex
from reco_tune.reporting.render.markdown import markdown
from reco_tune.reporting.render.terminal import terminal
from reco_tune.reporting.runs import comparable, exclusions
from reco_tune.reporting.sections import ablation as ablation_section
from reco_tune.study_log import read_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return record_study(
        tmp_path_factory.mktemp("runs") / "toy",
        arms=("full", "local", "reco"),
        failing=["local-equal_steps-s0"],
        files=False,
    )


def test_a_record_and_its_folder_give_the_same_bytes(study):
    assert csv_text(load_runs(study)) == csv_text(load_runs(read_study(study))) == csv_text(load_runs(str(study)))


def test_every_setting_and_every_metric_is_a_column(study):
    runs = load_runs(study)
    settings = next(iter(load_study(study).runs.values())).settings
    assert set(settings) | set(quantities.ALL) <= set(runs.columns)
    assert {"protocol", "extractor", "data_fingerprint", "tokenizer_fingerprint", "commit", "hardware"} <= set(
        runs.columns
    )
    assert runs.columns.is_unique


def test_rows_stand_in_planned_order(study):
    assert list(load_runs(study)["trial"]) == list(load_study(study).runs)


def test_values_are_those_of_the_log(study):
    runs = load_runs(study).set_index("trial")
    assert runs.loc["reco-equal_steps-s0", "window.length_tokens"] == 18
    assert runs.loc["reco-equal_steps-s0", "objective.continuity_weight"] == 0.1
    assert runs.loc["reco-equal_steps-s0", "speedup"] == 1.92
    assert runs.loc["full-s0", "speedup"] == 1, "the baseline's speed-up is 1 by definition"
    assert runs.loc["local-equal_steps-s0", "state"] == "failed" and math.isnan(runs.loc["local-equal_steps-s0", "fvd"])
    assert runs.loc["full-s0", "protocol"] == PROTOCOL


def test_why_a_run_may_not_stand_in_a_table(study):
    runs = load_runs(study)
    reasons = dict(zip(runs["trial"], exclusions(runs), strict=True))
    assert reasons["local-equal_steps-s0"] == "failed: the loss is not finite at step 412"
    assert reasons["search-0007"] == "pruned: dominated at the first rung"
    assert [trial for trial, why in reasons.items() if why] == ["local-equal_steps-s0", "search-0007"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"state": "completed"}, "not finished (completed)"),
        ({"fvd": math.nan}, "its FVD is not finite"),
        ({"speedup": math.inf}, "its speed-up was not measured"),
        ({"steps": 200.0}, "stopped after 200 of 600 steps"),
        ({"steps": 200.0, "budget": "equal_compute"}, ""),
    ],
    ids=["not-evaluated", "no-fvd", "no-speed", "low-fidelity", "slow-arm-at-equal-compute"],
)
def test_only_whole_runs_are_compared(study, changes, why):
    runs = load_runs(study)
    row = runs.index[runs["trial"] == "reco-equal_steps-s0"][0]
    for name, value in changes.items():
        runs.loc[row, name] = value
    assert exclusions(runs)[row] == why


@pytest.mark.parametrize(
    ("protocol", "knob"),
    [
        (PROTOCOL.replace("native/", "latte*/"), "evaluation.protocol (native against latte*)"),
        (
            PROTOCOL.replace("n512x1", "n2048x1"),
            "evaluation.samples x evaluation.sampling_seeds (n512x1 against n2048x1)",
        ),
        (PROTOCOL.replace("reconstructed", "raw"), "evaluation.reference (reconstructed against raw)"),
        (PROTOCOL.replace("9f3c21ab", "00000000"), "feature extractor (9f3c21ab against 00000000)"),
        (PROTOCOL.replace("stride1", "stride3"), "frame stride (stride1 against stride3)"),
    ],
    ids=["protocol", "samples", "reference", "extractor", "stride"],
)
def test_two_protocols_are_refused_and_the_knob_is_named(study, tmp_path, protocol, knob):
    other = record_study(tmp_path / "other", arms=("reco",), searched=0, files=False, protocol=protocol)
    with pytest.raises(ComparisonError) as error:
        comparable(pd.concat([load_runs(study), load_runs(other)], ignore_index=True))
    assert knob in str(error.value)


OMNI = "omnitokenizer/17x256x256/stride1/raw/train2048/n2048x1/bec6519f"
LATTE = "latte/16x256x256/stride3/raw/train1000/n2048x1/bec6519f"  # of 1,000 clips


@pytest.mark.parametrize(
    ("protocol", "changes", "words"),
    [
        (
            OMNI,
            {"data.resize": ("stretch", "crop")},
            "evaluation.protocol (omnitokenizer against omnitokenizer*), data.resize (stretch against crop):",
        ),
        (
            LATTE,
            {"data.layout": ("flat", "taichi")},
            "evaluation.protocol (latte against latte*), data.layout (flat against taichi):",
        ),
        (
            LATTE,
            {"evaluation.reference_clips": (2048, 1000)},
            "(latte against latte*), evaluation.reference_clips (2048 against 1000):",
        ),
        (
            LATTE,
            {"data.root": ("/a", "/b"), "evaluation.flow": (True, False)},
            "differ in evaluation.protocol (latte against latte*):",
        ),
        (
            LATTE,
            {"data.layout": ("flat", None), "data.resize": ("crop", None)},
            "differ in evaluation.protocol (latte against latte*):",
        ),
    ],
    ids=["resize", "layout", "reference-clips", "no-knob-of-a-protocol", "without-its-settings"],
)
def test_what_cost_a_protocol_its_plain_name_is_named(study, protocol, changes, words):
    with pytest.raises(ComparisonError) as error:
        comparable(two_runs(study, {"protocol": (protocol, protocol.replace("/", "*/", 1)), **changes}))
    assert words in str(error.value)


def two_runs(study, changes):
    """Two runs that may stand in a table, with values of one's own."""
    runs = load_runs(study)
    pair = runs[np.equal(exclusions(runs), "")].head(2).reset_index(drop=True)
    return pair.assign(**{name: pd.Series(values, dtype=object) for name, values in changes.items()})


MANY = ("clip_stride", "split_list", "train_clips", "test_clips", "seed")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "saw different data; report them apart"),
        ({"data.resize": ("crop", "stretch")}, "saw different data, by data.resize (crop against stretch); report"),
        ({"data.clips_per_video": (None, 2)}, "by data.clips_per_video (None against 2); report"),
        (
            {"data.root": ("a" * 500, "b" * 500), "data.min_clips": (1, 2)},
            f"by data.root ({'a' * 80} against {'b' * 80}); report",
        ),
        ({f"data.{key}": (1, 2) for key in MANY}, "data.test_clips (1 against 2) and 1 more; report"),
    ],
    ids=["contents", "resize", "left-at-none", "long", "many"],
)
def test_two_versions_of_the_data_are_refused_and_the_knob_is_named(study, changes, words):
    runs = two_runs(
        study, {"protocol": (OMNI.replace("/", "*/", 1),) * 2, "data_fingerprint": ("d4e5", "beef"), **changes}
    )
    with pytest.raises(ComparisonError) as error:
        comparable(runs)
    assert str(error.value).startswith(
        "data_fingerprint differs (d4e5 against beef): full-s0 and local-equal_compute-s0 saw different data"
    )
    assert words in str(error.value)


def test_real_clips_through_two_tokenizers_are_refused_and_raw_ones_are_not(study):
    runs = load_runs(study)
    runs.loc[0, "tokenizer_fingerprint"] = "beef"
    with pytest.raises(ComparisonError, match=r"tokenizer_fingerprint differs .*evaluation\.reference raw"):
        comparable(runs)
    runs["protocol"] = runs["protocol"].str.replace("reconstructed", "raw")
    assert len(comparable(runs)) > 2


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    """Two training seeds of each arm, and a sampled run that was run again."""
    folder = tmp_path_factory.mktemp("seeds") / "toy"
    return load_runs(
        record_study(folder, ("full", "reco"), seeds=(0, 1), searched=3, again=("search-0000",), files=False)
    )


def changed(runs, trial, **settings):
    other = runs.copy()
    for key, value in settings.items():
        other.loc[other["trial"] == trial, key.replace("__", ".")] = value
    return other


@pytest.mark.parametrize(
    ("trial", "change", "words"),
    [
        (
            "full-s1",
            {"training__steps": 1500, "steps": 1500.0},
            "training.steps is 600 in the one and 1500 in the other",
        ),
        ("reco-equal_compute-s1", {"training__steps": 77}, "training.steps is 1152 in the one and 77"),
        ("reco-equal_steps-s0", {"training__learning_rate": 1.0}, "training.learning_rate is 1.0 in the one and 0.003"),
        ("reco-equal_steps-s1", {"window__prefix_tokens": 9}, "window.prefix_tokens is None in the one and 9"),
        ("search-0000-s1", {"sampling__temperature": 0.5}, "sampling.temperature is 1.0 in the one and 0.5"),
        ("reco-equal_steps-s1", {"seed": 0}, "reco-equal_steps-s0 and reco-equal_steps-s1 are both seed 0 of `reco`"),
    ],
    ids=["the-baseline", "steps-of-a-compute-budget", "an-arm", "what-one-has-not", "a-finalist", "a-seed-twice"],
)
def test_runs_of_two_settings_are_never_seeds_of_one_arm(two_seeds, trial, change, words):
    """Runs of 1,500 and of 200 steps were pooled after somebody edited the settings under a study."""
    mixed = changed(two_seeds, trial, **change)
    for compare in (ablation_table, frontier):
        with pytest.raises(ComparisonError) as error:
            compare(mixed)
        assert words in str(error.value) and "report them apart" in str(error.value)


def test_where_runs_worked_keeps_no_seeds_apart(two_seeds):
    moved = changed(two_seeds, "full-s1", resources__workers=4, data__cache_dir="/elsewhere")
    assert len(ablation_table(moved)) == len(ablation_table(two_seeds)) == 4
    older = two_seeds.drop(columns=["data.grid"])
    assert len(ablation_table(older)) == 4, "a setting that came later"


def test_arms_that_did_not_take_the_baselines_steps_are_not_at_equal_steps(two_seeds):
    """They stood under `every arm takes the baseline's optimiser steps`."""
    runs = two_seeds
    for seed in (0, 1):
        runs = changed(runs, f"reco-equal_steps-s{seed}", training__steps=5, steps=5.0)
    table = ablation_table(runs)
    assert list(table.loc[table["budget"] == "equal_steps", "arm"]) == ["full"]
    assert dict(zip(runs["trial"], exclusions(runs), strict=True))["reco-equal_steps-s0"] == (
        "it took 5 steps, not the baseline's 600"
    )


@pytest.mark.parametrize("begun", [{}, {"question": "?"}], ids=["an-earlier-version's", "this-version's"])
def test_speeds_against_an_arms_own_model_are_in_no_table(study, begun):
    """An earlier version measured the speed of an arm with a model of its own against a baseline with the same."""
    record = load_study(study)
    arm = {**record.runs["reco-equal_steps-s0"].settings, "model.depth": 1}
    changed = replace(
        record,
        settings=begun,
        runs={
            name: replace(run, settings=arm) if name == "reco-equal_steps-s0" else run
            for name, run in record.runs.items()
        },
    )
    runs = load_runs(changed)
    why = dict(zip(runs["trial"], exclusions(runs), strict=True))["reco-equal_steps-s0"]
    assert why == (
        "" if begun else "its speed was measured against a baseline with its own model.depth, by an earlier version"
    )


def test_what_a_budget_gives_is_said_in_the_baselines_numbers(two_seeds):
    kept = Evidence(two_seeds).own_comparable
    assert meaning("equal_steps", kept) == (
        "every arm takes as many optimiser steps as the baseline (`full` takes 600 steps of 32 clips)"
    )
    small = two_seeds
    for seed in (0, 1):
        small = changed(small, f"reco-equal_steps-s{seed}", model__depth=1, training__batch_size=16)
    kept = Evidence(small).own_comparable
    assert meaning("equal_steps", kept).endswith(
        "; arms with other steps: `reco` (model.depth 1, not 3, training.batch_size 16, not 32)"
    )
    assert "another kind" not in meaning("equal_compute", kept)
    searched = changed(two_seeds, "search-0001", training__batch_size=8)
    assert searched_steps(Evidence(searched).own_comparable).endswith("their steps differ in `training.batch_size`.")
    assert searched_steps(Evidence(two_seeds).own_comparable) == ""


@pytest.mark.parametrize(
    "render",
    [latex, lambda table: markdown([table]), lambda table: "\n".join(terminal(table, 80))],
    ids=["tex", "md", "txt"],
)
def test_every_form_of_the_table_says_what_is_equal(two_seeds, render):
    small = changed(changed(two_seeds, "reco-equal_steps-s0", model__depth=1), "reco-equal_steps-s1", model__depth=1)
    told = " ".join(render(ablation_section.ablation_table(Evidence(small))).split())
    assert "takes 600 steps of 32 clips" in told and "(model.depth 1, not 3)" in told


def test_a_missing_study_is_said(tmp_path):
    with pytest.raises(StudyError, match="is not a study folder"):
        load_runs(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (math.nan, ""),
        (True, "true"),
        (600.0, "600"),
        (18, "18"),
        (0.1, "0.1"),
        (1e-05, "1e-05"),
        ("a,b", '"a,b"'),
    ],
    ids=str,
)
def test_a_cell_has_one_spelling(value, text):
    assert csv_text(pd.DataFrame({"x": pd.Series([value, "-"], dtype=object)})) == f"x\n{text or chr(34) * 2}\n-\n"
