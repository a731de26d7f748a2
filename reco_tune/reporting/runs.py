"""A study as a table: one row for each run, with every setting, every metric, and what makes its numbers comparable.

Reads run records only, from a study folder's log or from MLflow. Touches no models, no Ray and no figures.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reco_tune import quantities
from reco_tune.errors import ComparisonError
from reco_tune.reporting.numbers import quoted
from reco_tune.reporting.quality import FVD, Quality, quality_of_layouts
from reco_tune.settings import BASELINE, LATER, SEARCH, TUNE, WHERE, Bound, step_cost
from reco_tune.settings.protocols import CODES_ALONE
from reco_tune.study_log import JUDGED, RunRecord, StudyRecord, read_study

Source = Path | str | StudyRecord
"""A study folder, `mlflow:EXPERIMENT` (the server of MLFLOW_TRACKING_URI), or a study already read."""

IMPORTED = " (imported)"
"""Suffix of the arm of an imported run."""
SPEEDS = ("speedup", "speedup_low", "speedup_high", "speedup_limit", "limit_fraction", "peak_memory_ratio")
"""Columns that are relative to the baseline."""
OWN_BASELINE = "its speed was measured against a baseline with"
"""Beginning of the reason why a run has no speed-up."""
INFEASIBLE = "infeasible"
"""Beginning of the reason of an evaluated run that breaks a constraint."""
IDENTITY = ("trial", "study", "arm", "budget", "seed", "state", "attempt", "settings_hash", "reason")
PROVENANCE = ("protocol", "extractor", "rank_deficient", "data_fingerprint", "tokenizer_fingerprint", "device")
STUDY_PROVENANCE = ("commit", "version", "hardware")
PROTOCOL_KNOBS = (
    "evaluation.protocol",
    "clip (frames x height x width)",
    "frame stride",
    "evaluation.reference",
    "reference split and clips",
    "evaluation.samples x evaluation.sampling_seeds",
    "feature extractor",
    "evaluation.checkpoint",
)
"""Meaning of the slash-separated parts of a protocol string."""
CODES_KNOBS = ("evaluation.protocol", "evaluation.validation_clips", "evaluation.checkpoint")
"""Parts of the protocol string of a study without pixels."""
STAR_KNOBS = ("data.layout", "data.resize", "evaluation.reference_clips")
"""Settings that can turn a named protocol into a variant but are not part of the protocol string."""
NOT_DATA = ("data.cache_dir", "data.min_clips", "data.decode_seconds")
"""Settings of the data that do not change any clip."""
PIECES = ("fewer_frames", "fewer_frames_tokens")
"""Schemes whose models have no validation cross-entropy."""
MOST_NAMED = 4
"""Largest number of settings that a message names if two runs saw different data."""


def load_study(source: Source) -> StudyRecord:
    """The study behind a source.

    Raises:
        StudyError: where there is no study, or its log is damaged.
        TrackingError: where MLflow cannot be read.
    """
    if isinstance(source, StudyRecord):
        return source
    if str(source).startswith("mlflow:"):
        from reco_tune.tracking import read_study as read_tracked  # MLflow takes seconds to import

        return read_tracked(str(source).removeprefix("mlflow:"), None)
    return read_study(Path(source))


def load_runs(source: Source) -> pd.DataFrame:
    """One row for each run, in the order in which runs were planned. The columns do not depend on the runs, except for
    the keys of the settings.

    Columns: trial, study, arm, budget, seed, state, attempt, settings_hash, reason; every setting under its dotted key;
    every scalar of `quantities` (float, NaN if it was not measured); protocol, extractor, whether its covariances
    lacked rank, fingerprints, device; commit, version, hardware.

    `attrs["arms"]` holds the order of the arms. `attrs["repeats"]` maps a trial to the sampled run whose configuration
    it repeats. `attrs["constraints"]` maps a metric to the range that the search allows. For an evaluated run, `reason`
    names the constraint that it breaks.
    """
    return runs_table(load_study(source))


def bounds(runs: pd.DataFrame) -> dict[str, Bound]:
    """Constraints of the study's search, by metric."""
    constraints: dict[str, Bound] = runs.attrs.get("constraints", {})
    return constraints


