"""The report folder is whole, the same each time, self-contained, and a browser shows it without an error."""

import html
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_study import PROTOCOL, record_study

from reco_tune.errors import ComparisonError, StudyError
from reco_tune.reporting import Evidence, sections, write_report
from reco_tune.reporting import evidence as evidence_module
from reco_tune.reporting.labels import overlap, push_apart
from reco_tune.reporting.render.csv import csv_text
from reco_tune.reporting.render.page import page
from reco_tune.reporting.render.scatter import scatter
from reco_tune.reporting.report import write_files
from reco_tune.reporting.runs import bounds, load_study, runs_table
from reco_tune.reporting.sections import SECTIONS, build, configurations, frontier
from reco_tune.reporting.sections.claims import claims
from reco_tune.reporting.sections.cost import ledger
from reco_tune.reporting.sections.curves import draw_loss_by_frame
from reco_tune.reporting.sections.samples import GAP_PX, LEAST_SIDE_PX, grid
from reco_tune.reporting.sections.window_stride import draw_window_stride, window_stride_tables
from reco_tune.reporting.style import lay_out
from reco_tune.settings import Experiment
from reco_tune.study_log import EventLog, StudyFolder, read_study

FILES = [
    "ablation.csv",
    "ablation.md",
    "ablation.tex",
    "runs.csv",
    "frontier.csv",
    "frontier.png",
    "frontier.pdf",
    "lambda.png",
    "loss_by_frame.png",
    "error_growth.png",
    "fvd_by_samples.png",
    "index.html",
    "provenance.json",
    *(f"{name}.{kind}" for name in ("lambda", "window_stride") for kind in ("csv", "md", "tex")),
    *(f"{name}.csv" for name in ("frontier_probability", "hypervolume", "compute", "compute_to_quality", "importance")),
    *(f"{name}.{kind}" for name in ("compute", "hypervolume", "window_stride") for kind in ("png", "pdf")),
]
TABLES = ("ablation.csv", "ablation.md", "ablation.tex", "runs.csv", "frontier.csv", "provenance.json")
TABLES += tuple(name for name in FILES if name.endswith((".csv", ".md", ".tex")) and name not in TABLES)
ARMS = ("full", "fewer_frames", "local", "local_first", "local_balanced", "reco", "norm_penalty")
VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}


