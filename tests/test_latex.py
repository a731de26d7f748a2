"""LaTeX tables: cells, alignment and escapes by hand, and through pdflatex where it is installed."""

import shutil
import subprocess

import pytest
from toy_study import record_study

from reco_tune.reporting import Evidence
from reco_tune.reporting.quality import FVD
from reco_tune.reporting.render import latex as renderer
from reco_tune.reporting.render.latex import PREAMBLE, escape, latex
from reco_tune.reporting.section import RowGroup, Table, quality_column, text_column
from reco_tune.reporting.sections import SECTIONS, build


def test_a_small_table_by_hand():
    columns = (text_column("arm", "arm"), quality_column(FVD), text_column("p", "p", "count", latex="$p$"))
    rows = [{"arm": "a_b", "fvd": 12.5, "p": "<0.001"}, {"arm": "c", "fvd": -3.1, "p": ""}]
    text = latex(Table("made", "", columns, [RowGroup("Equal steps", rows, best=0)], "See `full`."))
    lines = [line.strip() for line in text.splitlines()]
    assert r"\begin{tabular}{l S[table-format=-2.2] r}" in lines
    assert r"Arm & {FVD $\downarrow$} & $p$ \\" in lines
    assert r"\multicolumn{3}{l}{\emph{Equal steps}} \\" in lines
    assert r"a\_b & \bfseries 12.50 & $<$0.001 \\" in lines
    assert r"c & -3.10 & {--} \\" in lines
    assert r"\caption{See \texttt{full}.}" in lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50% & more", r"50\% \& more"),
        ("λ·Δ", r"$\lambda$$\cdot$$\Delta$"),
        ("`a_b`", r"\texttt{a\_b}"),
        ("a\\b", r"a\textbackslash{}b"),
        ("5 µm, Café, Cafe\u0301", "5 µm, Café, Café"),
        ("漢 α", "{[U+6F22]} {[U+03B1]}"),
    ],
    ids=["specials", "symbols", "code", "backslash", "Latin", "others"],
)
def test_escape(text, expected):
    assert escape(text) == expected


DOCUMENT = r"""\documentclass{article}
\usepackage[margin=1cm,landscape]{geometry}
%s
\begin{document}
%s
\end{document}
"""


def _installed():
    if shutil.which("pdflatex") is None or shutil.which("kpsewhich") is None:
        return False
    packages = [["kpsewhich", f"{name}.sty"] for name in ("siunitx", "booktabs", "etoolbox")]
    return all(subprocess.run(command, capture_output=True).returncode == 0 for command in packages)


def typeset(folder, texts):
    """What pdflatex says of a document of them, which it must make."""
    (folder / "tables.tex").write_text(DOCUMENT % (PREAMBLE, "\n".join(texts)))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "tables.pdf").stat().st_size > 10_000
    return done.stdout


@pytest.mark.skipif(not _installed(), reason="no pdflatex with siunitx, booktabs and etoolbox is installed")
def test_every_table_of_a_report_goes_through_pdflatex(tmp_path):
    evidence = Evidence.read(
        record_study(tmp_path / "toy", seeds=(0, 1), searched=20, failing=["local-equal_steps-s0"], files=False)
    )
    tables = [table for name in SECTIONS for table in build(name, evidence).tables if "tex" in table.files]
    assert {table.name for table in tables} >= {"ablation", "lambda", "window_stride"}
    said = typeset(tmp_path, map(latex, tables))
    assert "Warning" not in said and "Overfull" not in said


@pytest.mark.skipif(not _installed(), reason="no pdflatex with siunitx, booktabs and etoolbox is installed")
def test_no_character_stops_pdflatex(tmp_path):
    every = "漢字 Ελλάδα 🙂\u200b" + "".join(sorted(renderer._SET | set(renderer._SPECIAL)))
    lines = [every[at : at + 8] for at in range(0, len(every), 8)]
    groups = [RowGroup(line, [{"arm": line}, {"arm": f"`{line}`"}]) for line in lines]
    typeset(tmp_path, [latex(Table("made", "", [text_column("arm", "arm")], groups, every))])
