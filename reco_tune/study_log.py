"""The study folder: its layout, the append-only event log (the source of truth), and the run records replayed from
it.

Knows nothing of Ray, Optuna, MLflow or pandas. `study` writes the log; `tracking` and `reporting` read it. The log
has one JSON line per event; `time` is in Unix seconds. The events of a run are, in order: planned or asked; started;
reported, once per rung; then completed (trained) and evaluated (finished), or pruned, or failed. A retry adds
`retried` and another `started` with the next attempt number.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic_core import from_json

from reco_tune.errors import StudyError
from reco_tune.files import LineWriter
from reco_tune.locks import holder
from reco_tune.parts import nearest
from reco_tune.quantities import FVD, SPEEDUP, STAGE_SECONDS, VAL_CROSS_ENTROPY, Quantity
from reco_tune.settings import BASELINE, TUNE, on_codes

EventName = Literal[
    "study",
    "extended",
    "resumed",
    "requested",
    "limited",
    "known",
    "planned",
    "tuned",
    "calibrated",
    "asked",
    "started",
    "reported",
    "pruned",
    "failed",
    "retried",
    "completed",
    "evaluated",
    "rescored",
    "finished",
]
"""`study` opens a log (name, question, arms, settings, constraints, provenance). `extended` gives the settings of an
extended study, and what is new in `what`. `resumed`: a driver continues the study. `requested`: a user's request to a
running study, and why it was `refused`. `limited`: the study stopped at a limit of `stop_after`. `tuned`: the
settings chosen for an arm. `known`: a run of an earlier study with which the search starts. `rescored`: numbers of an
evaluated run under another protocol. `finished`: nothing is left to do. An event written while no driver ran the
study has `aside`.
"""

State = Literal["planned", "running", "completed", "pruned", "failed", "evaluated"]
ENDED: tuple[State, ...] = ("evaluated", "pruned", "failed")
"""Final states of a run. Events of the same names lead to them."""
SAMPLED = "/sampled "
"""In a protocol's name, precedes sampling settings that differ from the study's own."""
SAMPLING_SPEEDUP = "sampling_speedup"
"""A fact of a score with other sampling settings: its sampling speed relative to the study's own settings."""
JUDGED = "at rung "
"""Prefix of the reason if a run was pruned at a rung, not stopped by a user."""
AGAIN = "tried again by hand"
"""Reason of a restart that a user asked for: the run is trained to the end, whatever its rungs say."""


@dataclass(frozen=True)
class StudyFolder:
    """The paths in a study's folder."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.yaml"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def lock(self) -> Path:
        """File that the driver keeps locked."""
        return self.path / ".lock"

    @property
    def live(self) -> bool:
        """Whether the study is running now."""
        return bool(self.driver)

    @property
    def driver(self) -> str:
        """Describes the process that runs the study now, on this machine or on one that shares the folder. Empty if
        there is none.
        """
        return holder(self.lock)

    @property
    def identity(self) -> str:
        """Identifies the study even if its folder is moved or another study has its name: a hash of the log's first
        line, without the line end.
        """
        with self.events.open("rb") as log:
            return hashlib.sha256(log.readline().rstrip(b"\r\n") + b"\n").hexdigest()[:16]

    @property
    def mlflow_uri(self) -> str:
        return f"sqlite:///{(self.path / 'mlflow.db').resolve()}"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.path / "mlartifacts"

    @property
    def phase(self) -> Path:
        """File that tells what the driver does before its runs start."""
        return self.path / "phase.json"

    @property
    def optuna(self) -> Path:
        """The search, in a file for Optuna's own tools."""
        return self.path / "optuna.journal"

    @property
    def requests(self) -> Path:
        """Folder of requests from other processes to the driver."""
        return self.path / "requests"

    @property
    def ray(self) -> Path:
        return self.path / "ray"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def trial(self, trial: str) -> Path:
        """Folder of one run: history.parquet, checkpoint/, model/, samples.npz."""
        return self.path / "trials" / trial

    def history(self, trial: str) -> Path:
        """Step history of one run: a Parquet file with the column `step` and one column per metric."""
        return self.trial(trial) / "history.parquet"