class Outline(HTMLParser):
    """Open tags, attributes and whether every element was closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return record_study(tmp_path_factory.mktemp("report") / "toy", arms=ARMS, failing=["local-equal_steps-s0"])


@pytest.fixture(scope="module")
def heard():
    return []


@pytest.fixture(scope="module")
def report(study, heard):
    return write_report(study, progress=lambda done, total, what: heard.append((done, total)))


def test_the_folder_is_whole(study, report):
    assert report.folder == study / "report"
    assert [name for name in FILES if not (report.folder / name).stat().st_size] == []
    assert sorted(path.stem for path in (report.folder / "samples").glob("*.mp4")) == sorted(ARMS)


def test_tables_are_byte_identical_from_the_folder_and_from_its_record(study, report, tmp_path):
    write_report(read_study(study), tmp_path)
    assert {name for name in TABLES if (tmp_path / name).read_bytes() != (report.folder / name).read_bytes()} == set()


def test_a_record_without_a_folder_needs_to_know_where_to_write(study):
    with pytest.raises(StudyError, match="--output"):
        write_report(read_study(study))


def test_written_tables_are_those_of_the_report(report):
    written = pd.read_csv(report.folder / "ablation.csv")
    assert list(written["fvd"]) == list(report.evidence.ablation["fvd"])
    assert len(pd.read_csv(report.folder / "frontier.csv")) == len(report.evidence.frontier.points)


def test_provenance_names_what_the_tables_rest_on(report):
    origin = json.loads((report.folder / "provenance.json").read_text())
    assert (
        origin["protocol"] == [PROTOCOL]
        and origin["commit"] == "0123abc"
        and origin["command"] == "reco-tune run toy.yaml"
    )
    assert origin["runs_by_state"] == {"evaluated": 19, "failed": 1, "pruned": 1}


def test_the_page_is_well_formed_and_needs_nothing_from_outside(report):
    text = report.index.read_text()
    page = Outline(text)
    assert page.open == []
    sources = [attributes["src"] for tag in ("img", "video") for attributes in page.all(tag)]
    assert len(sources) > 10 and all(source.startswith("data:") for source in sources)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text) and "@import" not in text


def test_every_figure_has_words_for_those_who_cannot_see_it(report):
    page = Outline(report.index.read_text())
    assert all(len(attributes["alt"]) > 60 for attributes in page.all("img"))
    assert all(attributes["aria-label"] for attributes in page.all("video"))
    (frontier,) = [
        attributes["alt"] for attributes in page.all("img") if attributes["alt"].startswith("Speed against quality")
    ]
    assert "reco at equal_steps: 1.92x" in frontier


def test_the_page_lists_verdicts_failures_and_settings_on_hover(report):
    text = report.index.read_text()
    assert all(one.claim in text for one in claims(report.evidence))
    assert "the loss is not finite at step 412" in text
    assert "window.first_frame_probability = 0.5" in text
    assert "on the frontier with probability 0." in text


def test_text_of_a_person_is_escaped(report):
    asked = replace(report.evidence.study, question="Is <script>alert(1)</script> & 'this' safe?")
    text = page(replace(report.evidence, study=asked), report.sections, {})
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


@pytest.mark.parametrize(
    ("protocol", "illustrative"),
    [
        ("native-pca/17x64x64/n256x1/00000000", True),
        ("native-random/17x64x64/n256x1/00000000", True),
        ("native/9x12x12/n512x1/0", False),
    ],
)
def test_untrained_features_are_called_illustrative(report, protocol, illustrative):
    text = page(Evidence(report.evidence.runs.assign(protocol=protocol), report.evidence.study), [], {})
    assert ("Illustrative" in text) == illustrative
    assert "do not compare its numbers with published ones" in text


def test_a_study_that_does_not_compare_replaces_no_report(tmp_path):
    study = read_study(record_study(tmp_path / "toy", arms=("full", "reco"), searched=0, files=False))
    study.runs["full-s0"].provenance["protocol"] = PROTOCOL.replace("n512", "n2048")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "frontier.png").touch()
    for output in (tmp_path / "new", tmp_path / "out"):
        with pytest.raises(ComparisonError, match="not comparable"):
            write_report(study, output)
    assert not (tmp_path / "new").exists() and [file.name for file in (tmp_path / "out").iterdir()] == ["frontier.png"]


def test_a_folder_holds_one_report_and_whatever_a_person_keeps_there(report, tmp_path):
    output = shutil.copytree(report.folder, tmp_path / "out")
    kept = [output / "notes.png", output / "samples" / "mine.mp4"]
    for file in kept:
        file.write_text("a person's")
    folder = StudyFolder(tmp_path / "young")
    EventLog(folder.events).append("study", name="young", question="?", arms=["full"], provenance={})
    write_report(folder.path, output)
    assert [file for file in output.rglob("*") if file.suffix in (".png", ".pdf", ".mp4")] == kept
    kept[1].rename(output / "samples" / "full.mp4")
    write_report(folder.path, output)
    assert not (output / "samples").exists()


@pytest.mark.parametrize("provenance", ['{"x": 1}', '{"arms": ["full"]}', "[1]", "no JSON"])
def test_what_is_no_report_is_left_alone(provenance, tmp_path):
    output = tmp_path / "out"
    (output / "samples").mkdir(parents=True)
    kept = [output / "importance.pdf", output / "samples" / "full.mp4"]
    for file in kept:
        file.write_text("a person's")
    (output / "provenance.json").write_text(provenance)
    folder = StudyFolder(tmp_path / "young")
    EventLog(folder.events).append("study", name="young", question="?", arms=["full"], provenance={})
    write_report(folder.path, output)
    assert [file.read_text() for file in kept] == ["a person's"] * 2


@pytest.mark.parametrize("planned", [0, 1], ids=["nothing-planned", "nothing-finished"])
def test_a_study_that_has_just_begun_has_a_report(tmp_path, planned):
    folder = StudyFolder(tmp_path / "young")
    log = EventLog(folder.events)
    log.append("study", name="young", question="?", arms=["full"], provenance={})
    for _ in range(planned):
        log.append(
            "planned",
            trial="full-s0",
            arm="full",
            budget="both",
            seed=0,
            settings=Experiment().flat(),
            settings_hash="h",
        )
    report = write_report(folder.path)
    assert report.evidence.ablation.empty and report.evidence.frontier.points.empty
    assert "the study is not finished" in report.index.read_text()
    assert {one.verdict for one in claims(report.evidence)} == {"not tested"}


def test_progress_ends_where_it_said(report, heard):
    assert heard == [(step, 4) for step in range(5)]


def test_a_shared_calibration_is_paid_once(tmp_path):
    study = load_study(record_study(tmp_path / "toy", arms=("full", "reco"), seeds=(0, 1, 2), searched=2, files=False))
    costs = ledger(study, runs_table(study)).set_index("arm")
    assert costs.loc["reco", "calibration_seconds"] == 3.5
    assert costs.loc["search", "calibration_seconds"] == 7.0
    assert costs.loc["total", "runs"] == 3 + 6 + 2
    assert costs.loc["total", "training_seconds"] == pytest.approx(costs["training_seconds"][:-1].sum())


def test_clips_are_enlarged_without_smoothing_and_stand_side_by_side():
    black, white = np.zeros((2, 3, 3, 12, 12), np.uint8), np.full((2, 3, 3, 12, 12), 255, np.uint8)
    white[0, 0, :, 0, 0] = 7
    frames = grid([black, white])
    assert frames.shape == (3, 2 * LEAST_SIDE_PX + GAP_PX, 2 * LEAST_SIDE_PX + GAP_PX, 3)
    assert (frames[0, :8, LEAST_SIDE_PX + GAP_PX : LEAST_SIDE_PX + GAP_PX + 8] == 7).all()
    assert (frames[:, :LEAST_SIDE_PX, :LEAST_SIDE_PX] == 0).all()


def test_labels_at_line_ends_do_not_cover_each_other():
    placed = push_apart([10.0, 10.0, 11.0, 90.0, 99.0], gap=12, low=0, high=100)
    assert all(b - a >= 11.9 for a, b in itertools.pairwise(placed))


@pytest.mark.parametrize(
    ("other", "area"),
    [((1, 1, 3, 3), 1), ((2, 0, 4, 2), 0), ((5, 5, 6, 6), 0), ((0, 0, 2, 2), 4)],
    ids=["corner", "touch", "away", "same"],
)
def test_overlap(other, area):
    assert overlap((0, 0, 2, 2), other) == area


def test_a_long_search_is_cut_on_the_page_and_says_so():
    count = 900
    points = pd.DataFrame(
        {"trial": [f"search-{i}" for i in range(count)], "arm": "search", "speedup": np.linspace(1, 3, count)}
    )
    points = points.assign(fvd=np.linspace(2, 30, count), on_frontier=[i < 5 for i in range(count)])
    drawn = scatter(points.assign(runs=1, infeasible=""), points[:0], str)
    assert drawn.count('class="dot"') == 600 and "300 further ones" in drawn and drawn.count("point search on") == 5


def test_ten_thousand_runs_become_a_table_in_seconds(study):
    record = load_study(study)
    runs = list(record.runs.values())
    record.runs = {f"{run.trial}-{copy}": run for copy in range(500) for run in runs}
    table = runs_table(record)
    assert len(table) == 500 * len(runs) and csv_text(table).count("\n") == len(table) + 1


@pytest.fixture(scope="module")
def two_arms(tmp_path_factory):
    """A study of two arms with one budget, one seed and no search."""
    study = record_study(
        tmp_path_factory.mktemp("two") / "toy", ("full", "reco"), ("equal_steps",), searched=0, files=False
    )
    return write_report(study)


def test_what_a_study_does_not_have_is_not_on_its_page(two_arms):
    text = two_arms.index.read_text().split("<footer>")[0]  # which lists the files
    shown = re.sub(r"<style>.*?</style>|<script>.*?</script>|data:[^\"]*", "", text, flags=re.DOTALL)
    assert not re.search(r"(?i)equal.compute|half.the.compute|importance|Window and stride|continuity weight", shown)
    assert not {path.stem for path in two_arms.folder.glob("*.png")} & {"lambda", "window_stride", "importance"}
    assert "not tested</span>" not in shown and shown.count("This study did not test:") == 1
    keys = re.findall(r'<section id="([^"]+)">', text)
    assert keys[:3] == ["answer", "frontier", "verdicts"] and "samples" not in keys and "lambda" not in keys


def test_the_page_answers_first(report):
    text = report.index.read_text()
    keys = re.findall(r'<section id="([^"]+)">', text)
    assert keys[:3] == ["answer", "frontier", "samples"]
    (lead,) = re.findall(r'<p class="answer lead">(.*?)</p>', text)
    assert lead.startswith("At equal compute, ") and "as fast as those of <code>full</code>. Its FVD is" in lead


def test_everything_is_compared_once(study, tmp_path, monkeypatch):
    """Three results that each compared the runs again could differ from each other, and took three times as long."""
    calls = Counter()

    def counted(name):
        function = getattr(evidence_module, name)

        def call(*given):
            calls[name] += 1
            return function(*given)

        return call

    for name in ("comparable", "arm_results", "comparisons"):
        monkeypatch.setattr(evidence_module, name, counted(name))
    write_report(study, tmp_path)
    assert calls == {"comparable": 1, "arm_results": 1, "comparisons": 1}


@pytest.fixture(scope="module")
def tables_alone(report):
    """The evidence without the folder, and so without sample videos, which take longest."""
    return replace(report.evidence, folder=None)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_less_is_one_file_and_one_line_less(report, tables_alone, tmp_path, monkeypatch, name):
    """Nothing but the list knows a section: without its file the others write what they wrote before."""
    for module in [one for one in sys.modules if one.startswith(f"{sections.__name__}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, f"{sections.__name__}.{name}", None)  # its import fails
    others = [build(other, tables_alone) for other in SECTIONS if other != name]
    for section in others:
        write_files(section, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.read_bytes() != (report.folder / path.name).read_bytes()] == []
    keys = re.findall(r'<section id="([^"]+)">', page(tables_alone, others, {}))
    assert set(keys) <= {section.key for section in others}


STRANGER = """
import pandas as pd
from reco_tune.reporting.section import Figure, RowGroup, Section, Table, number_column, text_column


