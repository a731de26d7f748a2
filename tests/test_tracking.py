"""MLflow holds what the log holds, to the bit; a server that is away costs nothing but a later sync."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow_server import MlflowServer
from toy_study import record_study

from reco_tune import study_log
from reco_tune.errors import StudyError, TrackingError
from reco_tune.reporting import ablation_table, load_runs
from reco_tune.study_log import EventLog, RunRecord, State, StudyFolder
from reco_tune.tracking import Mirror, check_name, read_study, store, sync
from reco_tune.tracking.mirror import Replay, points_of


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return StudyFolder(
        record_study(
            tmp_path_factory.mktemp("tracking") / "toy",
            arms=("full", "reco", "local"),
            searched=3,
            failing=("local-equal_steps-s0",),
            again=("search-0001",),
        )
    )


@pytest.fixture(scope="module")
def synced(recorded: StudyFolder) -> StudyFolder:
    sync(recorded)
    return recorded


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with MlflowServer(tmp_path_factory.mktemp("server")) as running:
        yield running.uri


def test_the_record_read_back_is_the_logs_to_the_bit(synced: StudyFolder) -> None:
    told, tracked = study_log.read_study(synced.path), read_study("toy", synced.mlflow_uri)
    assert tracked == told and told.constraints == {"fvd": {"max": 30.0}}
    assert list(tracked.runs) == list(told.runs)
    assert [list(run.settings) for run in tracked.runs.values()] == [list(run.settings) for run in told.runs.values()]


def test_the_same_over_http(recorded: StudyFolder, server: str) -> None:
    assert sync(recorded, server).sent == len(study_log.read_study(recorded.path).runs)
    assert read_study("toy", server) == study_log.read_study(recorded.path)


def test_a_second_sync_sends_nothing(synced: StudyFolder) -> None:
    assert sync(synced).sent == 0


def test_what_a_person_sees_in_mlflow(synced: StudyFolder) -> None:
    client = MlflowClient(synced.mlflow_uri)
    experiment = client.get_experiment_by_name("toy")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    reco = runs["reco-equal_steps-s0"]
    assert reco.data.tags["mlflow.parentRunId"] == runs["toy"].info.run_id
    assert reco.data.params["objective.continuity_weight"] == "0.1"
    assert reco.data.metrics["fvd"] == study_log.read_study(synced.path).runs["reco-equal_steps-s0"].metrics["fvd"]
    assert [
        runs[name].info.status for name in ("toy", "reco-equal_steps-s0", "local-equal_steps-s0", "search-0002")
    ] == [
        "FINISHED",
        "FINISHED",
        "FAILED",
        "KILLED",
    ]
    history = client.get_metric_history(reco.info.run_id, "train_cross_entropy")
    assert len(history) > 30
    assert len({(point.step, point.timestamp, point.value) for point in history}) == len(history)
    growth = client.get_metric_history(reco.info.run_id, "error_growth")
    assert sorted(point.step for point in growth) == list(range(5)), "blocks"
    assert {item.path for item in client.list_artifacts(reco.info.run_id)} == {"samples.npz", "samples.mp4"}


def test_the_row_of_a_study_tells_what_came_of_it(synced: StudyFolder) -> None:
    """The children are folded away where the page opens."""
    client, study = MlflowClient(synced.mlflow_uri), study_log.read_study(synced.path)
    parent = store.all_runs(client, client.get_experiment_by_name("toy"), "study")[0]
    told, runs = parent.data.metrics, list(study.runs.values())
    assert told["runs"] == len(runs) and told["runs_failed"] == sum(run.state == "failed" for run in runs)
    assert told["device_hours"] == pytest.approx(study.device_seconds / 3600) and told["hypervolume"] > 0
    fast = [run for run in runs if run.state == "evaluated" and run.metrics.get("speedup", 1.0) >= 1.5]
    assert told["best_fvd_from_1.5x"] == min(run.metrics["fvd"] for run in fast)
    assert told["best_fvd_from_1x"] <= told["best_fvd_from_1.5x"]
    assert parent.data.tags["mlflow.note.content"].startswith(f"{study.question}\n\n{len(runs)} runs: ")


def test_what_a_run_was_made_of_is_among_its_inputs(synced: StudyFolder) -> None:
    """So that MLflow's lists of data sets and of models know the runs that used them."""
    client, record = MlflowClient(synced.mlflow_uri), study_log.read_study(synced.path)
    experiment = client.get_experiment_by_name("toy").experiment_id
    made_of = record.runs["reco-equal_steps-s0"].provenance
    (found,) = [
        run for run in store.all_runs(client, experiment, "trial") if run.info.run_name == "reco-equal_steps-s0"
    ]
    inputs = client.get_run(found.info.run_id).inputs
    (data,) = [given.dataset for given in inputs.dataset_inputs]
    assert (data.name, data.digest) == ("digits", made_of["data_fingerprint"][:36])
    (tokenizer,) = client.search_logged_models([experiment])
    assert tokenizer.tags["reco_tune.tokenizer_fingerprint"] == made_of["tokenizer_fingerprint"]
    assert [given.model_id for given in inputs.model_inputs] == [tokenizer.model_id]


