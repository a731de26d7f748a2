"""A Ray Train worker: takes jobs from the dispatcher, one after another, and runs each as if it were alone.

Knows the core (calibration, training, evaluation) and the dispatcher; knows nothing of Tune, Optuna or the log.
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch

from reco_tune import quantities as q
from reco_tune.cost import calibrate, memory_by_phase, ways_out
from reco_tune.data.token_cache import TokenCache
from reco_tune.device import machine_bytes
from reco_tune.errors import ReCoTuneError, no_space
from reco_tune.evaluation import EvaluationResult, KernelAtRungs, evaluate
from reco_tune.files import write_json
from reco_tune.settings import Experiment
from reco_tune.study.dispatcher import Job
from reco_tune.study.storage import (
    RESULT,
    LocalFolders,
    Storage,
    StorageError,
    fetch_cache,
    fetch_run,
    scratch,
    store_run,
)
from reco_tune.training import Group, fit

PROGRESS_SECONDS = 1.0
"""Shortest time between two progress messages of one worker. It is longer in a study with many workers."""


class Hooks:
    """A job's connection to the dispatcher. Only rank 0 sends."""

    def __init__(self, dispatcher: Any, job: Job, rank: int, progress_seconds: float = PROGRESS_SECONDS) -> None:
        self._dispatcher, self._key, self._rank, self._progress_seconds = dispatcher, job.key, rank, progress_seconds
        self._last_progress = 0.0
        self._answer: Any = None
        """The dispatcher's answer to the last progress message."""

    def event(self, name: str, **fields: Any) -> None:
        """Sends an event of the run. The dispatcher has it when this returns."""
        if self._rank == 0:
            ray.get(self._dispatcher.post.remote(self._key, name, fields))

    def report(self, step: int, metrics: dict[str, float]) -> bool:
        """Sends a rung's report. True asks the job to stop."""
        return bool(ray.get(self._dispatcher.report.remote(self._key, step, finite(metrics))))

    def asked_to_leave(self) -> bool:
        """Whether the job should stop as soon as it can, from the answer to the last progress message."""
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return False
        return bool(ray.get(self._answer))

    def saved(self, step: int) -> None:
        """Reports a checkpoint of this step, between two rungs. Does not wait for the answer."""
        self._dispatcher.saved.remote(self._key, step)

    def left(self, step: int) -> None:
        """Reports that the job stopped as requested."""
        if self._rank == 0:
            ray.get(self._dispatcher.left.remote(self._key, step))

    def progress(self, done: int, total: int, what: str) -> None:
        """Reports progress, about once a second."""
        now = time.monotonic()
        if self._rank == 0 and (now - self._last_progress >= self._progress_seconds or done == total):
            self._last_progress = now
            self._answer = self._dispatcher.progress.remote(self._key, done, total, what)


Execute = Callable[[Job, Hooks], None]
Store = Callable[[], None]


def serve(config: dict[str, Any]) -> None:
    """The train loop of a warm worker group: does jobs until the dispatcher tells it to leave.

    Args:
        config: `dispatcher` (actor handle), `slot`, `execute` (the function that does a job: `execute` below).
    """
    dispatcher, slot = config["dispatcher"], config["slot"]
    job_function: Execute = config["execute"]
    rank = ray.train.get_context().get_world_rank()
    incarnation = Group.current().broadcast_json(uuid.uuid4().hex)
    context, number = ray.get_runtime_context(), 0
    here = (context.current_actor, context.get_node_id())
    while (job := ray.get(dispatcher.take.remote(slot, incarnation, number, *here))) != "leave":
        if job is None:
            continue
        number += 1
        try:
            job_function(job, Hooks(dispatcher, job, rank, config["progress_seconds"]))
        except Exception as error:
            if no_space(error):  # not the run's fault: all other runs would fail in the same way
                full = f"{scratch()} on {socket.gethostname()}" if job.storage else job.folder or job.tokens
                ray.get(
                    dispatcher.halt.remote(
                        job.key, f"{full} cannot be written, because its disk is full; free some space"
                    )
                )
            elif isinstance(error, StorageError):
                ray.get(dispatcher.halt.remote(job.key, str(error)))
            elif not ray.get(
                dispatcher.raised.remote(job.key, rank, sentence(error, Experiment.model_validate(job.settings)))
            ):
                raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def execute(job: Job, hooks: Hooks) -> None:
    """One job, on every rank of the group: a calibration, or a run from calibration to evaluation.

    A run whose `result.json` lies in its folder is done: only the message was lost.
    """
    group, storage = Group.current(), Storage(job.storage) if job.storage else None
    experiment = Experiment.model_validate(job.settings)
    here = fetch_cache(job, storage) if storage else LocalFolders(experiment, Path(job.tokens), Path(job.folder))
    cache = TokenCache.open(here.tokens)
    if job.kind == "calibration":
        hooks.event("calibrated", metrics=_calibrated(job, experiment, cache, group, hooks))
        return
    store: Store = _shared
    if group.leads:
        if storage is not None:
            fetch_run(storage, job.stored, here.folder)
            store = partial(store_run, storage, job.stored, here.folder)
        here.folder.mkdir(parents=True, exist_ok=True)
    hooks.event("started", attempt=job.attempt, provenance=_where(experiment, cache))
    result = group.broadcast_json(_finished(here.folder, job.settings_hash) if group.leads else None)
    if result is None:
        result = _run(job, experiment, here, cache, group, hooks, store)
    if result is not None:
        hooks.event("evaluated", **result)
    if storage is not None and group.leads:
        shutil.rmtree(here.folder, ignore_errors=True)


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that are numbers. JSON has no NaN, and a missing objective fails its run."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _shared() -> None:
    """Does nothing, for clusters whose machines share the run's folder."""