class EventLog:
    """The only writer of a study's events. Each line is complete and on disk when `append` returns."""

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.time, sync: Callable[[int], None] = os.fsync
    ) -> None:
        """Opens the log for appending. Removes an incomplete last line of a killed writer; `repaired` then holds it.

        Args:
            clock: Unix seconds.
            sync: function that syncs a file descriptor to disk.
        """
        self.path = path
        self._lock, self._clock = threading.Lock(), clock
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = LineWriter(path, sync)
        self.repaired = self._lines.torn

    def append(self, event: EventName, **fields: Any) -> dict[str, Any]:
        """Writes one event with its `time`, and returns it as readers of the log will see it.

        Raises:
            StudyError: if it cannot be written; the log then ends with the event before.
        """
        entry = {"event": event, "time": round(self._clock(), 3), **fields}
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False)
        with self._lock:
            try:
                self._lines.append(line)
            except OSError as error:
                reason = (error.strerror or type(error).__name__).lower()
                raise StudyError(f"{self.path} cannot be written to ({reason}); check its disk") from error
        written: dict[str, Any] = _parse(line)
        return written

    def close(self) -> None:
        self._lines.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Every complete event of a log, in order, without an incomplete last line.

    Raises:
        StudyError: if the file is missing, a line is damaged, or the first line is lost.
    """
    if not path.exists():
        raise StudyError(
            f"{path.parent} is not a study folder: it has no {path.name}; give the folder that `reco-tune run` printed"
        )
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                event = _parse(line)
            except ValueError as error:
                raise StudyError(
                    f"{path}, line {number}, is damaged; restore the file from a backup or remove that line"
                ) from error
            if number == 1:
                _check_first(event, path)
            yield event


@dataclass
class RunRecord:
    """One run, replayed from the log."""

    trial: str
    """Name of the run, unique in its study: `reco-equal_steps-s0`, `full-s0`, `search-0003`, `search-0003-s1`."""
    index: int
    """Order in which runs were planned or asked."""
    arm: str
    """Name of the arm, or `search` for a sampled run."""
    budget: str
    """A budget of the space, `both` for the baseline at its full budget, or `tune`."""
    seed: int
    state: State = "planned"
    attempt: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    """Every setting under its dotted key (JSON values)."""
    settings_hash: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    """The values that the sampler chose for a sampled run, or the point that a tuning run tries."""
    repeats: str = ""
    """The sampled run that this run repeats with another training seed. Both share one calibration."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Latest value of every scalar in `quantities`, including calibration and cost ledger."""
    curves: dict[str, list[float]] = field(default_factory=dict)
    """Curves of `quantities.CURVES` by frame or block."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    """Rung reports: {"step": s, metric: value, ...}."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """protocol, extractor, data and tokenizer fingerprints, hardware."""
    insisted: bool = False
    """Whether a user had it tried again. No rung prunes it then."""
    moves: int = 0
    """How often it moved to other workers for reasons outside the run."""
    rescored: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Results under protocols other than the study's, by protocol: `metrics`, `curves` and `provenance` as above, and
    the evaluation `settings` behind them.
    """
    reason: str = ""
    """Why it failed or was pruned, or which constraint it breaks."""
    started: float | None = None
    ended: float | None = None

    @property
    def stopped_at_rung(self) -> bool:
        """Whether it was pruned at a rung, not stopped by a user."""
        return self.state == "pruned" and self.reason.startswith(JUDGED)

    @property
    def tunes(self) -> bool:
        """Whether it is a tuning run, which no table contains."""
        return self.budget == TUNE


