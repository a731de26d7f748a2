"""Cost of a study: device seconds by arm and stage, with every attempt that was recorded."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from reco_tune import quantities
from reco_tune.reporting.evidence import Evidence
from reco_tune.reporting.numbers import thousands
from reco_tune.reporting.runs import arm_order
from reco_tune.reporting.section import Column, RowGroup, Section, Table, number_column, records, text_column
from reco_tune.settings import SEARCH, TUNE
from reco_tune.study_log import StudyRecord

STAGES = [stage.name for stage in quantities.STAGE_SECONDS]
TUNING = "tuning of all arms"
COUNTS = ("tokens_seen", "loss_tokens", "training_flops")
COLUMNS = ("arm", "runs", *STAGES, "device_hours", *COUNTS, "forward_flops", "backward_flops")


def build(evidence: Evidence) -> Section:
    columns = (
        text_column("arm", "arm"),
        text_column("runs", "runs", "count"),
        *(_stage_column(stage) for stage in STAGES),
        number_column("device_hours", "device (h)", 3),
        *(_count_column(name) for name in COUNTS),
    )
    table = Table(
        "cost",
        "Cost ledger",
        columns,
        [RowGroup("", records(ledger(evidence.study, evidence.own)))],
        "Device time by stage, summed over the runs of an arm. The runs that tuned the arms are one row. A device is a"
        " GPU, or a worker without one. A calibration that several runs share counts once.",
        files=(),
        mark=lambda row: "total" if row["arm"] == "total" else "",
    )
    return Section("cost", "What it cost", tables=[table])


def ledger(study: StudyRecord, runs: pd.DataFrame) -> pd.DataFrame:
    """One row for the runs that tuned the arms, one for each arm (sampled runs last), and a total. Values are sums over
    runs, or NaN if no run measured them. A calibration that several runs share counts once.
    """
    rows = []
    arms = runs["arm"].to_numpy()
    calibrated = _calibration_seconds(study)
    tuning = (runs["budget"] == TUNE).to_numpy()
    for arm in [TUNING, *arm_order(runs), SEARCH]:
        own = tuning if arm == TUNING else (arms == arm) & ~tuning
        if own.any():
            sums = {name: runs[name][own].sum(min_count=1) for name in COLUMNS if name in runs and name != "arm"}
            rows.append({"arm": arm, "runs": int(own.sum()), **sums, STAGES[0]: calibrated.get(arm, 0.0)})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["device_hours"] = table[STAGES].sum(axis=1) / 3600
    total = {name: table[name].sum(min_count=1) for name in COLUMNS if name != "arm"}
    return pd.concat(
        [table, pd.DataFrame([{"arm": "total", **total, "runs": int(table["runs"].sum())}])], ignore_index=True
    )


def _stage_column(stage: str) -> Column:
    return replace(number_column(stage, f"{stage.removesuffix('_seconds')} (s)", 1), optional=True)


def _count_column(name: str) -> Column:
    heading = name.replace("_", " ").replace("flops", "FLOPs")
    return Column(name, heading, lambda row: thousands(row[name]), value=lambda row: float(row[name]))


def _calibration_seconds(study: StudyRecord) -> dict[str, float]:
    """Seconds by arm; the calibrations of sampled runs, keyed by their trial, add up under `search`."""
    spent: dict[str, float] = {}
    for key, metrics in study.calibrations.items():
        arm = study.runs[key].arm if key in study.runs else key
        spent[arm] = spent.get(arm, 0.0) + float(metrics.get(STAGES[0], 0.0))
    return spent
