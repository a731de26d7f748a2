"""Reads and writes what a run leaves on disk: the checkpoint that it resumes from, and the trained model. Knows files;
knows nothing of optimisers and loops.

safetensors for tensors, JSON for the rest, never pickle. A folder appears whole, by a rename, or not at all:

    RUN/checkpoint/step-00000240/{tensors.safetensors, state.json, history.parquet}     the newest whole one counts
    RUN/checkpoint/step-00000240/{.metadata, __0_0.distcp, ..., state.json, ...}        a file a worker, of a state that
                                                                                        is split over them
    RUN/history.parquet                                                                 its copy for readers
    RUN/model/{model.safetensors, model.json, experiment.yaml}                          once training is done
    RUN/best/...                                                                        the same, of the rung with the
                                                                                        lowest validation loss
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reco_tune.data.token_cache import TokenCache
from reco_tune.data.word_list import TextTokenizer, load_text_tokenizer
from reco_tune.errors import CheckpointError, SettingsError
from reco_tune.model import Decoder, DecoderSettings, VideoTransformer
from reco_tune.model.build import BUILT_IN, build_decoder
from reco_tune.parts import unpinned
from reco_tune.settings import LATER, Experiment, load_experiment
from reco_tune.training.distributed import Group

SCHEMA = 1
"""Version of both layouts; another one is refused."""

BEST = "best"
"""Folder of the weights that `training.keep_best` keeps."""

History = dict[str, list[float | None]]
"""Columns of the step history, `step` first. A value is None if the metric was not measured at that step."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to continue bit for bit."""

    step: int
    """Optimiser steps done."""
    tensors: dict[str, Tensor]
    """Empty if the folder has one file per worker."""
    state: dict[str, Any]
    """JSON values."""
    history: History
    shards: str | None = None
    """Name of the folder, if every worker has a file there."""


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Writes RUN/checkpoint/step-N, then RUN/history.parquet, then removes older checkpoints. If it is killed at any
    point, a whole checkpoint is left.
    """
    staging = _staging(_folder_of(run, checkpoint.step))
    save_file(checkpoint.tensors, staging / "tensors.safetensors")
    _finish(run, checkpoint, staging)


def write_shards(run: Path, checkpoint: Checkpoint, shards: Mapping[str, Tensor], group: Group) -> None:
    """The same of a state that is split over the workers: each writes its part. All ranks call it.

    Args:
        checkpoint: without tensors.
        shards: this worker's part of them.

    Raises:
        CheckpointError: on all ranks, where some do not see the folder.
    """
    from torch.distributed.checkpoint.state_dict_saver import save  # a second of imports

    staging = _staging(_folder_of(run, checkpoint.step)) if group.leads else None
    staging = run / "checkpoint" / group.broadcast_json(staging.name if staging is not None else "")
    blind = int(group.sum_(torch.tensor(int(not staging.is_dir()))))
    if blind:
        raise CheckpointError(
            f"resources.shard_state: {blind} of {group.size} workers do not see {run}, but each of them must write"
            " there; give an output folder that all machines share, or set it to false"
        )
    save(dict(shards), checkpoint_id=staging)  # returns when all have written
    if group.leads:
        _finish(run, checkpoint, staging)


def _folder_of(run: Path, step: int) -> Path:
    return run / "checkpoint" / f"step-{step:08d}"


def _finish(run: Path, checkpoint: Checkpoint, staging: Path) -> None:
    """Adds state and history to a folder that has its tensors. Then it replaces the older ones."""
    final = _folder_of(run, checkpoint.step)
    (staging / "state.json").write_text(json.dumps({"schema": SCHEMA, "step": checkpoint.step, **checkpoint.state}))
    write_history(staging / "history.parquet", checkpoint.history)
    put_in_place(staging, final)
    write_history(run / "history.parquet", checkpoint.history)
    for other in final.parent.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def read_checkpoint(run: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run, or None.

    Raises:
        CheckpointError: if it is damaged or of another version.
    """
    folders = sorted((run / "checkpoint").glob("step-????????"))
    if not folders:
        return None
    folder = folders[-1]
    way_out = f"remove {folder.parent} to train from the start"
    try:
        state = json.loads((folder / "state.json").read_text())
        if state.pop("schema") != SCHEMA:
            raise CheckpointError(f"checkpoint {folder} was written by another version of ReCo-Tune; {way_out}")
        history = pq.ParquetFile(folder / "history.parquet").read().to_pydict()
        if (folder / ".metadata").exists():
            return Checkpoint(state.pop("step"), {}, state, history, folder.name)
        return Checkpoint(state.pop("step"), load_file(folder / "tensors.safetensors"), state, history)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged ({error}); {way_out}") from error


