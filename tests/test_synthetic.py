"""The rendered digits: what a file shows, the split, and that rendering twice is rendering once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from reco_tune.data import synthetic, video
from reco_tune.data.clips import decode, list_clips
from reco_tune.data.synthetic import MARKER, block_factor, render_digits
from reco_tune.data.video_index import index_video
from reco_tune.errors import DataError
from reco_tune.settings import Data


def _data(root: Path, **changes: object) -> Data:
    values = {"layout": "digits", "root": root, "clip_frames": 9, "size_px": 12, "train_clips": 40, "test_clips": 20}
    return Data(**{**values, **changes})


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Data:
    data = _data(tmp_path_factory.mktemp("digits") / "root")
    render_digits(data.root, data)
    return data


def _pixels(data: Data, split: str) -> tuple[list, np.ndarray]:
    clips = getattr(list_clips(data), split)
    video_BFCHW = np.zeros((len(clips), data.clip_frames, 3, data.size_px, data.size_px), np.uint8)
    for part in decode(clips, data):
        assert not part.failed
        video_BFCHW[part.rows] = part.video_BFCHW
    return clips, video_BFCHW


@pytest.mark.parametrize("size_px", [10, 12, 13, 16, 20, 32])
def test_decord_reads_the_stored_size(tmp_path: Path, size_px: int) -> None:
    side = size_px * block_factor(size_px)
    frames = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    video.write_video(tmp_path / "a.avi", frames, lossless=True)
    index = index_video(tmp_path / "a.avi")
    assert np.array_equal(np.stack(list(video.decord_frames(tmp_path / "a.avi", index, range(3)))), frames)


def test_every_frame_is_a_real_digit_moved_by_the_same_step_or_bounced(rendered: Data) -> None:
    """The file round trip is bit-exact, so the drawn 8 x 8 image is found again, pixel by pixel, at even positions."""
    digits = load_digits()
    images = {
        np.rint(image * (255 / 16)).astype(np.uint8).tobytes(): int(label)
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    for split in ("train", "test"):
        clips, video_BFCHW = _pixels(rendered, split)
        for clip, frames in zip(clips, video_BFCHW, strict=True):
            assert (frames == frames[:, :1]).all(), "gray"
            places = [_find(frame[0], images) for frame in frames]
            assert {label for _, _, label in places} == {clip.label}
            for axis in (0, 1):
                path = [place[axis] for place in places]
                steps = np.diff(path)
                assert set(np.abs(steps)) in ({0}, {2}), path
                assert all(path[i] in (0, 4) for i in range(1, 8) if steps[i] != steps[i - 1]), (
                    "turns round only at the edge"
                )


def _find(frame: np.ndarray, images: dict[bytes, int]) -> tuple[int, int, int]:
    found = [
        (row, column, images[frame[row : row + 8, column : column + 8].tobytes()])
        for row in (0, 2, 4)
        for column in (0, 2, 4)
        if frame[row : row + 8, column : column + 8].tobytes() in images
        and frame[row : row + 8, column : column + 8].sum() == frame.sum()
    ]
    assert found
    return found[0]


def test_classes_are_balanced_and_no_digit_image_is_in_both_splits(rendered: Data) -> None:
    clips = list_clips(rendered)
    assert set(Counter(clip.label for clip in clips.train).values()) == {4}
    assert set(Counter(clip.label for clip in clips.test).values()) == {2}
    images = [{clip.path.name.split("_")[2] for clip in part} for part in (clips.train, clips.test)]
    assert not images[0] & images[1]
    assert clips.class_names == tuple(f"Digit{label}" for label in range(10))


def test_rendering_again_changes_nothing_and_another_folder_gets_the_same_bytes(rendered: Data, tmp_path: Path) -> None:
    assert rendered.root is not None
    before = {path.relative_to(rendered.root): path.stat().st_mtime_ns for path in rendered.root.rglob("*")}
    render_digits(rendered.root, rendered)
    assert before == {path.relative_to(rendered.root): path.stat().st_mtime_ns for path in rendered.root.rglob("*")}
    render_digits(tmp_path / "again", rendered)
    for path in before:
        if (rendered.root / path).is_file():
            assert (tmp_path / "again" / path).read_bytes() == (rendered.root / path).read_bytes(), path


def test_an_interrupted_rendering_is_finished(rendered: Data, tmp_path: Path) -> None:
    data = _data(tmp_path / "part")
    render_digits(data.root, data)
    marker = tmp_path / "part" / MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "complete": False}))
    lost = next((tmp_path / "part").rglob("*.avi"))
    lost.unlink()
    render_digits(data.root, data)
    assert lost.is_file() and json.loads(marker.read_text())["complete"]


def test_a_stride_between_frames_is_rendered_too(tmp_path: Path) -> None:
    data = _data(tmp_path / "stride", frame_stride=2, train_clips=10, test_clips=10)
    render_digits(data.root, data)
    assert {video.count_frames(path) for path in (tmp_path / "stride").rglob("*.avi")} == {17}
    assert len(list_clips(data).train) == 10


def test_folders_of_others_are_refused(rendered: Data, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rendered with other settings; delete the folder root"):
        render_digits(rendered.root, rendered.model_copy(update={"seed": 1}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.avi").write_bytes(b"x")
    with pytest.raises(DataError, match="ReCo-Tune did not render"):
        render_digits(tmp_path / "mine", rendered)
    (tmp_path / "mine" / MARKER).write_text("{")
    with pytest.raises(DataError, match="delete the folder mine"):
        render_digits(tmp_path / "mine", rendered)
    with pytest.raises(DataError, match="leaves no room for a digit to move"):
        render_digits(tmp_path / "tiny", _data(tmp_path / "tiny", size_px=8))
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("start", "expected"),
    [((0, 2), [0, 2, 4, 2, 0]), ((4, 2), [4, 2, 0, 2, 4]), ((2, -2), [2, 0, 2, 4, 2]), ((2, 0), [2, 2, 2, 2, 2])],
    ids=["from the edge", "into the edge", "backwards", "still"],
)
def test_bouncing_by_hand(start: tuple[int, int], expected: list[int]) -> None:
    assert synthetic.bounce(*start, last=4, frames=5) == expected