def test_a_run_is_dated_by_its_start(recorded: StudyFolder, tmp_path: Path) -> None:
    """MLflow dates a run when it is made, so one that only waits is told of by the study's own record."""
    folder = StudyFolder(tmp_path / "toy")
    folder.path.mkdir()
    lines = recorded.events.read_bytes().splitlines(keepends=True)
    first = next(place for place, line in enumerate(lines) if b'"event":"started"' in line)
    for end in (first + 1, len(lines)):
        folder.events.write_bytes(b"".join(lines[:end]))
        sync(folder)
        record = study_log.read_study(folder.path)
        assert read_study("toy", folder.mlflow_uri) == record
        client = MlflowClient(folder.mlflow_uri)
        runs = {
            run.info.run_name: run.info
            for run in client.search_runs([client.get_experiment_by_name("toy").experiment_id])
        }
        began = {name: round(1000 * run.started) for name, run in record.runs.items() if run.started is not None}
        opened = round(1000 * next(study_log.read_events(folder.events))["time"])
        assert {name: info.start_time for name, info in runs.items()} == {**began, "toy": opened}


@pytest.mark.parametrize(
    ("state", "step"), [("pruned", 10), ("evaluated", 30)], ids=["told-by-a-rung", "told-by-its-evaluation"]
)
def test_what_one_rung_alone_has_told_stays_at_that_rung(state: State, step: int, tmp_path: Path) -> None:
    """A kernel distance is measured where it decides; the next rung's report does not make it its own."""
    reports = [{"step": 10, "kernel_distance": 0.5, "val_cross_entropy": 2.0}, {"step": 30, "val_cross_entropy": 1.0}]
    metrics = {"kernel_distance": 0.5, "val_cross_entropy": 1.0, "speedup": 1.5}
    run = RunRecord("search-0000", 0, "search", "equal_steps", 0, state, reports=reports, metrics=metrics)
    points = {(point.name, point.step) for point in points_of(run, tmp_path / "none", mirrored=0)}
    told = {("kernel_distance", 10), ("val_cross_entropy", 10), ("val_cross_entropy", 30)}
    assert points == told | {("kernel_distance", step), ("speedup", 30)}


def test_a_report_written_later_is_added(synced: StudyFolder, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "toy")
    shutil.copytree(synced.path, folder.path)
    (folder.report / "samples").mkdir(parents=True)
    (folder.report / "ablation.csv").write_text("arm\n")
    (folder.report / "samples" / "reco.txt").write_text("clip")
    sync(folder)
    client = MlflowClient(folder.mlflow_uri)
    parent = store.all_runs(client, client.get_experiment_by_name("toy"), "study")[0].info.run_id
    assert {item.path for item in client.list_artifacts(parent)} == {"settings.yaml", "report"}
    assert {item.path for item in client.list_artifacts(parent, "report")} == {"report/ablation.csv", "report/samples"}
    (folder.report / "ablation.md").write_text("| arm | FVD |")
    sync(folder)
    assert client.get_run(parent).data.tags["mlflow.note.content"].endswith("| arm | FVD |")
    client.set_tag(parent, "mlflow.note.content", "my own words")
    (folder.report / "ablation.md").write_text("| arm | FVD | speed-up |")
    sync(folder)
    assert client.get_run(parent).data.tags["mlflow.note.content"] == "my own words"


