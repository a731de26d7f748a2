"""From videos to tokens and back from disk: what the cache holds is what encoding its own pixels gives; damage is one
sentence.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numbered_videos import copy_packets, write_numbered

from reco_tune.data.clips import decode, list_clips
from reco_tune.data.layouts import data_fingerprint
from reco_tune.data.token_cache import MANIFEST, TokenCache, TokenCacheWriter
from reco_tune.data.video import write_video
from reco_tune.errors import DataError, TooFewClipsError
from reco_tune.preparation import prepare, prepare_tokens
from reco_tune.settings import Data, Evaluation, Experiment, TokenGrid, Tokenizer
from reco_tune.tokenizers import load_tokenizer

SPLITS = ("train", "test")


def _experiment(cache_dir: Path, **data: object) -> Experiment:
    """40 clips of which only 24 keep their pixels, so that both ways of encoding run."""
    return Experiment(
        data=Data(
            **{
                "layout": "digits",
                "cache_dir": cache_dir,
                "clip_frames": 9,
                "size_px": 12,
                "train_clips": 40,
                "test_clips": 30,
                **data,
            }
        ),
        tokenizer=Tokenizer(num_codes=24, first_frame_codes=8, fit_clips=20),
        evaluation=Evaluation(reference_clips=24, validation_clips=16),
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, TokenCache]:
    experiment = _experiment(tmp_path_factory.mktemp("work") / "cache")
    return experiment, prepare_tokens(experiment, piece_blocks=(2,))


@pytest.fixture
def copied(prepared: tuple[Experiment, TokenCache], tmp_path: Path) -> tuple[Experiment, TokenCache]:
    """A copy that a test may damage."""
    experiment, cache = prepared
    shutil.copytree(experiment.cache_dir, tmp_path / "cache")
    experiment = _experiment(tmp_path / "cache")
    return experiment, TokenCache.open(tmp_path / "cache" / cache.path.relative_to(prepared[0].cache_dir))


def _all_pixels(experiment: Experiment, cache: TokenCache, split: str) -> torch.Tensor:
    """Decoded from the files again, in the cache's order."""
    data = experiment.data
    data = data.model_copy(update={"root": data.root or next((experiment.cache_dir / "videos").iterdir())})
    clips = cache.sources(split)
    video = np.zeros((len(clips), data.clip_frames, 3, data.size_px, data.size_px), np.uint8)
    for part in decode(clips, data):
        video[part.rows] = part.video_BFCHW
    return torch.from_numpy(video)


@pytest.mark.parametrize("split", SPLITS)
def test_tokens_are_the_codes_of_the_pixels_in_raster_order(
    prepared: tuple[Experiment, TokenCache], split: str
) -> None:
    experiment, cache = prepared
    tokenizer = load_tokenizer(cache.tokenizer_path)
    video = _all_pixels(experiment, cache, split)
    assert np.array_equal(cache.clips(split), video[:24])
    assert np.array_equal(np.load(cache.path / f"{split}.tokens.npy"), tokenizer.encode(video)), (
        "blocks, rows and columns on disk too"
    )
    assert np.array_equal(cache.tokens(split).reshape(-1, *cache.grid), tokenizer.encode(video))
    assert (cache.tokens(split).dtype, cache.labels(split).dtype, cache.clips(split).dtype) == (
        np.int32,
        np.int64,
        np.uint8,
    )
    assert cache.labels(split).tolist() == [
        int(clip.path.parent.name.removeprefix("Digit")) for clip in cache.sources(split)
    ]
    assert len(cache.tokens(split)) == {"train": 40, "test": 30}[split]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("blocks", [2, 3])
def test_pieces_are_sub_clips_encoded_by_themselves(
    prepared: tuple[Experiment, TokenCache], split: str, blocks: int
) -> None:
    """Piece j starts at frame j * temporal_stride; the lengths asked for later are added to the cache that exists."""
    experiment, _ = prepared
    cache = prepare_tokens(experiment, piece_blocks=(2, 3))
    tokenizer = load_tokenizer(cache.tokenizer_path)
    video = _all_pixels(experiment, cache, split)
    pieces = cache.pieces(split, blocks)
    assert pieces.shape == (len(video), 6 - blocks, blocks * 9)
    for j in range(pieces.shape[1]):
        piece = video[:, 2 * j : 2 * j + 1 + 2 * (blocks - 1)]
        assert np.array_equal(pieces[:, j].reshape(-1, blocks, 3, 3), tokenizer.encode(piece)), j
    assert np.array_equal(pieces[:, 0], cache.tokens(split)[:, : blocks * 9]), (
        "the first piece is the clip's own beginning"
    )


