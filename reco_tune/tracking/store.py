"""The MLflow client of this project, with few log lines and short timeouts, and the names under which a study is
stored.

MLflow is a mirror that can be deleted and rebuilt; nothing here makes decisions. A run's settings are parameters
under their dotted keys (JSON values). Everything else in the log is stored in tags, split into parts if it is long.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

QUIET = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": (
        "5"
    ),  # seconds; MLflow's defaults (120 and 7 retries) block a call for minutes if a server is dead
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
for _name, _value in QUIET.items():  # MLflow reads them when it is imported
    os.environ.setdefault(_name, _value)

from alembic.util import CommandError  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import (  # noqa: E402
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    LoggedModelInput,
    LoggedModelStatus,
    Run,
)
from mlflow.exceptions import MlflowException  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

from reco_tune.errors import TrackingError  # noqa: E402
from reco_tune.locks import HeldError, lock  # noqa: E402
from reco_tune.tracking.address import check_address, database, restore_command, shown  # noqa: E402

FAILURES = (MlflowException, SQLAlchemyError, CommandError, ImportError, OSError)
"""Errors of MLflow: its own, those of its database and of the network, and missing database drivers."""

STUDY_ID = "reco_tune.study_id"
"""Identity of the study that an experiment or a parent run belongs to."""
KIND = "reco_tune.kind"
"""`study` (the parent run) or `trial`."""
RECORD = "reco_tune.record"
"""Everything that the log says of a run besides its settings. On a parent run: what it says of the study."""
SETTINGS_ORDER = "reco_tune.settings_order"
"""On the parent run: the order of the setting keys, which MLflow does not keep."""
FILES = "reco_tune.files"
"""Path -> digest of the mirrored artifacts and of the mirrored history."""
MIRRORED_STEP = "reco_tune.mirrored_step"
"""The last mirrored step of a run's history."""
PART_CHARACTERS = 5000
"""Length of one part. MLflow truncates tags at 8,000 characters."""
PAGE_RUNS = 1000
LONGEST_REASON = 200
"""Characters of an MLflow error in a message."""
LONGEST_MAKING_SECONDS = 60.0
"""Longest wait, in seconds, while another process creates the database."""

for _noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "mlflow.utils", "urllib3.connectionpool"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)


def connect(uri: str) -> MlflowClient:
    """An MLflow client. If `uri` is a sqlite file that does not exist yet, creates the database, one process at a
    time.

    Raises:
        TrackingError: if the address is invalid, no server answers, or the database is not MLflow's.
    """
    check_address(uri)
    file = database(uri)
    if file is not None and not file.exists():  # MLflow itself would retry for two minutes
        above = next(folder for folder in file.absolute().parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise TrackingError(
                f"{file} cannot be created, because {above} is not writable; give another --tracking-uri"
            )
    with telling(uri, "cannot be used", "give another --tracking-uri"), ExitStack() as stack:
        if file is not None:
            with suppress(OSError, HeldError):  # in a read-only folder no other process creates one
                file.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock(file.with_name(f".{file.name}.lock"), LONGEST_MAKING_SECONDS))
        return MlflowClient(tracking_uri=uri)


@contextmanager
def telling(uri: str, what: str, way_out: str) -> Iterator[None]:
    """Turns MLflow's errors in the block into one sentence.

    Raises:
        TrackingError: `MLflow at URI WHAT (reason); WAY_OUT`.
    """
    try:
        yield
    except FAILURES as error:
        raise TrackingError(f"MLflow at {shown(uri)} {what} ({first_line(error)}); {way_out}") from error


def find_experiment(client: MlflowClient, name: str, otherwise: str = "") -> Experiment | None:
    """The experiment with this name, or None.

    Args:
        otherwise: what else a user can do if the experiment was deleted.

    Raises:
        TrackingError: if it was deleted, because MLflow still reserves its name.
    """
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        uri = client.tracking_uri
        raise TrackingError(
            f"the experiment `{name}` was deleted in MLflow at {shown(uri)}; restore it with"
            f" `{restore_command(uri, found.experiment_id)}`{otherwise}"
        )
    return found


def experiment_of(client: MlflowClient, identity: str) -> Experiment | None:
    """The experiment that holds a study, under any name."""
    found = client.search_experiments(filter_string=f"tags.`{STUDY_ID}` = '{identity}'", max_results=1)
    return found[0] if found else None


def is_of(parent: Run, identity: str) -> bool:
    """Whether a parent run belongs to a study."""
    return bool(parent.data.tags[STUDY_ID] == identity)


def all_runs(client: MlflowClient, experiment: Experiment | str, kind: str) -> list[Run]:
    """Yields every run of a kind, with parameters, tags and latest metrics, page by page."""
    identity = experiment if isinstance(experiment, str) else experiment.experiment_id
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([identity], f"tags.`{KIND}` = '{kind}'", max_results=PAGE_RUNS, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def log_inputs(client: MlflowClient, identity: str, data: Dataset, model: str) -> None:
    """Logs the inputs of a run. A repeated call changes nothing.

    Args:
        model: identity of the model whose codes the run reads; empty for none.
    """
    models = [LoggedModelInput(model)] if model else None
    client.log_inputs(
        identity, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", "training")])], models=models
    )


def tokenizer_model(client: MlflowClient, experiment: str, fingerprint: str) -> str:
    """Identity of the MLflow model that represents a tokenizer; creates it if needed. The weights stay in the cache
    folder.
    """
    name = f"tokenizer-{fingerprint[:16]}"
    found = client.search_logged_models([experiment], filter_string=f"name = '{name}'", max_results=1)
    if found:
        return str(found[0].model_id)
    made = client.create_logged_model(
        experiment, name=name, tags={"reco_tune.tokenizer_fingerprint": fingerprint}, model_type="tokenizer"
    )
    client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    return str(made.model_id)


def to_tags(name: str, value: Any) -> dict[str, str]:
    """A JSON value as tags `name` (number of parts) and `name.0`, `name.1`, ..."""
    text = json.dumps(value, separators=(",", ":"))
    parts = [text[start : start + PART_CHARACTERS] for start in range(0, len(text), PART_CHARACTERS)]
    return {name: str(len(parts)), **{f"{name}.{number}": part for number, part in enumerate(parts)}}


def from_tags(name: str, tags: Mapping[str, str]) -> Any:
    """The inverse of `to_tags`; None if there is no such value.

    Raises:
        KeyError, ValueError: if a part is missing or damaged.
    """
    if name not in tags:
        return None
    return json.loads("".join(tags[f"{name}.{number}"] for number in range(int(tags[name]))))


def digest(path: Path) -> str:
    """Short hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def first_line(error: BaseException) -> str:
    """The first line of an error, without its causes."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON].rsplit(' ', 1)[0]} ..."