def test_a_deleted_database_is_rebuilt(recorded: StudyFolder, tmp_path: Path) -> None:
    """By another process: MLflow goes on writing to a deleted file that it has open."""
    uri = f"sqlite:///{tmp_path}/other.db"
    sync(recorded, uri)
    assert sync(recorded, uri).sent == 0
    (tmp_path / "other.db").unlink()
    command = [sys.executable, "-m", "reco_tune", "sync", str(recorded.path), "--tracking-uri", uri]
    subprocess.run(command, check=True, capture_output=True)
    uri += "?timeout=60"  # another name of the same file, which is opened anew
    assert read_study("toy", uri) == study_log.read_study(recorded.path)


def test_tables_do_not_depend_on_where_they_are_read_from(synced: StudyFolder) -> None:
    told, tracked = load_runs(synced.path), load_runs(read_study("toy", synced.mlflow_uri))
    assert tracked.to_csv() == told.to_csv()
    assert ablation_table(tracked).to_csv() == ablation_table(told).to_csv()


def test_a_request_that_failed_midway_makes_nothing_twice(
    recorded: StudyFolder, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first version made a second run where the first one's parameters had not gone through."""
    folder = StudyFolder(tmp_path / "stumbling")
    folder.path.mkdir()
    folder.events.write_text(recorded.events.read_text().replace('"name":"toy"', '"name":"stumbling"', 1))
    calls, original = iter(range(1000)), MlflowClient.log_batch

    def stumble(self: MlflowClient, *args: object, **kwargs: object) -> None:
        if next(calls) in (1, 5, 6):
            raise OSError("the cable fell out")
        original(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "log_batch", stumble)
    for _ in range(3):
        with pytest.raises(TrackingError, match="the cable fell out"):
            sync(folder, server)
    sync(folder, server)
    client = MlflowClient(server)
    assert len(store.all_runs(client, client.get_experiment_by_name("stumbling"), "trial")) == len(
        study_log.read_study(folder.path).runs
    )
    assert read_study("stumbling", server) == study_log.read_study(folder.path)


def test_the_mirror_follows_a_log_that_grows(recorded: StudyFolder, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "toy")
    lines = recorded.events.read_bytes().splitlines(keepends=True)
    folder.path.mkdir()
    shutil.copytree(recorded.path / "trials", folder.path / "trials")
    mirror = Mirror(folder, None)
    with folder.events.open("ab", buffering=0) as log:
        for start in range(0, len(lines), 20):
            log.write(b"".join(lines[start : start + 20]))
            mirror.notify()
            time.sleep(0.3)
    assert mirror.close(timeout=60), mirror.error
    assert read_study("toy", folder.mlflow_uri) == study_log.read_study(folder.path)


def test_a_dead_server_costs_a_sentence_and_a_later_sync(
    recorded: StudyFolder, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain MLflow call to a dead server blocks for minutes, and asynchronous logging loses the data
    without a word."""
    monkeypatch.setattr("reco_tune.tracking.mirror.BEHIND_SECONDS", 0.001)
    told: list[str] = []
    log = EventLog(tmp_path / "lonely" / "events.jsonl")
    log.append("study", name="lonely", question="?", arms=["full"], provenance={})
    log.append(
        "planned",
        trial="full-s0",
        arm="full",
        budget="both",
        seed=0,
        settings={"training.steps": 3},
        settings_hash="0",
        metrics={},
    )
    folder = StudyFolder(tmp_path / "lonely")
    began = time.monotonic()
    mirror = Mirror(folder, f"http://127.0.0.1:{_free_port()}", told.append)
    mirror.notify()
    deadline = time.monotonic() + 30
    while not told and time.monotonic() < deadline:
        time.sleep(0.05)
    assert told and told[0].startswith("MLflow is 0 minutes behind the log (") and "the study continues" in told[0]
    began = time.monotonic()
    log.append("started", trial="full-s0", attempt=1)
    assert not mirror.close(timeout=30)
    assert mirror.error
    assert time.monotonic() - began < 30
    sync(folder, server)
    assert read_study("lonely", server) == study_log.read_study(folder.path)


def test_a_server_that_asks_for_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own basic authentication, slow by design; the client takes name and password from MLflow's variables."""
    recorded = StudyFolder(record_study(tmp_path / "toy", arms=("full",), searched=0, files=False))
    settings = tmp_path / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/auth.db\nadmin_username ="
        " admin\nadmin_password = a-long-password\nauthorization_function ="
        " mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    secrets = {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "not a secret"}
    with MlflowServer(tmp_path / "server", "--app-name", "basic-auth", environment=secrets) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        with pytest.raises(TrackingError, match=f"MLflow at {server.uri} does not take the study"):
            sync(recorded, server.uri)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-long-password")
        sync(recorded, server.uri)
        record = study_log.read_study(recorded.path)
        assert read_study(record.name, server.uri) == record


def named(folder: Path, name: str, source: StudyFolder) -> StudyFolder:
    """A study of another name with the same runs."""
    folder.mkdir(parents=True)
    study = StudyFolder(folder)
    study.events.write_text(source.events.read_text().replace('"name":"toy"', f'"name":"{name}"', 1))
    return study


def printed_command(error: pytest.ExceptionInfo[TrackingError], containing: str) -> str:
    """What a message tells a person to type."""
    (command,) = [part for part in str(error.value).split("`")[1::2] if containing in part]
    return command


def test_another_study_of_the_same_name_is_refused_and_goes_elsewhere(
    recorded: StudyFolder, server: str, tmp_path: Path
) -> None:
    """It was told after the study, with the advice to run it again under another name."""
    first, second = (named(tmp_path / folder, "taken", recorded) for folder in ("first", "second"))
    second.events.write_text(second.events.read_text().replace("0123abc", "9876fed"))
    sync(first, server)
    check_name(server, "taken", first)
    for folder in (second, StudyFolder(tmp_path / "not yet")):
        with pytest.raises(TrackingError, match="has another study named `taken`; give another --name"):
            check_name(server, "taken", folder)
    with pytest.raises(TrackingError, match="has another study named `taken`") as refused:
        sync(second, server)
    assert printed_command(refused, "sync") == f"reco-tune sync {second.path} --tracking-uri {server} --name NAME"
    assert sync(second, server, experiment="free").sent == len(study_log.read_study(second.path).runs)
    assert read_study("free", server) == study_log.read_study(second.path)
    again = sync(second, server)
    assert (again.experiment, again.sent) == ("free", 0), "where it went is known from then on"
    check_name(server, "taken", second)
    client = MlflowClient(server)
    client.rename_experiment(client.get_experiment_by_name("free").experiment_id, "renamed")
    assert sync(second, server).experiment == "renamed"


def test_a_deleted_experiment_is_brought_back_or_left_alone(recorded: StudyFolder, server: str, tmp_path: Path) -> None:
    """`already exists ..., repeat the command`, for ever."""
    study, client = named(tmp_path / "a study", "gone", recorded), MlflowClient(server)
    sync(study, server)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    for ask in (lambda: check_name(server, "gone", study), lambda: read_study("gone", server)):
        with pytest.raises(TrackingError, match=r"the experiment `gone` was deleted in MLflow at .*; restore it with"):
            ask()
    with pytest.raises(TrackingError, match="`gone` was deleted") as refused:
        sync(study, server)
    elsewhere = shlex.split(printed_command(refused, "sync"))
    assert elsewhere == ["reco-tune", "sync", str(study.path), "--tracking-uri", server, "--name", "NAME"]
    sync(study, server, experiment="gone elsewhere")
    assert read_study("gone elsewhere", server) == study_log.read_study(study.path)
    restore = printed_command(refused, "restore").replace(" mlflow ", f" {sys.executable} -m mlflow ")
    subprocess.run(restore, shell=True, check=True, capture_output=True)
    sync(study, server, experiment="gone")
    assert read_study("gone", server) == study_log.read_study(study.path)


def test_what_was_deleted_inside_an_experiment_is_sent_again(
    recorded: StudyFolder, server: str, tmp_path: Path
) -> None:
    """Without their parent the runs were orphans, and a sync said that nothing was missing."""
    study, client = named(tmp_path / "study", "orphans", recorded), MlflowClient(server)
    sync(study, server)
    experiment = client.get_experiment_by_name("orphans")
    runs = len(study_log.read_study(study.path).runs)
    client.delete_run(store.all_runs(client, experiment, "study")[0].info.run_id)
    assert sync(study, server).sent == runs
    (parent,) = store.all_runs(client, experiment, "study")
    trials = store.all_runs(client, experiment, "trial")
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id} and len(trials) == runs
    client.delete_run(trials[0].info.run_id)
    assert (sync(study, server).sent, sync(study, server).sent) == (1, 0)
    assert read_study("orphans", server) == study_log.read_study(study.path)


def test_what_is_deleted_under_a_mirror_is_made_again(recorded: StudyFolder, server: str, tmp_path: Path) -> None:
    study, client = named(tmp_path / "study", "underneath", recorded), MlflowClient(server)
    lines = study.events.read_bytes().splitlines(keepends=True)
    study.events.write_bytes(b"".join(lines[:-4]))
    replay = Replay(study, server)
    replay.send_news()
    experiment = client.get_experiment_by_name("underneath")
    for run in (store.all_runs(client, experiment, "study")[0], *store.all_runs(client, experiment, "trial")):
        client.delete_run(run.info.run_id)
    with study.events.open("ab") as log:
        log.write(b"".join(lines[-4:]))
    with pytest.raises(MlflowException, match="active"):
        replay.send_news()
    replay.send_news()
    assert read_study("underneath", server) == study_log.read_study(study.path)


def test_two_first_reports_at_once_make_one_database(recorded: StudyFolder, tmp_path: Path) -> None:
    """They raced for the schema: `table alembic_version already exists`."""
    study = named(tmp_path / "study", "hasty", recorded)
    command = [sys.executable, "-m", "reco_tune", "sync", str(study.path)]
    at_once = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in at_once]
    runs = len(study_log.read_study(study.path).runs)
    assert [process.returncode for process in at_once] == [0, 0], said
    assert sorted(line.split(" of ")[0] for line in said) == ["0", str(runs)]
    assert read_study("hasty", study.mlflow_uri) == study_log.read_study(study.path)


