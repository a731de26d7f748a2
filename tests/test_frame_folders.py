"""Folders of images as videos: what pictures of all kinds look like, and folders that are no videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reco_tune.data.clips import list_clips
from reco_tune.data.frame_folders import list_frames, read_images
from reco_tune.data.reading import facts_of
from reco_tune.errors import DataError
from reco_tune.settings import Data


def _level(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (level, level, level)).save(path)


def test_frames_are_the_images_of_a_folder_in_time(tmp_path: Path) -> None:
    names = ["clip_2.png", "clip_9.JPG", "clip_10.jpeg", "clip_100.jpg"]
    for name in reversed(names[1:]):
        _level(tmp_path / name, 0)
    (tmp_path / "Thumbs.db").write_text("")
    (tmp_path / ".hidden_1.png").write_text("")
    assert [path.name for path in list_frames(tmp_path)] == names[1:]
    _level(tmp_path / names[0], 0)
    with pytest.raises(DataError, match=r"2 kinds \(3 like clip_.*, 1 like clip_2\.png\)"):
        list_frames(tmp_path)


def test_facts_name_lost_frames(tmp_path: Path) -> None:
    for number in (1, 2, 3, 6):
        _level(tmp_path / "v" / f"{number}.png", number)
    assert facts_of(tmp_path / "v") == (4, "2 of the numbers between its first and last frame are missing")


def test_a_folder_of_several_kinds_is_listed_and_the_others_are_used(tmp_path: Path) -> None:
    """Colour images and optical flow side by side, as programs for flow write them: they were one film, in turn."""
    for split in ("train", "test"):
        for number in range(4):
            _level(tmp_path / split / "film" / f"img_{number:05d}.jpg", 10 * number)
            _level(tmp_path / split / "mixed" / f"img_{number:05d}.jpg", 10 * number)
            _level(tmp_path / split / "mixed" / f"flow_x_{number:05d}.jpg", 200)
    clips = list_clips(Data(layout="frames", root=tmp_path, clip_frames=4, size_px=4, clip_stride=1))
    assert {clip.path.name for clip in clips.train + clips.test} == {"film"}
    for path, reason in clips.skipped:
        assert path.name == "mixed" and reason.startswith("holds images of 2 kinds (4 like ")
    assert len(clips.skipped) == 2


def _pictures() -> dict[str, Image.Image]:
    colour = np.zeros((5, 7, 3), np.uint8)
    colour[:, 3:] = (200, 100, 50)
    alpha = np.dstack([colour, np.full((5, 7), 128, np.uint8)])
    return {
        "RGB": Image.fromarray(colour),
        "alpha": Image.fromarray(alpha),
        "palette": Image.fromarray(colour).quantize(4),
        "CMYK": Image.fromarray(colour).convert("CMYK"),
    }


@pytest.mark.parametrize("kind", ["RGB", "alpha", "palette", "CMYK"])
def test_colour_pictures_of_all_kinds(tmp_path: Path, kind: str) -> None:
    picture = _pictures()[kind]
    picture.save(tmp_path / ("1.tif" if kind == "CMYK" else "1.png"))
    (pixels,) = read_images(list_frames(tmp_path))
    assert pixels.shape == (5, 7, 3) and np.abs(pixels.astype(int) - np.asarray(_pictures()["RGB"])).max() <= 2


@pytest.mark.parametrize(
    ("dtype", "level"), [(np.uint8, 77), (np.uint16, 77 * 256 + 9)], ids=["8 bits", "16 bits are scaled"]
)
def test_grey_pictures(tmp_path: Path, dtype: type[np.generic], level: int) -> None:
    Image.fromarray(np.full((5, 7), level, dtype)).save(tmp_path / "1.png")
    assert np.array_equal(read_images(list_frames(tmp_path)), np.full((1, 5, 7, 3), 77))


def test_pictures_are_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned a quarter to the right when shown
    picture.save(tmp_path / "1.png", exif=exif)
    assert np.array_equal(read_images(list_frames(tmp_path))[0, ..., 0], np.rot90(np.asarray(picture), -1))


def test_what_cannot_be_a_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is a folder without images"):
        list_frames(tmp_path / "empty")
    _level(tmp_path / "sizes" / "1.png", 1)
    Image.new("RGB", (8, 8)).save(tmp_path / "sizes" / "2.png")
    with pytest.raises(DataError, match=r"2\.png has 8 x 8 px, unlike 1\.png"):
        read_images(list_frames(tmp_path / "sizes"))
    for name, content in (("text.jpg", b"no image"), ("none.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is not a readable image"):
            read_images([tmp_path / name])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif has 32 bits per pixel"):
        read_images([tmp_path / "f.tif"])
    _level(tmp_path / "cut.png", 3)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut\.png is not a readable image"):
        read_images([tmp_path / "cut.png"])
