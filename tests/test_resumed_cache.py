"""A token cache whose making is killed: the next run goes on there, and ends with the bytes of one that was never
disturbed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reco_tune.preparation import prepare_tokens
from reco_tune.settings import Data, Evaluation, Experiment, Tokenizer

MAKE = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_resumed_cache import experiment
from reco_tune.preparation import prepare_tokens

said = []
def progress(done, total, what):
    said.append(what)
    if what == {what!r} and said.count(what) == {times}:
        os.kill(os.getpid(), signal.SIGKILL)

prepare_tokens(experiment(Path({root!r}), Path({cache!r})), progress, piece_blocks={pieces})
"""
KILLS = [("decoding test clips", 1), ("encoding train clips", 3)]


def experiment(root: Path, cache: Path) -> Experiment:
    """200 clips of which 100 keep their pixels: parts of 64 of both kinds, and rests."""
    return Experiment(
        data=Data(
            layout="digits", root=root, cache_dir=cache, clip_frames=5, size_px=12, train_clips=200, test_clips=70
        ),
        tokenizer=Tokenizer(num_codes=24, first_frame_codes=8, fit_clips=60),
        evaluation=Evaluation(reference_clips=100, validation_clips=16),
    )


def killed(root: Path, cache: Path, what: str, times: int, pieces: tuple[int, ...] = (2,)) -> None:
    script = MAKE.format(
        tests=str(Path(__file__).parent), what=what, times=times, root=str(root), cache=str(cache), pieces=pieces
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("work")
    return folder / "digits", prepare_tokens(experiment(folder / "digits", folder / "cache"), piece_blocks=(2,)).path


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    root, expected = undisturbed
    for what, times in KILLS:
        killed(root, tmp_path / "cache", what, times)
        left = list((tmp_path / "cache" / "tokens").iterdir())
        assert len(left) == 1 and left[0].name.startswith(".partial-"), "nobody takes it for a cache"
    said: list[str] = []
    cache = prepare_tokens(
        experiment(root, tmp_path / "cache"), lambda done, total, what: said.append(what), piece_blocks=(2,)
    )
    assert said == ["encoding train clips"] + ["encoding test clips"] * 2, "what was done was not done again"
    assert cache.path.name == expected.name and content(cache.path) == content(expected)
    assert [path.name for path in (tmp_path / "cache" / "tokens").iterdir()] == [expected.name]


def test_pieces_that_are_added_later_go_on_too(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    root, expected = undisturbed
    cache = prepare_tokens(experiment(root, tmp_path / "cache"))
    killed(root, tmp_path / "cache", "encoding train pieces of 2 blocks", 2)
    assert not cache.has_pieces(2)
    said: list[str] = []
    prepare_tokens(experiment(root, tmp_path / "cache"), lambda done, total, what: said.append(what), piece_blocks=(2,))
    assert said.count("encoding train pieces of 2 blocks") == 2, "two of four parts were done"
    assert {name: part for name, part in content(cache.path).items() if "pieces" in name} == {
        name: part for name, part in content(expected).items() if "pieces" in name
    }
    assert {path.name for path in cache.path.iterdir()} == {path.name for path in expected.iterdir()}


def test_a_second_process_waits_and_finds_what_the_first_has_made(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    root, expected = undisturbed
    script = MAKE.format(
        tests=str(Path(__file__).parent), what="", times=0, root=str(root), cache=str(tmp_path / "cache"), pieces=(2,)
    )
    both = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors
    (made,) = (tmp_path / "cache" / "tokens").iterdir()
    assert content(made) == content(expected)


def test_a_tokenizer_that_was_lost_is_fitted_again_and_its_codes_stay(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    root, _ = undisturbed
    first = prepare_tokens(experiment(root, tmp_path / "cache"), piece_blocks=(2,))
    first.tokenizer_path.rename(tmp_path / "moved")
    said: list[str] = []
    again = prepare_tokens(
        experiment(root, tmp_path / "cache"), lambda done, total, what: said.append(what), piece_blocks=(2,)
    )
    assert not any(what.startswith("encoding") for what in said)
    assert again.path == first.path and content(again.tokenizer_path) == content(tmp_path / "moved")
    assert list((tmp_path / "cache" / "tokens").iterdir()) == [first.path]
