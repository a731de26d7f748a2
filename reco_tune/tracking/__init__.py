"""MLflow: a mirror of the study log, and a reader that returns the same record. Only this package imports mlflow, and
only when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reco_tune.tracking.address import listens, reading_address, shown
from reco_tune.tracking.mirror import Mirror, SyncResult, check_name, sync

if TYPE_CHECKING:
    from reco_tune.study_log import StudyRecord

__all__ = ["Mirror", "SyncResult", "check_name", "listens", "read_study", "reading_address", "shown", "sync"]


def read_study(experiment: str, uri: str | None = None) -> StudyRecord:
    """See `reader.read_study`; imported when called, because MLflow takes seconds to import."""
    from reco_tune.tracking.reader import read_study as read

    return read(experiment, uri)