def test_the_second_call_reuses_everything(prepared: tuple[Experiment, TokenCache]) -> None:
    experiment, cache = prepared
    before = {path: path.stat().st_mtime_ns for path in experiment.cache_dir.rglob("*")}
    said: list[str] = []
    again = prepare_tokens(experiment, lambda done, total, what: said.append(what), (2,))
    assert (again.path, again.fingerprint) == (cache.path, cache.fingerprint) and not said
    assert before == {path: path.stat().st_mtime_ns for path in experiment.cache_dir.rglob("*")}
    assert not list(experiment.cache_dir.rglob(".writing-*"))


def test_another_place_gives_the_same_bits(prepared: tuple[Experiment, TokenCache], tmp_path: Path) -> None:
    _, cache = prepared
    again = prepare_tokens(_experiment(tmp_path / "elsewhere"), piece_blocks=(2,))
    assert (again.fingerprint, again.data_fingerprint, again.tokenizer_fingerprint) == (
        cache.fingerprint,
        cache.data_fingerprint,
        cache.tokenizer_fingerprint,
    )
    for split in SPLITS:
        assert np.array_equal(again.tokens(split), cache.tokens(split)) and np.array_equal(
            again.pieces(split, 2), cache.pieces(split, 2)
        )


def test_what_a_result_depends_on_gets_its_own_cache(prepared: tuple[Experiment, TokenCache]) -> None:
    experiment, cache = prepared
    other = prepare_tokens(
        experiment.model_copy(update={"tokenizer": experiment.tokenizer.model_copy(update={"seed": 1})})
    )
    assert other.data_fingerprint == cache.data_fingerprint
    assert other.tokenizer_fingerprint != cache.tokenizer_fingerprint and other.path != cache.path
    assert TokenCache.open(cache.path).fingerprint == cache.fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / MANIFEST).unlink(), "has no token cache"),
        (lambda path: (path / MANIFEST).write_text("{"), "is damaged .*not readable JSON"),
        (lambda path: (path / MANIFEST).write_text('{"kind": "other"}'), "is not a token cache"),
        (lambda path: _edit(path, schema=99), "version 99 of the token cache, but this program reads version 2"),
        (lambda path: _edit(path, grid=None), "is damaged"),
        (lambda path: (path / "train.tokens.npy").unlink(), "train.tokens.npy is missing"),
        (lambda path: _cut(path / "test.clips.npy"), "test.clips.npy is missing or truncated"),
        (lambda path: np.save(path / "train.labels.npy", np.zeros(3)), "has shape"),
        (lambda path: _edit(path, tokenizer_fingerprint="0"), "another tokenizer"),
    ],
    ids=[
        "no manifest",
        "cut manifest",
        "foreign",
        "other version",
        "missing key",
        "lost array",
        "cut array",
        "other array",
        "other tokenizer",
    ],
)
def test_unusable_caches_are_one_sentence_with_the_way_out(
    copied: tuple[Experiment, TokenCache], damage: object, message: str
) -> None:
    experiment, cache = copied
    damage(cache.path)  # type: ignore[operator]
    with pytest.raises(DataError, match=message) as error:
        prepare_tokens(experiment)
    assert (
        cache.path.name in str(error.value) and "delete the folder" in str(error.value) and "\n" not in str(error.value)
    )
    shutil.rmtree(cache.path)  # the way out
    assert prepare_tokens(experiment).fingerprint == cache.fingerprint


def _edit(path: Path, **changes: object) -> None:
    (path / MANIFEST).write_text(json.dumps({**json.loads((path / MANIFEST).read_text()), **changes}))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.safetensors"])
def test_a_damaged_tokenizer_is_refused(copied: tuple[Experiment, TokenCache], name: str) -> None:
    experiment, cache = copied
    path = cache.tokenizer_path / name
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{cache.tokenizer_path.name}.*delete the folder"):
        prepare_tokens(experiment)


