"""Tokenizing in steps and on a cluster: the bytes of one process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError
from reco_tune.preparation import prepare_tokenizer, prepare_tokens
from reco_tune.preparation.encoding import EncodedPart, PartTask, encode_part
from reco_tune.settings import Experiment, make_experiment
from reco_tune.study.tokenizing import prepare_tokens_on_cluster
from reco_tune.tokenizers import load_tokenizer


def _experiment(cache_dir: Path, root: Path | None = None) -> Experiment:
    """Three parts of training clips, of which one keeps its pixels, and two of held-out clips."""
    data = {
        "layout": "digits",
        "root": root,
        "cache_dir": cache_dir,
        "clip_frames": 9,
        "size_px": 12,
        "train_clips": 150,
        "test_clips": 70,
    }
    nested = {
        "data": data,
        "tokenizer": {"num_codes": 24, "first_frame_codes": 8, "fit_clips": 40},
        "evaluation": {"reference_clips": 64, "validation_clips": 16},
    }
    return make_experiment(nested, {}, where="here")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenCache]:
    """Videos of which one broke after it was listed, and the cache that one process makes of them."""
    folder = tmp_path_factory.mktemp("one")
    prepare_tokens(_experiment(folder / "first"))
    (rendered,) = (folder / "first" / "videos").iterdir()
    root = Path(shutil.move(rendered, folder / "videos"))
    broken = sorted(root.rglob("*.avi"))[5]
    broken.write_bytes(broken.read_bytes()[: len(broken.read_bytes()) * 2 // 3])
    return root, prepare_tokens(_experiment(folder / "cache", root), piece_blocks=(2,))


def _bytes(cache: TokenCache) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(cache.path.iterdir())}


def _backwards(function: Callable[[PartTask], EncodedPart], tasks: list[PartTask]) -> Iterator[EncodedPart]:
    """Others finish in any order."""
    return (function(task) for task in reversed(tasks))


def test_parts_encoded_elsewhere_in_any_order_make_the_same_bytes(
    videos: tuple[Path, TokenCache], tmp_path: Path
) -> None:
    root, cache = videos
    assert cache.skipped, "the broken video is listed"
    again = prepare_tokens(_experiment(tmp_path / "cache", root), piece_blocks=(2,), spread=_backwards)
    assert _bytes(again) == _bytes(cache)


def test_a_cluster_makes_the_same_bytes_and_goes_on_where_an_earlier_call_stopped(
    videos: tuple[Path, TokenCache], tmp_path: Path
) -> None:
    root, cache = videos
    experiment = _experiment(tmp_path / "cache", root)

    def loses_the_second(function: Callable[[PartTask], EncodedPart], tasks: list[PartTask]) -> Iterator[EncodedPart]:
        yield function(tasks[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_tokens(experiment, piece_blocks=(2,), spread=loses_the_second)
    said: list[str] = []
    again = prepare_tokens_on_cluster(experiment, None, lambda done, total, what: said.append(what), (2,))
    assert _bytes(again) == _bytes(cache)
    assert said.count("encoding train clips") == 2, "the first of three parts was done"
    assert not (tmp_path / "cache" / "ray-temp").exists()


def test_a_finished_cache_needs_no_cluster(videos: tuple[Path, TokenCache]) -> None:
    root, cache = videos
    experiment = _experiment(cache.path.parent.parent, root)
    assert prepare_tokens_on_cluster(experiment, "nowhere:1", piece_blocks=(2,)).path == cache.path


def test_a_node_that_does_not_see_the_files_says_so(videos: tuple[Path, TokenCache], tmp_path: Path) -> None:
    """Taken for a broken video, a file that one node does not see would be left out of the cache without a word."""
    _, cache = videos
    experiment = _experiment(cache.path.parent.parent, tmp_path / "unmounted")
    task = PartTask(0, [0], cache.sources("train")[:1], experiment.data, cache.tokenizer_path, "cpu", (), 1)
    with pytest.raises(
        DataError, match=r"unmounted is not visible from .*; put data.root and data.cache_dir on storage"
    ):
        encode_part(task)


def test_a_fit_stops_at_the_tokenizer_and_the_rest_goes_on_from_its_pixels(
    videos: tuple[Path, TokenCache], tmp_path: Path
) -> None:
    root, cache = videos
    experiment = _experiment(tmp_path / "cache", root)
    path = prepare_tokenizer(experiment, piece_blocks=(2,))
    assert load_tokenizer(path).fingerprint == cache.tokenizer_fingerprint
    assert not [left for left in (tmp_path / "cache" / "tokens").iterdir() if not left.name.startswith(".partial")]
    said: list[str] = []
    again = prepare_tokens(experiment, lambda done, total, what: said.append(what), (2,))
    assert _bytes(again) == _bytes(cache)
    assert not [what for what in said if what.startswith(("decoding", "fitting"))]
    assert prepare_tokenizer(experiment, piece_blocks=(2,)) == path
