"""Rows that stand beside each other along λ, or window and stride, are of one arm or of the search; bold needs nothing
else to differ.
"""

from __future__ import annotations

import pandas as pd
import pytest
from toy_study import PROTOCOL, record_study

from reco_tune.reporting import Evidence, load_runs
from reco_tune.reporting.render.markdown import markdown
from reco_tune.reporting.runs import differing
from reco_tune.reporting.sections import build
from reco_tune.reporting.sections.continuity_weight import lambda_groups, lambda_table, lowest_by_weight
from reco_tune.reporting.sections.window_stride import window_stride_cells, window_stride_table
from reco_tune.reporting.windowed import PLACE

SEEDS = (0, 1, 2)
BUDGETS = ("equal_steps", "equal_compute", "half_compute")


@pytest.fixture(scope="module")
def rungs(tmp_path_factory):
    """Two arms that differ in λ alone, and the control with a penalty on h²."""
    arms = ("full", "local_balanced", "norm_penalty", "reco")
    return load_runs(
        record_study(tmp_path_factory.mktemp("rungs") / "toy", arms, BUDGETS, SEEDS, searched=0, files=False)
    )


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    return load_runs(record_study(tmp_path_factory.mktemp("ladder") / "toy", seeds=SEEDS, files=False))


def text(section, runs):
    return markdown(build(section, Evidence(runs)).tables)


def test_a_penalty_on_h_is_no_run_at_lambda_0(rungs):
    groups = lambda_groups(lambda_table(Evidence(rungs)))
    assert (
        list(zip(groups["arm"], groups["lowest"], groups["runs"], strict=True))
        == [("local_balanced", 0, 3), ("reco", 0.1, 3)] * 3
    )
    at_zero = rungs[(rungs["arm"] == "local_balanced") & (rungs["budget"] == "equal_steps")]
    assert groups["fvd"][0] == pytest.approx(at_zero["fvd"].mean())


def test_budgets_stand_in_the_order_of_every_table(rungs):
    assert list(dict.fromkeys(lambda_table(Evidence(rungs))["budget"])) == list(BUDGETS)
    assert text("continuity_weight", rungs).startswith("### Equal steps")


def test_the_best_is_bold_where_rows_differ_in_what_is_asked_alone(rungs, ladder):
    assert text("continuity_weight", rungs).count("**") == 2 * len(BUDGETS)
    assert "**" not in text("continuity_weight", ladder)
    assert "**" not in text("window_stride", ladder)
    assert "also differ in other settings: `objective.continuity_weight`, `objective.norm_weight`" in text(
        "window_stride", rungs
    )
    assert "No best row" not in text("continuity_weight", rungs)


def test_arms_of_one_lambda_are_rows_of_their_own(ladder):
    groups = lambda_groups(lambda_table(Evidence(ladder)))
    at_steps = groups[groups["budget"] == "equal_steps"].groupby("arm", sort=False)["runs"].sum()
    assert at_steps.to_dict() == {"local": 3, "local_first": 3, "local_balanced": 3, "search": 7, "reco": 3}


@pytest.mark.parametrize("section", ["continuity_weight", "window_stride", "ablation"])
def test_every_caption_ends_with_where_its_numbers_come_from(ladder, section):
    (table,) = build(section, Evidence(ladder)).tables
    assert table.caption.endswith(f" Measured with commit 0123abc, hardware 2 CPU cores. Protocol: `{PROTOCOL}`.")


def test_the_map_of_windows_holds_no_place_twice(rungs, ladder):
    cells = window_stride_cells(window_stride_table(Evidence(ladder), "equal_steps"))
    assert set(cells["arm"]) == {"search"} and not cells.duplicated(list(PLACE)).any()
    assert window_stride_cells(window_stride_table(Evidence(rungs), "equal_steps")).empty, (
        "arms that differ in λ make no map"
    )
    lengths = [rungs[rungs["arm"] == "reco"].assign(arm=f"reco_{n}").assign(**{PLACE[0]: n}) for n in (9, 27)]
    assert list(window_stride_cells(window_stride_table(Evidence(pd.concat(lengths)), "equal_steps"))["arm"]) == [
        "reco_9",
        "reco_27",
    ]


def test_the_lowest_is_a_mean_with_its_runs_and_its_reduction(rungs, ladder):
    steps, *_ = lowest_by_weight(lambda_groups(lambda_table(Evidence(rungs))))
    assert steps.startswith("equal steps: lowest mean FVD 5.94 [") and steps.endswith(
        "] at λ = 0.1 (mean), 3 runs of reco"
    )
    assert lowest_by_weight(lambda_groups(lambda_table(Evidence(ladder))))[0].endswith(
        "1 run of search; rows differ in other settings too"
    )


def test_settings_that_differ(rungs):
    asked = ["window.scheme", "objective.continuity_weight", "objective.norm_weight", "training.steps", "training.seed"]
    assert differing(rungs) == ["window.scheme", "window.length_tokens", "window.stride_tokens", *asked[1:]]
    imported = rungs.iloc[:1].assign(arm="theirs (imported)", **{"model.width": None})
    assert differing(pd.concat([rungs, imported])) == differing(rungs)