def test_a_cut_off_piece_array_is_refused(copied: tuple[Experiment, TokenCache]) -> None:
    _, cache = copied
    _cut(cache.path / "test.pieces-2.npy")
    with pytest.raises(DataError, match=r"test\.pieces-2\.npy is missing or truncated"):
        cache.pieces("test", 2)
    with pytest.raises(DataError, match="no pieces of 4 blocks"):
        cache.pieces("train", 4)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), TokenCacheWriter(tmp_path / "tokens") as writer:
        writer.create("train.tokens", (4, 45), np.int32)
        raise KeyboardInterrupt
    assert not list((tmp_path / "tokens").iterdir())


def test_what_a_killed_process_left_is_swept_away_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    killed = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "from pathlib import Path; from reco_tune.data.token_cache import TokenCacheWriter as W; import time\n"
                f"with W(Path({str(tmp_path)!r})): print('ready', flush=True); time.sleep(60)"
            ),
        ],
        stdout=subprocess.PIPE,
    )
    assert killed.stdout is not None and killed.stdout.readline() == b"ready\n"
    with TokenCacheWriter(tmp_path) as other:
        assert len(list(tmp_path.iterdir())) == 2
        killed.kill()
        killed.communicate()
        with TokenCacheWriter(tmp_path) as writer:
            assert set(tmp_path.iterdir()) == {other.folder, writer.folder}
    assert not list(tmp_path.iterdir())


def test_a_lost_tokenizer_is_fitted_again_and_the_cache_reused(copied: tuple[Experiment, TokenCache]) -> None:
    experiment, cache = copied
    shutil.rmtree(cache.tokenizer_path)
    again = prepare_tokens(experiment, piece_blocks=(2, 4))
    assert again.path == cache.path and again.pieces("train", 4).shape == (40, 2, 36)