def broken_constraints(metrics: Mapping[str, float], constraints: Mapping[str, Bound]) -> str:
    """The constraints that these metrics break, as text; empty if they break none."""
    return ", ".join(
        f"{name} is {metrics[name]:g}, not {bound}"
        for name, bound in constraints.items()
        if bound.violation(metrics.get(name, math.nan)) > 0
    )


def runs_table(study: StudyRecord) -> pd.DataFrame:
    """`load_runs` of a study already read. Ten thousand runs take a second: values are collected run by run, words stay
    Python's own.
    """
    runs = sorted(study.runs.values(), key=lambda run: run.index)
    constraints = {metric: Bound.model_validate(bound) for metric, bound in study.constraints.items()}
    columns: dict[str, Any] = {
        name: [study.name] * len(runs) if name == "study" else [getattr(run, name) for run in runs] for name in IDENTITY
    }
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    for key, values in zip(
        keys, zip(*([run.settings.get(key) for key in keys] for run in runs), strict=True), strict=False
    ):
        plain = [_plain(value) for value in values] if {dict, list} & set(map(type, values)) else list(values)
        columns[key] = pd.Series(plain, dtype=object)  # object: 18 stays 18 beside a missing value
    numbers = np.array(
        [[run.metrics.get(name) for name in quantities.ALL] for run in runs], dtype=np.float64
    )  # None becomes NaN
    columns |= dict(zip(quantities.ALL, numbers.reshape(len(runs), len(quantities.ALL)).T, strict=True))
    columns[quantities.GPU_HOURS.name] = np.array([_device_hours(run) for run in runs], dtype=np.float64)
    for name in PROVENANCE:
        columns[name] = [_plain(run.provenance.get(name)) or "" for run in runs]
    for name in STUDY_PROVENANCE:
        columns[name] = [_plain(study.provenance.get(name)) or ""] * len(runs)
    table = pd.DataFrame(
        {name: pd.Series(own, dtype=object) if _words(own) else own for name, own in columns.items()}
    ).copy()
    _baseline_speed(table)
    _refuse_own_baselines(table, study, runs)
    if constraints:
        measured = {name: table[name].tolist() for name in constraints}
        for row, run in enumerate(runs):
            broken = broken_constraints({name: values[row] for name, values in measured.items()}, constraints)
            if broken and run.state == "evaluated":
                table.loc[row, "reason"] = f"{INFEASIBLE}: {broken}"
    table.attrs["arms"] = list(study.arms)
    table.attrs["constraints"] = constraints
    table.attrs["repeats"] = {run.trial: run.repeats for run in runs if run.repeats}
    return table


def quality_of_runs(runs: pd.DataFrame) -> Quality:
    """The metric that ranks the runs of a study. Imported runs do not change it."""
    return quality_of_layouts(set(own_runs(runs)["data.layout"])) if "data.layout" in runs else FVD


