"""Rows from elsewhere stand marked and paired with nothing; the paper's numbers stand only where they were measured
alike.
"""

import math

import pytest
from toy_study import PROTOCOL, record_study

from reco_tune.errors import ComparisonError
from reco_tune.reporting import Evidence, ablation_table, frontier, load_runs, write_report
from reco_tune.reporting.imported import file_names, with_imports
from reco_tune.reporting.paper import paper_reference
from reco_tune.reporting.render.csv import csv_text
from reco_tune.reporting.render.latex import latex
from reco_tune.reporting.render.markdown import markdown
from reco_tune.reporting.sections import ablation, build
from reco_tune.reporting.sections.claims import claims
from reco_tune.reporting.sections.frontier import draw_frontier
from reco_tune.reporting.sections.hypervolume import hypervolume_history


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    study = record_study(
        tmp_path_factory.mktemp("imported") / "toy",
        arms=("full", "local_balanced", "reco"),
        seeds=(0, 1, 2),
        files=False,
    )
    return load_runs(study)


def write(path, *rows, columns="arm,fvd,fvd_low,fvd_high,speedup,protocol"):
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def test_a_published_row_stands_marked_in_the_table(runs, tmp_path):
    together = with_imports(runs, [write(tmp_path / "published.csv", f"Theirs,5.5,5,6,2.8,{PROTOCOL}")])
    table = ablation_table(together)
    row = table[table["arm"] == "Theirs (imported)"].iloc[0]
    assert (row["budget"], row["seeds"], row["fvd"], row["fvd_low"], row["speedup"]) == ("equal_steps", 1, 5.5, 5, 2.8)
    assert math.isnan(row["fvd_delta"]) and math.isnan(row["fvd_p_value"])
    assert ablation.left_out(together) == []


def test_rows_of_two_settings_are_never_seeds_of_one_arm(runs, tmp_path):
    columns, rows = "arm,fvd,training.steps,protocol", [f"Theirs,5.5,600,{PROTOCOL}", f"Theirs,5.0,,{PROTOCOL}"]
    table = ablation_table(with_imports(runs, [write(tmp_path / "a.csv", *rows, columns=columns)]))
    assert table.set_index("arm").loc["Theirs (imported)", "seeds"] == 2, "a file need not tell every setting"
    mixed = with_imports(runs, [write(tmp_path / "b.csv", *rows, f"Theirs,4.0,1500,{PROTOCOL}", columns=columns)])
    with pytest.raises(ComparisonError, match=r"b:2 and b:4 would .* training\.steps is 600 in the one and 1500"):
        ablation_table(mixed)


def test_the_study_itself_does_not_change(runs, tmp_path):
    together = with_imports(runs, [write(tmp_path / "published.csv", f"reco,0.1,0.1,0.1,2.8,{PROTOCOL}")])
    assert csv_text(together.head(len(runs))) == csv_text(runs)
    assert claims(Evidence(together)) == claims(Evidence(runs))
    own = ablation_table(together)
    assert csv_text(own[~own["arm"].str.endswith("(imported)")]) == csv_text(ablation_table(runs))


def test_a_number_without_a_speed_up_is_a_row_and_no_point(runs, tmp_path):
    together = with_imports(runs, [write(tmp_path / "published.csv", f"Theirs,5.5,,,,{PROTOCOL}")])
    assert "Theirs (imported)" in set(ablation_table(together)["arm"])
    assert "Theirs (imported)" not in set(frontier(together).points["arm"])


def test_the_runs_of_another_study_can_be_imported(runs, tmp_path):
    (tmp_path / "other.csv").write_text(csv_text(runs))
    together = with_imports(runs, [tmp_path / "other.csv"])
    table = ablation_table(together).set_index(["budget", "arm"])
    for budget in ("equal_steps", "equal_compute"):
        assert table.loc[(budget, "reco (imported)"), "fvd"] == table.loc[(budget, "reco"), "fvd"]
        assert table.loc[(budget, "reco (imported)"), "seeds"] == 3


SOURCES = {
    "ours.csv": [f"Theirs,5,,,1,{PROTOCOL}", f"Theirs,6,,,3,{PROTOCOL}", f"Mine,3,,,1,{PROTOCOL}"],
    "lab.csv": [f"Theirs,8,,,3,{PROTOCOL}", f"Theirs,9,,,3,{PROTOCOL}"],
}