WITHOUT_POWER = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"]
"""root, to whom permissions mean as much as to anybody."""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="nobody here can be denied anything")
@pytest.mark.parametrize("sent", [True, False], ids=["sent before", "never sent"])
def test_a_report_of_a_study_that_only_can_be_read_is_whole(tmp_path: Path, sent: bool) -> None:
    """It wrote its report, and then ended with an unexpected error of its database."""
    study = StudyFolder(record_study(tmp_path / "toy", arms=("full",), searched=0, files=False))
    if sent:
        sync(study)
    everything = [study.path, *study.path.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    command = [*WITHOUT_POWER, sys.executable, "-m", "reco_tune", "report", str(study.path), "--output", "report"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, (tmp_path / "report" / "index.html").is_file()) == (0, True), done.stderr
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("MLflow: ")]
    database = study.path / "mlflow.db"
    told = f"mlflow ui --backend-store-uri sqlite:///{database}" if sent else f"{database} cannot be created"
    assert said.startswith(f"MLflow: {told}")
    for path in everything:
        path.chmod(0o755)


def test_a_place_without_mlflow_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """`report mlflow:none` took minutes to say that there is nothing."""
    program = (
        "import sys\nfrom reco_tune.cli import main\ntry: main(['report', 'mlflow:none', *sys.argv[1:]])\n"
        "finally: print(sorted({'pandas', 'mlflow', 'torch'} & set(sys.modules)))"
    )
    addresses = [], ["--tracking-uri", "ftp://x"], ["--tracking-uri", f"http://127.0.0.1:{_free_port()}"]
    for address in addresses:
        command = [sys.executable, "-c", program, *address]
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "[]\n"), done.stderr
        assert done.stderr.startswith("reco-tune: ") and len(done.stderr.splitlines()) == 1