def _run(
    job: Job, experiment: Experiment, here: LocalFolders, cache: TokenCache, group: Group, hooks: Hooks, store: Store
) -> dict[str, Any] | None:
    """Does a whole run; None if it was asked to stop.

    Args:
        store: stores the run's folder for other machines. Called before any event says that files are on disk.
    """

    def report(step: int, rung: dict[str, float]) -> bool:
        store()
        return hooks.report(step, rung)

    def saved(step: int) -> None:
        store()
        hooks.saved(step)

    metrics: dict[str, float] = {}
    if job.sampled:
        metrics |= job.calibration or _calibrated(job, experiment, cache, group, hooks)
        if job.calibration is None:
            hooks.event("calibrated", metrics=metrics)
    measure = KernelAtRungs(here.experiment, cache, job.generates_at, group, hooks.progress)
    trained = fit(
        experiment,
        cache,
        here.folder,
        report=report,
        progress=hooks.progress,
        group=group,
        measure=measure,
        leave=hooks.asked_to_leave,
        saved=saved,
    )
    if trained.stopped:
        hooks.left(trained.steps)
        return None
    hooks.event("completed", metrics=finite(trained.metrics))
    evaluated = (
        evaluate(trained.model, here.experiment, cache, group=group, folder=here.folder, progress=hooks.progress)
        if job.evaluated
        else EvaluationResult(metrics={}, curves={}, provenance={})
    )
    metrics |= finite(trained.metrics) | finite(evaluated.metrics)
    for stage in (q.GENERATION_SECONDS.name, q.EVALUATION_SECONDS.name):  # the rungs' and the end's
        metrics[stage] = trained.metrics.get(stage, 0.0) + evaluated.metrics.get(stage, 0.0)
    metrics[q.GPU_HOURS.name] = sum(metrics.get(stage.name, 0.0) for stage in q.STAGE_SECONDS) / 3600
    curves = {name: curve for name, curve in evaluated.curves.items() if all(map(math.isfinite, curve))}
    result = {"metrics": metrics, "curves": curves, "provenance": evaluated.provenance}
    if group.leads:
        write_json(here.folder / RESULT, {"settings_hash": job.settings_hash, **result})
        store()
    return result


def _calibrated(job: Job, experiment: Experiment, cache: TokenCache, group: Group, hooks: Hooks) -> dict[str, float]:
    """The calibration of all ranks together, with the same result on each."""
    hooks.progress(0, 1, "calibrating")
    baseline, seconds = Experiment.model_validate(job.baseline), experiment.resources.calibration_seconds
    return finite(calibrate(experiment, baseline, cache, seconds, group=group))


def _finished(folder: Path, settings_hash: str) -> dict[str, Any] | None:
    """The result of a run that was evaluated before, with the same settings."""
    path = folder / RESULT
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result if result.pop("settings_hash") == settings_hash else None


def _where(experiment: Experiment, cache: TokenCache) -> dict[str, str | int]:
    """Machine, process, device and data of a run. Users need machine and process to find its log files, or to stop it
    by hand.
    """
    device = torch.cuda.get_device_name() if experiment.device_type == "cuda" and torch.cuda.is_available() else "cpu"
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": device,
        "data_fingerprint": cache.data_fingerprint,
        "tokenizer_fingerprint": cache.tokenizer_fingerprint,
    }


def sentence(error: Exception, experiment: Experiment) -> str:
    """The error of a job, in one sentence."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        gpu = experiment.device_type == "cuda" and torch.cuda.is_available()
        there = torch.cuda.mem_get_info()[1] if gpu else machine_bytes()
        needed, cause = memory_by_phase(experiment, experiment).training, text[:200] or type(error).__name__
        return (
            f"it ran out of memory ({cause}): a worker needs more than {needed / 2**30:.1f} GiB, its"
            f" {'GPU' if gpu else 'machine'} has {there / 2**30:.1f} in total;"
            f" {ways_out(experiment, experiment, 'training', there)}"
        )
    return text if isinstance(error, ReCoTuneError) else f"{type(error).__name__}: {text[:500]}"
