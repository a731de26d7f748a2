"""MLflow as a mirror of the study log: a parent run for the study, a child run for every trial.

Reads the study folder only. The study never waits for MLflow, and never fails because of it. `sync` sends whatever is
missing. Sending something twice changes nothing: the time of a value is the run's start plus one millisecond per
step, not the time of sending.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from reco_tune.data.video import write_video
from reco_tune.errors import StudyError, TrackingError, command
from reco_tune.locks import lock
from reco_tune.progress import Progress, quiet
from reco_tune.study_log import ENDED, Follower, RunRecord, StudyFolder, StudyRecord, read_events, read_study
from reco_tune.tracking.address import check_address, database, shown
from reco_tune.tracking.summary import note, summary_metrics

if TYPE_CHECKING:
    from mlflow.entities import Dataset

POINTS_PER_CURVE = 300
"""Approximate number of steps that are mirrored per history. The study folder has all of them."""
METRICS_PER_BATCH, OTHERS_PER_BATCH = 1000, 100
"""MLflow's limits per request."""
DIGEST_CHARACTERS = 36
"""MLflow's limit on the digest of a data set."""
NOTE, OWN_NOTE = "mlflow.note.content", "reco_tune.note"
"""Tags of a run's description, and of the hash of the description that was last written."""
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 4.0, 64.0
"""Pause between two passes. It doubles after every failed pass."""
BEHIND_SECONDS = 120.0
"""A message tells the user when MLflow is this far behind the log, and again whenever the delay has doubled."""
STATUS = {"evaluated": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}


@dataclass(frozen=True)
class SyncResult:
    """The result of `sync`."""

    experiment: str
    uri: str
    sent: int
    """Number of runs with missing data."""
    runs: int