def test_an_arm_of_two_files_is_a_row_of_each_and_no_run_is_lost(runs, tmp_path):
    """Both hold it on the same line: seeds made of line numbers alone would be one, and half of the runs
    would be gone."""
    files = [write(tmp_path / name, *rows) for name, rows in SOURCES.items()]
    together = with_imports(runs, files)
    assert list(together["seed"].tail(5)) == [-1, -2, -3, -4, -5] and together["seed"].dtype == runs["seed"].dtype
    table = ablation_table(together).set_index("arm")
    rows = table[table.index.str.endswith("(imported)")]
    assert list(rows.index) == ["Theirs from ours.csv (imported)", "Mine (imported)", "Theirs from lab.csv (imported)"]
    assert (
        list(rows["seeds"]) == [2, 1, 2] and list(rows["fvd"]) == [5.5, 3, 8.5] and list(rows["speedup"]) == [2, 1, 3]
    )


def test_files_of_one_name_are_told_apart_by_their_folders(runs, tmp_path):
    files = [tmp_path / study / "report" / "runs.csv" for study in ("a", "b")]
    for file, rows in zip(files, SOURCES.values(), strict=True):
        file.parent.mkdir(parents=True)
        write(file, *rows)
    together = with_imports(runs, files)
    assert {"Theirs from a/report/runs.csv (imported)", "Theirs from b/report/runs.csv (imported)"} < set(
        ablation_table(together)["arm"]
    )
    assert list(together["trial"].tail(2)) == ["b/report/runs:2", "b/report/runs:3"]
    assert file_names(files[:1]) == ["runs.csv"] and file_names([]) == []
    with pytest.raises(ComparisonError, match=r"a/report/runs\.csv is given 2 times; import each file once"):
        with_imports(runs, [*files, files[0]])


def test_another_protocol_is_refused_and_the_knob_is_named(runs, tmp_path):
    together = with_imports(runs, [write(tmp_path / "p.csv", f"Theirs,5.5,,,,{PROTOCOL.replace('n512', 'n2048')}")])
    with pytest.raises(ComparisonError, match=r"p:2 .*n512x1 against n2048x1"):
        ablation_table(together)


@pytest.mark.parametrize(
    ("columns", "row", "words"),
    [
        ("arm,fvd", "a,1", "has no column `protocol`"),
        ("arm,fvd,protocol,speedupp", f"a,1,{PROTOCOL},2", "do you mean `speedup`"),
        ("arm,fvd,protocol", f"a,low,{PROTOCOL}", "line 2: fvd is `low`, which is not a number"),
        ("arm,fvd,protocol", "a,1,", "line 2 has no protocol"),
        ("arm,fvd,protocol,budget", f"a,1,{PROTOCOL},epochs", "budget is `epochs`"),
        ("arm,fvd,fvd_low,fvd_high,protocol", f"a,3,1,2,{PROTOCOL}", "line 2: fvd 3 lies outside its interval"),
        (
            "arm,fvd,speedup,speedup_low,speedup_high,protocol",
            f"a,3,3,1,2,{PROTOCOL}",
            "line 2: speedup 3 lies outside its interval",
        ),
        (
            "arm,fvd,fvd_low,protocol",
            f"a,3,2.5,{PROTOCOL}",
            "line 2: an interval is `fvd`, `fvd_low` and `fvd_high` together",
        ),
        ("arm,fvd,protocol", f" ,1,{PROTOCOL}", "line 2 has no arm"),
        ("arm,fvd,protocol", f"a,-3,{PROTOCOL}", "line 2: fvd is `-3`, but must be at least 0"),
        ("arm,fvd,speedup,protocol", f"a,1,-2,{PROTOCOL}", "line 2: speedup is `-2`, but must be above 0"),
        ("arm,fvd,speedup,protocol", f"a,1,0,{PROTOCOL}", "line 2: speedup is `0`, but must be above 0"),
        ("arm,fvd,protocol,state", f"a,1,{PROTOCOL},done", "line 2: state is `done`; take one of planned, "),
        ("arm,fvd,protocol", f"a,1,{PROTOCOL},2", "line 2 has 4 cells under 3 columns"),
        ("arm,fvd,protocol", f"a,1,{PROTOCOL}\n\nb,2,{PROTOCOL},2", "line 4 has 4 cells under 3 columns"),
        ("arm,fvd,protocol", f"a,1,{PROTOCOL}\nb,2", "line 3 has 2 cells under 3 columns"),
        ("arm,fvd,fvd,protocol", f"a,1,2,{PROTOCOL}", "line 1 has the column `fvd` 2 times"),
        ("arm,fvd,protocol,state", f"a,,,failed\nsearch,1,{PROTOCOL},evaluated", "none of its 2 rows can be imported"),
        ("arm,fvd,protocol", "", "none of its 0 rows can be imported"),
        ("", "", "has no column `arm`"),
    ],
    ids=[
        "no-protocol-column",
        "typing-mistake",
        "no-number",
        "no-protocol",
        "budget",
        "interval",
        "interval-of-speed",
        "half-an-interval",
        "no-arm",
        "negative-fvd",
        "negative-speed",
        "no-speed",
        "state",
        "extra-cell",
        "extra-cell-below-a-blank-line",
        "missing-cell",
        "column-twice",
        "nothing-to-import",
        "header-only",
        "empty",
    ],
)
def test_a_file_that_cannot_be_is_one_sentence(runs, tmp_path, columns, row, words):
    with pytest.raises(ComparisonError, match=r"x\.csv") as error:
        with_imports(runs, [write(tmp_path / "x.csv", row, columns=columns)])
    assert words in str(error.value)


