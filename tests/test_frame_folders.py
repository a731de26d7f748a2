"""Folders of images as videos: the order of frames, what pictures of all kinds look like, and folders that are no
videos.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reco_tune.data.frame_folders import list_frames, missing_numbers, read_images
from reco_tune.data.reading import facts_of
from reco_tune.errors import DataError


def _level(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (level, level, level)).save(path)


@pytest.mark.parametrize(
    "names",
    [
        ["clip_2.png", "clip_9.png", "clip_10.png", "clip_100.png"],
        ["07U1fSrk9oI_frames_00000931.jpg", "07U1fSrk9oI_frames_00000932.jpg", "07U1fSrk9oI_frames_00001000.jpg"],
        ["000306.jpg", "000307.jpg", "000310.jpg"],
        ["a.png", "b.png", "c_1.png"],
    ],
    ids=["no leading zeros", "SkyTimelapse", "FaceForensics", "names without numbers"],
)
def test_frames_are_ordered_by_the_number_that_ends_their_name(tmp_path: Path, names: list[str]) -> None:
    for name in reversed(names):
        _level(tmp_path / name, 0)
    (tmp_path / "Thumbs.db").write_text("")
    (tmp_path / ".hidden_1.png").write_text("")
    assert [path.name for path in list_frames(tmp_path)] == names


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [([1, 2, 3, 4], 0), ([10, 20, 30], 0), ([1, 2, 5, 6], 2), ([0, 2, 4, 8, 10], 1), ([7], 0)],
    ids=["whole", "every tenth", "two lost", "one of every second lost", "one frame"],
)
def test_gaps_in_the_numbers_are_counted(tmp_path: Path, numbers: list[int], missing: int) -> None:
    assert missing_numbers([tmp_path / f"{number:05d}.jpg" for number in numbers]) == missing


def test_facts_name_lost_frames(tmp_path: Path) -> None:
    for number in (1, 2, 3, 6):
        _level(tmp_path / "v" / f"{number}.png", number)
    assert facts_of(tmp_path / "v") == (4, "2 of the numbers between its first and last frame are missing")


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
    with pytest.raises(DataError, match=r"2\.png has 8 x 8 px, 1\.png has not"):
        read_images(list_frames(tmp_path / "sizes"))
    for name, content in (("text.jpg", b"no image"), ("none.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is no image that can be read"):
            read_images([tmp_path / name])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif has 32 bits a pixel"):
        read_images([tmp_path / "f.tif"])
    _level(tmp_path / "cut.png", 3)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut\.png is no image"):
        read_images([tmp_path / "cut.png"])
