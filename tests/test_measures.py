"""What stands beside FVD: means and differences by hand, words by the better direction, laws of growth that noise does
not make.
"""

from __future__ import annotations

import math

import pandas as pd
import pytest
from scipy import stats
from toy_study import PROTOCOL, record_study

from reco_tune import quantities as q
from reco_tune.reporting import Evidence, load_runs
from reco_tune.reporting.aggregate import holm
from reco_tune.reporting.render.markdown import markdown
from reco_tune.reporting.sections.measures import build, growth_law, measure_cell, measures_table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return load_runs(
        record_study(tmp_path_factory.mktemp("measures") / "toy", seeds=(0, 1, 2), searched=2, files=False)
    )


def measured(runs: pd.DataFrame) -> pd.DataFrame:
    return measures_table(Evidence(runs).results)


def of(table: pd.DataFrame, budget: str, arm: str, measure: q.Quantity) -> dict[str, float]:
    (row,) = table[(table["budget"] == budget) & (table["arm"] == arm) & (table["measure"] == measure.name)].to_dict(
        "records"
    )
    return {str(name): value for name, value in row.items()}


def test_numbers_against_scipy(runs: pd.DataFrame) -> None:
    row = of(measured(runs), "equal_steps", "local", q.MOTION_DISTANCE)
    values = runs[runs["budget"] != "equal_compute"].set_index(["arm", "seed"])["motion_distance"]
    low, high = stats.t.interval(0.95, 2, values["local"].mean(), stats.sem(values["local"]))
    assert (row["value"], row["low"], row["high"], row["seeds"]) == pytest.approx(
        (values["local"].mean(), low, high, 3)
    )
    assert row["delta"] == pytest.approx((values["local"] - values["full"]).mean())
    arms = [arm for arm in runs.attrs["arms"] if arm != "full"]
    corrected = holm([stats.ttest_rel(values[arm], values["full"]).pvalue for arm in arms])
    words = [of(measured(runs), "equal_steps", arm, q.MOTION_DISTANCE)["verdict"] for arm in arms]
    assert words == ["worse" if p < 0.05 else "not resolved" for p in corrected] and set(words) == {
        "worse",
        "not resolved",
    }


@pytest.mark.parametrize(
    ("measure", "word"),
    [(q.MOTION_DISTANCE, "worse"), (q.CLASS_ACCURACY, "better"), (q.FIRST_FRAME_GAP, "higher")],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_word_follows_the_better_direction(runs: pd.DataFrame, measure: q.Quantity, word: str) -> None:
    changed = runs.copy()
    own, baseline = (changed["arm"] == "reco").to_numpy(), (changed["arm"] == "full").to_numpy()
    changed.loc[baseline, measure.name] = 1.0
    changed.loc[own, measure.name] = 2 + 0.01 * changed.loc[own, "seed"]
    assert of(measured(changed), "equal_steps", "reco", measure)["verdict"] == word
    assert of(measured(changed), "equal_steps", "full", measure)["verdict"] == ""


def test_one_seed_resolves_what_has_a_sampling_interval_and_nothing_else(runs: pd.DataFrame) -> None:
    alone = runs[runs["seed"] == 0].copy()
    alone["kernel_distance_low"], alone["kernel_distance_high"] = (
        alone["kernel_distance"] - 1e-4,
        alone["kernel_distance"] + 1e-4,
    )
    table = measured(alone)
    assert of(table, "equal_steps", "local", q.KERNEL_DISTANCE)["verdict"] == "worse (1 seed)"
    motion = of(table, "equal_steps", "local", q.MOTION_DISTANCE)
    assert motion["verdict"] == "not resolved" and math.isnan(motion["low"]) and math.isnan(motion["delta_low"])


def test_what_may_be_negative_is_not_cut_off_at_zero(runs: pd.DataFrame) -> None:
    assert of(measured(runs), "equal_steps", "full", q.ERROR_GROWTH_RATE)["high"] < 0
    noisy = runs.assign(kernel_distance=[0.01 * (-1) ** row for row in range(len(runs))])
    assert of(measured(noisy), "equal_steps", "reco", q.KERNEL_DISTANCE)["low"] < 0


def test_shares_end_at_one(runs: pd.DataFrame) -> None:
    high = runs.assign(class_accuracy=[0.9 + 0.04 * seed for seed in runs["seed"]])
    row = of(measured(high), "equal_steps", "reco", q.CLASS_ACCURACY)
    assert row["value"] == pytest.approx(0.94) and row["high"] == 1.0


def test_a_measure_that_a_run_lacks_leaves_that_seed_out(runs: pd.DataFrame) -> None:
    lost = runs.copy()
    lost.loc[lost["trial"] == "reco-equal_steps-s1", "class_accuracy"] = math.nan
    lost["flow_unexplained"] = math.nan
    table = measured(lost)
    assert of(table, "equal_steps", "reco", q.CLASS_ACCURACY)["seeds"] == 2
    assert "flow_unexplained" not in set(table["measure"])
    assert measured(runs[runs["arm"] == "search"]).empty


@pytest.mark.parametrize(
    ("aic", "law"),
    [
        ((3, 1, 5), "exponential"),
        ((-3, -5, -1), "linear"),
        ((3, -1, 7), "not resolved"),
        ((1, 0.5, 1.5), "not resolved"),
        ((3, math.nan, math.nan), "exponential (1 seed)"),
    ],
    ids=["exponential", "linear", "seeds disagree", "too close", "one seed"],
)
def test_the_law_of_growth(aic: tuple[float, float, float], law: str) -> None:
    assert growth_law(*aic) == law


def test_tables_for_people_hold_what_was_measured(runs: pd.DataFrame) -> None:
    _, beside, analyses, origin = build(Evidence(runs)).tables
    assert [group.title for group in beside.groups] == ["Equal steps", "Equal compute"]
    assert [row["arm"] for row in beside.groups[0].rows] == runs.attrs["arms"]
    headings = [[column.heading for column in table.columns_of(table.groups[0])] for table in (beside, analyses)]
    assert headings[0][0] == "arm" and headings[1][-1] == "law of error growth"
    assert "Motion distance ↓" in headings[0] and "Error growth, linear slope (per block) ↓" in headings[1]
    assert q.FLOW_UNEXPLAINED.heading not in headings[0], "no run measured it"
    assert {row["law"] for row in analyses.groups[0].rows} == {"exponential", ""}
    text = markdown([beside, analyses, origin])
    assert text.endswith(f"Measured with commit 0123abc, hardware 2 CPU cores. Protocol: `{PROTOCOL}`.\n")
    assert "Motion distance" in text and "0.62" not in measure_cell(None) and r"/ \|h\| |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert (
        len({line.replace(r"\|", "").count("|") for line in rows}) == 2
    )  # as wide as its heading, in two kinds of table
