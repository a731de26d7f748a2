"""The overhead of orchestration: the seconds of a trial beyond its work, and where they go, for this project and for
the bare libraries.

All candidates run the same trials in the same code (`study.worker.execute`: calibration, training with reports and
checkpoints, sampling, evaluation) on one tiny experiment. They differ in what surrounds it:

- a study as `reco-tune run` runs it, without MLflow;
- Ray Tune with Ray's own Optuna searcher, where each trial launches a TorchTrainer;
- Optuna's ask and tell in a loop.

Both Ray candidates get this project's cluster settings, which detect the end of a trial sooner than Ray's defaults.
Ray and Optuna are imported only where they run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reco_tune import quantities as q
from reco_tune.benchmarks.tables import Column, Row, Table
from reco_tune.errors import RunFailedError, SettingsError
from reco_tune.evaluation import prepare_evaluation
from reco_tune.preparation import prepare_tokens
from reco_tune.progress import Progress, quiet
from reco_tune.settings import BASELINE, Space, arm_experiment
from reco_tune.study_log import StudyFolder, read_events

if TYPE_CHECKING:
    from reco_tune.study.dispatcher import Job

AT_ONCE = 2
"""Number of concurrent trials, if the candidate and the machine allow it."""
PILOT_STEPS = 40
"""Steps of the pilot run that determines how many steps make a trial of a given length."""
EXPERIMENT: dict[str, Any] = {
    "data": {
        "layout": "digits",
        "clip_frames": 9,
        "size_px": 12,
        "train_clips": 128,
        "test_clips": 32,
        "class_conditional": False,
    },
    "tokenizer": {"num_codes": 64, "first_frame_codes": 24, "fit_clips": 128},
    "model": {"width": 64, "depth": 3, "heads": 4},
    "window": {"length_blocks": 2},
    "evaluation": {
        "protocol": "native-random",
        "samples": 32,
        "reference_clips": 64,
        "validation_clips": 32,
        "analyses": False,
    },
    "resources": {"calibration_seconds": 0.3},
}
"""The experiment of a trial. Only λ is sampled, so all trials take equally long."""
PARTS = ("asked_seconds", "launch_seconds", "opening_seconds", "rest_seconds")

_COLUMNS = (
    Column("way", "way"),
    Column("work", "work of a trial, s", ".1f"),
    Column("trials", "trials", "d"),
    Column("at_once", "at once", "d"),
    Column("low", "overhead, s: min", ".2f"),
    Column("median", "median", ".2f"),
    Column("high", "most", ".2f"),
    Column("mean", "mean", ".2f"),
    Column("asked_seconds", "of the mean: until the next trial is asked for", ".2f"),
    Column("launch_seconds", "until its worker starts", ".2f"),
    Column("opening_seconds", "until its first report", ".2f"),
    Column("rest_seconds", "until its end", ".2f"),
    Column("start_seconds", "first worker after, s", ".1f"),
    Column("whole_seconds", "whole search, s", ".1f"),
)

Event = dict[str, Any]
"""A line of a study's log. For the bare libraries: only the events that give times."""


class RecordedSearch(NamedTuple):
    """The record of one search."""

    events: list[Event]
    at_once: int
    began: float
    """Unix seconds."""
    ended: float


class TrialTimes(NamedTuple):
    """When a trial reached each stage, in Unix seconds, and the seconds in its ledger."""

    asked: float
    started: float
    """When its worker started to run."""
    reported: float
    """When it sent its first report."""
    ended: float
    work_to_report: float
    """Seconds of calibration and training before the first report."""
    work: float
    """Seconds of calibration, training, generation and evaluation."""


def bench_orchestration(lengths: Sequence[float], trials: int, progress: Progress = quiet) -> Table:
    """One row per length and candidate: minimum, median and maximum of a trial's overhead in seconds, and the parts
    of its mean.

    Args:
        lengths: approximate seconds of work in a trial.
        trials: number of trials in each search; must exceed the number that runs at once.

    Raises:
        SettingsError: if there are too few trials.
        RunFailedError: if a candidate loses a trial.
    """
    if trials <= AT_ONCE:
        raise SettingsError(
            f"--trials ({trials}) must be more than the {AT_ONCE} that run at once, because the first trials have no"
            " predecessor to measure from; raise it"
        )
    rows: list[Row] = []
    with TemporaryDirectory(prefix="reco-bench-") as place:
        progress(0, 1, "preparing data")
        space = bench_space(Path(place) / "cache", trials, steps=PILOT_STEPS)
        experiment = arm_experiment(space, None)
        tokens = prepare_tokens(experiment)
        prepare_evaluation(experiment, tokens)
        pilot = search_in_process(space.model_copy(update={"trials": 1}), tokens.path, Path(place) / "pilot")
        for length in lengths:
            space = bench_space(Path(place) / "cache", trials, steps=_steps_of(length, pilot))
            for name, way in WAYS.items():
                progress(len(rows), len(lengths) * len(WAYS), f"trials of {length:g} s: {name}")
                rows.append(row_of(name, way(space, tokens.path, Path(place) / f"search-{len(rows)}"), trials))
        progress(len(rows), len(rows), "searches")
    title = (
        "Seconds of a trial beyond the work in its ledger (calibration, training, generation, evaluation), and where"
        " they go"
    )
    return Table("orchestration", title, _COLUMNS, rows)


