"""Reads a study from MLflow as the same record that the log gives. So reports can use either."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from reco_tune.errors import TrackingError
from reco_tune.study_log import RunRecord, StudyRecord
from reco_tune.tracking import store
from reco_tune.tracking.address import reading_address, shown

if TYPE_CHECKING:
    from mlflow.entities import Run


def read_study(experiment: str, uri: str | None = None) -> StudyRecord:
    """The study in an MLflow experiment; `uri` None means MLFLOW_TRACKING_URI.

    Raises:
        TrackingError: if MLflow cannot be reached, or has no complete study of that name.
    """
    where = reading_address(experiment, uri)
    with store.telling(where, "does not answer", "check that it runs"):
        client = store.connect(where)
        found = store.find_experiment(client, experiment)
        parents = store.all_runs(client, found, "study") if found else []
        trials = store.all_runs(client, found, "trial") if found else []
    if not parents:
        raise TrackingError(
            f"MLflow at {shown(where)} has no study named `{experiment}`; `reco-tune sync STUDY_DIR` sends one"
        )
    try:
        return _record(parents[0], trials)
    except (KeyError, ValueError, TypeError) as error:
        raise TrackingError(
            f"MLflow at {shown(where)} has only a part of study `{experiment}`; `reco-tune sync STUDY_DIR` sends the"
            " rest"
        ) from error


def _record(parent: Run, trials: list[Run]) -> StudyRecord:
    told = store.from_tags(store.RECORD, parent.data.tags)
    order = {key: place for place, key in enumerate(store.from_tags(store.SETTINGS_ORDER, parent.data.tags))}
    records = [store.from_tags(store.RECORD, trial.data.tags) for trial in trials]
    if None in records:
        raise ValueError("a trial without its record")
    calibrations = {
        record["trial"]: calibration for record in records if (calibration := record.pop("calibration")) is not None
    }
    runs = [
        RunRecord(**record, settings=_settings(trial, order)) for record, trial in zip(records, trials, strict=True)
    ]
    begun = {run.trial for run in runs}  # a run may have started after the record of the study was sent
    runs += [RunRecord(**record) for trial, record in told.pop("runs").items() if trial not in begun]
    study = StudyRecord(**told, runs={run.trial: run for run in sorted(runs, key=lambda run: run.index)})
    study.calibrations.update(calibrations)
    return study


def _settings(trial: Run, order: dict[str, int]) -> dict[str, Any]:
    return {key: json.loads(trial.data.params[key]) for key in sorted(trial.data.params, key=lambda key: order[key])}