def carry_over(run: Path, target: Path, changes: Mapping[str, Any]) -> int | None:
    """Copies the newest checkpoint of a run to the folder of another run, which continues from it. Returns its step, or
    None.

    Args:
        changes: settings of the other run that its first steps do not depend on.

    Raises:
        CheckpointError: if it is damaged or of another version.
    """
    found = read_checkpoint(run)
    if found is None:
        return None
    source = max((run / "checkpoint").glob("step-????????"))
    staging = _staging(_folder_of(target, found.step))
    shutil.copytree(source, staging, dirs_exist_ok=True)
    state = json.loads((staging / "state.json").read_text())
    state["training"] |= changes
    (staging / "state.json").write_text(json.dumps(state))
    put_in_place(staging, _folder_of(target, found.step))
    write_history(target / "history.parquet", found.history)
    if (run / BEST).is_dir():
        shutil.copytree(run / BEST, target / BEST)
    return found.step


def restore(found: Checkpoint, live: Mapping[str, Tensor], run: Path) -> None:
    """Copies a checkpoint's tensors into the live ones.

    Raises:
        CheckpointError: if names or shapes differ; then nothing is copied.
    """
    if {name: tensor.shape for name, tensor in found.tensors.items()} != {
        name: tensor.shape for name, tensor in live.items()
    }:
        raise CheckpointError(
            f"checkpoint {run / 'checkpoint'} belongs to another model; remove it to train from the start"
        )
    for name, tensor in live.items():
        tensor.copy_(found.tensors[name])


def restore_shards(run: Path, shards: str, live: Mapping[str, Tensor], group: Group) -> None:
    """Copies a checkpoint that has a file a worker into the live tensors, however many workers wrote it and however
    they are split here. All ranks of the group call it.

    Args:
        shards: the name of its folder.

    Raises:
        CheckpointError: where it is damaged, not seen, or holds tensors of another model.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    folder = run / "checkpoint" / shards
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a process alone has no process group
            load(dict(live), checkpoint_id=folder, no_dist=group.size == 1)
    except (CheckpointException, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"checkpoint {folder} is damaged, not visible to all workers, or belongs to another model ({reason});"
            f" remove {folder.parent} to train from the start"
        ) from error


def write_history(path: Path, history: History) -> None:
    """Writes a Parquet file with the column `step` and one column per metric, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(
        pa.Table.from_arrays([_column(name, values) for name, values in history.items()], names=list(history)),
        temporary,
    )
    temporary.replace(path)


@dataclass(frozen=True)
class CacheInfo:
    """What a trained model records about its token cache."""

    grid: tuple[int, int, int]
    num_codes: int
    class_names: list[str]
    fingerprint: str
    data_fingerprint: str
    tokenizer_fingerprint: str
    tokenizer_path: str
    captions_path: str = ""
    """Folder of the captions, for a model of texts."""

    @classmethod
    def of(cls, cache: TokenCache, experiment: Experiment | None = None) -> CacheInfo:
        """
        Args:
            experiment: of the model, where it may be one of texts.
        """
        texts = experiment is not None and experiment.model.condition == "text"
        blocks, rows, columns = cache.grid
        return cls(
            (blocks, rows, columns),
            cache.num_codes,
            list(cache.class_names),
            cache.fingerprint,
            cache.data_fingerprint,
            cache.tokenizer_fingerprint,
            str(cache.tokenizer_path),
            str(cache.path / experiment.captions_name) if experiment is not None and texts else "",
        )


@dataclass(frozen=True)
class LoadedModel:
    """A trained model with its experiment and the facts about its token cache."""

    model: Decoder
    experiment: Experiment
    cache: CacheInfo
    step: int
    words: TextTokenizer | None = None
    """Cuts prompts into words, for a model of texts."""


def save_model(folder: Path, model: Decoder, experiment: Experiment, cache: CacheInfo, step: int) -> None:
    """Writes the trained model and replaces an existing one."""
    staging = _staging(folder)
    given_again = model.given_again()
    weights = {  # they share one flat storage
        name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items() if name not in given_again
    }
    save_file(weights, staging / "model.safetensors")
    (staging / "experiment.yaml").write_text(
        yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    )
    shape = {name: value for name, value in asdict(model.settings).items() if name not in _COUNTED}
    description = {"schema": SCHEMA, "step": step, "model": shape, "cache": asdict(cache)}
    (staging / "model.json").write_text(json.dumps(description, indent=1))
    if cache.captions_path:  # prompts are cut as captions were, wherever the model goes
        load_text_tokenizer(Path(cache.captions_path)).save(staging)
    put_in_place(staging, folder)


