"""Checkpoints: what is written is read, a crash in between leaves a whole one, damage is told in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import CheckpointError
from reco_tune.settings import Experiment
from reco_tune.training import CacheInfo, build_scheme, fit, load_model, save_model
from reco_tune.training import checkpoint as module
from reco_tune.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

Make = Callable[..., Experiment]


def checkpoint(step: int) -> Checkpoint:
    tensors = {"weights": torch.randn(7, generator=torch.Generator().manual_seed(step))}
    state = {"feed": {"position": step}, "number": 0.1 + 0.2}
    return Checkpoint(step, tensors, state, {"step": list(range(1, step + 1)), "loss": [None, *[1 / 3] * (step - 1)]})


def assert_equal(a: Checkpoint | None, b: Checkpoint) -> None:
    assert a is not None
    assert (a.step, a.state, a.history) == (b.step, b.state, b.history)
    assert {name: tensor.tolist() for name, tensor in a.tensors.items()} == {
        name: tensor.tolist() for name, tensor in b.tensors.items()
    }


def test_round_trip_is_exact_and_the_newest_counts(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path) is None
    for step in (3, 12):
        write_checkpoint(tmp_path, checkpoint(step))
        assert_equal(read_checkpoint(tmp_path), checkpoint(step))
    assert [folder.name for folder in (tmp_path / "checkpoint").iterdir()] == ["step-00000012"]


@pytest.mark.parametrize("crash_in", ["save_file", "write_history", "put_in_place"])
def test_a_crash_while_writing_leaves_the_last_whole_one(
    crash_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, checkpoint(3))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, crash_in, crash)
        write_checkpoint(tmp_path, checkpoint(6))
    assert_equal(read_checkpoint(tmp_path), checkpoint(3))
    write_checkpoint(tmp_path, checkpoint(6))
    assert_equal(read_checkpoint(tmp_path), checkpoint(6))
    assert [folder.name for folder in (tmp_path / "checkpoint").iterdir()] == ["step-00000006"], "leavings are swept up"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "state.json").write_text("{"), id="torn-json"),
        pytest.param(lambda folder: (folder / "state.json").write_text("[]"), id="other-json"),
        pytest.param(lambda folder: (folder / "tensors.safetensors").write_bytes(b"\x08"), id="torn-tensors"),
        pytest.param(lambda folder: (folder / "history.parquet").write_bytes(b"PAR1"), id="torn-history"),
        pytest.param(lambda folder: (folder / "tensors.safetensors").unlink(), id="missing-tensors"),
        pytest.param(lambda folder: (folder / "state.json").write_text(json.dumps({"schema": 99})), id="other-version"),
    ],
)
def test_damage_is_told_with_the_way_out(damage: Callable[[Path], object], tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(3))
    damage(tmp_path / "checkpoint" / "step-00000003")
    with pytest.raises(CheckpointError, match=r"step-00000003 .*; remove .*checkpoint to train from the start"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_whose_tensors_have_another_shape_is_refused(
    toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    fit(toy_experiment(), toy_cache, tmp_path)
    found = read_checkpoint(tmp_path)
    assert found is not None
    write_checkpoint(
        tmp_path, Checkpoint(found.step, {"weights": found.tensors["weights"][:5]}, found.state, found.history)
    )
    with pytest.raises(CheckpointError, match="remove"):
        fit(toy_experiment(), toy_cache, tmp_path)


def test_model_round_trip(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path) -> None:
    experiment = toy_experiment({"window.scheme": "fewer_frames", "window.length_blocks": 3})
    model = build_scheme(experiment, toy_cache).build_model()
    for _ in range(2):  # the second replaces the first
        save_model(tmp_path / "model", model, experiment, CacheInfo.of(toy_cache), 12)
    for path in (tmp_path, tmp_path / "model"):
        loaded = load_model(path)
        assert loaded.model.settings == model.settings
        assert loaded.experiment == experiment
        assert (loaded.cache, loaded.step) == (CacheInfo.of(toy_cache), 12)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.model.parameters(), strict=True))
    assert [folder.name for folder in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(
            lambda folder: (folder / "model.json").unlink(),
            "has no trained model; give the folder of a run",
            id="missing",
        ),
        pytest.param(lambda folder: (folder / "model.json").write_text("{}"), "is damaged", id="empty"),
        pytest.param(lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "is damaged", id="torn-weights"),
        pytest.param(
            lambda folder: (folder / "experiment.yaml").write_text("window: {legnth: 3}"),
            "is damaged",
            id="foreign-settings",
        ),
        pytest.param(
            lambda folder: (folder / "model.json").write_text('{"schema": 99}'), "another version", id="other-version"
        ),
    ],
)
def test_a_bad_model_is_told(
    damage: Callable[[Path], object], message: str, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    experiment = toy_experiment()
    save_model(
        tmp_path / "model", build_scheme(experiment, toy_cache).build_model(), experiment, CacheInfo.of(toy_cache), 1
    )
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere has no trained model"):
        load_model(tmp_path / "nowhere")
