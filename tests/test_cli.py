"""The command line: what a person gets wrong is answered by one sentence and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer.main
import yaml
from toy_study import record_study

import reco_tune
from reco_tune.benchmarks.reports import synthetic_study
from reco_tune.bundled import bundled
from reco_tune.cli import app, main
from reco_tune.cli.console import Lines
from reco_tune.cli.demo import free_folder
from reco_tune.cli.estimate import standing
from reco_tune.cost import memory_by_phase, plan
from reco_tune.data.video import read_frames
from reco_tune.settings import arm_experiment, load_run, load_space
from reco_tune.study_log import read_study


def commands(group: Any, *path: str) -> Iterator[list[str]]:
    """Every verb that there is, groups of verbs before their own."""
    for name, command in group.commands.items():
        yield [*path, name]
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)


COMMANDS = list(commands(typer.main.get_command(app)))


class Said(NamedTuple):
    code: int
    out: str
    err: str


def say(*arguments: str) -> Said:
    """Runs a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
        main(arguments)
    return Said(int(left.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_study(
        tmp_path_factory.mktemp("cli") / "toy",
        arms=("full", "fewer_frames", "reco"),
        searched=3,
        failing=("reco-equal_steps-s0",),
    )


def test_ctrl_c_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """typer makes a bare exit of it."""

    def interrupted() -> dict[str, Path]:
        raise KeyboardInterrupt

    monkeypatch.setattr("reco_tune.cli.spaces.shipped_spaces", interrupted)
    assert say("spaces", "ls") == (
        130,
        "",
        "reco-tune: stopped; finished work is kept, and the same command continues\n",
    )


def test_sigterm_is_as_ctrl_c(here: Path) -> None:
    """What batch systems, containers and `kill` send ended without a word."""
    program = (
        "import time; from pathlib import Path; from reco_tune.cli import main, spaces\n"
        "spaces.shipped_spaces = lambda: Path('begun').touch() or time.sleep(60)\nmain(['spaces', 'ls'])"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        while not (here / "begun").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        said = process.communicate()[1]
    assert (process.returncode, said) == (
        130,
        "reco-tune: stopped; finished work is kept, and the same command continues\n",
    )


@pytest.mark.parametrize("command", [[], ["bench"]], ids=["reco-tune", "reco-tune bench"])
def test_a_command_without_a_verb_prints_its_help(command: list[str]) -> None:
    """The help came as an error, all of it in one line."""
    said = say(*command)
    assert said == say(*command, "--help") and (said.code, said.err) == (0, "") and len(said.out.splitlines()) > 15


def test_short_help_and_the_version() -> None:
    assert say("-h") == say("--help") and say("run", "-h") == say("run", "--help")
    assert say("--version") == (0, f"reco-tune {reco_tune.__version__}\n", "")


def test_help_is_there_before_a_person_wonders() -> None:
    """No verb may import torch, ray or pandas before it needs them."""
    heavy = {"torch", "ray", "mlflow", "pandas", "numpy", "pydantic"}
    program = f"import sys; from reco_tune.cli import app; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "reco_tune", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == say("--help").out
    assert all(f"\n  {verb}" in done.stdout for verb, *deeper in COMMANDS if not deeper)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_has_an_example(command: list[str]) -> None:
    said = say(*command, "--help")
    assert said.code == 0
    assert "Example" in said.out
    assert f"\n    reco-tune {' '.join(command)}" in said.out


OVERRIDES = {
    "unknown key": (
        "window.lenght_tokens=9",
        r"window.lenght_tokens is not a setting; did you mean window.length_tokens\?",
    ),
    "stride above window": (
        "window.stride_tokens=19",
        r"window.stride_tokens \(19\) must not exceed window.length_tokens \(18\); lower the stride",
    ),
    "window above clip": (
        "window.length_tokens=46",
        r"window.length_tokens \(46\) must not exceed the clip's 45 tokens .* shorten the window",
    ),
    "probability": (
        "window.first_frame_probability=1.5",
        r"window.first_frame_probability \(1.5\) must lie in \[0, 1\]",
    ),
    "negative weight": (
        "objective.continuity_weight=-0.1",
        r"objective.continuity_weight \(-0.1\): .*greater than or equal to 0",
    ),
    "no value": ("window.length_tokens", "must look like key=value"),
    "a word for a number": ("training.steps=many", r"training.steps \('many'\)"),
    "an objective that no run measures": (
        "objectives={flow_unexplained: minimize}",
        "objectives: flow_unexplained is not measured if evaluation.flow is false; set it to true",
    ),
    "a grid of which nothing can be": (
        "search={window.length_tokens: {int: [9, 18], step: 9}, window.length_blocks: {int: [1, 2]}}",
        "search: every point of its grid has invalid settings",
    ),
    "steps that do not fit": (
        "search={window.length_tokens: {int: [9, 18], step: 4}}",
        "from 9 to 18 is not a whole number of steps of 4; end it at 17",
    ),
}


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize("override", OVERRIDES, ids=list(OVERRIDES))
def test_an_override_that_cannot_be(here: Path, verb: str, override: str) -> None:
    """`local` and `fewer_frames` have windows of their own, so the first arm that cannot be is named."""
    setting, sentence = OVERRIDES[override]
    said = say(verb, "first_frame", "--set", setting)
    if override == "a grid of which nothing can be" and verb == "plan":  # told last, after the table of runs
        assert said.code == 2 and sentence in said.err
    else:
        refused(said, sentence)
    assert list(here.iterdir()) == []


BAD_FILES: dict[str, tuple[str, str]] = {
    "not YAML": ("question: [unclosed", "space.yaml is not YAML"),
    "not a mapping": ("- a\n- b\n", "must hold a mapping of settings, but holds list"),
    "unknown key of a space": (
        "question: q\nexperiment: {}\narm: {full: {}}\n",
        r"arm is not a key of a search space; did you mean arms\?",
    ),
    "unknown arm": ("question: q\nexperiment: {}\narms: {fulll: }\n", "arm `fulll` is not a known arm"),
    "nothing to run": ("question: q\nexperiment: {}\n", "a space needs arms, or search ranges and trials"),
    "bytes": ("\x00\x01\x02", "is not YAML"),
}


@pytest.mark.parametrize("content", BAD_FILES, ids=list(BAD_FILES))
def test_a_space_file_that_cannot_be(here: Path, content: str) -> None:
    text, sentence = BAD_FILES[content]
    (here / "space.yaml").write_text(text)
    refused(say("run", "space.yaml"), sentence)
    assert [path.name for path in here.iterdir()] == ["space.yaml"]


BAD_COMMANDS: dict[str, tuple[list[str], str]] = {
    "no such verb": (["rum"], "No such command 'rum'.*--help"),
    "no such option": (["run", "demo", "--trails", "3"], "No such option.*--trails.*run --help"),
    "no argument": (["run"], "Missing argument"),
    "no such space": (
        ["run", "evidense"],
        "neither a file nor a shipped space or experiment; did you mean the shipped `evidence`",
    ),
    "no such space to show": (
        ["spaces", "show", "x"],
        "neither a file nor a shipped space or experiment; shipped ones are beyond, beyond_300_passes, commavq",
    ),
    "a name that is no folder's": (["run", "demo", "--name", "a/b"], "--name 'a/b' must be letters"),
    "seeds": (["run", "demo", "--seeds", "0;1"], "--seeds '0;1' must be whole numbers separated by commas"),
    "a folder for a space": (["plan", "."], r"\. is a folder, not a space or experiment file"),
    "seeds twice": (["run", "demo", "--seeds", "0,0"], r"seeds \[0, 0\] must be at least one and all different"),
    "trials below none": (["run", "demo", "--trials", "-1"], "Invalid value for '--trials'"),
    "a misspelt experiment to plan": (["plan", "tachi_110M"], "did you mean the shipped `taichi_110M`"),
    "no study": (["resume", "nowhere"], "nowhere is not a study folder"),
    "no study to extend": (["extend", "nowhere", "--seeds", "3"], "nowhere is not a study folder"),
    "no study to stop a run of": (["stop", "nowhere", "full-s0"], "nowhere is not a study folder"),
    "no study to pause": (["pause", "nowhere"], "nowhere is not a study folder"),
    "no study to try again": (["retry", "nowhere", "--failed"], "nowhere is not a study folder"),
    "no study to tell of": (["status", "nowhere"], "nowhere is not a study folder"),
    "no study to report": (["report", "nowhere"], "nowhere is not a study folder"),
    "no study to sync": (["sync", "nowhere"], "nowhere is not a study folder"),
    "a bucket for a study": (
        ["run", "demo", "--output", "s3://bucket/study"],
        "s3://bucket/study is an address; .*give a path",
    ),
    "a bucket to report": (["report", "gs://bucket/study"], "gs://bucket/study is an address"),
    "a bucket of videos": (
        ["plan", "demo", "--set", "data.root=s3://bucket/UCF101"],
        r"data\.root \('s3://bucket/UCF101'\): s3://bucket/UCF101 is an",
    ),
    "no experiment": (["train", "nowhere.yaml"], "nowhere.yaml is neither a file nor a shipped space or experiment"),
    "no experiment to tokenize": (
        ["tokenize", "nowhere.yaml"],
        "nowhere.yaml is neither a file nor a shipped space or experiment",
    ),
    "a study to train": (
        ["train", "demo"],
        "is a space file .*needs an experiment file .*: .*demo.yaml:full",
    ),
    "no such arm to train": (["train", "demo:rico"], "has no arm rico; it has full, fewer_frames"),
    "no such arm to plan": (["plan", "demo:rico"], "has no arm rico; it has full, fewer_frames"),
    "an arm of one run": (["plan", "taichi_110M:full"], "is an experiment file .*has no arms"),
    "fit and check": (["tokenize", "taichi_110M", "--fit", "--check"], "--fit stops before encoding"),
    "no checkpoint to generate from": (["generate", "nowhere"], "nowhere has no trained model"),
    "no checkpoint to evaluate": (["evaluate", "nowhere"], "nowhere has no trained model"),
}


@pytest.mark.parametrize("command", BAD_COMMANDS, ids=list(BAD_COMMANDS))
def test_a_command_that_cannot_be(here: Path, command: str) -> None:
    arguments, sentence = BAD_COMMANDS[command]
    refused(say(*arguments), sentence)
    assert list(here.iterdir()) == []


def test_an_empty_data_folder(here: Path) -> None:
    (here / "videos").mkdir()
    (here / "experiment.yaml").write_text(
        "data: {layout: flat, root: videos, clip_frames: 9, size_px: 12, cache_dir: cache}\n"
    )
    refused(say("tokenize", "experiment.yaml"), "videos")
    refused(say("train", "experiment.yaml"), "videos")
    assert not (here / "runs").exists()


@pytest.mark.parametrize("way", ["--name", "--output"])
def test_a_folder_that_holds_a_study_is_not_written_to(here: Path, toy: Path, way: str) -> None:
    target = here / "studies" / "mine"
    target.mkdir(parents=True)
    (target / "events.jsonl").write_bytes((toy / "events.jsonl").read_bytes())
    refused(
        say("run", "demo", way, "mine" if way == "--name" else str(target)),
        rf"already holds a study; continue it with `reco-tune resume .*`.*{way}",
    )
    assert [path.name for path in target.iterdir()] == ["events.jsonl"]


def test_a_folder_of_something_else_is_not_written_to(here: Path) -> None:
    (here / "photos").mkdir()
    (here / "photos" / "cat.jpg").touch()
    refused(say("run", "demo", "--output", "photos"), "photos exists and is not an empty folder; give another --output")


def test_a_folder_that_cannot_be_made_is_said_before_anything_starts(here: Path) -> None:
    (here / "file").touch()
    refused(
        say("run", "demo", "--output", "file/study"),
        "file/study cannot be made, because .*file is not a writable folder",
    )
    (here / "tiny.yaml").write_text("data: {layout: digits, clip_frames: 9, size_px: 12, cache_dir: file/cache}\n")
    refused(say("tokenize", "tiny.yaml"), r"file/cache/.* cannot be used \(not a directory\); give another folder")


def test_a_traceback_only_where_it_is_asked_for(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reco_tune", "status", "nowhere", "--debug"], capture_output=True, text=True
    )
    assert "Traceback" in done.stderr
    assert "StudyError" in done.stderr


def test_the_shipped_spaces_can_be_listed_shown_and_copied(here: Path) -> None:
    listed = say("spaces", "ls").out
    assert say("spaces").out == listed
    assert "lambda\n    how large should λ be" in listed
    assert "about 370 for everything below (9 arms, both budgets, 1 seed), counted in FLOPs at 40%" in listed
    told = [
        line for line in listed.splitlines() if line.startswith("    ") and not line.startswith("    faceforensics")
    ]
    assert all(line.endswith((".", "?")) for line in told), "no sentence is cut off"
    assert "# Question:" in say("spaces", "show", "lambda").out
    assert say("spaces", "cp", "lambda").code == 0
    assert say("spaces", "cp", "lambda.yaml", "mine.yaml").out == "mine.yaml\n"
    assert load_space(here / "mine.yaml").trials == 10
    refused(say("spaces", "cp", "lambda"), "lambda.yaml exists already; give another file name")


def test_a_plan_counts_and_writes_nothing(here: Path) -> None:
    said = say("plan", "demo", "--trials", "4", "--seeds", "0,1", "--set", "finalist_seeds=2")
    assert said.code == 0, said.err
    assert "runs: 30, 26 of fixed arms and 4 sampled" in said.out
    assert "finalists: 2 further run(s) each, not counted here" in said.out
    demo = load_space(bundled("search_spaces") / "demo.yaml")
    assert (
        f"{arm_experiment(demo, 'full').training.steps:,}" in said.out
        and "at once" in said.out
        and "disk: about" in said.out
    )
    taken = memory_by_phase(arm_experiment(demo, "full"), arm_experiment(demo, "full"))
    assert "memory of a worker in GiB" in said.out and f"{taken.training / 2**30:.2f}" in said.out
    assert list(here.iterdir()) == []


REFUSED = {
    "data that are not there": (
        ["real_clips", "--set", "data.root=nowhere"],
        r"data.root \(.*nowhere\) is not a folder; give the folder of the videos",
    ),
    "codes that are not there": (
        ["codes.yaml", "--set", "data.root=nowhere"],
        r"data.root \(.*nowhere\) is not a folder; give the folder of train.npy and test.npy",
    ),
    "codes of another grid": (
        ["codes.yaml", "--set", "data.root=codes"],
        r"codes/train.npy has clips of shape \(44,\), but the settings give 5 x 3 x 3 = 45 tokens",
    ),
    "weights that are not there": (
        ["demo", "--set", "tokenizer.kind=cosmos", "--set", "data.size_px=16"],
        "tokenizer.kind cosmos needs tokenizer.path",
    ),
    "not an address of MLflow": (["demo", "--tracking-uri", "ftp://x"], "ftp://x is not an address of MLflow"),
    "no cluster": (["demo", "--address", "127.0.0.1:9"], "no Ray cluster answers at 127.0.0.1:9"),
    "an earlier study that is not there": (
        ["lambda", "--set", "warm_start=[nowhere]"],
        "nowhere is not a study folder",
    ),
}


@pytest.mark.parametrize("command", REFUSED, ids=list(REFUSED))
def test_a_plan_refuses_what_a_run_refuses(here: Path, command: str) -> None:
    """It was green on data, codes and addresses that are not there; and `run` left a folder that was in its own way."""
    arguments, sentence = REFUSED[command]
    (here / "codes").mkdir()
    np.save(here / "codes" / "train.npy", np.zeros((7, 44), np.int64))
    np.save(here / "codes" / "test.npy", np.zeros((7, 44), np.int64))
    (here / "codes.yaml").write_text(
        "question: q\nexperiment: {data: {layout: tokens, clip_frames: 9, size_px: 12}}\narms: {full: , reco: }\n"
    )
    before = sorted(here.rglob("*"))
    planned, ran = say("plan", *arguments), say("run", *arguments)
    refused(ran, sentence)
    assert (planned.code, planned.err) == (ran.code, ran.err.replace(f"{here}/", ""))  # a study knows whole paths
    assert "resources: a run needs 1 worker(s)" in planned.out, "the numbers are there all the same"
    assert sorted(here.rglob("*")) == before


def test_a_plan_of_what_is_still_to_be_given_says_so(here: Path) -> None:
    said = say("plan", "real_clips")
    assert (said.code, said.err) == (0, "")
    assert said.out.endswith("\nstill missing: data.root is missing; give the folder of the videos\n")


def test_a_plan_needs_no_memory_of_the_model_that_it_counts(here: Path) -> None:
    """It ended in an allocation error of 12 TB, and where a clip had billions of tokens it was killed."""
    said = say("plan", "demo", "--set", "model.width=1000000", "--set", "tokenizer.num_codes=1000000")
    assert said.code == 2 and "\nmemory: counted" in said.out
    assert re.search(
        r"arm `full` needs \d{6}\.\d GiB of memory for a training step, .*lower resources\.concurr", said.err
    )
    refused(
        say("plan", "demo", "--set", "data.size_px=100000"),
        r"a clip has 3,125,000,000 tokens, more than the limit of 1,048,576; lower data.size_px",
    )


def test_a_plan_for_a_cluster_says_that_it_does_not_fit_here(here: Path) -> None:
    said = say("plan", "paper_ablation", "--set", "resources.gpus_per_worker=64")
    assert said.code == 0, said.err
    assert "no run fits here" in said.out
    assert "assumed" in said.out and "--gpu-memory GIB says whether it fits" in said.out


def test_a_plan_refuses_what_no_card_of_that_size_holds(here: Path) -> None:
    """After the table, which shows of what there is too much."""
    said = say("plan", "ucf101_343M", "--gpu-memory", "16")
    assert "calibration" in said.out and "samples" in said.out
    assert said.code == 2 and "a GPU of 16 GiB gets 16.0; raise training.micro_batches" in said.err
    assert say("plan", "ucf101_343M", "--gpu-memory", "80").code == 0


def test_status_tells_every_run_and_why_one_failed(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # names fold in a narrow terminal
    said = say("status", str(toy))
    assert said.code == 0
    assert all(trial in said.out for trial in read_study(toy).runs)
    assert "reco-equal_steps-s0 failed: the loss is not finite at step 412" in said.out
    assert "8 of 8 runs ended, 100% of the work" in said.out


def test_status_of_many_runs_sums_them_up_by_arm(tmp_path: Path) -> None:
    study = synthetic_study(tmp_path / "many", runs=100)
    with (study / "events.jsonl").open("a") as log:
        for number in (10, 11):
            log.write(
                json.dumps({"event": "retried", "trial": f"search-{number:05d}", "attempt": 2, "moved": True}) + "\n"
            )
        log.write(json.dumps({"event": "failed", "time": 2e9, "trial": "search-00010", "reason": "no luck"}) + "\n")
        log.write(json.dumps({"event": "started", "time": 2e9, "trial": "search-00011", "attempt": 2}) + "\n")
    short, whole = say("status", str(study)).out, say("status", str(study), "--all").out
    arms = {line.split()[0]: line.split()[1:] for line in short.splitlines() if line.split()}
    assert arms["full"][:7] == ["3", "0", "0", "0", "0", "3", "0"] and arms["search"][0] == "43"
    assert arms["search"][2] == "1" and arms["search"][4] == "1" and arms["search"][6] == "2"
    assert "1 failed: no luck" in short and "search-00011" in short and "search-00009" not in short
    assert all(f"search-{number:05d}" in whole for number in range(43))


def test_status_of_a_study_that_stopped_stands_still_and_names_the_way_on(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_bytes((toy / "settings.yaml").read_bytes())
    lines = (toy / "events.jsonl").read_bytes().splitlines(keepends=True)
    begun = next(number for number, line in enumerate(lines) if b'"completed"' in line)
    (tmp_path / "events.jsonl").write_bytes(b"".join(lines[:begun]))
    said = [say("status", str(tmp_path)) for _ in range(2) if not time.sleep(1.1)]
    assert said[0] == said[1]
    assert f"not running; `reco-tune resume {tmp_path}` continues it" in said[0].out
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "; running" in say("status", str(tmp_path)).out
        refused(say("sync", str(tmp_path)), r"is running \(process \?\) and updates MLflow by itself")


@pytest.mark.parametrize("verb", ["status", "report", "sync"])
@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        (b'STUDY{"event":"planned","x":1}\n', "has an invalid event"),
        (b"STUDY5\n", "has an invalid event"),
        (b'{"event":"planned","x":1}\n', "begin with the event `study`, but with `planned`: its first line is lost"),
        (b"5\n", "does not begin with the event `study`, but with 5"),
        (b"{\n", "line 1, is damaged|is damaged"),
    ],
    ids=["foreign", "a number", "without its first line", "another program's", "torn inside"],
)
def test_a_log_that_is_none(toy: Path, tmp_path: Path, verb: str, log: bytes, sentence: str) -> None:
    (tmp_path / "settings.yaml").write_bytes((toy / "settings.yaml").read_bytes())
    first = (toy / "events.jsonl").read_bytes().splitlines(keepends=True)[0]
    (tmp_path / "events.jsonl").write_bytes(log.replace(b"STUDY", first))
    refused(say(verb, str(tmp_path)), sentence)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "settings.yaml"]


def test_a_study_without_its_settings_or_before_its_first_event(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes((toy / "events.jsonl").read_bytes())
    refused(say("status", str(tmp_path)), "has no settings.yaml")
    refused(say("resume", str(tmp_path)), "has no settings.yaml")
    (tmp_path / "events.jsonl").write_bytes(b"")
    refused(say("sync", str(tmp_path)), "has an empty log")
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_a_report_from_a_database_that_is_not_there_makes_none(here: Path) -> None:
    refused(say("report", "mlflow:toy", "--tracking-uri", "sqlite:///nope.db"), "the database nope.db does not exist")
    assert list(here.iterdir()) == []


def test_a_report_prints_what_it_wrote(toy: Path, tmp_path: Path) -> None:
    said = say("report", str(toy), "--output", str(tmp_path / "report"))
    assert said.code == 0, said.err
    for part in (
        "Ablation",
        "fewer_frames",
        "Frontier",
        str(tmp_path / "report" / "index.html"),
        f"sqlite:///{toy}/mlflow.db",
    ):
        assert part in said.out
    assert "Left out of the table: reco-equal_steps-s0 (failed: the loss is not finite at step 412).\n" in said.out
    assert "not finished" not in said.out
    assert (tmp_path / "report" / "ablation.csv").exists()
    assert say("sync", str(toy)).out.startswith("0 of 8 runs sent")  # the report's own sync had sent them


def test_a_report_of_a_running_study_says_so_and_names_the_first_that_are_left_out(tmp_path: Path) -> None:
    study = record_study(
        tmp_path / "toy", arms=("full", "reco", "local"), searched=0, failing=("reco-equal_steps-s0",), files=False
    )
    events = study / "events.jsonl"
    kept = [
        line
        for line in events.read_text().splitlines(True)
        if not ("local-" in line and "evaluated" in line) and "finished" not in line
    ]
    events.write_text("".join(kept))
    said = say("report", str(study), "--output", str(tmp_path / "elsewhere" / "report"))
    assert "The study is not finished: these are its numbers so far.\n" in said.out
    left = next(line for line in said.out.splitlines() if line.startswith("Left out"))
    assert left.count("reco-equal_steps-s0 (failed") == 1 and left.count("not finished (") == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml and what `reco-tune train` made of it: small, real, no Ray."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "tiny.yaml").write_text(
        "data: {layout: digits, clip_frames: 9, size_px: 12, train_clips: 128, test_clips: 64, cache_dir:"
        f" {folder / 'cache'}}}\ntokenizer: {{num_codes: 64, first_frame_codes: 24, fit_clips: 128}}\nmodel: {{width:"
        " 32, depth: 2, heads: 2}\nwindow: {scheme: window}\ntraining: {steps: 6, batch_size: 8, learning_rate:"
        " 1.0e-3, rungs: 2}\nevaluation: {protocol: native-random, samples: 32, reference_clips: 64,"
        " validation_clips: 16}\n"
    )
    with standing_in(folder):
        assert say("train", "tiny.yaml").code == 0
    return folder


def test_tokenize_tells_what_there_is_and_reuses_it(trained: Path) -> None:
    said = say("tokenize", str(trained / "tiny.yaml"), "--check")
    assert said.code == 0, said.err
    assert "train: 128 clips of 5 x 3 x 3 tokens" in said.out
    found = re.search(r"clips: ([\d.]+) dB PSNR .*\ncodes used: (\d+) of 64 .*perplexity ([\d.]+)", said.out)
    assert found is not None
    psnr, used, perplexity = found.groups()
    assert float(psnr) > 12 and 30 < int(used) <= 64 and 1 < float(perplexity) <= int(used)
    clip = Path(said.out.split("side by side: ")[1].strip())
    assert read_frames(clip, [0])[0].shape[1] > read_frames(clip, [0])[0].shape[0], (
        "8 clips, each beside its reconstruction"
    )
    assert "decoding" not in said.err and "fitting" not in said.err and "encoding" not in said.err


def test_either_kind_of_file_is_tokenized(trained: Path) -> None:
    """The README's `tokenize mine.yaml` was of a space file, and refused its `question`."""
    shared = yaml.safe_load((trained / "tiny.yaml").read_text())
    space = {"question": "q", "experiment": {**shared, "window": {}}, "arms": {"full": {}, "fewer_frames": {}}}
    (trained / "space.yaml").write_text(yaml.safe_dump(space))
    whole, one = (say("tokenize", f"{trained / 'space.yaml'}{arm}") for arm in ("", ":fewer_frames"))
    assert (whole.code, one.code) == (0, 0), whole.err
    assert whole.out == one.out == say("tokenize", str(trained / "tiny.yaml")).out, "one cache"
    (cache,) = {Path(re.findall("token cache: (.*)", said.out)[0]) for said in (whole, one)}
    assert list(cache.glob("train.pieces-2*")), "of the arm that trains on pieces"


def test_an_arm_of_a_space_is_the_run_that_a_study_makes_of_it() -> None:
    path = bundled("search_spaces") / "evidence.yaml"
    runs = {run.trial: run.experiment for run in plan(load_space(path)).runs}
    assert load_run(path, "reco") == runs["reco-equal_steps-s0"] and load_run(path, "full") == runs["full-s0"]
    changed = load_run(path, "reco", ["window.length_blocks=3", "objective.continuity_weight=1e-2"])
    assert (changed.window.length_tokens, changed.objective.continuity_weight) == (27, 0.01)
    said = say("plan", "evidence:reco", "--set", "training.steps=40")
    assert said.code == 0 and "What is one run of evidence:reco?" in said.out and "runs: 1, 1 of fixed arms" in said.out


def test_tokenize_fits_levels_in_place_of_a_codebook(trained: Path) -> None:
    """First the tokenizer alone, then the codes: fitted once, looked at with clips it has not seen."""
    keys = {
        "kind": "vq",
        "quantizer": "fsq",
        "num_codes": 240,
        "width": 8,
        "fit_steps": 60,
        "fit_batch_size": 8,
        "learning_rate": 0.01,
    }
    command = [
        "tokenize",
        str(trained / "tiny.yaml"),
        *(part for key, value in keys.items() for part in ("--set", f"tokenizer.{key}={value}")),
    ]
    fitted = say(*command, "--fit")
    assert fitted.code == 0, fitted.err
    assert (Path(fitted.out.removeprefix("tokenizer: ").strip()) / "tokenizer.safetensors").is_file()
    said = say(*command, "--check")
    assert said.code == 0, said.err
    assert "training the tokenizer" in fitted.err and "training the tokenizer" not in said.err
    assert "train: 128 clips of 5 x 3 x 3 tokens" in said.out and "codes: 240" in said.out
    found = re.search(r"clips: ([\d.]+) dB PSNR .*\ncodes used: (\d+) of 240 .*perplexity ([\d.]+)", said.out)
    assert found is not None
    psnr, used, perplexity = map(float, found.groups())
    assert psnr > 12 and 60 < used <= 240 and 20 < perplexity <= used  # the best constant clip: 11.7 dB
    refused(say(*command, "--set", "tokenizer.num_codes=256"), r"num_codes \(256\) .*; use 240, the nearest")


def test_train_left_a_model_and_says_where(trained: Path) -> None:
    with standing_in(trained):
        said = say("train", "tiny.yaml")  # nothing left to do
    assert said.code == 0, said.err
    assert "6 steps" in said.out and "val_cross_entropy" in said.out
    assert (trained / "runs" / "tiny" / "model" / "model.safetensors").exists()


def test_train_refuses_a_folder_of_other_settings(trained: Path) -> None:
    refused(
        say(
            "train",
            str(trained / "tiny.yaml"),
            "--output",
            str(trained / "runs" / "tiny"),
            "--set",
            "training.learning_rate=0.1",
        ),
        "learning_rate",
    )


def test_generate_makes_a_video_and_its_pixels(trained: Path) -> None:
    import numpy as np

    from reco_tune.data.video import count_frames

    said = say("generate", str(trained / "runs" / "tiny"), "--clips", "5", "--class", "Digit3", "--class", "Digit7")
    assert said.code == 0, said.err
    with np.load(trained / "runs" / "tiny" / "generated" / "clips.npz") as arrays:
        assert arrays["video"].shape == (5, 9, 3, 12, 12)
        assert arrays["labels"].tolist() == [3, 7, 3, 7, 3]
    assert count_frames(trained / "runs" / "tiny" / "generated" / "clips.mp4") == 9


def test_generate_refuses_an_unknown_class_and_a_setting_of_training(trained: Path) -> None:
    refused(
        say("generate", str(trained / "runs" / "tiny"), "--class", "cat"),
        "--class cat is not a class of this model; it knows",
    )
    refused(
        say("generate", str(trained / "runs" / "tiny"), "--set", "model.width=64"),
        "model.width: training depended on this setting",
    )


def test_generate_finds_a_tokenizer_that_was_moved_and_says_where_to_look(trained: Path, tmp_path: Path) -> None:
    run, moved = str(trained / "runs" / "tiny"), tmp_path / "moved"
    (trained / "cache" / "tokenizers").rename(trained / "cache" / "away")
    try:
        refused(
            say("generate", run, "--output", str(tmp_path / "out")),
            "tokenizer that the model was trained with is no longer at .*--set data.cache_dir",
        )
        assert not (tmp_path / "out").exists()
        shutil.copytree(trained / "cache" / "away", moved / "tokenizers")
        said = say(
            "generate", run, "--clips", "2", "--output", str(tmp_path / "out"), "--set", f"data.cache_dir={moved}"
        )
        assert said.code == 0, said.err
    finally:
        (trained / "cache" / "away").rename(trained / "cache" / "tokenizers")


def test_evaluate_prints_json_with_its_protocol(trained: Path) -> None:
    said = say("evaluate", str(trained / "runs" / "tiny"), "--set", "evaluation.samples=16")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["metrics"]["fvd"] > 0
    assert found["provenance"]["protocol"].startswith("native-random/9x12x12/")
    assert "n16x1" in found["provenance"]["protocol"]


def test_a_shipped_space_is_found_beside_a_folder_of_its_name(here: Path) -> None:
    """A first demo leaves one; with it there the second said that demo is a folder. Experiments had the same fault."""
    Path("demo").mkdir()
    Path("taichi_110M").mkdir()
    assert say("spaces", "show", "demo").code == say("plan", "demo").code == say("plan", "taichi_110M").code == 0


def test_a_second_demo_takes_the_next_name(tmp_path: Path) -> None:
    assert free_folder(tmp_path / "demo") == tmp_path / "demo"
    for name in ("demo", "demo-2"):
        (tmp_path / name).mkdir()
    assert free_folder(tmp_path / "demo") == tmp_path / "demo-3"


def test_time_left_follows_from_the_work_that_is_done(toy: Path) -> None:
    study = read_study(toy)
    finished = standing(study, trials=3, now=0)
    assert (finished.ended, finished.total, finished.done_share, finished.left_seconds) == (8, 8, 1.0, 0.0)
    study.finished = False
    for run in study.runs.values():
        run.state, run.reports, run.metrics, run.started, run.ended = "planned", [], {"speedup": 1.0}, None, None
        run.settings["training.steps"] = 600  # at every budget, as at one speed
    first, second = list(study.runs.values())[:2]
    first.state, first.started, first.ended = "evaluated", 1000.0, 1060.0
    second.state, second.started, second.reports = (
        "running",
        1060.0,
        [{"step": 300}],
    )  # of 600, and the evaluation is a tenth
    found = standing(study, trials=3, now=1087.0)
    assert found.elapsed_seconds == 87
    assert found.done_share == pytest.approx(1.45 / 8)
    assert found.left_seconds == pytest.approx(87 * (8 - 1.45) / 1.45)


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    err, lines = io.StringIO(), Lines()
    with redirect_stderr(err):
        for done in range(7):
            lines.tell(done, 6, "fitting")
    assert err.getvalue().splitlines() == [
        "fitting: 0/6",
        "fitting: 3/6 0.2/s, about 0:12 left",
        "fitting: 6/6 in 0:24",
    ]


def refused(said: Said, sentence: str) -> None:
    """One line on stderr, nothing on stdout, exit code 2."""
    import re

    assert said.code == 2, said
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("reco-tune: ")]
    assert len(lines) == 1, said.err
    assert re.search(sentence, lines[0]), lines[0]


@contextmanager
def standing_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def test_the_live_table_shows_what_is_at_work_and_fits_a_screen(toy: Path) -> None:
    from rich.console import Console

    from reco_tune.cli.watch import ROWS, LiveTable, shown

    table = LiveTable(toy, trials=3)
    console = Console(file=io.StringIO(), width=150, force_terminal=False)
    console.print(table.draw())
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "8 of 8 runs ended, 100% of the work" in drawn
    assert "search-0002" in drawn and "pruned" in drawn
    runs = list(read_study(toy).runs.values()) * 5
    many = [
        replace(run, trial=f"{number}", state="running" if number in (30, 31) else run.state)
        for number, run in enumerate(runs)
    ]
    chosen = shown(many)
    assert {"30", "31"} <= {run.trial for run in chosen}
    assert len(chosen) <= ROWS


def test_plain_lines_tell_each_end_once(toy: Path, tmp_path: Path) -> None:
    from reco_tune.cli.watch import PlainLines

    lines = (toy / "events.jsonl").read_text().splitlines(keepends=True)
    events, ends = tmp_path / "events.jsonl", [line for line in lines if '"event":"evaluated"' in line]
    events.write_text("".join(lines[:-2]))
    told = PlainLines(tmp_path, trials=3)
    err = io.StringIO()
    with redirect_stderr(err), events.open("a") as log:
        told.on_event({})
        log.write("".join(lines[-2:]))
        log.flush()
        told.on_event({})
        told.on_event({})
    assert '"event":"pruned"' in lines[-2] and len(ends) == 6
    assert len(err.getvalue().splitlines()) == 1
    assert err.getvalue().startswith("[8/8] search-0002 pruned: step 200/600")