def trial_times(events: Iterable[Event]) -> list[TrialTimes]:
    """The evaluated trials of a log, in the order in which they were asked for."""
    seen: dict[str, dict[str, float]] = {}
    for event in events:
        trial = seen.setdefault(event.get("trial", ""), {"work_to_report": 0.0})
        name, metrics = event["event"], event.get("metrics", {})
        if name == "asked":
            trial["asked"] = event["time"]
        elif name == "started":
            trial["started"] = event["time"]
        elif name == "calibrated":
            trial["work_to_report"] += metrics[q.CALIBRATION_SECONDS.name]
        elif name == "reported" and "reported" not in trial:
            trial["reported"] = event["time"]
            trial["work_to_report"] += metrics[q.TRAINING_SECONDS.name]
        elif name == "evaluated":
            trial |= {"ended": event["time"], "work": 3600 * metrics[q.GPU_HOURS.name]}
    return sorted(TrialTimes(**trial) for trial in seen.values() if "work" in trial)


def beyond_work(trials: Sequence[TrialTimes], at_once: int) -> NDArray[np.float64]:
    """Overhead in seconds, [trials - at_once, parts], by `PARTS`: the time from the end of a trial's predecessor to
    its own end, minus its work.

    A trial starts when its predecessor's place becomes free. The first `at_once` trials have no predecessor. What
    they wait for is the start of the whole search.
    """
    freed = sorted(trial.ended for trial in trials)
    return np.array(
        [
            (
                trial.asked - place,
                trial.started - trial.asked,
                trial.reported - trial.started - trial.work_to_report,
                trial.ended - trial.reported - (trial.work - trial.work_to_report),
            )
            for trial, place in zip(trials[at_once:], freed, strict=False)
        ]
    )


def row_of(way: str, search: RecordedSearch, expected: int) -> Row:
    trials = trial_times(search.events)
    if len(trials) < expected:
        raise RunFailedError(
            f"{way} ended {len(trials)} of {expected} trials; run it again, and look at its logs if that repeats itself"
        )
    parts_NP = beyond_work(trials, search.at_once)
    whole_N = parts_NP.sum(axis=1)
    return {
        "way": way,
        "work": float(np.median([trial.work for trial in trials])),
        "trials": len(trials),
        "at_once": search.at_once,
        "low": float(whole_N.min()),
        "median": float(np.median(whole_N)),
        "high": float(whole_N.max()),
        "mean": float(whole_N.mean()),
        **{name: float(mean) for name, mean in zip(PARTS, parts_NP.mean(axis=0), strict=True)},
        "start_seconds": min(trial.started for trial in trials) - search.began,
        "whole_seconds": search.ended - search.began,
    }


def bench_space(cache: Path, trials: int, steps: int) -> Space:
    experiment = {
        **EXPERIMENT,
        "data": {**EXPERIMENT["data"], "cache_dir": str(cache)},
        "training": {"steps": steps, "batch_size": 16},
    }
    experiment["resources"] = {**EXPERIMENT["resources"], "concurrent_trials": AT_ONCE}
    search = {"objective.continuity_weight": {"float": (0.01, 1.0), "log": True}}
    return Space.model_validate(
        {"question": "What does orchestration cost?", "experiment": experiment, "search": search, "trials": trials}
    )


def _steps_of(length: float, pilot: RecordedSearch) -> int:
    """Steps in a trial of this length, extrapolated from the pilot's trial."""
    metrics = next(event["metrics"] for event in pilot.events if event["event"] == "evaluated")
    training: float = metrics[q.TRAINING_SECONDS.name]
    besides: float = 3600 * metrics[q.GPU_HOURS.name] - training
    return max(PILOT_STEPS, math.ceil((length - besides) * PILOT_STEPS / training))


# --- the ways ---


class _RecordingHooks:
    """Receives what a trial reports when there is no dispatcher. `tell` gets each rung's metrics."""

    def __init__(self, trial: str, tell: Callable[[dict[str, float]], None]) -> None:
        self.events: list[Event] = []
        self._trial, self._tell = trial, tell

    def event(self, name: str, **fields: Any) -> None:
        self.events.append({"event": name, "time": time.time(), "trial": self._trial, **fields})

    def report(self, step: int, metrics: dict[str, float]) -> bool:
        self.event("reported", step=step, metrics=metrics)
        self._tell({"step": step, **metrics})
        return False

    def progress(self, done: int, total: int, what: str) -> None:
        """Ignored."""

    def asked_to_leave(self) -> bool:
        return False

    def saved(self, step: int) -> None:
        """Ignored."""