@dataclass
class StudyRecord:
    """A study, replayed from its log."""

    name: str = ""
    question: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    """commit, versions, hardware, command, start time."""
    runs: dict[str, RunRecord] = field(default_factory=dict)
    """In the order in which they were planned or asked."""
    calibrations: dict[str, dict[str, float]] = field(default_factory=dict)
    """Speed metrics by calibration key (an arm's name, or a sampled run's)."""
    arms: list[str] = field(default_factory=list)
    """Arms in the order of the space file."""
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings chosen before the table's runs, by arm."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The space that the study started with. Empty for studies of an earlier version. That version measured the speed
    of an arm with its own model or batch against a baseline with the same model or batch.
    """
    constraints: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metric -> the `min` and `max` that the search allows."""
    extensions: list[dict[str, Any]] = field(default_factory=list)
    """Extensions in order: `what` (words), `arms` (new ones) and `time` of each event `extended`."""
    requests: list[str] = field(default_factory=list)
    """Names of the answered requests (`study.requests`)."""
    limited: str = ""
    """The limit of `stop_after` at which it stopped, in words. Empty if it has continued since."""
    finished: bool = False
    time: float | None = field(default=None, compare=False)
    """Unix seconds of the last replayed event."""
    worked_seconds: float = field(default=0.0, compare=False)
    """Sum of the times between events, without the pauses between two drivers."""

    @property
    def device_seconds(self) -> float:
        """Device seconds so far over all stages, as reported by the runs. A shared calibration counts once."""
        calibration, *stages = (stage.name for stage in STAGE_SECONDS)
        calibrations = sum(metrics.get(calibration, 0.0) for metrics in self.calibrations.values())
        return calibrations + sum(run.metrics.get(stage, 0.0) for run in self.runs.values() for stage in stages)


