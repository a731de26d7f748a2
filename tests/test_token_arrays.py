"""Codes that somebody brings along: in they go as they are, models train on them, and what needs pixels says so in one
sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError, SettingsError
from reco_tune.evaluation import evaluate, prepare_evaluation
from reco_tune.preparation import prepare_tokens
from reco_tune.quantities import STEPS_OF_H
from reco_tune.settings import Experiment, make_experiment
from reco_tune.training import fit

SPLITS = ("train", "test")
NESTED = {
    "tokenizer": {"num_codes": 16, "first_frame_codes": 4},
    "model": {"width": 16, "depth": 1, "heads": 2},
    "training": {"steps": 4, "batch_size": 8, "rungs": 2, "learning_rate": 1e-3},
    "evaluation": {"validation_clips": 8, "samples": 8},
}


def codes(split: str) -> tuple[np.ndarray, np.ndarray]:
    """[N, 5, 3, 3] and the labels, three classes."""
    generator = np.random.default_rng(len(split))
    clips = {"train": 30, "test": 12}[split]
    return generator.integers(16, size=(clips, 5, 3, 3)), generator.permutation(np.arange(clips) % 3)


def make(root: Path, overrides: dict[str, object] | None = None) -> Experiment:
    data = {"layout": "tokens", "root": root, "cache_dir": root / "cache", "clip_frames": 9, "size_px": 12}
    return make_experiment({"data": data, **NESTED}, overrides or {}, where="test")


def as_npy(root: Path, dtype: type[np.generic] = np.int64, flat: bool = False) -> None:
    for split in SPLITS:
        tokens, labels = codes(split)
        np.save(root / f"{split}.npy", (tokens.reshape(len(tokens), -1) if flat else tokens).astype(dtype))
        np.save(root / f"{split}.labels.npy", labels)


def as_safetensors(root: Path) -> None:
    for split in SPLITS:
        tokens, labels = codes(split)
        save_file({"tokens": tokens.astype(np.int32), "labels": labels}, root / f"{split}.safetensors")


@pytest.mark.parametrize(
    "write",
    [as_npy, lambda root: as_npy(root, np.uint16), lambda root: as_npy(root, np.int32, flat=True), as_safetensors],
    ids=["npy", "unsigned", "flat", "safetensors"],
)
def test_the_cache_holds_the_users_codes(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    cache = prepare_tokens(make(tmp_path))
    assert (cache.grid, cache.num_codes, cache.class_names, cache.has_pixels) == ((5, 3, 3), 16, ("0", "1", "2"), False)
    for split in SPLITS:
        tokens, labels = codes(split)
        rows = [clip.start for clip in cache.sources(split)]
        assert sorted(rows) == list(range(len(tokens))), "every clip once"
        assert np.array_equal(cache.tokens(split), tokens[rows].reshape(len(tokens), -1)) and np.array_equal(
            cache.labels(split), labels[rows]
        )
        assert cache.tokens(split).dtype == np.int32
    again = prepare_tokens(make(tmp_path))
    assert (again.path, again.fingerprint) == (cache.path, cache.fingerprint)


def test_caps_time_splits_and_missing_labels(tmp_path: Path) -> None:
    tokens, _ = codes("train")
    np.save(tmp_path / "train.npy", tokens)
    cache = prepare_tokens(make(tmp_path, {"data.split": "time", "data.test_fraction": 0.2, "data.train_clips": 10}))
    assert (len(cache.tokens("train")), len(cache.tokens("test")), cache.class_names) == (10, 6, ("all",))
    assert {clip.start for clip in cache.sources("train")} <= set(range(24)), "the last clips are held out"


def test_other_codes_are_another_cache(tmp_path: Path) -> None:
    as_npy(tmp_path)
    before = prepare_tokens(make(tmp_path))
    tokens, _ = codes("train")
    np.save(tmp_path / "train.npy", (tokens + 1) % 16)
    after = prepare_tokens(make(tmp_path))
    assert after.path != before.path and after.data_fingerprint != before.data_fingerprint
    assert TokenCache.open(before.path).fingerprint == before.fingerprint


def _replace(name: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda root: np.save(root / name, array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "test.npy").unlink(), r"needs one of test\.npy and test\.safetensors, it has 0"),
        (as_safetensors, r"needs one of train\.npy and train\.safetensors, it has 2"),
        (lambda root: (root / "train.npy").write_bytes(b"no array"), r"train\.npy or its labels cannot be read"),
        (
            lambda root: np.save(root / "train.npy", np.array([{}, 1], object), allow_pickle=True),
            r"train\.npy or its labels cannot be read",
        ),
        (_replace("train.npy", np.zeros((30, 5, 3, 3))), "codes of type float64; codes are integers"),
        (
            _replace("train.npy", np.zeros((30, 4, 3, 3), int)),
            r"clips of shape \(4, 3, 3\), but .* make 5 x 3 x 3 = 45 tokens",
        ),
        (_replace("train.npy", np.full((30, 45), 16)), r"holds the code 16, but tokenizer\.num_codes is 16"),
        (_replace("test.npy", np.full((12, 45), -1)), "holds the code -1"),
        (_replace("train.labels.npy", np.zeros(7, int)), r"has 30 clips, but its labels have shape \(7,\)"),
        (_replace("train.labels.npy", np.full(30, -1)), "begin at -1"),
        (_replace("train.npy", np.zeros((0, 45), int)), "labels have shape"),
    ],
    ids=[
        "no test",
        "both kinds",
        "no array",
        "pickle",
        "floats",
        "other grid",
        "code too high",
        "code below 0",
        "labels",
        "label -1",
        "empty",
    ],
)
def test_arrays_that_cannot_be_are_one_sentence(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    as_npy(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        prepare_tokens(make(tmp_path))
    assert "\n" not in str(error.value)


def test_models_train_and_are_judged_by_their_codes_alone(tmp_path: Path) -> None:
    as_npy(tmp_path)
    experiment = make(tmp_path)
    cache = prepare_tokens(experiment)
    trained = fit(experiment, cache, tmp_path / "run")
    assert np.isfinite(trained.metrics["val_cross_entropy"])
    result = evaluate(trained.model, experiment, cache)
    analyses = {"first_frame_gap", *(f"error_growth_{end}" for end in ("rate", "slope", "aic"))}
    assert (
        set(result.metrics) == {quantity.name for quantity in STEPS_OF_H} | analyses
        and result.provenance["protocol"] == "none"
    )
    assert set(result.curves) == {"loss_by_frame_train", "loss_by_frame_generated", "error_growth"}
    assert all(len(curve) == 5 and np.isfinite(curve).all() for curve in result.curves.values())
    with pytest.raises(DataError, match=r"data\.layout tokens.*FVD, samples and reconstructions need videos"):
        prepare_evaluation(experiment, cache)


def test_pieces_need_pixels(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"fewer_frames encodes pieces of clips anew.*take fewer_frames_tokens"):
        make(tmp_path, {"window.scheme": "fewer_frames", "window.length_blocks": 2})
    make(tmp_path, {"window.scheme": "fewer_frames_tokens", "window.length_blocks": 2})