def comparable(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that may be in one table: evaluated at full fidelity, with finite speed-up and quality, all of one
    protocol.

    Runs without pixels have no FVD columns. They have columns for the interval of the cross-entropy, which is over
    seeds and therefore empty for a single run (`quality_of`).

    Raises:
        ComparisonError: if runs have different protocols or data sets. It names the setting that differs.
    """
    kept, quality = runs[_whole(runs)], quality_of_runs(runs)
    _one_protocol(kept)
    if quality is FVD:
        return kept
    return kept.drop(columns=list(FVD.ends)).assign(**{quality.low: math.nan, quality.high: math.nan})


def refuse_mixed(kept: pd.DataFrame) -> None:
    """Refuses runs that would count as seeds of one arm, or of one sampled configuration, but differ in more than the
    seed.

    The settings of seeds differ only in the seed and in where the run took place. Between studies, the steps of a
    compute budget may differ too, because they follow from each study's own speeds. An imported run is checked only for
    settings that its file has.

    Args:
        kept: comparable runs (`comparable`).

    Raises:
        ComparisonError: if they differ. It names two runs, the setting and both values.
    """
    rows: dict[tuple[str, str, str], list[int]] = {}
    studies = np.where(kept["arm"] == SEARCH, kept["study"], "")  # each study numbers its sampled runs from 0
    for row, key in enumerate(zip(configurations(kept), kept["budget"], studies, strict=True)):
        rows.setdefault(key, []).append(row)
    keys = [key for key in map(str, kept) if "." in key and key != "training.seed" and not key.startswith(WHERE)]
    for (name, budget, _), own in rows.items():
        if len(own) > 1:
            group = kept.iloc[own]
            given = budget not in ("both", "equal_steps") and group["study"].nunique() > 1
            _refuse_different(group, [key for key in keys if not (given and key == "training.steps")])
            if not name.endswith(IMPORTED) and group["seed"].duplicated().any():
                seed = group.loc[group["seed"].duplicated(), "seed"].iloc[0]
                one, two = group.loc[group["seed"] == seed, "trial"].iloc[:2]
                raise ComparisonError(f"{one} and {two} are both seed {seed} of `{name}`; report them apart")


def _refuse_different(group: pd.DataFrame, keys: Sequence[str]) -> None:
    for key in keys:
        values = group[key].to_numpy()
        if (values == values[:1]).all():
            continue
        told = [
            (trial, LATER.get(key) if pd.isna(value) else value)  # an older study does not have it
            for trial, value, elsewhere in zip(group["trial"], values, _elsewhere(group), strict=True)
            if not (elsewhere and pd.isna(value))
        ]
        for trial, value in told:
            if value != told[0][1]:
                raise ComparisonError(
                    f"{told[0][0]} and {trial} would count as seeds of one arm, but {key} is {told[0][1]} in the one"
                    f" and {value} in the other; report them apart"
                )


def own_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of the study itself, without imported runs."""
    elsewhere = _elsewhere(runs)
    return runs[~elsewhere] if elsewhere.any() else runs


def exclusions(runs: pd.DataFrame) -> list[str]:
    """Reason why each run may not be in a table; empty if it may. An imported run may lack a speed-up."""
    quality = quality_of_runs(runs)
    names = ("budget", "state", "reason", quality.key, "speedup", "steps", "training.steps", "window.scheme")
    columns = [runs[name].tolist() if name in runs else [None] * len(runs) for name in names]
    given, stopped = _baseline_steps(runs), stopped_arms(runs)
    found = [
        "" if whole else _exclusion(given, quality, *row) for whole, *row in zip(_whole(runs), *columns, strict=True)
    ]
    for row, (at, state) in enumerate(zip(zip(runs["arm"], runs["budget"], strict=True), runs["state"], strict=True)):
        if at in stopped and state == "evaluated":
            found[row] = f"seed {stopped[at]['seed']} of its arm was stopped early, and the seeds left are no fair mean"
    return found


def _whole(runs: pd.DataFrame) -> NDArray[np.bool_]:
    """Which runs may stand in a table. Works on arrays, because it is called often, for ten thousand runs."""
    names = (quality_of_runs(runs).key, "speedup", "steps")
    quality, speedup, steps = (runs[name].to_numpy(dtype=np.float64) for name in names)
    whole = (
        (runs["state"] == "evaluated").to_numpy(dtype=bool)
        & (runs["budget"] != TUNE).to_numpy(dtype=bool)
        & np.isfinite(quality)
        & (np.isfinite(speedup) | _elsewhere(runs))
    )
    if "training.steps" in runs:
        # At compute budgets the step count follows from the calibrated speed, so only equal steps can be checked
        # against the setting.
        asked, equal = (
            runs["training.steps"].to_numpy(dtype=np.float64, na_value=np.nan),
            (runs["budget"] == "equal_steps").to_numpy(dtype=bool),
        )
        whole &= ~(equal & (steps < asked))
        if (given := _baseline_steps(runs)) is not None:
            whole &= ~(equal & ~_elsewhere(runs) & (asked != given))
    if stopped := stopped_arms(runs):
        whole &= [at not in stopped for at in zip(runs["arm"], runs["budget"], strict=True)]
    found: NDArray[np.bool_] = whole
    return found


def stopped_arms(runs: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """(arm, budget) -> row of the arm's first run that was stopped at a rung (`pruning.arms`). The seeds that continued
    are the better ones, so such an arm is in no comparison.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    fixed = (runs["arm"] != SEARCH) & (runs["budget"] != TUNE)
    for row in np.flatnonzero(((runs["state"] == "pruned") & fixed).to_numpy(dtype=bool)):
        run = {str(name): value for name, value in runs.iloc[row].items()}
        if run["reason"].startswith(JUDGED):
            found.setdefault((run["arm"], run["budget"]), run)
    return found


def _baseline_steps(runs: pd.DataFrame) -> int | None:
    """Steps that equal steps give, the baseline's; None where it did not run, or at several."""
    if "training.steps" not in runs:
        return None
    whole = runs[(runs["arm"] == BASELINE) & (runs["budget"] == "both")]
    steps = whole["training.steps"].dropna().unique()
    return int(steps[0]) if len(steps) == 1 else None


def _elsewhere(runs: pd.DataFrame) -> NDArray[np.bool_]:
    return np.array([arm.endswith(IMPORTED) for arm in runs["arm"]], dtype=bool)


def differing(runs: pd.DataFrame) -> list[str]:
    """The settings that take more than one value over these runs, in the order in which settings stand; a run from
    elsewhere has none.
    """
    own = own_runs(runs)
    columns = {key: own[key].to_numpy() for key in map(str, own) if "." in key}
    return [key for key, values in columns.items() if (values != values[:1]).any()]


def measured_with(runs: pd.DataFrame) -> str:
    """Origin and protocol of these runs, for the end of a table's caption."""
    origin = [f"{name} {value}" for name in ("commit", "hardware") for value in dict.fromkeys(runs[name]) if value]
    words = [f"Measured with {', '.join(origin)}."] if origin else []
    return " ".join(words + [f"Protocol: {quoted(protocol)}." for protocol in dict.fromkeys(runs["protocol"])])


def told_apart(places: Sequence[str]) -> list[str]:
    """Short names for files, folders and experiments: for each, the shortest end of its path that no other shares."""
    parts = [re.split("(?<=[:/])", place) for place in places]
    ends = [["".join(own[at:]) for at in range(len(own) - 1, -1, -1)] for own in parts]
    shared = Counter(end for own in ends for end in own)
    return [next(end for end in own if shared[end] == 1) for own in ends]


def arm_order(runs: pd.DataFrame) -> list[str]:
    """Arms in the order of the space file, sampled runs left out."""
    return [arm for arm in dict.fromkeys([*runs.attrs.get("arms", []), *runs["arm"]]) if arm != SEARCH]


def configurations(runs: pd.DataFrame) -> list[str]:
    """The configuration of each run: its arm, or the first sampled run with the same settings."""
    repeats = runs.attrs.get("repeats", {})
    return [
        repeats.get(trial, trial) if arm == SEARCH else arm
        for trial, arm in zip(runs["trial"], runs["arm"], strict=True)
    ]


def _exclusion(
    given: int | None,
    quality: Quality,
    budget: str,
    state: str,
    reason: str,
    value: float,
    speedup: float,
    steps: float,
    asked: Any,
    scheme: Any,
) -> str:
    """Reason why a run may not be in a table, as text.

    Args:
        given: the baseline's steps.
        asked: steps of the run's settings.
    """
    if budget == TUNE:
        return "it tunes its arm"
    if state == "failed":
        return f"failed: {reason}" if reason else "failed"
    if state == "pruned":
        return f"pruned: {reason}" if reason else "pruned"
    if state != "evaluated":
        return f"not finished ({state})"
    if not math.isfinite(value):
        pieces = f": `{scheme}` trains pieces of clips, and cannot score whole ones" if scheme in PIECES else ""
        return f"its {quality.name} is not finite" if quality is FVD else f"it has no {quality.name}{pieces}"
    if not math.isfinite(speedup):
        return reason if reason.startswith(OWN_BASELINE) else "its speed-up was not measured"
    if steps >= asked and given is not None:
        return f"it took {steps:.0f} steps, not the baseline's {given}"
    return f"stopped after {steps:.0f} of {asked} steps"


def _one_protocol(runs: pd.DataFrame) -> None:
    protocols = list(dict.fromkeys(runs["protocol"]))
    if len(protocols) > 1:
        first, second = protocols[:2]
        one, two = _first_of(runs, "protocol", protocols)
        parts = _parts(first), _parts(second)
        alone = [own[0] == CODES_ALONE for own in parts]
        names = CODES_KNOBS if all(alone) else PROTOCOL_KNOBS[:1] if any(alone) else PROTOCOL_KNOBS
        knobs = [f"{name} ({a} against {b})" for name, a, b in zip(names, *parts, strict=False) if a != b]
        knobs += _differing(one, two, STAR_KNOBS)
        raise ComparisonError(
            f"{one['trial']} ({first}) and {two['trial']} ({second}) differ in"
            f" {', '.join(knobs) or 'the length of their protocol'}: their numbers are not comparable; evaluate both"
            " under one protocol or report them apart"
        )
    versions = [value for value in dict.fromkeys(runs["data_fingerprint"]) if value]
    if len(versions) > 1:
        one, two = _first_of(runs, "data_fingerprint", versions)
        knobs = _differing(one, two, [key for key in runs.columns if key.startswith("data.") and key not in NOT_DATA])
        by = f", by {', '.join(knobs[:MOST_NAMED])}" if knobs else ""
        by += f" and {len(knobs) - MOST_NAMED} more" if len(knobs) > MOST_NAMED else ""
        raise ComparisonError(
            f"data_fingerprint differs ({versions[0]} against {versions[1]}): {one['trial']} and {two['trial']} saw"
            f" different data{by}; report them apart"
        )
    reconstructed = any(
        protocol.split("/")[3:4] == ["reconstructed"] for protocol in protocols
    )  # by now there is at most one
    tokenizers = [value for value in dict.fromkeys(runs["tokenizer_fingerprint"]) if value] if reconstructed else []
    if len(tokenizers) > 1:
        raise ComparisonError(
            f"tokenizer_fingerprint differs ({tokenizers[0]} against {tokenizers[1]}): the runs were compared with real"
            " clips that went through different tokenizers; report them apart, or evaluate both with"
            " evaluation.reference raw"
        )


def _parts(protocol: str) -> list[str]:
    """The parts of a protocol string, one for each setting. Adds the checkpoint `last` if the string leaves it out."""
    parts = protocol.split("/")
    return [*parts, "last"] if len(parts) == len(PROTOCOL_KNOBS) - 1 else parts


def _first_of(runs: pd.DataFrame, column: str, values: Sequence[str]) -> tuple[pd.Series, pd.Series]:
    """The first run of each of the first two values."""
    one, two = (runs[runs[column] == value].iloc[0] for value in values[:2])
    return one, two


def _differing(one: pd.Series, two: pd.Series, keys: Sequence[str]) -> list[str]:
    """Settings in which two runs differ, with the beginnings of their values; none where a run came from elsewhere
    without its settings.
    """
    if pd.isna(one.get("data.layout")) or pd.isna(two.get("data.layout")):  # which every run of ours has
        return []
    values = {key: [None if pd.isna(run.get(key)) else run[key] for run in (one, two)] for key in keys}
    return [f"{key} ({a!s:.80} against {b!s:.80})" for key, (a, b) in values.items() if a != b]


def _refuse_own_baselines(table: pd.DataFrame, study: StudyRecord, runs: Sequence[RunRecord]) -> None:
    """Removes speeds that an earlier version measured against a baseline with the arm's own model or batch. They cannot
    be compared with the speeds of other arms, and the steps of a compute budget that follow from them cannot either.
    """
    if study.settings:
        return  # logs have it since speeds are relative to the study's baseline
    full = next((run.settings for run in runs if run.arm == BASELINE), None)
    for row, run in enumerate(runs):
        costly = [key for key in run.settings if step_cost(key) and not key.startswith(("window.", "objective."))]
        if full is not None:
            own = [key for key in costly if run.settings[key] != full.get(key, LATER.get(key))]
        else:
            own = [key for key in run.params if key in (*costly, "model.preset")]
        if own:
            table.loc[row, list(SPEEDS)] = math.nan
            table.loc[row, "reason"] = f"{OWN_BASELINE} its own {own[0]}, by an earlier version"


def _baseline_speed(table: pd.DataFrame) -> None:
    """The baseline's speed-up is 1 by definition, also where nobody calibrated it against itself."""
    baseline = (table["arm"] == BASELINE).to_numpy()
    for name in SPEEDS:
        table.loc[baseline & table[name].isna().to_numpy(), name] = 1.0


def _device_hours(run: RunRecord) -> float:
    """Recorded hours; else training, generation and evaluation added up (calibration is shared by the runs
    of an arm)."""
    recorded = _number(run.metrics.get(quantities.GPU_HOURS.name))
    if math.isfinite(recorded):
        return recorded
    stages = [run.metrics.get(stage.name) for stage in quantities.STAGE_SECONDS[1:]]
    spent = [seconds for seconds in stages if seconds is not None]
    return sum(spent) / 3600 if spent else math.nan


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _words(column: Any) -> bool:
    return isinstance(column, list) and str in set(map(type, column))


def _plain(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value
