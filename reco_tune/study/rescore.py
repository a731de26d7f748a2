"""Evaluates a study's kept models under another protocol and adds the results to its log. Works in this process, one
model after another. Each result is in the log before the next model begins, so the same call continues after any crash.
Needs no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reco_tune import quantities as q
from reco_tune.cost.planning import plan
from reco_tune.cost.timing import device_clock, in_rounds
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import CheckpointError, DataError, SettingsError, StudyError
from reco_tune.evaluation import evaluate, prepare_evaluation
from reco_tune.generation import Request, sample_tokens
from reco_tune.model import Decoder
from reco_tune.preparation import prepare_tokens
from reco_tune.progress import Progress, quiet
from reco_tune.settings import WHERE, Experiment, load_space, make_experiment, parse_overrides
from reco_tune.study.export import exported
from reco_tune.study.study_writer import locked
from reco_tune.study_log import SAMPLED, SAMPLING_SPEEDUP, EventLog, RunRecord, StudyFolder, read_study
from reco_tune.training import load_model, plan_scheme, prepare_device

CHANGEABLE = ("evaluation.", "sampling.", *WHERE)
"""First parts of the keys that may change: how clips of a trained model are made and judged, and where."""
TIMED_CLIPS, TIMED_ROUNDS = 32, 5
"""Clips and rounds of the comparison of two ways of sampling."""


@dataclass(frozen=True)
class Rescored:
    """The result of `rescore`."""

    protocol: str
    """The other protocol."""
    scored: list[str]
    """Runs that were scored in this call."""
    known: list[str]
    """Runs that an earlier call has scored."""
    lost: dict[str, str]
    """Runs whose model cannot be read, with the reason."""


def rescore(folder: Path, changes: Sequence[str], progress: Progress = quiet) -> Rescored:
    """Evaluates every kept model of a study with other settings of `evaluation` or `sampling`.

    Args:
        changes: `key=value` of `evaluation.*`, of `sampling.*`, or of where it works (`WHERE`).

    Raises:
        StudyError: if the folder holds no study, a running one, or one without an evaluated run.
        SettingsError: for any other setting, or if the protocol stays the same.
        DataError: if data or tokenizer have changed.
    """
    overrides = parse_overrides(changes)
    for key in overrides:
        if not key.startswith(CHANGEABLE):
            raise SettingsError(
                f"--set {key}: training depended on this setting; only evaluation.* and sampling.* may change"
            )
    target = StudyFolder(Path(folder))
    with locked(target):
        study = read_study(target.path)
        runs = [run for run in study.runs.values() if run.state == "evaluated"]
        if not runs:
            raise StudyError(f"the study in {folder} has no evaluated run yet; try again when a run has been evaluated")
        here = plan(load_space(target.settings)).shared.where_settings()
        judged = {run.trial: _judged(run, here | overrides) for run in runs}
        cache = _cache(list(judged.values()), runs, progress)
        protocol = prepare_evaluation(judged[runs[0].trial], cache, progress).protocol + _sampled(runs, judged)
        if any(run.provenance.get("protocol") == protocol for run in runs):
            raise SettingsError(
                f"these settings give the study's own protocol, {protocol}; change evaluation.* or sampling.*"
            )
        found = Rescored(protocol, [], [], {})
        with closing(EventLog(target.events)) as log:
            for done, run in enumerate(runs):
                progress(done, len(runs), f"scoring models under {protocol.split('/')[0]}")
                if protocol in run.rescored:
                    found.known.append(run.trial)
                    continue
                try:
                    event = _score(target.trial(run.trial), run, judged[run.trial], cache)
                except CheckpointError as error:
                    found.lost[run.trial] = str(error)
                    continue
                event["provenance"]["protocol"] = protocol
                log.append("rescored", trial=run.trial, protocol=protocol, **event)
                found.scored.append(run.trial)
            progress(len(runs), len(runs), f"scoring models under {protocol.split('/')[0]}")
    return found


def _judged(run: RunRecord, changes: dict[str, Any]) -> Experiment:
    return make_experiment(exported(run).model_dump(mode="json"), changes, where=run.trial)


def _sampled(runs: list[RunRecord], judged: dict[str, Experiment]) -> str:
    """The part of a protocol that says how clips were sampled, if not as in the study."""
    before = [exported(run).flat() for run in runs]
    after = [judged[run.trial].flat() for run in runs]
    keys = [key for key in after[0] if key.startswith("sampling.")]
    changed = [key for key in keys if any(old[key] != new[key] for old, new in zip(before, after, strict=True))]
    told = ",".join(f"{key.removeprefix('sampling.')}={after[0][key]}" for key in changed)
    return f"{SAMPLED}{told}" if told else ""


def _speedup(model: Decoder, own: Experiment, other: Experiment) -> float:
    """Speed-up of the other way of sampling: the study's seconds over the other's, for the same clips, measured in
    turn.
    """
    clips = min(TIMED_CLIPS, own.evaluation.samples)
    request = Request(torch.zeros(clips, dtype=torch.long), seed=0)

    def sample(way: Experiment) -> None:
        for _ in sample_tokens(model, way, [request]):
            pass

    jobs = [partial(sample, way) for way in (own, other)]
    for job in jobs:
        job()  # caches and compilation
    rounds = in_rounds(jobs, device_clock(model.device), seconds=0.0, fewest=TIMED_ROUNDS)
    return float(np.median(rounds[:, 0] / rounds[:, 1]))


def _cache(judged: list[Experiment], runs: list[RunRecord], progress: Progress) -> TokenCache:
    """The token cache that the models were trained on."""
    pieces = sorted({blocks for experiment in judged for blocks in plan_scheme(experiment).encoded_piece_blocks})
    seen = {str(run.provenance.get("data_fingerprint", "")) for run in runs} - {""}
    cache = prepare_tokens(judged[0], progress, pieces, seen=seen)
    cache.require_pixels()
    codes = {str(run.provenance.get("tokenizer_fingerprint", "")) for run in runs} - {"", cache.tokenizer_fingerprint}
    if codes:
        raise DataError(
            f"the codes in {cache.path} are not the ones that the models were trained on; give the old folder with"
            " --set data.cache_dir=FOLDER"
        )
    return cache


def _score(folder: Path, run: RunRecord, experiment: Experiment, cache: TokenCache) -> dict[str, Any]:
    """The model of a run.

    Raises:
        CheckpointError: if the model is missing or damaged.
    """
    loaded = load_model(folder, experiment.evaluation.checkpoint)
    model = loaded.model.to(prepare_device(experiment))
    result, facts = evaluate(model, experiment, cache), {}
    if (own := exported(run)).sampling != experiment.sampling:
        facts[SAMPLING_SPEEDUP] = _speedup(model, own, experiment)
    metrics = {name: float(value) for name, value in result.metrics.items() if math.isfinite(value)}
    return {
        "metrics": {name: value for name, value in metrics.items() if name in q.ALL},
        "curves": {name: curve for name, curve in result.curves.items() if all(map(math.isfinite, curve))},
        "provenance": result.provenance | facts,
        "settings": {
            key: value for key, value in experiment.flat().items() if key.startswith(("evaluation.", "sampling."))
        },
    }