class Mirror:
    """Keeps MLflow up to date from one background thread; never raises."""

    def __init__(self, folder: StudyFolder, uri: str | None, tell: Callable[[str], None] = lambda what: None) -> None:
        """
        Args:
            uri: None means the sqlite file of the study folder, which only this process may write.
            tell: called with one sentence when MLflow is far behind, and when it has caught up.
        """
        self.error = ""
        """Why the last pass failed. Empty if it succeeded."""
        self._folder, self._uri, self._tell = folder, uri, tell
        self._sent_at = time.monotonic()
        """Everything that the log held at this time is in MLflow."""
        self._told = 0.0
        """The delay in the last message."""
        self._news, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Tells the thread that the log has new events."""
        self._news.set()

    def close(self, timeout: float = 60) -> bool:
        """Sends what is missing, for at most `timeout` seconds. Returns True if MLflow then has everything."""
        self._closing.set()
        self._news.set()
        self._thread.join(timeout)
        if self._thread.is_alive() and not self.error:
            self.error = f"MLflow did not answer within {timeout:.0f} s"
        return not self.error

    def _tell_behind(self) -> None:
        """Sends a message if MLflow is far behind, and another when it has caught up."""
        behind = time.monotonic() - self._sent_at if self._news.is_set() else 0.0
        if behind >= max(BEHIND_SECONDS, 2 * self._told):
            why = f" ({self.error})" if self.error else ""
            self._tell(
                f"MLflow is {behind / 60:.0f} minutes behind the log{why}; the study continues, and MLflow catches up"
                " later"
            )
            self._told = behind
        elif self._told and behind < BEHIND_SECONDS:
            self._tell("MLflow has caught up with the log")
            self._told = 0.0

    def _run(self) -> None:
        replay: Replay | None = None
        pause = PAUSE_SECONDS
        while True:
            if not self._news.is_set():
                self._news.wait()
                self._sent_at = time.monotonic()  # until now there was nothing to send
            self._news.clear()
            began = time.monotonic()
            last = self._closing.is_set()
            try:
                if replay is None:
                    replay = Replay(self._folder, self._uri)
                replay.send_news()
                self.error, pause, self._sent_at = "", PAUSE_SECONDS, began
            except Exception as error:  # a mirror must not end a study, whatever MLflow, the network or the disk does
                from reco_tune.tracking.store import first_line

                self.error, pause = first_line(error), min(2 * pause, LONGEST_PAUSE_SECONDS)
                self._news.set()
            if last:
                return
            self._tell_behind()
            self._closing.wait(pause)


def sync(
    folder: StudyFolder, uri: str | None = None, progress: Progress = quiet, experiment: str | None = None
) -> SyncResult:
    """Sends everything of a study that MLflow does not have. A second call sends nothing.

    Args:
        experiment: name of the MLflow experiment; by default the one that holds the study, or else the study's name.

    Raises:
        StudyError: if the folder has no study.
        TrackingError: if MLflow cannot be reached or has another study of this name.
    """
    if not read_study(folder.path).name:
        raise StudyError(
            f"the study in {folder.path} has an empty log, so there is nothing to send;"
            f" `{command('resume', folder.path)}` starts the study"
        )
    where = uri or folder.mlflow_uri
    again = f"then `{command('sync', folder.path, *_uri_option(uri))}` sends it"
    check_address(where, f"start it, {again}")
    from reco_tune.tracking import store  # imports MLflow, which takes seconds

    way_out = f"check that it runs and is writable, {again}"
    with store.telling(where, "does not take the study", way_out), ExitStack() as stack:
        with suppress(OSError):  # a read-only folder has no other sender
            stack.enter_context(lock(folder.path / ".sync.lock", seconds=-1))
        replay = Replay(folder, uri, experiment)
        sent = replay.send_news(progress)
    return SyncResult(replay.experiment, where, sent, len(replay.study.runs))


def check_name(uri: str, name: str, folder: StudyFolder) -> None:
    """Checks whether MLflow can mirror a study that is about to start or continue; writes nothing.

    Raises:
        TrackingError: if MLflow cannot be used, or has another study of this name.
    """
    check_address(uri)
    file = database(uri)
    if file is not None and not file.is_file():
        return
    from reco_tune.tracking import store

    with store.telling(uri, "cannot be used", "check that it runs, or leave --tracking-uri out and `sync` to it later"):
        client = store.connect(uri)
        identity = folder.identity if folder.events.is_file() else ""
        if identity and store.experiment_of(client, identity):
            return
        found = store.find_experiment(client, name, ", or give another --name")
        if found and (taken := store.all_runs(client, found, "study")) and not store.is_of(taken[0], identity):
            raise TrackingError(f"MLflow at {shown(uri)} has another study named `{name}`; give another --name")


class Replay:
    """Sends the log of one study, run by run, and remembers what MLflow already has."""

    def __init__(self, folder: StudyFolder, uri: str | None, experiment: str | None = None) -> None:
        from reco_tune.tracking import store  # importing MLflow takes seconds; here it delays nothing

        self._store = store
        self._folder = folder
        self.uri = uri or folder.mlflow_uri
        self._again = command("sync", folder.path, *_uri_option(uri))
        self._local = not self.uri.startswith(("http:", "https:", "databricks"))
        self._client = store.connect(self.uri)
        self._follower = Follower(folder.events)
        self._waiting: dict[str, None] = {}
        self._asked_for = experiment
        self.experiment = ""
        """Name of the experiment."""
        self._experiment = self._parent = ""
        self._ids: dict[str, str] = {}
        self._tags: dict[str, dict[str, str]] = {}
        self._tokenizers: dict[str, str] = {}
        """Identity of each tokenizer's model in MLflow, by fingerprint."""

    @property
    def study(self) -> StudyRecord:
        return self._follower.study

    def send_news(self, progress: Progress = quiet) -> int:
        """Sends every run with new events; returns their number."""
        events = self._follower.poll()
        self._waiting.update({event["trial"]: None for event in events if event.get("trial") in self.study.runs})
        if not self.study.name:
            return 0
        sent = 0
        try:
            if not self._parent:
                self._open()
            total = len(self._waiting)
            for done, trial in enumerate(list(self._waiting)):
                progress(done, total, "runs to MLflow")
                sent += self._send_run(self.study.runs[trial])
                del self._waiting[trial]
            self._send_study()
        except Exception:
            # A failed request may have been served all the same, or somebody may have deleted data. So look again,
            # before anything is created twice.
            self._parent = ""
            raise
        progress(total, total, "runs to MLflow")
        return sent

    def _open(self) -> None:
        """Finds or creates the experiment and its parent run, and reads which runs exist already."""
        client, store = self._client, self._store
        identity, began = self._folder.identity, _milliseconds(next(iter(read_events(self._folder.events)))["time"])
        self._experiment, self.experiment = self._find_experiment(identity)
        parents = store.all_runs(client, self._experiment, "study")
        if parents and not store.is_of(parents[0], identity):
            raise TrackingError(
                f"MLflow at {shown(self.uri)} has another study named `{self.experiment}`; `{self._again} --name NAME`"
                " sends this one under another name"
            )
        if parents:
            parent, self._tags[""] = parents[0].info.run_id, parents[0].data.tags
        else:
            tags = {
                store.KIND: "study",
                store.STUDY_ID: identity,
                NOTE: self.study.question,
                "mlflow.source.name": "reco-tune",
            }
            created = client.create_run(self._experiment, start_time=began, run_name=self.study.name, tags=tags)
            parent, self._tags[""] = created.info.run_id, {}
            client.set_experiment_tag(self._experiment, store.STUDY_ID, identity)  # somebody else may have created it
        trials = {run.data.tags["reco_tune.trial"]: run for run in store.all_runs(client, self._experiment, "trial")}
        self._ids = {trial: run.info.run_id for trial, run in trials.items()}
        self._tags = {"": self._tags[""], **{trial: run.data.tags for trial, run in trials.items()}}
        self._waiting = dict.fromkeys(self.study.runs)  # data that was sent before may have been deleted since
        self._parent = parent

    def _find_experiment(self, identity: str) -> tuple[str, str]:
        """Identity and name of the experiment: the requested one, else the one that holds the study, else one with
        its name.
        """
        client, store, name = self._client, self._store, self._asked_for or self.study.name
        found = None if self._asked_for else store.experiment_of(client, identity)
        if found is None:
            otherwise = f", or `{self._again} --name NAME` sends the study under another name"
            found = store.find_experiment(client, name, otherwise)
        if found is not None:
            return found.experiment_id, found.name
        artifacts = self._folder.mlflow_artifacts.resolve().as_uri() if self._local else None
        training = {"mlflow.experimentKind": "custom_model_development"}  # which of MLflow's two interfaces opens
        return client.create_experiment(name, artifact_location=artifacts, tags=training), name

    def _send_run(self, run: RunRecord) -> bool:
        if _waits(run):
            return False  # MLflow sets a run's date at creation; until it starts, the record of the study includes it
        store, client = self._store, self._client
        record = {**asdict(run), "calibration": self.study.calibrations.get(run.trial)}
        settings = record.pop("settings")
        history, samples = self._folder.history(run.trial), self._folder.trial(run.trial) / "samples.npz"
        files = {path.name: store.digest(path) for path in (history, samples) if path.exists()}
        tags = {
            **store.to_tags(store.RECORD, record),
            **store.to_tags(store.FILES, files),
            "mlflow.parentRunId": self._parent,  # its first parent may have been deleted
            **{
                f"reco_tune.{key}": str(record[key])
                for key in ("trial", "index", "arm", "budget", "seed", "state", "attempt", "settings_hash")
            },
            **{
                f"reco_tune.{key}": str(run.provenance[key])
                for key in ("protocol", "data_fingerprint")
                if key in run.provenance
            },
        }
        known = self._tags.get(run.trial)
        if known is not None and all(known.get(key) == value for key, value in tags.items()):
            return False
        if known is None:
            own = {
                store.KIND: "trial",
                "reco_tune.trial": run.trial,
                "mlflow.parentRunId": self._parent,
                "mlflow.source.name": "reco-tune",
            }
            began = None if run.started is None else _milliseconds(run.started)
            created = client.create_run(self._experiment, start_time=began, run_name=run.trial, tags=own)
            self._ids[run.trial], known = created.info.run_id, {}
        identity = self._ids[run.trial]
        params = {} if store.RECORD in known else {key: json.dumps(value) for key, value in settings.items()}
        before = store.from_tags(store.FILES, known) or {}
        mirrored = int(known.get(store.MIRRORED_STEP, 0)) if before else 0
        points = list(points_of(run, history, mirrored)) if run.started is not None else []
        self._log(identity, points, params, {})
        if samples.name in files and before.get(samples.name) != files[samples.name]:
            self._log_samples(identity, samples)
        if run.provenance.get("data_fingerprint") and "reco_tune.data_fingerprint" not in known:
            tokenizer = str(run.provenance.get("tokenizer_fingerprint", ""))
            if tokenizer and tokenizer not in self._tokenizers:
                self._tokenizers[tokenizer] = store.tokenizer_model(client, self._experiment, tokenizer)
            store.log_inputs(client, identity, _dataset(run), self._tokenizers.get(tokenizer, ""))
        tags[store.MIRRORED_STEP] = str(max([mirrored, *(point.step for point in points if history.exists())]))
        self._log(identity, [], {}, tags)  # last, because these tags say that everything else is there
        self._set_status(identity, STATUS.get(run.state, "RUNNING"), run.ended)
        self._tags[run.trial] = {**known, **tags}
        return True

    def _send_study(self) -> None:
        store, study = self._store, self.study
        waiting = {trial: run for trial, run in study.runs.items() if _waits(run)}
        sent = study.runs.keys() - waiting.keys()
        shared = {
            key: metrics for key, metrics in study.calibrations.items() if key not in sent
        }  # a run's own calibration is stored with the run
        report = (
            sorted(path for path in self._folder.report.rglob("*") if path.is_file())
            if self._folder.report.is_dir()
            else []
        )
        files = {
            str(path.relative_to(self._folder.path)): path
            for path in (self._folder.settings, *report)
            if path.is_file()
        }
        digests = {name: store.digest(path) for name, path in files.items()}
        tags = {
            **store.to_tags(store.RECORD, asdict(replace(study, runs=waiting, calibrations=shared))),
            **store.to_tags(
                store.SETTINGS_ORDER, list(dict.fromkeys(key for run in study.runs.values() for key in run.settings))
            ),
            **store.to_tags(store.FILES, digests),
        }
        known = self._tags[""]
        tags |= self._note(known)
        if all(known.get(key) == value for key, value in tags.items()):
            return
        before = store.from_tags(store.FILES, known) or {}
        for name, path in files.items():
            if before.get(name) != digests[name]:
                self._client.log_artifact(
                    self._parent, str(path), str(Path(name).parent) if Path(name).parent.name else None
                )
        ended = max((run.ended for run in study.runs.values() if run.ended), default=None)
        step = sum(run.state in ENDED for run in study.runs.values())
        points = [_Point(name, value, _milliseconds(ended), step) for name, value in summary_metrics(study).items()]
        self._log(self._parent, points if step else [], {}, {})
        self._log(self._parent, [], {}, tags)
        self._set_status(self._parent, "FINISHED" if study.finished else "RUNNING", ended)
        self._tags[""] = {**known, **tags}

    def _note(self, known: dict[str, str]) -> dict[str, str]:
        """Description of the study for the parent run. It keeps a description that a user has written."""
        own = note(self.study, self._folder.report)
        digest = hashlib.sha256(own.encode()).hexdigest()
        if known.get(OWN_NOTE) == digest:
            return {}
        there = self._client.get_run(self._parent).data.tags.get(NOTE, "")  # read again, because it may have changed
        if there in ("", self.study.question) or hashlib.sha256(there.encode()).hexdigest() == known.get(OWN_NOTE):
            return {NOTE: own, OWN_NOTE: digest}
        return {}

    def _log(self, identity: str, points: list[_Point], params: dict[str, str], tags: dict[str, str]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        for some in _batches(points, METRICS_PER_BATCH):
            self._client.log_batch(
                identity, metrics=[Metric(point.name, point.value, point.time_ms, point.step) for point in some]
            )
        for some_params in _batches(list(params.items()), OTHERS_PER_BATCH):
            self._client.log_batch(identity, params=[Param(*item) for item in some_params])
        for some_tags in _batches(list(tags.items()), OTHERS_PER_BATCH):
            self._client.log_batch(identity, tags=[RunTag(*item) for item in some_tags])

    def _log_samples(self, identity: str, samples: Path) -> None:
        """Uploads the file, and its clips side by side as a video that a browser plays."""
        self._client.log_artifact(identity, str(samples))
        with np.load(samples) as arrays, tempfile.TemporaryDirectory() as folder:
            clips = arrays["video"].transpose(0, 1, 3, 4, 2)  # S,F,H,W,C
            wide = np.concatenate(list(clips), axis=2)
            zoom = max(1, 96 // wide.shape[1])
            write_video(Path(folder) / "samples.mp4", wide.repeat(zoom, axis=1).repeat(zoom, axis=2))
            self._client.log_artifact(identity, str(Path(folder) / "samples.mp4"))

    def _set_status(self, identity: str, status: str, ended: float | None) -> None:
        if status == "RUNNING":
            self._client.update_run(identity, status=status)
        else:
            self._client.set_terminated(identity, status, _milliseconds(ended))


def _uri_option(uri: str | None) -> tuple[str, ...]:
    """Options for a command if the address is not the study folder's own."""
    return () if uri is None else ("--tracking-uri", shown(uri))


def _waits(run: RunRecord) -> bool:
    """Whether the run is only planned so far."""
    return run.state == "planned" and run.started is None


def _dataset(run: RunRecord) -> Dataset:
    """The clips that a run saw, named after the layout of their folder."""
    from mlflow.entities import Dataset

    cut = {
        key: run.settings.get(f"data.{key}")
        for key in ("clip_frames", "frame_stride", "size_px", "resize", "train_clips")
    }
    source = {"uri": str(run.settings.get("data.root") or run.settings.get("data.cache_dir") or "")}
    name, digest = str(run.settings.get("data.layout", "data")), str(run.provenance["data_fingerprint"])
    return Dataset(name, digest[:DIGEST_CHARACTERS], "local", json.dumps(source), profile=json.dumps(cut))


@dataclass(frozen=True)
class _Point:
    name: str
    value: float
    time_ms: int
    step: int


def points_of(run: RunRecord, history: Path, mirrored: int) -> Iterator[_Point]:
    """Metrics of a run over its steps, its scalars at the last step, and its curves with the frame as the step.

    Only the part of the history after step `mirrored` is included: a retried run repeats its earlier steps with the
    same bits. The scalars of an unfinished run stay at the step of the rung that reported them, because not every
    rung reports all metrics.
    """
    began = _milliseconds(run.started)
    if history.exists():
        yield from _history_points(history, int(run.settings.get("training.steps", 0)), began, mirrored)
    for report in run.reports:
        for name, value in report.items():
            if name != "step":
                yield _Point(name, value, began + report["step"], report["step"])
    last = max([int(run.metrics.get("steps", 0)), *(report["step"] for report in run.reports)])
    told = {} if run.state == "evaluated" else {name: report["step"] for report in run.reports for name in report}
    for name, value in run.metrics.items():
        step = told.get(name, last)
        yield _Point(name, value, began + step, step)
    for name, values in run.curves.items():
        for frame, value in enumerate(values):
            yield _Point(name, value, began + frame, frame)


def _history_points(history: Path, steps: int, began: int, mirrored: int) -> Iterator[_Point]:
    """About `POINTS_PER_CURVE` rows, always the same ones, and every value of metrics that are measured only at some
    steps.
    """
    columns: dict[str, list[Any]] = pq.read_table(history).to_pydict()
    at = columns.pop("step")
    every = max(1, steps // POINTS_PER_CURVE)
    for name, values in columns.items():
        sparse = None in values
        for step, value in zip(at, values, strict=True):
            if step > mirrored and value is not None and (sparse or step % every == 0):
                yield _Point(name, value, began + step, step)


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _milliseconds(seconds: float | None) -> int:
    return round((seconds or 0) * 1000)