def _job(space: Space, params: dict[str, Any], tokens: Path, folder: Path) -> Job:
    from reco_tune.study.dispatcher import Job

    experiment = arm_experiment(space, None, params)
    settings = experiment.model_dump(mode="json")
    baseline = arm_experiment(space, BASELINE).model_dump(mode="json")
    return Job(
        "trial",
        folder.name,
        settings,
        experiment.result_hash(),
        str(tokens),
        str(folder),
        sampled=True,
        baseline=baseline,
    )


def _as_a_study(space: Space, tokens: Path, folder: Path) -> RecordedSearch:
    """This project's runner: Ray Tune, warm Ray Train worker groups, dispatcher, log, our Optuna searcher."""
    from reco_tune.study import Options, run
    from reco_tune.study.cluster import machine, place

    began = time.time()
    run(space, folder, Options(track=False))
    at_once = place(arm_experiment(space, None).resources, [machine()], space.trials).groups
    return RecordedSearch(list(read_events(StudyFolder(folder).events)), at_once, began, time.time())


def _bare_ray(space: Space, tokens: Path, folder: Path) -> RecordedSearch:
    """Ray Tune with function trials that each launch a TorchTrainer, and Ray's Optuna searcher."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from reco_tune.study.cluster import cluster, place
    from reco_tune.study.ranges import to_distribution
    from reco_tune.study.ray_internals import HEAD

    asked: dict[str, float] = {}

    class Timed(OptunaSearch):
        def suggest(self, trial_id: str) -> Any:
            asked[trial_id] = time.time()
            return super().suggest(trial_id)

    began = time.time()
    resources = arm_experiment(space, None).resources
    with cluster(None, resources, folder / "temp") as nodes:
        placement = place(resources, nodes, space.trials)
        given = {"space": space, "tokens": tokens, "folder": folder, "resources": placement.worker_resources}
        distributions = {key: to_distribution(key, range_) for key, range_ in space.search.items()}
        modes = {"maximize": "max", "minimize": "min"}
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(_launch_trainer, given=given), {HEAD: 0.001}),
            tune_config=tune.TuneConfig(
                search_alg=Timed(
                    distributions,
                    metric=list(space.objectives),
                    mode=[modes[direction] for direction in space.objectives.values()],
                ),
                num_samples=space.trials,
                max_concurrent_trials=placement.groups,
            ),
            run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0),
        ).fit()
        reports = [result.metrics or {} for result in results]
    told = [event for report in reports for event in report.get("events", [])]
    first = [
        {"event": "asked", "time": asked[report["trial_id"]], "trial": report["events"][0]["trial"]}
        for report in reports
        if "events" in report
    ]
    return RecordedSearch([*first, *told], placement.groups, began, time.time())


def _launch_trainer(config: dict[str, Any], given: dict[str, Any]) -> None:
    """The Tune function of a bare trial."""
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    name = f"trial-{tune.get_context().get_trial_id()}"
    TorchTrainer(
        _train_bare,
        train_loop_config={**given, "params": config, "name": name},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker=given["resources"]),
        run_config=ray.train.RunConfig(name=name, storage_path=str(given["folder"]), callbacks=[TuneReportCallback()]),
    ).fit()


def _train_bare(config: dict[str, Any]) -> None:
    """The worker of a bare trial."""
    import ray.train

    from reco_tune.study.worker import execute

    folder = config["folder"] / "work" / config["name"]
    unknown = dict.fromkeys(config["space"].objectives, math.nan)  # Tune requires every objective in every report
    hooks: Any = _RecordingHooks(config["name"], lambda metrics: ray.train.report({**unknown, **metrics}))
    execute(_job(config["space"], config["params"], config["tokens"], folder), hooks)
    ray.train.report({**hooks.events[-1]["metrics"], "events": hooks.events})


def search_in_process(space: Space, tokens: Path, folder: Path) -> RecordedSearch:
    """Optuna's ask and tell: one trial after another in this process."""
    import optuna

    from reco_tune.study.ranges import to_distribution
    from reco_tune.study.worker import execute

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    began, events = time.time(), list[Event]()
    study = optuna.create_study(directions=list(space.objectives.values()))
    distributions = {key: to_distribution(key, range_) for key, range_ in space.search.items()}
    for number in range(space.trials):
        name = f"trial-{number}"
        events.append({"event": "asked", "time": time.time(), "trial": name})
        trial = study.ask(distributions)
        hooks: Any = _RecordingHooks(name, lambda metrics: None)  # Optuna accepts reports for one objective only
        execute(_job(space, trial.params, tokens, folder / name), hooks)
        events += hooks.events
        study.tell(trial, [hooks.events[-1]["metrics"][name] for name in space.objectives])
    return RecordedSearch(events, 1, began, time.time())


WAYS: dict[str, Callable[[Space, Path, Path], RecordedSearch]] = {
    "this project": _as_a_study,
    "bare Ray Tune + Train": _bare_ray,
    "bare Optuna, one process": search_in_process,
}
