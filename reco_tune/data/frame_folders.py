"""Reads folders of images, each of which is one video. Knows nothing of clips or classes.

`frame_names` determines the order of the frames. Alpha is dropped, as in video decoders.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reco_tune.data.frame_names import Order, order_frames
from reco_tune.errors import DataError

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""Extensions of files that count as frames."""


def has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_EXTENSIONS and not name.startswith(".")


def list_frames(folder: Path) -> list[Path]:
    """The images of a folder, in time order.

    Raises:
        DataError: if there are none, or they are not the frames of one film.
    """
    return [folder / name for name in _order(folder).names]


def examine_frames(folder: Path) -> tuple[int, str]:
    """The number of images in a folder, and a warning if their numbers suggest lost frames or several films (else
    empty).

    Raises:
        DataError: if there are none, or they are not the frames of one film.
    """
    names, suspicion = _order(folder)
    return len(names), suspicion


def read_images(frames: Sequence[Path]) -> np.ndarray:
    """Reads images as uint8 [F, H, W, 3], RGB, rotated upright by their EXIF.

    Raises:
        DataError: if one cannot be read, or they differ in size.
    """
    images = [_read(frame) for frame in frames]
    for frame, image in zip(frames, images, strict=True):
        if image.shape != images[0].shape:
            height, width = image.shape[:2]
            raise DataError(
                f"{frame} has {width} x {height} px, unlike {frames[0].name}; give all frames of a video the same size"
            )
    return np.stack(images)


def _order(folder: Path) -> Order:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_image(entry.name)]
    if not names:
        raise DataError(f"{folder} is a folder without images, not a video; replace or remove it")
    return order_frames(names, folder)


def _read(path: Path) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            upright: Any = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow's conversion would clip the values instead of scaling them
                gray = (np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8)
                return np.repeat(gray[..., None], 3, axis=-1)
            if upright.mode in ("I", "F"):
                raise DataError(
                    f"{path} has 32 bits per pixel, with an unknown value range; convert its folder to 8 bits"
                )
            return np.asarray(upright.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # Pillow raises whatever its plug-ins raise
        what = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a readable image ({what}); replace or remove it") from error
