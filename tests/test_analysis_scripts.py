"""Every script of analysis/ runs on a recorded study and writes the same tables each time."""

import ast
import runpy
import subprocess
import sys
from typing import NamedTuple

import pytest
from toy_study import PROTOCOL, record_study

from reco_tune.bundled import bundled
from reco_tune.reporting.studies import study_names
from reco_tune.settings import Experiment
from reco_tune.study_log import EventLog, StudyFolder, read_study
from reco_tune.tracking import sync

SCRIPTS = sorted(path for path in bundled("analysis").glob("*.py"))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return record_study(
        tmp_path_factory.mktemp("scripts") / "toy", arms=("full", "local_balanced", "reco"), searched=16
    )


class Done(NamedTuple):
    """How a script ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script as `python analysis/SCRIPT` does, in this process: a fresh one would import for seconds
    each time."""

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(bundled("analysis") / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def tracked(study):
    """The study's own MLflow, and its name there."""
    folder = StudyFolder(study)
    sync(folder)
    return folder.mlflow_uri, f"mlflow:{read_study(study).name}"


def test_scripts_are_there():
    names = {path.stem for path in SCRIPTS}
    questions = {
        "frontier",
        "ablation",
        "lambda_curve",
        "window_stride",
        "loss_by_frame",
        "error_growth",
        "importance",
        "compare_studies",
    }
    assert questions <= names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short_and_opens_with_its_question(script):
    text = script.read_text()
    assert 20 <= len(text.splitlines()) <= 60
    question, command, *_ = (line for line in ast.get_docstring(ast.parse(text)).splitlines() if line)
    assert question.endswith("?") and script.name in command


@pytest.mark.parametrize(
    ("script", "files", "words"),
    [
        (
            "frontier.py",
            ["frontier.csv", "frontier_probability.csv", "frontier.pdf", "frontier.png"],
            "equal_compute: hypervolume",
        ),
        ("ablation.py", ["ablation.csv", "ablation.md", "ablation.tex"], "recover the baseline"),
        ("lambda_curve.py", ["lambda.csv", "lambda.pdf", "lambda.png"], "(mean), 1 run of"),
        ("window_stride.py", ["window_stride_equal_steps.csv", "window_stride_equal_steps.png"], "(1 runs of reco)"),
        ("loss_by_frame.py", ["loss_by_frame.csv", "loss_by_frame_equal_steps.png"], "block 0: 0."),
        ("error_growth.py", ["error_growth.csv", "error_growth_equal_compute.png"], "from block 1 to 4"),
        ("importance.py", ["importance.csv", "importance.png"], "fvd (15 sampled runs)"),
        ("compare_studies.py", ["comparison.csv"], "(1 seeds)"),
    ],
    ids=lambda value: value.removesuffix(".py") if isinstance(value, str) and value.endswith(".py") else "",
)
def test_a_script_writes_its_files_and_prints_its_finding(
    run, study, tracked, monkeypatch, tmp_path, script, files, words
):
    done = run(script, study, "--output", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert words in done.stdout
    assert [name for name in files if not (tmp_path / name).exists()] == []
    uri, source = tracked
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    again = run(script, source, "--output", tmp_path / "again")
    assert (again.returncode, again.stderr) == (0, "")
    for table in tmp_path.glob("*.csv"):
        assert (tmp_path / "again" / table.name).read_bytes() == table.read_bytes(), "from MLflow as from the folder"


def test_where_no_output_is_given_a_script_writes_into_the_study(study):
    """As a person starts it."""
    assert subprocess.run([sys.executable, str(bundled("analysis") / "compare_studies.py"), str(study)]).returncode == 0
    assert (study / "analysis" / "comparison.csv").exists()


def test_a_mistake_is_one_sentence(run, tmp_path):
    done = run("ablation.py", tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "is not a study folder" in done.stderr


@pytest.fixture(scope="module")
def young(tmp_path_factory):
    """A study of which nothing has been evaluated."""
    folder = StudyFolder(tmp_path_factory.mktemp("young") / "young")
    log = EventLog(folder.events)
    log.append("study", name="young", question="?", arms=["full"], provenance={})
    log.append(
        "planned", trial="full-s0", arm="full", budget="both", seed=0, settings=Experiment().flat(), settings_hash="h"
    )
    return folder.path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs_where_nothing_was_evaluated(run, young, tmp_path, script):
    done = run(script.name, young, "--output", tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_output_that_cannot_be_written_is_one_sentence(run, young, tmp_path, script):
    (tmp_path / "file").touch()
    done = run(script.name, young, "--output", tmp_path / "file" / "below")
    assert done.returncode == 2 and done.stdout == ""
    sentence = f"{tmp_path}/file/below cannot be used (not a directory); give another folder with --output"
    assert done.stderr.startswith(sentence) and len(done.stderr.splitlines()) == 1


def test_two_blocks_do_not_grow(run, tmp_path):
    """Block 0 was perturbed: growth is from block 1 on, and there it would be 1 by definition."""
    study = read_study(record_study(tmp_path / "toy", arms=("full",), searched=0, files=False))
    events = StudyFolder(tmp_path / "toy").events
    for curve in {str(run.curves["error_growth"]) for run in study.runs.values()}:
        events.write_text(
            events.read_text().replace(curve, "[0.04, 0.036]").replace(curve.replace(" ", ""), "[0.04,0.036]")
        )
    done = run("error_growth.py", tmp_path / "toy")
    assert "full" in done.stdout and "too few blocks" in done.stdout and "1.00x" not in done.stdout


def test_studies_of_two_protocols_are_not_compared(run, study, tmp_path):
    other = record_study(
        tmp_path / "other", arms=("full",), searched=0, files=False, protocol=PROTOCOL.replace("n512", "n2048")
    )
    done = run("compare_studies.py", study, other)
    assert (
        done.returncode == 2
        and "evaluation.samples x evaluation.sampling_seeds (n512x1 against n2048x1)" in done.stderr
    )


def test_studies_of_one_name_are_told_apart_by_their_folders(run, tmp_path):
    for parent, seed in (("x", 0), ("y", 1)):
        record_study(tmp_path / parent / "demo", arms=("full", "reco"), seeds=(seed,), searched=0, files=False)
    done = run("compare_studies.py", tmp_path / "x" / "demo", tmp_path / "y" / "demo", "--output", tmp_path)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[1:4]] == ["x/demo", "y/demo", "together"]
    alone = run("compare_studies.py", tmp_path / "x" / "demo", "--output", tmp_path)
    assert "  demo " in alone.stdout and "together" not in alone.stdout
    twice = run("compare_studies.py", tmp_path / "x" / "demo", tmp_path / "y" / ".." / "x" / "demo")
    assert twice.returncode == 2 and "is given twice" in twice.stderr


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["/a/demo"], ["demo"]),
        (["/a/demo", "/b/demo", "/a/lambda"], ["a/demo", "b/demo", "lambda"]),
        (["/a/demo", "/b/a/demo"], ["/a/demo", "b/a/demo"]),
        (["mlflow:demo", "/a/demo"], ["mlflow:demo", "a/demo"]),
    ],
    ids=["alone", "folders", "within", "MLflow"],
)
def test_names_are_as_short_as_they_may_be(sources, names):
    assert study_names(sources) == names
