"""Published sets of codes: clips are cut out of recordings as they lie on disk, and never reach over the end of one."""

from __future__ import annotations

import json
import math
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reco_tune.data.layouts import Split
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError, TooFewClipsError
from reco_tune.preparation import prepare_tokens
from reco_tune.preparation.code_import import check_codes_there
from reco_tune.settings import Experiment, make_experiment

CODES = 64


def experiment(root: Path, grid: tuple[int, int, int], **data: object) -> Experiment:
    settings = {"layout": "tokens", "root": root, "cache_dir": root / "cache", "grid": list(grid), **data}
    nested = {
        "data": settings,
        "tokenizer": {"num_codes": CODES},
        "model": {"width": 16, "depth": 1, "heads": 2},
        "evaluation": {"validation_clips": 4},
    }
    return make_experiment(nested, {}, where="test")


def numbered(frames: int, rows: int, columns: int, first: int = 0) -> np.ndarray:
    """Frames whose codes tell which they are: every code of frame i is i modulo the codebook."""
    return np.broadcast_to(((first + np.arange(frames)) % CODES)[:, None, None], (frames, rows, columns)).copy()


def write_world_model_v1(folder: Path, segments: list[int], side: int = 3, **facts: object) -> None:
    """Segments of so many frames, one after the other."""
    folder.mkdir(parents=True)
    count = sum(segments)
    kind = str(facts.get("token_dtype", "uint32"))
    numbered(count, side, side).astype(kind).tofile(folder / "video.bin")
    np.repeat(np.arange(len(segments)), segments).astype(np.int32).tofile(folder / "segment_ids.bin")
    (folder / "metadata.json").write_text(json.dumps({"num_images": count, "s": side, "hz": 30, **facts}))


