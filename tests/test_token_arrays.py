"""Codes that somebody brings along: in they go as they are, models train on them, and what needs pixels says so in one
sentence.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from reco_tune.data.token_arrays import read_coded_clips
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError, SettingsError, TooFewClipsError
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


def test_a_grid_need_not_be_square_and_needs_no_pixel_sizes(tmp_path: Path) -> None:
    """45 tokens as 3 x 3 x 5; the sentence about another shape gives the setting that takes it."""
    as_npy(tmp_path, flat=True)
    for split in SPLITS:
        tokens = np.load(tmp_path / f"{split}.npy")
        np.save(tmp_path / f"{split}.npy", tokens.reshape(len(tokens), 3, 3, 5))
    with pytest.raises(DataError, match=r"clips of shape \(3, 3, 5\), .*; set data.grid to \[3, 3, 5\]"):
        prepare_tokens(make(tmp_path))
    cache = prepare_tokens(make(tmp_path, {"data.grid": [3, 3, 5], "data.clip_frames": 8, "data.size_px": 13}))
    assert cache.grid == (3, 3, 5)
    assert sorted(map(tuple, cache.tokens("test"))) == sorted(map(tuple, tokens.reshape(len(tokens), -1)))


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


@pytest.mark.parametrize("kind", ["columns first", "big-endian"])
def test_codes_in_another_order_of_memory_are_the_same_codes(tmp_path: Path, kind: str) -> None:
    as_npy(tmp_path)
    plain = prepare_tokens(make(tmp_path))
    for split in SPLITS:
        tokens, labels = codes(split)
        np.save(
            tmp_path / f"{split}.npy", np.asfortranarray(tokens) if kind == "columns first" else tokens.astype(">i4")
        )
        np.save(tmp_path / f"{split}.labels.npy", labels.astype(">u2"))
    other = prepare_tokens(make(tmp_path))
    assert other.path != plain.path
    for split in SPLITS:
        assert np.array_equal(other.tokens(split), plain.tokens(split))
        assert np.array_equal(other.labels(split), plain.labels(split))


Damage = Callable[[Path], None]


def _replace(name: str, array: np.ndarray) -> Damage:
    return lambda root: np.save(root / name, array)


def _object_array(root: Path) -> None:
    np.save(root / "train.npy", np.array([{}, 1], object), allow_pickle=True)


def _npz(name: str) -> Damage:
    """As `numpy.savez` wrote it, and somebody renamed it."""

    def damage(root: Path) -> None:
        np.savez(root / "all.npz", codes("train")[0])
        (root / "all.npz").rename(root / name)

    return damage


def _npy_header(shape: tuple[int, ...]) -> Damage:
    """A file of 1 kB whose header promises an array of any size."""

    def damage(root: Path) -> None:
        with (root / "train.npy").open("wb") as file:
            header = {"descr": "<i8", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(bytes(1000))

    return damage


def _safetensors(header: object, length: int | None = None) -> Damage:
    """A file whose header says whatever is given, before 1 kB of zeros."""

    def damage(root: Path) -> None:
        for path in root.glob("train.*"):
            path.unlink()
        text = json.dumps(header).encode()
        length_bytes = (len(text) if length is None else length).to_bytes(8, "little")
        (root / "train.safetensors").write_bytes(length_bytes + text + bytes(1000))

    return damage


def _tensor(dtype: str, shape: list[int], start: float, end: float) -> dict[str, object]:
    return {"tokens": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


def _labels_beside_safetensors(root: Path) -> None:
    (root / "train.npy").unlink()
    save_file({"tokens": codes("train")[0]}, root / "train.safetensors")


ARRAYS_THAT_CANNOT_BE: dict[str, tuple[Damage, str]] = {
    "no test": (
        lambda root: (root / "test.npy").unlink(),
        r"must have exactly one of test\.npy and test\.safetensors, but has 0",
    ),
    "both kinds": (as_safetensors, r"must have exactly one of train\.npy and train\.safetensors, but has 2"),
    "no array": (
        lambda root: (root / "train.npy").write_bytes(b"no array"),
        r"train\.npy is not a readable \.npy file",
    ),
    "empty file": (lambda root: (root / "train.npy").write_bytes(b""), r"train\.npy is not a readable \.npy file"),
    "pickle": (_object_array, "codes of type object; save codes as integers"),
    "archive": (_npz("train.npy"), r"train\.npy is a \.npz archive .*numpy\.save"),
    "archive of labels": (_npz("test.labels.npy"), r"test\.labels\.npy is a \.npz archive"),
    "floats": (_replace("train.npy", np.zeros((30, 5, 3, 3))), "codes of type float64; save codes as integers"),
    "time spans": (_replace("train.npy", np.zeros((30, 45), "m8[s]")), "save codes as integers"),
    "truth values": (_replace("train.npy", np.zeros((30, 45), bool)), "codes of type bool"),
    "one number": (_replace("train.npy", np.int64(3)), r"clips of shape \(\)"),
    "other grid": (
        _replace("train.npy", np.zeros((30, 4, 3, 3), int)),
        r"clips of shape \(4, 3, 3\), but .* give 5 x 3 x 3 = 45 tokens",
    ),
    "code too high": (
        _replace("train.npy", np.full((30, 45), 16)),
        r"has the code 16, but tokenizer\.num_codes is 16",
    ),
    "code far too high": (
        _replace("train.npy", np.full((30, 45), 2**64 - 1, np.uint64)),
        f"has the code {2**64 - 1}",
    ),
    "code below 0": (_replace("test.npy", np.full((12, 45), -1)), "has the code -1"),
    "huge": (_npy_header((2**40, 45)), r"train\.npy has \d+ bytes, but an array of shape .*truncated or damaged"),
    "beyond 64 bits": (_npy_header((2**62, 4, 2**62)), "bytes, but an array of shape"),
    "negative shape": (_npy_header((-1, -45)), "bytes, but an array of shape"),
    "many clips of nothing": (_npy_header((10**12, 0)), r"clips of shape \(0,\)"),
    "another number of labels": (
        _replace("train.labels.npy", np.zeros(7, int)),
        r"labels of shape \(7,\) for 30 clips",
    ),
    "labels in a column": (_replace("train.labels.npy", np.zeros((30, 1), int)), r"labels of shape \(30, 1\) for 30"),
    "no clips": (_replace("train.npy", np.zeros((0, 45), int)), r"labels of shape \(30,\) for 0 clips"),
    "label -1": (_replace("train.labels.npy", np.full(30, -1)), "has the label -1; labels are class numbers from 0"),
    "label of a hundred million": (
        _replace("train.labels.npy", np.full(30, 100_000_000)),
        "has the label 100000000; labels are .* at most 65,536",
    ),
    "label beyond int64": (_replace("train.labels.npy", np.full(30, 2**63, np.uint64)), f"has the label {2**63};"),
    "labels of floats": (_replace("train.labels.npy", np.zeros(30)), "labels of type float64; save labels as integers"),
    "labels of one split": (lambda root: (root / "test.labels.npy").unlink(), "labels for train only"),
    "labels beside safetensors": (_labels_beside_safetensors, r"cannot take its labels from train\.labels\.npy"),
    "no tensor": (_safetensors({"codes": _tensor("I64", [1], 0, 8)["tokens"]}), "has no tensor `tokens`"),
    "tensor of floats": (_safetensors(_tensor("F32", [1, 45], 0, 180)), "codes of type F32; save codes as integers"),
    "tensor beyond the file": (
        _safetensors(_tensor("I32", [2**40, 45], 0, 2**42 * 45)),
        "bytes, but an array of shape",
    ),
    "tensor of another size": (_safetensors(_tensor("I32", [1, 45], 0, 8)), r"not a readable \.safetensors file"),
    "tensor before the file": (_safetensors(_tensor("I32", [1, 45], -180, 0)), r"not a readable \.safetensors file"),
    "offsets of fractions": (_safetensors(_tensor("I32", [1, 45], 0.5, 180.5)), r"not a readable \.safetensors file"),
    "header of another kind": (_safetensors([1, 2]), "has no tensor"),
    "endless header": (_safetensors({}, 2**63), r"its header claims a length of 9223372036854775808 bytes"),
    "header of no JSON": (_safetensors({}, 900), r"not a readable \.safetensors file"),
}


@pytest.mark.parametrize(("damage", "message"), ARRAYS_THAT_CANNOT_BE.values(), ids=ARRAYS_THAT_CANNOT_BE)
def test_arrays_that_cannot_be_are_one_sentence_before_memory_is_taken(
    tmp_path: Path, damage: Damage, message: str
) -> None:
    as_npy(tmp_path)
    damage(tmp_path)
    tracemalloc.start()
    with pytest.raises(DataError, match=message) as error:
        prepare_tokens(make(tmp_path))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert taken < 4_000_000, "a label of 100,000,000 once took 12.7 GB"


@pytest.mark.parametrize("split", ["lists", "time"])
def test_no_clips_at_all_are_too_few(tmp_path: Path, split: str) -> None:
    for name in SPLITS:
        np.save(tmp_path / f"{name}.npy", np.zeros((0, 45), int))
    with pytest.raises(TooFewClipsError, match="no clip for train"):
        prepare_tokens(make(tmp_path, {"data.split": split}))


def test_headers_with_damaged_bytes_are_refused_or_read(tmp_path: Path) -> None:
    """Whatever a flipped byte makes of a header, it is one of ours that says so."""
    as_npy(tmp_path)
    data, grid = make(tmp_path).data, make(tmp_path).grid
    generator, refused, read = np.random.default_rng(0), 0, 0
    for write, name in ((as_npy, "train.npy"), (as_safetensors, "train.safetensors")):
        for path in tmp_path.glob("t*"):
            path.unlink()
        write(tmp_path)
        whole = (tmp_path / name).read_bytes()
        for _ in range(300):
            damaged = bytearray(whole)
            damaged[generator.integers(128)] = generator.integers(256)
            (tmp_path / name).write_bytes(damaged)
            try:
                found, _ = read_coded_clips(data, grid, 16)
            except DataError as error:
                assert str(tmp_path) in str(error) and "\n" not in str(error)
                refused += 1
            else:
                assert all(tokens.min() >= 0 and tokens.max() < 16 for _, tokens, _ in found.values())
                read += 1
    assert refused > 100 and read > 0, "both happen"


def test_labels_of_a_model_without_classes_are_left_alone(tmp_path: Path) -> None:
    as_npy(tmp_path)
    np.save(tmp_path / "train.labels.npy", np.full(30, 100_000_000))
    (tmp_path / "test.labels.npy").unlink()
    cache = prepare_tokens(make(tmp_path, {"data.class_conditional": False}))
    assert cache.class_names == ("all",) and not cache.labels("train").any()


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
        and result.provenance["protocol"] == "codes/8 held-out clips/last"
    )
    assert set(result.curves) == {"loss_by_frame_train", "loss_by_frame_generated", "error_growth"}
    assert all(len(curve) == 5 and np.isfinite(curve).all() for curve in result.curves.values())
    with pytest.raises(DataError, match=r"data\.layout tokens.*FVD, samples and reconstructions need videos"):
        prepare_evaluation(experiment, cache)


def test_pieces_need_pixels(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"fewer_frames re-encodes pieces of clips.*use fewer_frames_tokens"):
        make(tmp_path, {"window.scheme": "fewer_frames", "window.length_blocks": 2})
    make(tmp_path, {"window.scheme": "fewer_frames_tokens", "window.length_blocks": 2})