def test_a_distance_that_may_lie_below_0_is_no_mistake(runs, tmp_path):
    columns = "arm,fvd,kernel_distance,kernel_distance_low,kernel_distance_high,protocol"
    together = with_imports(
        runs, [write(tmp_path / "published.csv", f"Theirs,5,-0.01,-0.02,0.01,{PROTOCOL}", columns=columns)]
    )
    assert together["kernel_distance_low"].iloc[-1] == -0.02


def test_a_missing_file_is_one_sentence(runs, tmp_path):
    with pytest.raises(ComparisonError, match=r"gone\.csv cannot be read"):
        with_imports(runs, [tmp_path / "gone.csv"])


def test_the_frontier_is_the_studys_own(runs, tmp_path):
    """A number without an interval has no noise: on the frontier it would stand for certain, and what was measured here
    would not.
    """
    together = with_imports(runs, [write(tmp_path / "published.csv", f"Theirs,0.1,,,9,{PROTOCOL}")])
    assert csv_text(frontier(together).points) == csv_text(frontier(runs).points)
    assert frontier(together).hypervolume == frontier(runs).hypervolume
    found = Evidence(together)
    assert csv_text(found.frontier.points) == csv_text(Evidence(runs).frontier.points)
    figure = draw_frontier(found.frontier, found.ablation, found.arms)
    hollow = [points for points in figure.axes[0].collections if points.get_offsets().tolist() == [[9, 0.1]]]
    assert hollow and (hollow[0].get_facecolor()[0] == 1).all()  # white
    assert figure.axes[0].get_xlim()[1] > 9


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    study = record_study(folder / "toy", arms=("full", "reco"), searched=0, files=False)
    return write_report(
        study, imports=[write(folder / "published.csv", f"Theirs,0.1,,,9,{PROTOCOL}", f"Slow,5.5,,,,{PROTOCOL}")]
    )


def test_a_study_of_compute_alone_takes_rows_of_equal_steps(tmp_path):
    """The figures are of the study's own first budget, and so are their words."""
    study = record_study(tmp_path / "toy", arms=("full", "reco"), budgets=("equal_compute",), searched=0, files=False)
    evidence = Evidence.read(study, [write(tmp_path / "published.csv", f"Theirs,5.5,,,2.0,{PROTOCOL}")])
    assert build("window_stride", evidence).figures[0].words.startswith("At equal compute the lowest mean FVD")
    assert [group.title for group in build("ablation", evidence).tables[0].groups] == ["Equal steps", "Equal compute"]


def test_a_file_given_by_two_ways_is_one(tmp_path):
    path = write(tmp_path / "published.csv", f"Theirs,5.5,,,,{PROTOCOL}")
    with pytest.raises(ComparisonError, match="is given 2 times"):
        file_names([path, tmp_path / "elsewhere" / ".." / "published.csv"])


@pytest.mark.parametrize("name", ["index.html", "ablation.md", "ablation.tex"])
def test_the_report_names_the_files(report, name):
    text = (report.folder / name).read_text()
    assert (
        "Theirs (imported)" in text
        and "published.csv" in text
        and "keeps them off the frontier" in text
        and ">nan<" not in text
    )
    assert '"published.csv": "' in (report.folder / "provenance.json").read_text()