def write_world_model_v2(folder: Path, frames: list[int], breaks: list[int], flat: bool, side: int = 4) -> None:
    """Shards of so many frames, a new segment from each frame in `breaks` on; flat as its validation set."""
    places = [folder if flat else folder / name for name in ("videos", "segment_indices", "metadata")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(frames):
        groups = math.ceil(count / 17)
        codes = numbered(groups * 3, side, side).reshape(groups, 3, side, side)
        codes.astype(np.int32).tofile(places[0] / f"video_{number}.bin")
        segment = np.searchsorted(breaks, np.arange(count), side="right").astype(np.int32)
        segment.tofile(places[1] / f"segment_idx_{number}.bin")
        (places[2] / f"metadata_{number}.json").write_text(json.dumps({"shard_num_frames": count, "shard_ind": number}))


def write_commavq(folder: Path, recordings: int, archive: bool, frames: int = 12) -> None:
    """Recordings of 2 x 4 codes (the real ones are 8 x 16), as files or in one archive."""
    folder.mkdir(parents=True)
    for number in range(recordings):
        np.save(folder / f"{number:04d}.token.npy", numbered(frames, 2, 4, 7 * number).astype(np.int16))
    if archive:
        with tarfile.open(folder / "data-0000.tar", "w") as tar:
            for path in sorted(folder.glob("*.npy")):
                tar.add(path, path.name)
                path.unlink()


def firsts(cache: TokenCache, split: Split) -> list[tuple[int, ...]]:
    """The first code of every block, by clip."""
    tokens = cache.tokens(split).reshape(-1, *cache.grid)
    assert (tokens == tokens[..., :1, :1]).all(), "a block is one frame, whole"
    return sorted(tuple(clip[:, 0, 0].tolist()) for clip in tokens)


def test_windows_of_the_first_world_model_never_cross_a_segment(tmp_path: Path) -> None:
    write_world_model_v1(tmp_path / "train_v1.1", [7, 2, 5, 3])
    write_world_model_v1(tmp_path / "val_v1.1", [6], token_dtype="uint16")
    cache = prepare_tokens(experiment(tmp_path, (3, 3, 3)))
    assert cache.grid == (3, 3, 3) and cache.class_names == ("all",) and not cache.has_pixels
    assert firsts(cache, "train") == [(0, 1, 2), (3, 4, 5), (9, 10, 11), (14, 15, 16)], "segments begin at 0, 7, 9, 14"
    assert firsts(cache, "test") == [(0, 1, 2), (3, 4, 5)]
    assert sorted(clip.start for clip in cache.sources("train")) == [0, 3, 9, 14]


def test_frames_may_lie_apart_and_clips_overlap(tmp_path: Path) -> None:
    """Every start that 1X's own rule allows: the first and the last frame of a window are of one segment."""
    write_world_model_v1(tmp_path / "train", [7, 2, 5, 3])
    write_world_model_v1(tmp_path / "val", [6])
    cache = prepare_tokens(experiment(tmp_path, (3, 3, 3), frame_stride=2, clip_stride=1))
    ids = np.repeat(np.arange(4), [7, 2, 5, 3])
    allowed = [(start, start + 2, start + 4) for start in range(17 - 4) if ids[start] == ids[start + 4]]
    assert firsts(cache, "train") == allowed and len(allowed) == 4


@pytest.mark.parametrize("flat", [True, False], ids=["as-its-validation-set", "as-its-training-set"])
def test_groups_of_the_second_world_model_are_kept_whole(tmp_path: Path, flat: bool) -> None:
    """A group that reaches into another segment is left out, and the last one where frames of it were made up."""
    write_world_model_v2(tmp_path / "train", [17 * 3, 17 * 2 + 5], breaks=[20], flat=flat)
    write_world_model_v2(tmp_path / "val", [17], breaks=[], flat=True)
    cache = prepare_tokens(experiment(tmp_path, (3, 4, 4)))
    assert firsts(cache, "train") == [(0, 1, 2), (0, 1, 2), (6, 7, 8)], (
        "of each shard the second group is cut by frame 20"
    )
    assert firsts(cache, "test") == [(0, 1, 2)]
    with pytest.raises(DataError, match=r"groups of 17 frames .* data\.frame_stride and data\.clip_stride would split"):
        prepare_tokens(experiment(tmp_path, (3, 4, 4), frame_stride=2))
    with pytest.raises(DataError, match=r"set data\.grid to \[3, 32, 32\]"):
        prepare_tokens(experiment(tmp_path, (3, 2, 8)))


@pytest.mark.parametrize("archive", [False, True], ids=["files", "archive"])
def test_recordings_that_are_not_square(tmp_path: Path, archive: bool) -> None:
    write_commavq(tmp_path / "train", 3, archive)
    write_commavq(tmp_path / "val", 1, archive)
    cache = prepare_tokens(experiment(tmp_path, (5, 2, 4)))
    expected = [
        tuple((7 * number + start + block) % CODES for block in range(5)) for number in range(3) for start in (0, 5)
    ]
    assert cache.grid == (5, 2, 4) and firsts(cache, "train") == sorted(expected)
    again = prepare_tokens(experiment(tmp_path, (5, 2, 4)))
    assert again.path == cache.path
    other = prepare_tokens(experiment(tmp_path, (4, 2, 4)))
    assert other.path != cache.path and len(other.tokens("train")) == 9


def test_the_last_frames_are_held_out_and_shared_by_no_training_clip(tmp_path: Path) -> None:
    write_commavq(tmp_path / "drives", 4, archive=False)
    held_out = experiment(tmp_path, (3, 2, 4), split="time", test_fraction=1 / 3, clip_stride=1)
    cache = prepare_tokens(held_out)
    frames = {
        split: {(clip.path, clip.start + block) for clip in cache.sources(split) for block in range(3)}
        for split in ("train", "test")
    }
    assert not frames["train"] & frames["test"]
    assert len({path for path, _ in frames["test"]}) == 2, "16 of 48 frames: the last recording, and the end of another"


def test_a_clip_is_read_without_the_rest(tmp_path: Path) -> None:
    """2.5 GB of codes, of which the disk holds nothing: reading them whole would show."""
    for folder, count in ((tmp_path / "train", 2_500_000), (tmp_path / "val", 64)):
        write_world_model_v1(folder, [4], side=16)
        with (folder / "video.bin").open("r+b") as file:
            file.truncate(count * 16 * 16 * 4)
        np.repeat(np.arange(count // 16 + 1), 16)[:count].astype(np.int32).tofile(folder / "segment_ids.bin")
        (folder / "metadata.json").write_text(json.dumps({"num_images": count, "s": 16}))
    tracemalloc.start()
    cache = prepare_tokens(experiment(tmp_path, (16, 16, 16), train_clips=8, test_clips=4, clip_stride=16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(cache.tokens("train")) == 8 and peak < 200_000_000, "segment ids are 10 MB, codes 2,560"


def _cut_off(root: Path) -> None:
    path = root / "train" / "video.bin"
    path.write_bytes(path.read_bytes()[:-4])


def _facts(text: str) -> Callable[[Path], None]:
    return lambda root: (root / "train" / "metadata.json").write_text(text)  # type: ignore[return-value]


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "codes cut off": (_cut_off, r"video\.bin has \d+ bytes, but an array of shape .*truncated or damaged"),
    "no segments": (
        lambda root: (root / "train/segment_ids.bin").unlink(),
        r"segment_ids\.bin is missing, so",
    ),
    "no facts": (lambda root: (root / "train/metadata.json").unlink(), r"metadata\.json is missing"),
    "facts of no JSON": (_facts("{"), r"metadata\.json cannot be read as metadata"),
    "facts without a size": (_facts('{"num_images": 17}'), r"metadata\.json cannot be read as metadata"),
    "facts of words": (_facts('{"num_images": "17", "s": 3}'), r"num_images and s must be whole numbers"),
    "codes of floats": (_facts('{"num_images": 17, "s": 3, "token_dtype": "float32"}'), "token_dtype 'float32'"),
    "codes of objects": (_facts('{"num_images": 17, "s": 3, "token_dtype": "O"}'), "token_dtype 'O'"),
    "another type": (_facts('{"num_images": 17, "s": 3, "token_dtype": "uint16"}'), "bytes, but an array of shape"),
    "no held-out set": (lambda root: (root / "val").rename(root / "else"), r"holds no recordings.*data\.split to time"),
    "two training sets": (
        lambda root: write_world_model_v1(root / "train_v1.1", [4]),
        r"train and train_v1\.1 for train; keep one",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    write_world_model_v1(tmp_path / "train", [7, 2, 5, 3])
    write_world_model_v1(tmp_path / "val", [6])
    damage(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        check_codes_there(experiment(tmp_path, (3, 3, 3)))
    assert "\n" not in str(error.value)


def test_codes_and_shapes_that_do_not_fit_name_the_setting(tmp_path: Path) -> None:
    write_commavq(tmp_path / "train", 2, archive=False, frames=40)
    write_commavq(tmp_path / "val", 1, archive=False)
    with pytest.raises(DataError, match=r"frames of \(2, 4\) codes, .* set data\.grid to \[blocks, 2, 4\]"):
        check_codes_there(experiment(tmp_path, (5, 4, 4)))
    few = experiment(tmp_path, (5, 2, 4)).model_dump()
    few["tokenizer"]["num_codes"] = 16
    with pytest.raises(DataError, match=r"has the code \d+, but tokenizer\.num_codes is 16"):
        prepare_tokens(make_experiment(few, {}, where="test"))
    with pytest.raises(TooFewClipsError, match="no clip for test"):
        prepare_tokens(experiment(tmp_path, (13, 2, 4)))
    np.save(tmp_path / "train" / "cut.npy", np.zeros((4, 5, 2, 4), int))
    with pytest.raises(DataError, match=r"a recording needs \[frames, rows, columns\].*train\.npy and test\.npy"):
        check_codes_there(experiment(tmp_path, (5, 2, 4)))
    (tmp_path / "train" / "cut.npy").unlink()
    (tmp_path / "train" / "data-0000.tar.gz").write_bytes(b"packed")
    with pytest.raises(DataError, match=r"data-0000\.tar\.gz is compressed.*unpack it"):
        check_codes_there(experiment(tmp_path, (5, 2, 4)))