def test_a_command_is_printed_as_a_shell_takes_it(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "it's $HOME & more")
    study.path.mkdir()
    study.events.touch()
    with pytest.raises(StudyError, match="has an empty log") as refused:
        sync(study)
    assert shlex.split(str(refused.value).split("`")[1]) == ["reco-tune", "resume", str(study.path)]


@pytest.mark.parametrize(
    ("name", "uri", "sentence"),
    [
        ("toy", None, "needs the address of MLflow"),
        ("nothing", "synced", "has no study named `nothing`"),
        ("toy", "dead", "does not answer"),
    ],
    ids=["no address", "no such study", "no server"],
)
def test_reading_what_is_not_there(
    synced: StudyFolder, monkeypatch: pytest.MonkeyPatch, name: str, uri: str | None, sentence: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    address = {"synced": synced.mlflow_uri, "dead": f"http://127.0.0.1:{_free_port()}"}.get(uri or "")
    with pytest.raises(TrackingError, match=sentence):
        read_study(name, address)


def test_syncing_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not a study folder"):
        sync(StudyFolder(tmp_path))


def test_long_values_are_cut_into_tags_and_joined_again() -> None:
    value = {"curve": [0.1 + number for number in range(2000)]}
    tags = store.to_tags("x", value)
    assert max(map(len, tags.values())) <= store.PART_CHARACTERS
    assert store.from_tags("x", tags) == value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
