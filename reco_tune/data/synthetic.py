"""The built-in data set: a real handwritten digit that moves and bounces, as lossless video files in UCF101 layout.

Even positions and steps of -2, 0 or 2 px per axis keep the number of distinct patches small enough for a k-means
vocabulary. The period of the motion is longer than two blocks, so a model must carry identity and motion through its
context. Train and test use different images.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reco_tune.data.video import write_video
from reco_tune.errors import DataError
from reco_tune.progress import Progress, quiet
from reco_tune.settings import Data

MARKER = "rendered.json"
TRAIN_IMAGES = 1400
"""Digit images from which training clips are drawn. The other 397 are held out."""
DEFAULT_CLIPS = {"train": 4096, "test": 1024}
"""Number of clips if `data.train_clips` and `data.test_clips` are not set."""
_DIGIT_PX = 8
STEP_PX = 2


class _DigitVideo(NamedTuple):
    """The content of one video file."""

    file: str
    image: int
    motion: tuple[int, int, int, int]
    """Row and column in the first frame, and the step of each."""


def render_digits(root: Path, data: Data, progress: Progress = quiet) -> None:
    """Renders the data set to `root` unless it is there already.

    Raises:
        DataError: if `root` holds other files or digits of other settings, or the frame is too small for a moving
            digit.
    """
    if data.size_px < _DIGIT_PX + STEP_PX:
        raise DataError(
            f"data.size_px ({data.size_px}) leaves no room for a digit to move; give at least {_DIGIT_PX + STEP_PX}"
        )
    wanted = rendering_settings(data)
    marker = root / MARKER
    found = _read_marker(marker)
    if found == {**wanted, "complete": True}:
        return
    if found is None and root.is_dir() and any(root.iterdir()):
        raise DataError(
            f"{root} holds files that ReCo-Tune did not render; give data.root another folder for the digits"
        )
    if found is not None and {**found, "complete": True} != {**wanted, "complete": True}:
        raise DataError(
            f"{root} holds digits rendered with other settings; delete the folder {root.name} or give data.root"
            " another one"
        )
    root.mkdir(parents=True, exist_ok=True)
    _write_marker(marker, {**wanted, "complete": False})
    _render(root, data, wanted, progress)
    _write_marker(marker, {**wanted, "complete": True})


def rendering_settings(data: Data) -> dict[str, Any]:
    """The settings on which the files depend."""
    return {
        "version": 1,
        "size_px": data.size_px,
        "frames": (data.clip_frames - 1) * data.frame_stride + 1,
        "train_clips": data.train_clips or DEFAULT_CLIPS["train"],
        "test_clips": data.test_clips or DEFAULT_CLIPS["test"],
        "seed": data.seed,
    }


def digit_captions(data: Data) -> dict[str, str]:
    """Captions by file name below `UCF-101`, such as "a 3 moves left and up". They describe the motion from a clip's
    first frame to its second.
    """
    from sklearn.datasets import load_digits

    settings, digits = rendering_settings(data), load_digits().target
    return {
        plan.file: digit_caption(int(digits[plan.image]), *_first_move(plan.motion, data))
        for _, part in _plans(settings, digits, data.size_px)
        for plan in part
    }


def digit_and_motion(caption: str) -> tuple[int, int, int]:
    """Parses a caption of `digit_caption`."""
    words = caption.split()
    down, right = ((word in words) - (opposite in words) for word, opposite in (("down", "up"), ("right", "left")))
    return int(words[1]), down, right


def digit_caption(digit: int, down: int, right: int) -> str:
    """
    Args:
        down, right: signs of the motion.
    """
    across = {-1: "left", 0: "", 1: "right"}[right]
    along = {-1: "up", 0: "", 1: "down"}[down]
    ways = " and ".join(way for way in (across, along) if way)
    return f"a {digit} moves {ways}" if ways else f"a {digit} stands still"


def _first_move(motion: tuple[int, int, int, int], data: Data) -> tuple[int, int]:
    """Signs of the first step, down and right. A step that would leave the canvas is reversed."""
    moves = []
    for axis in range(2):
        path = bounce(motion[axis], motion[2 + axis], data.size_px - _DIGIT_PX, data.frame_stride + 1)
        moves.append(int(np.sign(path[-1] - path[0])))
    return moves[0], moves[1]


def block_factor(size_px: int) -> int:
    """k: each pixel is stored as k x k pixels, because decord refuses small frames and frames whose sides are not
    multiples of 32.
    """
    return 32 // math.gcd(size_px, 32)


def _read_marker(marker: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(marker.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{marker} is damaged; delete the folder {marker.parent.name} and run again") from error
    return values if isinstance(values, dict) else {}


def _write_marker(marker: Path, values: dict[str, Any]) -> None:
    """Writes the marker atomically. It lies beside the folder, because the folder may hold nothing but the
    rendering.
    """
    staging = marker.parent.with_name(f".{marker.parent.name}-{os.getpid()}.json")
    try:
        staging.write_text(json.dumps(values), encoding="utf-8")
        staging.replace(marker)
    finally:
        staging.unlink(missing_ok=True)


def _render(root: Path, data: Data, settings: dict[str, Any], progress: Progress) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    lists = root / "ucfTrainTestlist"
    lists.mkdir(exist_ok=True)
    (lists / "classInd.txt").write_text("".join(f"{label + 1} Digit{label}\n" for label in range(10)), encoding="utf-8")
    plans: list[_DigitVideo] = []
    for split, part in _plans(settings, digits.target, data.size_px):
        lines = [f"{plan.file} {digits.target[plan.image] + 1}" if split == "train" else plan.file for plan in part]
        (lists / f"{split}list01.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        plans += part
    for label in range(10):
        (root / "UCF-101" / f"Digit{label}").mkdir(parents=True, exist_ok=True)
    factor = block_factor(data.size_px)

    def render(plan: _DigitVideo) -> None:
        frames = _moving_digit(images[plan.image], plan.motion, data.size_px, settings["frames"])
        enlarged = frames.repeat(factor, axis=1).repeat(factor, axis=2)
        write_video(root / "UCF-101" / plan.file, np.repeat(enlarged[..., None], 3, axis=-1), lossless=True)

    with ThreadPoolExecutor(2) as pool:  # threads help: encoding releases the interpreter lock
        for done, _ in enumerate(pool.map(render, plans), start=1):
            if done % 64 == 0 or done == len(plans):
                progress(done, len(plans), "rendering digits")


def _plans(settings: dict[str, Any], labels: np.ndarray, size_px: int) -> Iterator[tuple[str, list[_DigitVideo]]]:
    """Plans of each split. They depend on the settings alone."""
    order = np.random.default_rng([settings["seed"], 0]).permutation(len(labels))
    for number, (split, chosen) in enumerate(
        (("train", order[:TRAIN_IMAGES]), ("test", order[TRAIN_IMAGES:])), start=1
    ):
        random = np.random.default_rng([settings["seed"], number])
        yield split, _plan(chosen, labels, settings[f"{split}_clips"], size_px, random)


def _plan(
    chosen: np.ndarray, labels: np.ndarray, clips: int, size_px: int, random: np.random.Generator
) -> list[_DigitVideo]:
    """Plans clips with balanced classes. The group number in a name is the digit image, as UCF101's is the source
    video.
    """
    last = size_px - _DIGIT_PX
    positions = range(0, last + 1, STEP_PX)
    uses: dict[int, int] = {}
    plans = []
    for index in range(clips):
        label = index % 10
        image = int(random.choice(chosen[labels[chosen] == label]))
        uses[image] = uses.get(image, 0) + 1
        row, column = (int(random.choice(positions)) for _ in range(2))
        down, right = (int(step) for step in random.choice((-STEP_PX, 0, STEP_PX), size=2))
        name = f"Digit{label}"
        plans.append(
            _DigitVideo(f"{name}/v_{name}_g{image:04d}_c{uses[image]:02d}.avi", image, (row, column, down, right))
        )
    return plans


def _moving_digit(image: np.ndarray, motion: tuple[int, int, int, int], size_px: int, frames: int) -> np.ndarray:
    """uint8 [F, H, W]: the image on a black canvas. A step that would leave the canvas is reversed."""
    clip = np.zeros((frames, size_px, size_px), np.uint8)
    rows, columns = (bounce(motion[axis], motion[2 + axis], size_px - _DIGIT_PX, frames) for axis in range(2))
    for frame, (row, column) in enumerate(zip(rows, columns, strict=True)):
        clip[frame, row : row + _DIGIT_PX, column : column + _DIGIT_PX] = image
    return clip


def bounce(position: int, step: int, last: int, frames: int) -> list[int]:
    path = [position]
    while len(path) < frames:
        if not 0 <= path[-1] + step <= last:
            step = -step
        path.append(path[-1] + step)
    return path
