"""Names that mean something to a format are names in it: Markdown, LaTeX, CSV, HTML, the terminal and figures."""

import csv
import html
import io
import json
import re
import shutil

import pytest
from markdown_it import MarkdownIt
from toy_study import PROTOCOL, record_study

from reco_tune.errors import ComparisonError
from reco_tune.reporting import Evidence, load_study, write_report
from reco_tune.reporting.imported import with_imports
from reco_tune.reporting.render.csv import csv_text
from reco_tune.reporting.render.latex import latex
from reco_tune.reporting.render.markdown import markdown
from reco_tune.reporting.render.page import page
from reco_tune.reporting.render.terminal import terminal
from reco_tune.reporting.section import file_stem
from reco_tune.reporting.sections import SECTIONS, build
from reco_tune.text_tables import text_table, wide

NAMES = [
    "a|b",
    "two\nlines",
    "[12] x",
    "*x",
    "*bold* __strong__ ~~gone~~",
    "$\\frac$ $",
    "=1+1",
    "-2+3",
    "`code",
    "<script>alert(1)</script>",
    "a & b &amp; c % # ^ {",
    "\x1b[31mred",
    "漢字",
    "n" * 300,
]


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """A study whose arms have these names, and rows from elsewhere that have them too."""
    folder = tmp_path_factory.mktemp("names")
    record = load_study(record_study(folder / "toy", arms=("full", "reco"), searched=2, files=False))
    first = [run for run in record.runs.values() if run.arm == "reco"]
    for name in NAMES:
        for run in first:
            trial = f"{name}-{run.budget}-s0"
            record.runs[trial] = type(run)(**{**vars(run), "trial": trial, "arm": name, "index": len(record.runs)})
        record.arms.append(name)
    failed = record.runs["a|b-equal_steps-s0"]
    failed.state, failed.reason = "failed", "the <loss> is | not\nfinite `at` *step* 4"
    rows = [["arm", "fvd", "protocol"], *([name, "3", PROTOCOL] for name in NAMES)]
    with (folder / "elsewhere.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return Evidence.read(record, [folder / "elsewhere.csv"])


@pytest.fixture(scope="module")
def ablation(evidence):
    return build("ablation", evidence).tables[0]


def blank(name):
    """As a name stands in a cell: on one line."""
    return " ".join(name.split())


def test_markdown_shows_every_name_as_it_is(ablation):
    shown = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown([ablation]))
    tables = shown.split("<table>")[1:]
    for table, group in zip(tables, ablation.groups, strict=True):
        rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tbody>")[1].split("<tr>")[1:]]
        assert {len(row) for row in rows} == {len(ablation.columns_of(group))}
        assert [html.unescape(row[0]) for row in rows] == [blank(row["arm"]) for row in group.rows]
    assert "<script>" not in shown and "<loss>" not in shown and "<em>step" not in shown


def test_latex_holds_every_name_within_its_cell(ablation):
    text = latex(ablation)
    rows = [line.strip() for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(ablation.picked(ablation.latex)) - 1}
    assert not [row for row in rows if row.startswith(("[", "*"))]
    assert len(rows) == 1 + sum(len(group.rows) for group in ablation.groups)
    assert r"{}[12] x &" in text and r"\$\textbackslash{}frac\$ \$" in text


def test_csv_gives_every_name_back_and_no_formula(evidence, tmp_path):
    text = csv_text(evidence.own)
    rows = list(csv.DictReader(io.StringIO(text)))
    cells = {row["arm"] for row in rows}
    assert not [cell for cell in cells if cell.startswith(("=", "-"))] and "'=1+1" in cells
    (tmp_path / "runs.csv").write_text(text, newline="\n")
    again = with_imports(evidence.own, [tmp_path / "runs.csv"])
    assert {arm.removesuffix(" (imported)") for arm in again["arm"]} == set(evidence.own["arm"])


def test_numbers_of_a_csv_keep_their_sign(evidence):
    table = evidence.ablation.assign(note="-0.5")
    assert "'" not in csv_text(table[["fvd_delta", "note"]])


def test_the_page_escapes_every_name(evidence):
    sections = [build(name, evidence) for name in SECTIONS]
    text = page(evidence, sections, {})
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize("width", [200, 100, 80, 40])
def test_the_terminal_gets_names_and_no_commands(ablation, width):
    lines = terminal(ablation, width)
    assert not [line for line in lines if not line.isprintable()]
    assert max(map(wide, lines)) <= width
    told = "".join(lines).replace(" ", "")
    assert "\\x1b" in told and "漢字" in told
    numbers = {number for group in ablation.groups for row in group.rows for number in [f"{row['fvd']:.2f}"]}
    assert numbers <= set(re.findall(r"\d+\.\d+", "\n".join(lines))), "numbers are never cut"


@pytest.mark.filterwarnings("error::UserWarning", "ignore:Glyph")
def test_figures_take_names_for_no_formulas(evidence):
    for name in SECTIONS:
        for figure in build(name, evidence).figures:
            if drawn := figure.draw(*figure.given):
                drawn.canvas.draw()


@pytest.mark.parametrize("name", [*NAMES, "a/b", "../up", "a\\b", ""])
def test_a_file_of_an_arm_lies_in_its_folder(name, tmp_path):
    path = tmp_path / f"{file_stem(name)[:100]}.mp4"
    path.touch()
    assert path.resolve().parent == tmp_path.resolve() and path in tmp_path.iterdir()


@pytest.mark.parametrize(
    "rows",
    [f"arm,fvd,protocol\na,low,{PROTOCOL}", f"arm,fvd,protocol\na,1,{PROTOCOL.replace('n512', 'n9')}", "arm\na"],
    ids=["no-number", "other-protocol", "no-column"],
)
def test_an_import_that_cannot_be_used_leaves_the_old_report_untouched(tmp_path, rows):
    study = record_study(tmp_path / "toy", arms=("full",), searched=0, files=False)
    (tmp_path / "bad.csv").write_text(rows)
    report = study / "report"
    (report / "samples").mkdir(parents=True)
    old = {"index.html": "old", "frontier.png": "old", "samples/full.mp4": "old", "ablation.csv": "old"}
    old["provenance.json"] = json.dumps({"report_version": "1", "arms": ["full"]})
    for name, text in old.items():
        (report / name).write_text(text)
    with pytest.raises(ComparisonError):
        write_report(study, imports=[tmp_path / "bad.csv"])
    left = {path.relative_to(report).as_posix(): path.read_text() for path in report.rglob("*") if path.is_file()}
    assert left == old
    shutil.rmtree(report)


def test_a_table_of_numbers_alone_becomes_a_list_before_a_number_is_cut():
    headings = [f"column {number}" for number in range(8)]
    rows = [[f"row {row}", *(f"{row}.{number}2345678" for number in range(7))] for row in range(3)]
    for width in (120, 60, 20):
        lines = text_table(headings, rows, [0], width)
        assert max(map(len, lines)) <= max(width, 1)
        told = "\n".join(lines)
        assert ("column 7:" in told) == (width < 120) and "2.62345678" in told
    assert text_table(headings, rows, [0], 75)[-1] == "(no room for column 6, column 7)"
    assert text_table([], [], [], 40) == []