def build(evidence):
    rows = [{"arm": arm, "fvd": 1.0} for arm in evidence.arms]
    columns = [text_column("arm", "arm"), number_column("fvd", "FVD")]
    table = Table("own", "Own", columns, [RowGroup("", rows)], data=pd.DataFrame(rows), files=("csv", "md", "tex"))
    return Section("own", "A result of one's own", tables=[table], figures=[Figure("own", "Own", "Made.", draw, (3,))])


def draw(number):
    from reco_tune.reporting.style import new_figure

    figure = new_figure(2, 2)
    figure.subplots().plot(range(number))
    return figure
"""


def test_a_section_more_is_one_file_and_one_line_more(study, tmp_path, monkeypatch):
    (tmp_path / "strangers").mkdir()
    (tmp_path / "strangers" / "own.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("reco_tune.reporting.report.SECTIONS", ["strangers.own"])
    made = write_report(study, tmp_path / "out")
    names = {f"own.{kind}" for kind in ("csv", "md", "tex", "png", "pdf")} | {"index.html", "provenance.json"}
    assert {path.name for path in made.folder.iterdir()} == names
    text = made.index.read_text()
    assert '<section id="own">' in text and "reco</td><td>1.00</td>" in text and 'alt="Own. Made.' in text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(page, scratch):
    """The document that Chromium makes of a page, and what its console says."""
    quiet = [
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        *quiet,
        f"--user-data-dir={scratch}",
        "--enable-logging=stderr",
        "--dump-dom",
    ]
    return subprocess.run(
        [*command, f"file://{page}"], capture_output=True, text=True, timeout=280, env={**os.environ, "LANG": "C.UTF-8"}
    )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_the_page_without_an_error(report, tmp_path):
    # The page's script has run when sorting works, by FVD and by tokens: clicks are added to a copy, and the order read
    # off the document.
    page = tmp_path / "page.html"
    clicks = "".join(
        f"document.querySelectorAll('{place}')[{at}].click();"
        for place, at in (("#ablation th button", 2), ("#cost th button", 7))
    )
    page.write_text(report.index.read_text().replace("</body>", f"<script>{clicks}</script></body>"))
    done = browse(page, tmp_path)
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line and ("rror" in line or "Refused" in line)]
    assert errors == []
    table = done.stdout.split('id="ablation"')[1].split("</table>")[0]
    sorted_arms = re.findall(r'<tr[^>]*><td class="left">(\w+)</td>', table)
    rows = report.evidence.ablation
    at_steps = rows[rows["budget"] == "equal_steps"].sort_values("fvd", kind="stable")
    assert sorted_arms == list(at_steps["arm"])
    assert 'aria-sort="ascending"' in table
    costs = done.stdout.split('id="cost"')[1].split("</table>")[0]
    shown = re.findall(r'<tr[^>]*><td class="left">(\w+)</td>(?:<td>.*?</td>){6}<td data-value=[^>]*>(.*?)</td>', costs)
    costs_of = ledger(report.evidence.study, report.evidence.own)
    spent = costs_of[:-1].sort_values("tokens_seen", kind="stable")  # the last row is the total and stays there
    assert [arm for arm, _ in shown] == [*spent["arm"], "total"]
    numbers = [float(text.split()[0]) for _, text in shown[:-1]]
    assert numbers != sorted(numbers), "864 k is less than 2.52 M"


KEYBOARD = """<script>
const problems = [], stops = [...document.querySelectorAll("a[href], button, summary, [tabindex]")].filter(
  one => one.tabIndex >= 0 && one.checkVisibility());