def test_the_first_to_finish_wins(tmp_path: Path) -> None:
    """Two processes that prepare the same data end with one cache and no error."""

    def write(value: int) -> TokenCache:
        with TokenCacheWriter(tmp_path) as writer:
            for split in SPLITS:
                writer.create(f"{split}.tokens", (2, 4), np.int32)[:] = value
            return writer.finish(
                tmp_path / "same",
                fingerprint="f",
                data_fingerprint="d",
                tokenizer_fingerprint="t",
                tokenizer_path=tmp_path,
                grid=TokenGrid(1, 2, 2),
                num_codes=9,
                class_names=["a"],
                clips={"train": [], "test": []},
                skipped=[],
            )

    assert write(1).tokens("train")[0, 0] == 1
    assert write(2).tokens("train")[0, 0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["same"]


@pytest.mark.parametrize("reference_clips", [8, 500], ids=["most decoded after the fit", "all pixels kept"])
def test_videos_that_break_while_decoding_are_left_out_and_listed(tmp_path: Path, reference_clips: int) -> None:
    for name in (0, 1, 2, 4, 5):
        (tmp_path / "videos" / "A").mkdir(parents=True, exist_ok=True)
        frames = np.random.default_rng(name).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
        write_video(tmp_path / "videos" / "A" / f"{name}.mp4", frames)
    (tmp_path / "videos" / "A" / "text.mp4").write_text("no video")
    whole = write_numbered(tmp_path / "whole.webm", 40, "libvpx-vp9")
    copy_packets(whole, tmp_path / "videos/A/3.webm", lambda number, content: content[: 3 if number else None])
    experiment = Experiment(
        data=Data(
            layout="class_folders", root=tmp_path / "videos", split="time", clip_frames=5, size_px=16, clip_stride=2
        ),
        tokenizer=Tokenizer(num_codes=24, first_frame_codes=8, fit_clips=8),
        evaluation=Evaluation(reference_clips=reference_clips, validation_clips=4),
    )
    cache = prepare_tokens(experiment, piece_blocks=(2,))
    assert {path.as_posix() for path, _ in cache.skipped} == {"A/3.webm", "A/text.mp4"}
    assert {
        line.split(",")[0].rsplit("/", 1)[-1] for line in (cache.path / "skipped.csv").read_text().splitlines()[1:]
    } == {
        "3.webm",
        "text.mp4",
    }
    assert cache.path.is_relative_to(tmp_path / ".cache" / "reco-tune")
    listed = list_clips(experiment.data)
    for split, clips in (("train", listed.train), ("test", listed.test)):
        assert cache.sources(split) == [clip for clip in clips if clip.path != Path("A/3.webm")], "order kept"
        codes = load_tokenizer(cache.tokenizer_path).encode(_all_pixels(experiment, cache, split))
        assert np.array_equal(cache.tokens(split), codes.flatten(1))
        assert np.array_equal(cache.pieces(split, 2)[:, 0], codes[:, :2].flatten(1))


def test_a_cache_that_may_hold_wrong_frames_is_not_used_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions took wrong frames of some videos, without a word; now one sentence says why all is read anew."""
    for name in range(2):
        write_numbered(tmp_path / f"{name}.mp4", 40, "mpeg4")
    experiment = Experiment(
        data=Data(layout="flat", root=tmp_path, split="time", clip_frames=5, size_px=16),
        tokenizer=Tokenizer(num_codes=24, first_frame_codes=8, fit_clips=4),
        evaluation=Evaluation(reference_clips=4, validation_clips=2),
    )
    with monkeypatch.context() as before:
        before.setattr(prepare, "data_fingerprint", partial(data_fingerprint, earlier=True))
        old = prepare_tokens(experiment)
    said: list[str] = []
    new = prepare_tokens(experiment, lambda done, total, what: said.append(what))
    assert new.path != old.path and new.data_fingerprint != old.data_fingerprint
    assert old.path.name in said[0] and "wrong frames" in said[0]
    assert not any("wrong frames" in sentence for sentence in said[1:])
    said.clear()
    assert prepare_tokens(experiment, lambda done, total, what: said.append(what)).path == new.path and not said


def test_an_empty_folder_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with pytest.raises(DataError, match="has no video"):
        prepare_tokens(Experiment(data=Data(layout="flat", root=tmp_path / "videos", split="time")))
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


def test_a_cache_made_with_relative_paths_is_read_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces asked for later decode the videos again, so the cache must know where they lie."""
    monkeypatch.chdir(tmp_path)
    experiment = _experiment(Path("cache"), root=Path("digits"))
    prepare_tokens(experiment)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    cache = prepare_tokens(_experiment(tmp_path / "cache", root=tmp_path / "digits"), piece_blocks=(2,))
    assert not list((tmp_path / "other").iterdir())
    assert np.array_equal(cache.pieces("test", 2)[:, 0], cache.tokens("test")[:, :18])
    assert load_tokenizer(cache.tokenizer_path).fingerprint == cache.tokenizer_fingerprint


@pytest.mark.parametrize(
    ("good", "fewest", "fails"),
    [(0, 1, True), (1, 1, False), (1, 50, True)],
    ids=["none left", "enough left", "too few left"],
)
def test_too_few_clips_end_with_exit_code_1_and_a_list_of_what_was_left_out(
    tmp_path: Path, good: int, fewest: int, fails: bool
) -> None:
    """Videos that are there but broken are a failed run, not a person's mistake; the list says why each was
    left out."""
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("no video")
    (videos / "folder.mp4").mkdir()
    for name in range(good):
        write_video(
            videos / f"{name}.avi",
            np.random.default_rng(name).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8),
            lossless=True,
        )
    experiment = Experiment(
        data=Data(layout="flat", root=videos, split="time", clip_frames=5, size_px=16, min_clips=fewest),
        tokenizer=Tokenizer(num_codes=12, first_frame_codes=4, fit_clips=8),
        evaluation=Evaluation(reference_clips=8, validation_clips=2),
    )
    if fails:
        with pytest.raises(TooFewClipsError, match=r"all are listed in .*skipped\.csv$") as error:
            prepare_tokens(experiment)
        assert error.value.exit_code == 1
        listed = Path(str(error.value).rsplit(" listed in ", 1)[1])
    else:
        listed = prepare_tokens(experiment).path / "skipped.csv"
    lines = listed.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["video", "empty.mp4", "folder.mp4", "text.mp4"]
    if not fails:  # nor do they pass because a cache was made of them before
        more = experiment.model_copy(update={"data": experiment.data.model_copy(update={"min_clips": 50})})
        with pytest.raises(
            TooFewClipsError,
            match=r"only \d+ clips for train, fewer than data.min_clips \(50\).* the first is empty.mp4",
        ):
            prepare_tokens(more)
    assert all("replace or remove it" in line for line in lines[1:])