def take_best(model: Decoder, run: Path, group: Group) -> None:
    """Loads the best weights of the run into a model. All ranks call it; only rank 0 reads the file.

    Raises:
        CheckpointError: if they are missing.
    """
    best = load_model(run, BEST).model.state_dict() if group.leads else {}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if group.leads:
                tensor.copy_(best[name])
            group.broadcast_(tensor)


def load_model(path: Path, checkpoint: str | None = None) -> LoadedModel:
    """The trained model of a run's folder, on the CPU: the one that its `evaluation.checkpoint` names, or that is asked
    for; or that of its folder `model` or `best`. Its experiment says which it is.

    Raises:
        CheckpointError: where there is none, or it is damaged or of another version.
    """
    folder = path if (path / "model.json").exists() else path / (BEST if checkpoint == BEST else "model")
    if checkpoint == BEST and not (folder / "model.json").exists():
        raise CheckpointError(f"{path} has no best weights; train the run with training.keep_best=true")
    if not (folder / "model.json").exists():
        raise CheckpointError(
            f"{path} has no trained model; give the folder of a run that has finished training, or its `model` folder"
        )
    try:
        description = json.loads((folder / "model.json").read_text())
        if description["schema"] != SCHEMA:
            raise CheckpointError(f"model {folder} was written by another version of ReCo-Tune; train it again")
        experiment = load_experiment(folder / "experiment.yaml")
        model = _built(description["model"], experiment)
        given_again = model.given_again()
        kept = {name: tensor for name, tensor in model.state_dict().items() if name in given_again}
        model.load_state_dict({**kept, **load_file(folder / "model.safetensors")})
        info = CacheInfo(**{**description["cache"], "grid": tuple(description["cache"]["grid"])})
        loaded = "best" if folder.name == BEST else "last"
        if folder != path and checkpoint is None and experiment.evaluation.checkpoint != loaded:
            return load_model(path, experiment.evaluation.checkpoint)
        if checkpoint not in (None, loaded):
            raise CheckpointError(
                f"{path} has the {loaded} weights of its run, not the {checkpoint} ones; give the folder of the run"
            )
        judged = experiment.evaluation.model_copy(update={"checkpoint": loaded})
        experiment = experiment.model_copy(update={"evaluation": judged})
        words = load_text_tokenizer(folder) if experiment.model.condition == "text" else None
        return LoadedModel(model.eval(), experiment, info, description["step"], words)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, SettingsError) as error:
        raise CheckpointError(
            f"model {folder} is damaged ({' '.join(str(error).split())[:200]}); train it again"
        ) from error


_COUNTED = ("counted", "parameters", "cached", "frozen", "block", "blocks")
"""Entries of a shape that describe costs."""


def _built(shape: Mapping[str, Any], experiment: Experiment) -> Decoder:
    """A model whose weights will be replaced. Those that a saved model leaves out come from its pretrained folder."""
    if experiment.model.kind == BUILT_IN:
        return VideoTransformer(**shape, residual=experiment.training.residual)
    try:
        model = build_decoder(experiment.model, DecoderSettings(**shape), start=False)
        if model.given_again():
            model.start()
        return model
    except SettingsError as error:  # code or weights that it is pinned to are gone: it is not damaged
        raise CheckpointError(str(error)) from error


def check_same_training(saved: Mapping[str, Any], current: Mapping[str, Any], run: Path) -> None:
    """
    Compares settings with those of a checkpoint.

    Raises:
        CheckpointError: if they differ; names the first that does.
    """
    saved = {**LATER, **saved}  # the checkpoint may be older than these settings
    for key in sorted({*saved, *current}):
        was, now = saved.get(key), current.get(key, LATER.get(key))
        if was != now and was != unpinned(now):  # runs outside of studies were not pinned at first
            raise CheckpointError(
                f"the checkpoint in {run} was trained with {key} = {was}, but now it is {now}; restore it, or give"
                " another output folder"
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
    """Renames a finished folder into place, after its content is on disk."""
    for file in staging.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if final.exists():
        shutil.rmtree(final)
    staging.rename(final)
    parent = os.open(final.parent, os.O_RDONLY)
    os.fsync(parent)
    os.close(parent)
