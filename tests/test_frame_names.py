"""The order of frames by their names: names as people have them, and names that no order can be read from."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import PurePath

import pytest

from reco_tune.data.frame_names import order_frames, order_is_new
from reco_tune.errors import DataError

FOLDER = PurePath("data") / "film"


def _numbered(name: str, *numbers: float) -> list[str]:
    return [name.format(number) for number in numbers]


STAMPS = [1305031102.175304 + number / 30 for number in range(40)]
TIMES = [datetime(2019, 5, 1, 12, 3, 20) + timedelta(seconds=second) for second in range(0, 4000, 7)]
HALVES = [datetime(2019, 5, 1, 12, 3, 58) + timedelta(seconds=half / 2) for half in range(9)]

IN_TIME = {
    "no leading zeros": _numbered("clip_{}.png", 2, 9, 10, 100),
    "SkyTimelapse": _numbered("07U1fSrk9oI_frames_{:08d}.jpg", 931, 932, 1000),
    "FaceForensics": _numbered("{:06d}.jpg", 306, 307, 310),
    "TUM's time stamps": [f"{stamp:.6f}.png" for stamp in STAMPS],
    "time stamps without zeros at the end": [f"{stamp:.6f}".rstrip("0") + ".png" for stamp in STAMPS],
    "seconds": [f"frame_{round(0.04 * number, 2)}.png" for number in range(60)],
    "seconds as %g": [f"frame_{0.04 * number:g}.png" for number in range(60)],
    "quarters of a second": [f"{number / 4:g}.png" for number in range(8)],
    "decimal commas": [f"{0.04 * number:g}.png".replace(".", ",", 1) for number in (1, 2, 4, 6)],
    "dates": [f"{time:%Y-%m-%d_%H-%M-%S}.png" for time in TIMES],
    "dates without leading zeros": [f"{t.year}-{t.month}-{t.day} {t.hour}.{t.minute}.{t.second}.png" for t in TIMES],
    "ISO times, whole seconds without a fraction": [half.isoformat().replace(":", "-") + ".png" for half in HALVES],
    "in brackets": _numbered("frame ({}).png", 2, 10, 11),
    "suffixes": _numbered("{}_left.png", 2, 10),
    "a camera's number behind": _numbered("frame{}_cam0.png", 2, 10, 11),
    "a camera's number in front": _numbered("cam10_frame{}.png", 2, 10, 11),
    "signs": _numbered("{}.png", -10, -3, 2, 10),
    "signs behind a word": _numbered("t_{}.png", -10, -3, 2, 10),
    "signed decimals": _numbered("t={:+.1f}.png", -1.5, -0.5, 0.5, 1.5),
    "hyphens that are no signs": _numbered("frame-{}.png", 2, 9, 10),
    "counters behind a dot": _numbered("shot1.{}.png", 8, 9, 10, 11, 100),
    "counters behind a dot, overflowing": _numbered("shot1.{:04d}.png", 99, 100, 9999, 10000),
    "versions": _numbered("v1.2.{}.png", 9, 10, 11),
    "two counters": [f"{minute}m{second}.png" for minute in (9, 10) for second in range(60)],
    "capitals": ["IMG_1.JPG", "img_2.jpg", "Img_10.jpeg"],
    "one image": ["cover.png"],
}


@pytest.mark.parametrize("names", IN_TIME.values(), ids=IN_TIME)
def test_frames_are_ordered_by_all_numbers_of_their_names(names: list[str]) -> None:
    shuffled = random.Random(0).sample(names, len(names))
    assert order_frames(shuffled, FOLDER).names == names


@pytest.mark.parametrize(
    ("kind", "new"),
    [("FaceForensics", False), ("SkyTimelapse", False), ("one image", False), ("dates", True), ("in brackets", True)],
)
def test_orders_that_caches_of_earlier_versions_cannot_have_are_known(kind: str, new: bool) -> None:
    """Only the number at the end of names counted then: of dates the seconds, whatever the minute."""
    assert order_is_new(IN_TIME[kind][::-1], FOLDER) is new


def test_a_folder_that_is_refused_now_was_read_before() -> None:
    assert order_is_new(["1.jpg", "2.jpg", "thumb.jpg"], FOLDER)


REFUSED = {
    "flow": (
        ["img_00001.jpg", "img_00002.jpg", "flow_x_00001.jpg"],
        r"2 kinds \(2 like img_00001\.jpg, 1 like flow_x_",
    ),
    "masks": (["frame_0001.png", "mask_0001.png"], "2 kinds"),
    "a suffix": (["frame_1.png", "frame_1_depth.png"], "2 kinds"),
    "left and right": (["1_left.png", "1_right.png"], "2 kinds"),
    "two formats": (["1.jpg", "2.jpg", "1.png", "2.png"], r"2 like 1\.jpg, 2 like 1\.png"),
    "a thumbnail": (["1.jpg", "2.jpg", "thumb.jpg"], r"2 like 1\.jpg, 1 like thumb\.jpg"),
    "a copy": (["1.jpg", "2.jpg", "2 (1).jpg"], "2 kinds"),
    "a copy behind a dot": (["1.jpg", "1.1.jpg", "2.jpg", "3.jpg", "4.jpg"], r"such as \d and 1\.1"),
    "no numbers": (["image.png", "mask.png"], "2 kinds"),
    "hexadecimals": (["09.png", "0a.png", "10.png"], "2 kinds"),
    "one number twice": (["1.png", "01.png", "2.png"], r"01\.png and 1\.png"),
    "one number in two formats of one name": (["1.jpg", "1.JPEG"], r"1\.JPEG and 1\.jpg"),
    "two cameras": ([f"frame{time}_cam{side}.png" for time in range(9) for side in (0, 1)], "2 images per time step"),
    "KITTI's pairs": ([f"{scene:06d}_{time}.png" for scene in range(9) for time in (10, 11)], "2 images per time step"),
    "hyphens that may be signs": (_numbered("{}.png", -3, -2, -1), "hyphen before every number"),
    "odd counters behind a dot": (_numbered("shot1.{}.png", *range(1, 30, 2)), r"such as 1\.1 and 1\.11"),
    "decimals and counters": (["1.05.png", "1.10.png", "1.2.png"], r"such as 1\.2 and 1\.05"),
}


@pytest.mark.parametrize(("names", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_one_film_is_refused_in_one_sentence(names: list[str], message: str) -> None:
    said = set()
    for order in (names, names[::-1]):
        with pytest.raises(DataError, match=message) as error:
            order_frames(order, FOLDER)
        said.add(str(error.value))
    (sentence,) = said
    assert sentence.startswith(f"{FOLDER} h") and ";" in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    ("names", "suspicion"),
    [
        (_numbered("{:05d}.jpg", 1, 2, 3, 4), ""),
        (_numbered("{:05d}.jpg", 10, 20, 30), ""),
        (_numbered("{:05d}.jpg", 1, 2, 5, 6), "2 of the numbers"),
        (_numbered("{:05d}.jpg", 0, 2, 4, 8, 10), "1 of the numbers"),
        (["7.jpg"], ""),
        (_numbered("{:.6f}.png", *STAMPS), ""),
        (_numbered("{:.6f}.png", *STAMPS[:20], *STAMPS[22:]), "2 of the numbers"),
        (IN_TIME["dates"], ""),
        (IN_TIME["two counters"], ""),
        ([f"2019-{month:02d}-{day:02d}.png" for month in (4, 5) for day in range(1, 31)], ""),
        ([f"part{part}_{frame}.png" for part in (1, 2) for frame in range(1, 101)], "restart after part1_100.png"),
        (_numbered("a1_{}.png", *range(50)) + _numbered("a2_{}.png", *range(80)), "restart after a1_49.png"),
    ],
    ids=[
        "whole",
        "every tenth",
        "two lost",
        "one of every second lost",
        "one frame",
        "time stamps",
        "time stamps, two lost",
        "dates, every seventh second",
        "minutes and seconds",
        "months and days",
        "two films",
        "two films of other lengths",
    ],
)
def test_numbers_that_look_like_lost_frames_or_several_films_are_named(names: list[str], suspicion: str) -> None:
    found = order_frames(names, FOLDER)
    assert found.names == names and (suspicion in found.suspicion if suspicion else not found.suspicion)