def test_the_page_tells_facts_of_the_study_alone(report):
    text = report.index.read_text()
    assert '<p class="note">3 runs.' in text and "<dt>seeds</dt><dd>0</dd>" in text
    history = hypervolume_history(report.evidence)
    for budget, covered in report.evidence.frontier.hypervolume.items():
        grown = history[history["budget"] == budget]["hypervolume"]
        assert covered == pytest.approx(grown.iloc[-1], rel=1e-12)  # float64 sums


LARP = "larp/16x128x128/stride1/raw/train9537/n10000x1/bec6519f"
PAPER = "stylegan-v/16x256x256/stride1/raw/train9537/n2048x1/bec6519f"  # of the 17 frames 16 are compared
LARP_CLIP, PAPER_CLIP = (16, 128), (17, 256)


def alike(runs, protocol, layout="ucf101", window=2048, clip=LARP_CLIP):
    lengths = [window if scheme == "window" else 5120 for scheme in runs["window.scheme"]]
    shape = {"data.clip_frames": clip[0], "data.size_px": clip[1]}
    return runs.assign(**{"protocol": protocol, "data.layout": layout, "window.length_tokens": lengths, **shape})


@pytest.mark.parametrize(
    ("protocol", "layout", "window", "clip", "known"),
    [
        (LARP, "ucf101", 2048, LARP_CLIP, {"full": (57.0, math.nan), "reco": (56.1, math.nan)}),
        (LARP, "flat", 2048, LARP_CLIP, {}),
        (LARP.replace("n10000", "n2048"), "ucf101", 2048, LARP_CLIP, {}),
        (PAPER, "ucf101", 2048, PAPER_CLIP, {"full": (math.nan, 1.0), "local_balanced": (math.nan, 2.0)}),
        (PAPER, "ucf101", 1024, PAPER_CLIP, {}),
        (PAPER, "ucf101", 2048, (17, 128), {}),
        (PROTOCOL, "digits", 18, (9, 12), {}),
    ],
    ids=["larp", "other-data", "fewer-samples", "paper-shape", "other-window", "smaller-frames", "toy"],
)
def test_the_papers_numbers_stand_only_beside_their_like(runs, protocol, layout, window, clip, known):
    found = paper_reference(alike(runs, protocol, layout, window, clip))
    assert {arm: pytest.approx(tuple(reference), nan_ok=True) for arm, reference in found.items()} == known


def test_the_reference_columns_are_cited(runs):
    measured = alike(runs, LARP)
    table = ablation.ablation_table(Evidence(measured))
    text = markdown([table])
    assert "FVD, paper" in text and "arXiv 2604.07402" in text
    rows = [line for line in text.splitlines() if line.startswith("| reco ")]
    assert rows[0].endswith("| 56.1 |  |") and rows[1].endswith("|  |  |")  # the paper has one budget
    assert "arXiv 2604.07402" in latex(table) and r"{FVD, paper $\downarrow$}" in latex(table)
    assert "paper" not in markdown([ablation.ablation_table(Evidence(runs))])


@pytest.mark.parametrize(
    ("protocol", "clip", "names", "kept"),
    [
        (LARP, LARP_CLIP, {"full, paper", "reco, paper"}, "xlim"),
        (PAPER, PAPER_CLIP, {"full, paper", "local_balanced, paper"}, "ylim"),
    ],
    ids=["FVD alone", "speed alone"],
)
def test_the_papers_numbers_are_stars_of_the_frontier_at_equal_steps(runs, protocol, clip, names, kept):
    measured = alike(runs, protocol, clip=clip)
    evidence = Evidence(measured)
    given = evidence.frontier, evidence.ablation, evidence.arms
    figure = draw_frontier(*given, paper=evidence.paper)
    steps, compute = figure.axes
    stars = [[line for line in axes.lines if line.get_marker() == "*"] for axes in (steps, compute)]
    assert len(stars[0]) == len(evidence.paper) and not stars[1]
    assert (
        names <= {text.get_text() for text in steps.texts}
        and "the paper's own" in figure.legends[0].get_texts()[0].get_text()
    )
    without = draw_frontier(*given)
    assert not without.legends
    assert [getattr(axes, f"get_{kept}")() for axes in without.axes] == [
        getattr(axes, f"get_{kept}")() for axes in figure.axes
    ]