def replay(events: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> StudyRecord:
    """The study's state after these events."""
    study, collecting = StudyRecord(), gc.isenabled()
    gc.disable()  # a long log makes a million lasting objects, and the collector would double the time
    try:
        for event in events:
            apply(study, event)
    finally:
        if collecting:
            gc.enable()
    return study


def quality_of(runs: Sequence[RunRecord]) -> Quantity:
    """The quality metric of runs: FVD, or validation cross-entropy if all runs use codes without a decoder."""
    return VAL_CROSS_ENTROPY if runs and all(on_codes(run.settings) for run in runs) else FVD


def speed_of(run: RunRecord) -> float:
    """The run's speed-up: 1 for the baseline, 0 if unknown."""
    return run.metrics.get(SPEEDUP.name, 1.0 if run.arm == BASELINE else 0.0)


def whole_at_equal_steps(runs: Iterable[RunRecord], quality: str) -> list[RunRecord]:
    """The evaluated runs of the speed frontier: fixed and sampled runs under the whole equal-steps budget."""
    return [
        run
        for run in runs
        if run.state == "evaluated" and run.budget in ("equal_steps", "both") and quality in run.metrics
    ]


def read_study(path: Path) -> StudyRecord:
    """Reads the study in a folder.

    Raises:
        StudyError: if there is none, or its log is damaged.
    """
    return replay(read_events(StudyFolder(path).events))


def named_run(study: StudyRecord, name: str) -> RunRecord:
    """The run with this name.

    Raises:
        StudyError: if the study has no such run.
    """
    if name not in study.runs:
        raise StudyError(f"study `{study.name}` has no run {name}; {nearest(name, study.runs)}")
    return study.runs[name]


class Follower:
    """Follows a log while it is written. `study` is the state up to the last complete line at the latest `poll`. Each
    line is read once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.study = StudyRecord()
        self._offset = 0

    def poll(self) -> list[dict[str, Any]]:
        """The events since the last call, in order, already part of `study`; none if the log does not exist yet.

        Raises:
            StudyError: if a line is damaged or the first one is lost.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as log:
            log.seek(self._offset)
            new = log.read()
        new = new[: new.rfind(b"\n") + 1]
        try:
            events = [_parse(line) for line in new.splitlines()]
        except ValueError as error:
            raise StudyError(
                f"{self.path} is damaged; restore the file from a backup or remove the damaged line"
            ) from error
        if events and not self._offset:
            _check_first(events[0], self.path)
        self._offset += len(new)
        for event in events:
            apply(self.study, event)
        return events


def _check_first(event: Any, path: Path) -> None:
    """Checks that the log starts with the event `study`: without the list of arms, the rest has no meaning.

    Raises:
        StudyError: if it starts with anything else.
    """
    name = event.get("event") if isinstance(event, dict) else None
    if name != "study":
        raise StudyError(
            f"{path} does not begin with the event `study`, but with {f'`{name}`' if name else str(event)[:60]}: its"
            " first line is lost, or another program wrote it; restore the file from a backup"
        )


def _parse(line: bytes | str) -> Any:
    """Parses one event. pydantic's parser needs a third of the time, but rejects the surrogate characters of file
    names that are not UTF-8.
    """
    try:
        return from_json(line)
    except ValueError:
        return json.loads(line)


def apply(study: StudyRecord, event: dict[str, Any]) -> None:
    """Applies one event to the study's state.

    Raises:
        StudyError: if it is invalid.
    """
    try:
        _take_in(study, event)
        before, study.time = study.time, event.get("time", study.time)
        driven = event["event"] != "resumed" and not event.get("aside")
        if driven and before is not None and study.time is not None:
            study.worked_seconds += max(0.0, study.time - before)
    except (KeyError, TypeError) as error:
        raise StudyError(
            f"the study's log has an invalid event ({str(event)[:120]}, {type(error).__name__} {error}); another"
            " program or version wrote it; restore events.jsonl from a backup"
        ) from error


def _take_in(study: StudyRecord, event: dict[str, Any]) -> None:
    name = event["event"]
    if name == "study":
        study.name, study.question, study.arms = event["name"], event["question"], event["arms"]
        study.provenance, study.constraints = event["provenance"], event.get("constraints", {})
        study.settings = event.get("settings", {})
    elif name == "calibrated":
        study.calibrations[event["key"]] = event["metrics"]
        if event.get("trial") in study.runs:
            study.runs[event["trial"]].metrics.update(event["metrics"])
    elif name == "tuned":
        study.tuned[event["arm"]] = event["settings"]
    elif name == "finished":
        study.finished, study.limited = True, ""
    elif name == "extended":
        new = [arm for arm in event["arms"] if arm not in study.arms]
        study.extensions.append({"what": event["what"], "arms": new, "time": event.get("time")})
        study.arms, study.settings = event["arms"], event["settings"]
        study.requests += [event["request"]] if "request" in event else []
        study.finished = False
    elif name == "resumed":
        study.limited = ""
    elif name == "limited":
        study.limited = event["reason"]
    elif name == "requested":
        study.requests.append(event["request"])  # its effects are separate events
    elif name == "known":
        pass  # it concerns the search, not a run of this study
    elif name in ("planned", "asked"):
        study.runs[event["trial"]] = RunRecord(
            trial=event["trial"],
            index=len(study.runs),
            arm=event["arm"],
            budget=event["budget"],
            seed=event["seed"],
            settings=event["settings"],
            settings_hash=event["settings_hash"],
            params=event.get("params", {}),
            repeats=event.get("repeats", ""),
            metrics=dict(event.get("metrics", study.calibrations.get(event.get("repeats", ""), {}))),
        )
        study.finished = False
    else:
        study.finished = study.finished and name != "retried"
        _apply_to_run(study.runs[event["trial"]], event)


def _apply_to_run(run: RunRecord, event: dict[str, Any]) -> None:
    name = event["event"]
    if name == "started":
        run.state, run.attempt = "running", event["attempt"]
        run.started = run.started or event["time"]
        run.provenance.update(event.get("provenance", {}))
    elif name == "reported":
        run.reports = [
            report for report in run.reports if report["step"] < event["step"]
        ]  # a retried run can report a rung again
        run.reports.append({"step": event["step"], **event["metrics"]})
        run.metrics.update(event["metrics"])
    elif name == "retried":
        run.state, run.attempt, run.ended, run.reason = "planned", event["attempt"], None, ""
        run.moves += event.get("moved", False)
        run.insisted |= event.get("reason") == AGAIN
    elif name == "rescored":
        run.rescored[event["protocol"]] = {
            name: event[name] for name in ("metrics", "curves", "provenance", "settings")
        }
    elif name in ("completed", "evaluated", "pruned", "failed"):
        run.state, run.ended = name, event["time"]
        run.metrics.update(event.get("metrics", {}))
        run.curves.update(event.get("curves", {}))
        run.provenance.update(event.get("provenance", {}))
        run.reason = event.get("reason", "")
