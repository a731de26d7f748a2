"""What a run leaves on disk: the checkpoint it resumes from, and the trained model. Knows files; refuses to know
optimisers and loops.

safetensors for tensors, JSON for the rest, never pickle. A folder appears whole, by a rename, or not at all:

    RUN/checkpoint/step-00000240/{tensors.safetensors, state.json, history.parquet}     the newest whole one counts
    RUN/history.parquet                                                                 its copy for readers
    RUN/model/{model.safetensors, model.json, experiment.yaml}                          once training is done
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import CheckpointError, SettingsError
from reco_tune.model import VideoTransformer
from reco_tune.settings import LATER, Experiment, load_experiment

SCHEMA = 1
"""Version of both layouts; another one is refused."""

History = dict[str, list[float | None]]
"""Columns of the step history, `step` first; None where a metric was not measured at a step."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on bit for bit."""

    step: int
    """Optimiser steps done."""
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """JSON values."""
    history: History


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Writes RUN/checkpoint/step-N, then RUN/history.parquet, then removes older checkpoints; killed anywhere, a whole
    one is left.
    """
    parent = run / "checkpoint"
    final = parent / f"step-{checkpoint.step:08d}"
    staging = _staging(final)
    save_file(checkpoint.tensors, staging / "tensors.safetensors")
    (staging / "state.json").write_text(json.dumps({"schema": SCHEMA, "step": checkpoint.step, **checkpoint.state}))
    write_history(staging / "history.parquet", checkpoint.history)
    put_in_place(staging, final)
    write_history(run / "history.parquet", checkpoint.history)
    for other in parent.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def read_checkpoint(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None where there is none.

    Raises:
        CheckpointError: where it is damaged or of another version.
    """
    folders = sorted((run / "checkpoint").glob("step-????????"))
    if not folders:
        return None
    folder = folders[-1]
    way_out = f"remove {folder.parent} to train from the start"
    try:
        state = json.loads((folder / "state.json").read_text())
        if state.pop("schema") != SCHEMA:
            raise CheckpointError(f"checkpoint {folder} was written by another version; {way_out}")
        history = pq.ParquetFile(folder / "history.parquet").read().to_pydict()
        return Checkpoint(state.pop("step"), load_file(folder / "tensors.safetensors"), state, history)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged ({error}); {way_out}") from error


def restore(found: Checkpoint, live: Mapping[str, Tensor], run: Path) -> None:
    """Copies a checkpoint's tensors into the live ones.

    Raises:
        CheckpointError: where names or shapes differ; then nothing was copied.
    """
    if {name: tensor.shape for name, tensor in found.tensors.items()} != {
        name: tensor.shape for name, tensor in live.items()
    }:
        raise CheckpointError(
            f"checkpoint {run / 'checkpoint'} holds tensors of another model; remove it to train from the start"
        )
    for name, tensor in live.items():
        tensor.copy_(found.tensors[name])


def write_history(path: Path, history: History) -> None:
    """A Parquet file with the column `step` and one column a metric; replaced at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(
        pa.Table.from_arrays([_column(name, values) for name, values in history.items()], names=list(history)),
        temporary,
    )
    temporary.replace(path)


@dataclass(frozen=True)
class CacheInfo:
    """What a trained model must remember of the token cache that it was trained on."""

    grid: tuple[int, int, int]
    num_codes: int
    class_names: list[str]
    fingerprint: str
    data_fingerprint: str
    tokenizer_fingerprint: str
    tokenizer_path: str

    @classmethod
    def of(cls, cache: TokenCache) -> CacheInfo:
        blocks, rows, columns = cache.grid
        return cls(
            (blocks, rows, columns),
            cache.num_codes,
            list(cache.class_names),
            cache.fingerprint,
            cache.data_fingerprint,
            cache.tokenizer_fingerprint,
            str(cache.tokenizer_path),
        )


@dataclass(frozen=True)
class LoadedModel:
    """A trained model and what it was trained with."""

    model: VideoTransformer
    experiment: Experiment
    cache: CacheInfo
    step: int


def save_model(folder: Path, model: VideoTransformer, experiment: Experiment, cache: CacheInfo, step: int) -> None:
    """Writes the trained model; replaces one that is there."""
    staging = _staging(folder)
    weights = {
        name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()
    }  # weights share one flat storage
    save_file(weights, staging / "model.safetensors")
    (staging / "experiment.yaml").write_text(
        yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    )
    description = {"schema": SCHEMA, "step": step, "model": asdict(model.settings), "cache": asdict(cache)}
    (staging / "model.json").write_text(json.dumps(description, indent=1))
    put_in_place(staging, folder)


def load_model(path: Path) -> LoadedModel:
    """The trained model of a run's folder, or of its `model` folder, on the CPU.

    Raises:
        CheckpointError: where there is none, or it is damaged or of another version.
    """
    folder = path if (path / "model.json").exists() else path / "model"
    if not (folder / "model.json").exists():
        raise CheckpointError(
            f"{path} holds no trained model; give the folder of a run that has finished training, or its `model` folder"
        )
    try:
        description = json.loads((folder / "model.json").read_text())
        if description["schema"] != SCHEMA:
            raise CheckpointError(f"model {folder} was written by another version; train it again")
        model = VideoTransformer(**description["model"])
        model.load_state_dict(load_file(folder / "model.safetensors"))
        experiment = load_experiment(folder / "experiment.yaml")
        info = CacheInfo(**{**description["cache"], "grid": tuple(description["cache"]["grid"])})
        return LoadedModel(model.eval(), experiment, info, description["step"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, SettingsError) as error:
        raise CheckpointError(
            f"model {folder} is damaged ({' '.join(str(error).split())[:200]}); train it again"
        ) from error


def check_same_training(saved: Mapping[str, Any], current: Mapping[str, Any], run: Path) -> None:
    """
    Raises:
        CheckpointError: where a checkpoint was written with other settings; names the first that differs.
    """
    saved = {**LATER, **saved}  # it may have been written before these settings came
    for key in sorted({*saved, *current}):
        if saved.get(key) != current.get(key, LATER.get(key)):
            raise CheckpointError(
                f"the checkpoint in {run} was trained with {key} = {saved.get(key)}, but now it is {current.get(key)}; "
                "set it back, or give another output folder"
            )


def _column(name: str, values: list[float | None]) -> pa.Array:
    """What pa.array(values) makes; that (and pq.read_table) would import pandas, a second of every worker."""
    kind, dtype = (pa.int64(), np.int64) if name == "step" else (pa.float64(), np.float64)
    present = np.packbits([value is not None for value in values], bitorder="little")
    data = np.array([0 if value is None else value for value in values], dtype=dtype)
    return pa.Array.from_buffers(kind, len(values), [pa.py_buffer(present), pa.py_buffer(data)])


def _staging(final: Path) -> Path:
    staging = final.parent / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def put_in_place(staging: Path, final: Path) -> None:
    """Puts a finished folder in its place, on disk before its name is."""
    for file in staging.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if final.exists():
        shutil.rmtree(final)
    staging.rename(final)
    parent = os.open(final.parent, os.O_RDONLY)
    os.fsync(parent)
    os.close(parent)
