"""What several test modules share: a small, real token cache and the settings that belong to it."""

from __future__ import annotations

import fcntl
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from small_study import WatchedStudy, close_books, run_small_study

from reco_tune.data.clips import Clip
from reco_tune.data.token_cache import TokenCache, TokenCacheWriter
from reco_tune.evaluation import prepare_evaluation, video_features
from reco_tune.preparation import prepare_tokens
from reco_tune.settings import Experiment, TokenGrid, make_experiment

os.environ.setdefault(
    "RAY_worker_niceness", "0"
)  # Ray's 15 starves its workers for minutes where anything else runs on the machine

CLUSTERS = (
    "test_lora_study.py",
    "test_own_parts_study.py",
    "test_placement.py",
    "test_scheduler.py",
    "test_study.py",
    "test_surroundings.py",
    "test_tokenizing.py",
)
"""Files whose tests start Ray clusters."""

GRID, NUM_CODES, CLASSES = TokenGrid(5, 3, 3), 16, ("left", "right", "still")


Made = TypeVar("Made")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Any:
    """Under `-n 2` a file's tests stay in one process; those that start Ray clusters stay in one too, and
    begin first.
    """
    from xdist.scheduler import LoadFileScheduling  # here: tests run without xdist too

    class Schedule(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "ray" if file.endswith(CLUSTERS) else str(file)

    return Schedule(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in CLUSTERS)


def once_a_run(temporary: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """`make(an empty folder)`, called by the first process of a test run that asks; the others wait for what it gave
    and find the folder as it left it.
    """
    base = temporary.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"once-{name}"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = shared / "made.pickle"
        if not made.exists():
            value = make(Path(tempfile.mkdtemp(dir=shared)))
            made.write_bytes(pickle.dumps(value))
        found: Made = pickle.loads(made.read_bytes())
        return found


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _closed_books() -> Iterator[None]:
    yield
    close_books()


@pytest.fixture(scope="session")
def toy_cache(tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    """96 training and 40 held-out clips of 5x3x3 tokens, 16 codes, 3 classes: random enough to have a floor, regular
    enough to learn.
    """
    return write_toy_cache(tmp_path_factory.mktemp("tokens") / "toy")


@pytest.fixture
def graphs() -> Iterator[list[str]]:
    """`counted_graphs` of one test."""
    from compiled_graphs import counted_graphs

    with counted_graphs() as made:
        yield made


@pytest.fixture(scope="session")
def toy_experiment() -> Callable[..., Experiment]:
    """Makes an experiment that fits `toy_cache`; dotted overrides as `toy_experiment({"window.scheme": "full"})`."""

    def make(overrides: dict[str, object] | None = None) -> Experiment:
        nested = {
            "data": {"layout": "digits", "clip_frames": 9, "size_px": 12},
            "tokenizer": {"num_codes": NUM_CODES, "first_frame_codes": 4},
            "model": {"width": 16, "depth": 2, "heads": 2},
            "training": {"steps": 12, "batch_size": 8, "learning_rate": 3e-3, "rungs": 3},
            "evaluation": {"validation_clips": 16},
        }
        return make_experiment(nested, overrides or {}, where="toy")

    return make


def write_toy_cache(path: Path, seed: int = 0) -> TokenCache:
    """Writes the toy cache; another seed gives other clips and another fingerprint."""
    generator = np.random.default_rng(seed)
    clips = {
        "train": [Clip(Path("toy.avi"), i, i % 3) for i in range(96)],
        "test": [Clip(Path("toy.avi"), i, i % 3) for i in range(40)],
    }
    with TokenCacheWriter(path.parent) as writer:
        for split, listed in clips.items():
            labels = np.array([clip.label for clip in listed])
            writer.create(f"{split}.labels", labels.shape, np.int64)[:] = labels
            writer.create(f"{split}.tokens", (len(listed), GRID.num_tokens), np.int32)[:] = _tokens(
                generator, labels, GRID.blocks
            )
            pixels = generator.integers(256, size=(32, 9, 3, 12, 12), dtype=np.uint8)
            writer.create(f"{split}.clips", pixels.shape, np.uint8)[:] = pixels
            for blocks in (2, 3):
                pieces = np.stack([_tokens(generator, labels, blocks) for _ in range(GRID.blocks - blocks + 1)], axis=1)
                writer.create(f"{split}.pieces-{blocks}", pieces.shape, np.int32)[:] = pieces
        return writer.finish(
            path,
            fingerprint=f"toy{seed}",
            data_fingerprint=f"toy-data{seed}",
            tokenizer_fingerprint="toy-tokenizer",
            tokenizer_path=path.parent / "toy-tokenizer",
            grid=GRID,
            num_codes=NUM_CODES,
            class_names=CLASSES,
            clips=clips,
            skipped=[],
        )


def _tokens(generator: np.random.Generator, labels: np.ndarray, blocks: int) -> np.ndarray:
    """int32 [N, blocks * 9]: block 0 is told by class and site, every later one by the one before and the class, nine
    times in ten.
    """
    tokens = generator.integers(NUM_CODES, size=(len(labels), blocks, GRID.tokens_per_block), dtype=np.int32)
    told = (np.arange(GRID.tokens_per_block) + 5 * labels[:, None]) % NUM_CODES
    tokens[:, 0] = np.where(generator.random(told.shape) < 0.9, told, tokens[:, 0])
    for block in range(1, blocks):
        copied = generator.random((len(labels), GRID.tokens_per_block)) < 0.9
        tokens[:, block] = np.where(copied, (tokens[:, block - 1] + labels[:, None]) % NUM_CODES, tokens[:, block])
    return tokens.reshape(len(labels), -1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, TokenCache]:
    """400 training and 160 held-out clips of real moving digits, with a fitted tokenizer of 64 codes, and their
    experiment.
    """

    def make(folder: Path) -> tuple[Experiment, Path]:
        nested = {
            "data": {"layout": "digits", "cache_dir": folder, "clip_frames": 9, "size_px": 12},
            "tokenizer": {"num_codes": 64, "first_frame_codes": 24},
            "model": {"width": 16, "depth": 2, "heads": 2},
            "sampling": {"batch_size": 20},
            "evaluation": {"samples": 50, "sampling_seeds": 2, "reference_clips": 400, "validation_clips": 16},
        }
        counts = {"data.train_clips": 400, "data.test_clips": 160, "tokenizer.fit_clips": 128}
        experiment = make_experiment(nested, {**counts, "window.scheme": "full"}, where="digits")
        return experiment, prepare_tokens(experiment, piece_blocks=(2,)).path

    experiment, cache = once_a_run(tmp_path_factory, "digits", make)
    return experiment, TokenCache.open(cache)


@pytest.fixture(scope="session")
def prepared(
    digits: tuple[Experiment, TokenCache], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Experiment, TokenCache]:
    """The digits with a quickly fitted extractor in their cache folder."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(video_features, "FIT_STEPS", 80)
            prepare_evaluation(*digits)

    once_a_run(tmp_path_factory, "extractor", make)
    return digits


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> WatchedStudy:
    """The small study, run once on a Ray cluster of its own (about 30 s on two quiet cores)."""
    return once_a_run(tmp_path_factory, "study", run_small_study)