if (stops[0].hash !== "#main" || !document.querySelector("#main"))
  problems.push("the first stop does not skip to the content");
for (const stop of stops) {
  stop.focus();
  const ring = getComputedStyle(stop.querySelector(".halo") ?? stop);
  if (document.activeElement !== stop) problems.push("cannot be reached: " + stop.outerHTML.slice(0, 80));
  else if (ring.outlineStyle === "none" && ring.stroke === "none")
    problems.push("shows no focus: " + stop.outerHTML.slice(0, 80));
}
const plot = document.querySelector(".plot"), points = [...plot.querySelectorAll(".point")];
const readout = plot.querySelector(".readout");
if (points.filter(one => one.tabIndex === 0).length !== 1) problems.push("the points of a plot are not one stop");
const last = points.length - 1;
const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
points[0].focus();
const moves = [["ArrowRight", 1], ["ArrowLeft", 0], ["ArrowLeft", 0], ["End", last], ["Home", 0], ["ArrowDown", 1]];
for (const [key, at] of moves) {
  press(key);
  if (document.activeElement !== points[at] || points[at].tabIndex !== 0)
    problems.push(key + " does not go to point " + at);
  if (readout.textContent !== points[at].querySelector("title").textContent)
    problems.push(key + " does not read out point " + at);
}
for (const heading of document.querySelectorAll("table.sortable th")) {
  const button = heading.querySelector("button");  // a button of its own answers Enter and Space
  if (!button) continue;
  button.click();
  const first = heading.getAttribute("aria-sort");
  button.click();
  if (first !== "ascending" || heading.getAttribute("aria-sort") !== "descending")
    problems.push("does not sort: " + heading.textContent);
}
document.body.dataset.keyboard = JSON.stringify({ stops: stops.length, points: points.length, problems });
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_is_used_by_keyboard_alone(report, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(report.index.read_text().replace("</body>", KEYBOARD))
    done = browse(page, tmp_path)
    found = json.loads(html.unescape(re.search(r'data-keyboard="([^"]*)"', done.stdout).group(1)))
    assert found["problems"] == []
    assert found["stops"] > 40 and found["points"] > 10


def test_what_a_search_is_allowed_is_shown_on_its_frontier(study: Path) -> None:
    record = load_study(study)
    assert bounds(runs_table(record))["fvd"].max == 30
    record.constraints = {"fvd": {"max": 5.0}, "speedup": {"min": 1.5}, "peak_memory_ratio": {"max": 0.7}}
    evidence = Evidence.read(record)
    given = evidence.frontier, evidence.ablation, evidence.arms, bounds(evidence.runs)
    figure = frontier.draw_frontier(*given)
    assert figure is not None
    for axes in figure.axes:
        drawn = [line.get_xydata() for line in axes.lines if line.get_color() == "#b22222"]
        assert [list(map(tuple, ends)) for ends in drawn] == [[(0, 5), (1, 5)], [(1.5, 0), (1.5, 1)]]
        (x_low, x_high), (y_low, y_high) = axes.get_xlim(), axes.get_ylim()
        assert x_low < 1.5 < x_high and y_low < 5 < y_high
    told = [text.get_text() for text in figure.legends[0].texts]
    assert told == [
        f"constraint: {words}" for words in ("fvd at most 5", "speedup at least 1.5", "peak_memory_ratio at most 0.7")
    ]


def test_a_long_name_of_an_arm_keeps_its_end_within_its_panel() -> None:
    names = [f"short_to_long_with_a_noisy_prefix_{number}" for number in range(5)]
    curves = {"loss_by_frame_train": [1.0, 2.0], "loss_by_frame_generated": [1.0, 2.0]}
    figure = draw_loss_by_frame(dict.fromkeys(names, curves), "equal_steps")
    assert figure is not None
    assert [axes.get_title().replace("\n", "") for axes in figure.axes] == names
    lay_out(figure)
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes)) and boxes[-1].x1 < figure.bbox.x1


