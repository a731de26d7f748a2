"""Records a small study in the real log format: an event writer with orderly made-up numbers, for tests of what reads
studies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reco_tune.settings import ARMS, COMPUTE_SHARES, Experiment, Space, arm_experiment, save_space
from reco_tune.study_log import EventLog, StudyFolder

PROTOCOL = "native/9x12x12/stride1/reconstructed/train2048/n512x1/9f3c21ab"
FVD = {  # arm -> FVD at equal steps, at equal compute
    "full": (2.0, 2.0),
    "masked_full": (8.9, 9.4),
    "full_continuity": (1.9, 1.95),
    "fewer_frames": (22.0, 20.6),
    "fewer_frames_tokens": (9.7, 9.2),
    "local": (11.9, 12.7),
    "local_first": (10.0, 4.5),
    "local_balanced": (8.9, 4.0),
    "reco": (6.2, 2.4),
    "norm_penalty": (6.0, 2.45),
}
SPEED = {  # arm -> speed-up, its FLOP limit, peak memory ratio
    "masked_full": (1.0, 1.0, 1.0),
    "full_continuity": (0.96, 1.0, 1.02),
    "fewer_frames": (2.35, 2.58, 0.41),
    "fewer_frames_tokens": (2.34, 2.58, 0.41),
    "local": (1.72, 2.05, 0.52),
    "local_first": (1.8, 2.16, 0.5),
    "local_balanced": (1.95, 2.28, 0.47),
    "reco": (1.92, 2.28, 0.47),
    "norm_penalty": (1.93, 2.28, 0.47),
}
SHARED: dict[str, Any] = {
    "data": {"layout": "digits", "clip_frames": 9, "size_px": 12, "train_clips": 4096},
    "model": {"width": 64, "depth": 3, "heads": 4},
    "training": {"steps": 600, "batch_size": 32, "learning_rate": 3e-3, "rungs": 3},
    "evaluation": {"samples": 512},
}


def record_study(
    path: Path,
    arms: Sequence[str] = tuple(FVD),
    budgets: Sequence[str] = ("equal_steps", "equal_compute"),
    seeds: Sequence[int] = (0,),
    searched: int = 8,
    failing: Sequence[str] = (),
    again: Sequence[str] = (),
    files: bool = True,
    protocol: str = PROTOCOL,
    noise: float = 0.08,
) -> Path:
    """Writes settings.yaml, events.jsonl and, with `files`, histories and samples of a study; returns its folder.

    Of the searched runs the last is pruned; those named in `again` run with the seeds 1 and 2 too, at 1.1 and 1.2 times
    their FVD. Runs named in `failing` fail for a loss that is not finite.
    """
    folder, random_ = StudyFolder(path), random.Random(0)
    space = Space(
        question="What does the toy ladder cost?", experiment=SHARED, arms={arm: {} for arm in arms}, seeds=tuple(seeds)
    )
    log = EventLog(folder.events)
    save_space(space, folder.settings)
    versions = {"torch": "2.13.0", "ray": "2.60.0"}
    provenance = {
        "commit": "0123abc",
        "version": "0.1.0",
        "versions": versions,
        "hardware": "2 CPU cores",
        "command": "reco-tune run toy.yaml",
    }
    log.append(
        "study",
        name=path.name,
        question=space.question,
        arms=list(arms),
        settings=space.model_dump(mode="json", exclude={"source"}),
        constraints={"fvd": {"max": 30.0}},
        provenance=provenance,
    )
    trials: list[tuple[str, str, float, Experiment, dict[str, float]]] = []
    for arm in arms:
        speed = _speed(arm)
        if arm != "full":
            log.append("calibrated", key=arm, metrics=speed)
        own = ["both", *(budget for budget in budgets if COMPUTE_SHARES.get(budget, 1) < 1)]
        for budget in own if arm == "full" else budgets:
            for seed in seeds:
                name = f"full-s{seed}" if budget == "both" else f"{arm}-{budget}-s{seed}"
                share = COMPUTE_SHARES.get(budget)
                steps = 600 if share is None else round(600 * share * speed.get("speedup", 1.0))
                experiment = arm_experiment(space, arm, {"training.seed": seed, "training.steps": steps})
                level = FVD.get(arm, (5.0, 5.0))[budget != "equal_steps"]
                if share is not None and share < 1:
                    level *= 1.5 ** -math.log2(share)  # each halving of the compute costs half as much again
                _plan(log, name, arm, budget, seed, experiment, speed)
                trials.append((name, budget, level * math.exp(random_.gauss(0, noise)), experiment, speed))
    for name, budget, level, experiment, speed in trials:
        _run(
            log,
            folder,
            name,
            budget,
            level,
            experiment,
            speed,
            "failed" if name in failing else "evaluated",
            files,
            protocol,
        )
    finalists: list[tuple[str, float, dict[str, Any], dict[str, float]]] = []
    for number in range(searched):
        length = (9, 18, 27)[number % 3]
        params = {
            "window.length_tokens": length,
            "window.stride_fraction": 0.5,
            "window.first_frame_probability": round(random_.uniform(0.1, 0.9), 3),
            "objective.continuity_weight": round(10 ** random_.uniform(-3, 0), 4),
        }
        experiment, name = arm_experiment(space, None, params), f"search-{number:04d}"
        _plan(log, name, "search", "equal_steps", 0, experiment, {}, params)
        pace = round(45 / (length + 8 * (1 - params["window.first_frame_probability"])), 3)
        speed = _speed("", pace, pace * 1.15, length / 45)
        log.append("calibrated", key=name, trial=name, metrics=speed)
        level = 2 + 26 * math.exp(-length / 9) + 2 * abs(math.log10(params["objective.continuity_weight"]) + 1)
        _run(
            log,
            folder,
            name,
            "equal_steps",
            level,
            experiment,
            speed,
            "pruned" if number == searched - 1 else "evaluated",
            files,
            protocol,
        )
        if name in again:
            finalists.append((name, level, params, speed))
    for seed in (1, 2):
        for base, level, params, speed in finalists:
            experiment, name = arm_experiment(space, None, {"training.seed": seed, **params}), f"{base}-s{seed}"
            _plan(log, name, "search", "equal_steps", seed, experiment, {}, params, base)
            _run(
                log,
                folder,
                name,
                "equal_steps",
                level * (1 + seed / 10),
                experiment,
                speed,
                "evaluated",
                files,
                protocol,
            )
    log.append("finished")
    log.close()
    return path


def _speed(arm: str, speedup: float = 1.0, limit: float = 1.0, memory: float = 1.0) -> dict[str, float]:
    if arm == "full":
        return {}
    speedup, limit, memory = SPEED.get(arm, (speedup, limit, memory))
    return {
        "speedup": speedup,
        "speedup_low": round(speedup * 0.96, 4),
        "speedup_high": round(speedup * 1.04, 4),
        "speedup_limit": limit,
        "limit_fraction": speedup / limit,
        "peak_memory_ratio": memory,
        "calibration_seconds": 3.5,
    }


def _plan(
    log: EventLog,
    name: str,
    arm: str,
    budget: str,
    seed: int,
    experiment: Experiment,
    metrics: dict[str, float],
    params: dict[str, Any] | None = None,
    repeats: str = "",
) -> None:
    common = {
        "trial": name,
        "arm": arm,
        "budget": budget,
        "seed": seed,
        "settings": experiment.flat(),
        "settings_hash": experiment.result_hash(),
    }
    if params is None:
        log.append("planned", **common, metrics=metrics)
    else:
        log.append("asked", **common, params=params, **({"repeats": repeats} if repeats else {}))


def _run(
    log: EventLog,
    folder: StudyFolder,
    name: str,
    budget: str,
    level: float,
    experiment: Experiment,
    speed: dict[str, float],
    end: str,
    files: bool,
    protocol: str,
) -> None:
    random_ = random.Random(name)
    pace = speed.get("speedup", 1.0)
    steps = experiment.training.steps
    log.append(
        "started",
        trial=name,
        attempt=1,
        provenance={"device": "cpu", "data_fingerprint": "d4e5", "tokenizer_fingerprint": "70c3"},
    )
    floor = 0.5 + 0.12 * math.log(level)
    rungs = [round(steps * (rung + 1) / 3) for rung in range(3)]
    for rung in rungs[:1] if end == "pruned" else rungs:
        loss = floor + 3 * math.exp(-4 * rung / steps)
        log.append(
            "reported",
            trial=name,
            step=rung,
            metrics={"train_cross_entropy": loss, "val_cross_entropy": loss + 0.12, "steps": rung},
        )
    if files and end != "failed":
        _write_files(folder, name, steps, floor, random_)
    if end == "pruned":
        log.append("pruned", trial=name, step=rungs[0], reason="dominated at the first rung")
        return
    if end == "failed":
        log.append("failed", trial=name, reason="the loss is not finite at step 412")
        return
    seconds = steps * 0.05 / pace
    costs = {
        "training_seconds": seconds,
        "tokens_seen": steps * 32 * 45.0,
        "training_flops": steps * 1.3e9 / pace,
        "steps": float(steps),
    }
    log.append("completed", trial=name, metrics={**costs, "hidden_norm": 4.2, "continuity": 0.8})
    fvd = {"fvd": level, "fvd_low": level * 0.9, "fvd_high": level * 1.1}
    scores = {"kernel_distance": level / 40, "class_accuracy": 0.55 - 0.012 * level, "motion_distance": 0.02 * level}
    shrunk = 0.4 if experiment.objective.continuity_weight else 1.0
    scores |= {
        "lipschitz_tokens": 9.0 * shrunk,
        "lipschitz_tokens_relative": 1.2,
        "lipschitz_frames": 8.0 * shrunk,
        "lipschitz_frames_relative": 1.1,
    }
    own = (
        speed["calibration_seconds"] if name.startswith("search") and "-s" not in name else 0.0
    )  # that of an arm is in no run's hours
    times = {"generation_seconds": 4.0, "evaluation_seconds": 3.0, "gpu_hours": (seconds + 7 + own) / 3600}
    growth = 0.04 + 0.002 * level
    scores |= {"first_frame_gap": 0.1 + 0.02 * level, "last_frame_accuracy": 0.62 * math.exp(-0.08 * level)}
    if not experiment.window.scheme.startswith("fewer_frames"):  # whose pieces have too few blocks
        scores |= {
            "error_growth_rate": math.log(0.9),
            "error_growth_slope": -0.1 * growth,
            "error_growth_aic": 3 + random_.random(),
        }
    curves = {
        "loss_by_frame_train": [1.1 + 0.03 * level, 0.8, 0.6 + 0.01 * level, 0.5, 0.45 + 0.015 * level],
        "loss_by_frame_generated": [1.2 + 0.05 * level, 0.85, 0.66 + 0.01 * level, 0.6, 0.5 + 0.03 * level],
        "error_growth": [growth * 0.9**block for block in range(5)],
        "fvd_by_samples": [level * (1 + 40 / clips) for clips in (64, 128, 256, 512)],
        "frame_accuracy": [0.62 * math.exp(-0.01 * level * frame) for frame in range(9)],
    }
    origin = {"protocol": protocol, "extractor": "9f3c21ab"}
    log.append("evaluated", trial=name, metrics={**fvd, **scores, **times}, curves=curves, provenance=origin)


def _write_files(folder: StudyFolder, name: str, steps: int, floor: float, random_: random.Random) -> None:
    folder.trial(name).mkdir(parents=True, exist_ok=True)
    at = list(range(10, steps + 1, 10))
    losses = [floor + 3 * math.exp(-4 * step / steps) + random_.gauss(0, 0.02) for step in at]
    pq.write_table(pa.table({"step": at, "train_cross_entropy": losses}), folder.history(name))
    time, row, column = np.ogrid[:9, :12, :12]
    videos = []
    for label in range(8):
        ball = 255 * np.exp(-((row - 3 - time / 2) ** 2 + (column - label - time / 3) ** 2) / 4)
        videos.append(np.repeat(ball[:, None], 3, axis=1))
    noisy = np.stack(videos) + np.random.default_rng(len(name)).normal(0, 12, (8, 9, 3, 12, 12))
    clean = np.clip(np.stack(videos), 0, 255).astype(np.uint8)
    np.savez_compressed(
        folder.trial(name) / "samples.npz",
        video=np.clip(noisy, 0, 255).astype(np.uint8),
        labels=np.arange(8),
        real=clean,
    )


ALL_ARMS = tuple(ARMS)
