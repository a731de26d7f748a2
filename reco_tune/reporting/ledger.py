"""What a study cost: device seconds by arm and stage, every attempt that left a number included."""

from __future__ import annotations

import numpy as np
import pandas as pd

from reco_tune.reporting.runs import SEARCH, arm_order
from reco_tune.study_log import StudyRecord

STAGES = ("calibration_seconds", "training_seconds", "generation_seconds", "evaluation_seconds")
COLUMNS = (
    "arm",
    "runs",
    *STAGES,
    "device_hours",
    "tokens_seen",
    "loss_tokens",
    "training_flops",
    "forward_flops",
    "backward_flops",
)


def ledger(study: StudyRecord, runs: pd.DataFrame) -> pd.DataFrame:
    """One row an arm (sampled runs last) and a total; sums over its runs. A calibration that several runs share counts
    once.
    """
    rows = []
    arms = runs["arm"].to_numpy()
    calibrated = _calibration_seconds(study)
    for arm in [*arm_order(runs), SEARCH]:
        own = arms == arm
        if own.any():
            sums = {
                name: float(np.nansum(runs[name].to_numpy()[own])) for name in COLUMNS if name in runs and name != "arm"
            }
            rows.append({"arm": arm, "runs": int(own.sum()), **sums, STAGES[0]: calibrated.get(arm, 0.0)})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["device_hours"] = table[list(STAGES)].sum(axis=1) / 3600
    total = {name: table[name].sum() for name in COLUMNS if name != "arm"}
    return pd.concat([table, pd.DataFrame([{"arm": "total", **total}])], ignore_index=True)


def _calibration_seconds(study: StudyRecord) -> dict[str, float]:
    """Seconds by arm; the calibrations of sampled runs, keyed by their trial, add up under `search`."""
    spent: dict[str, float] = {}
    for key, metrics in study.calibrations.items():
        arm = study.runs[key].arm if key in study.runs else key
        spent[arm] = spent.get(arm, 0.0) + float(metrics.get(STAGES[0], 0.0))
    return spent