def test_a_point_tells_every_setting_that_differs(study, report):
    record = read_study(study)
    for run in record.runs.values():
        run.settings["objective.continuity_reduction"] = "sum" if run.trial == "search-0001" else "mean"
        run.settings["window.prefix_keep"] = 0.9 if run.trial == "search-0001" else 1.0
    mixed = Evidence.read(record)
    words = hover(mixed)
    weight = record.runs["search-0001"].settings["objective.continuity_weight"]
    assert words[3] == f"objective.continuity_weight = {weight} (sum)"
    assert "window.prefix_keep = 0.9" in words and not any(
        "reduction =" in line or "model.width" in line for line in words
    )
    table = configurations.build(mixed).tables[-1]
    assert f"{weight} (sum)" in [table.columns[-1].text(row) for row in table.groups[0].rows]
    many = mixed.runs.assign(**{f"model.knob_{number}": range(len(mixed.runs)) for number in range(30)})
    words = hover(Evidence(many))
    assert len(words) == configurations.MOST_SETTINGS + 2 and words[-2].endswith(" more, in runs.csv")


def hover(evidence):
    """Lines that the point of a sampled run tells."""
    return (
        configurations._Settings(evidence.runs).hover(evidence.frontier.at("equal_steps"))("search-0001").splitlines()
    )


def test_words_of_the_window_figure_are_of_the_budget_that_is_drawn(report):
    alt = next(
        attributes["alt"]
        for attributes in Outline(report.index.read_text()).all("img")
        if attributes["alt"].startswith("Window")
    )
    windows = window_stride_tables(report.evidence)
    own = windows[(windows["budget"] == "equal_steps") & (windows["arm"] == "search")]
    assert f"At equal steps the lowest mean FVD is {own['fvd'].min():.2f}, at a window of 27" in alt
    figure = draw_window_stride(own, "equal_steps")
    assert figure is not None and figure.axes[0].get_title() == "Equal steps"
