"""Videos whose every frame carries its own number, so that whoever reads one can be asked which frames it gave."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

BITS, SIDE_PX, HEAD_PX = 8, 64, 16
"""The number stands in the top rows as bright and dark blocks, the most significant bit left."""


def numbered_frames(count: int) -> np.ndarray:
    """uint8 [F, 64, 64, 3]; below the number colours move, so that encoders have something to predict."""
    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX]
    frames = np.empty((count, SIDE_PX, SIDE_PX, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[..., 0] = 128 + 80 * np.sin(2 * np.pi * (columns / 64 + number / 17))
        frame[..., 1] = 128 + 60 * np.sin(2 * np.pi * (rows / 32 + number / 23))
        frame[..., 2] = 128
        for bit in range(BITS):
            block = slice(bit * SIDE_PX // BITS, (bit + 1) * SIDE_PX // BITS)
            frame[:HEAD_PX, block] = 30 + 190 * (number >> (BITS - 1 - bit) & 1)
    return frames


def numbers_in(frames: np.ndarray) -> list[int]:
    """What stands in each of uint8 [F, 64, 64, 3]."""
    head = frames[:, 4:12].reshape(len(frames), 8, BITS, SIDE_PX // BITS, 3)[:, :, :, 2:6].mean(axis=(1, 3, 4))
    return [sum(int(level > 125) << (BITS - 1 - bit) for bit, level in enumerate(levels)) for levels in head]


@contextmanager
def same_priority() -> Iterator[None]:
    """SVT-AV1, run by root, makes the thread that calls it real-time and leaves it so: whatever starts later then
    starves the machine.
    """
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)


def write_numbered(path: Path, count: int, codec: str, pixels: str = "yuv420p", **options: str) -> Path:
    """Encoded by PyAV's `codec`, at 25 frames a second. Skips the test where that encoder is absent."""
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"PyAV has no encoder {codec} here")
    with same_priority(), av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = SIDE_PX, SIDE_PX, pixels
        for frame in numbered_frames(count):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def copy_packets(source: Path, target: Path, change: Callable[[int, bytes], bytes | None]) -> Path:
    """The first video stream with every packet as `change` makes it of its number and content; None leaves it out."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(before.demux(video=0)):
            content = change(number, bytes(packet)) if packet.size else None
            if content is not None:
                copy = av.Packet(content)
                copy.stream, copy.time_base, copy.pts, copy.dts = stream, packet.time_base, packet.pts, packet.dts
                copy.is_keyframe = packet.is_keyframe
                after.mux(copy)
    return target


def ffmpeg(*arguments: object) -> bytes:
    """What the program writes to its standard output. Skips the test where it is absent."""
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("the program ffmpeg is absent")
    command = [program, "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def shown_by_ffmpeg(path: Path, height: int = SIDE_PX, width: int = SIDE_PX) -> np.ndarray:
    """All frames, uint8 [F, H, W, 3]."""
    raw = ffmpeg("-i", path, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def windows(count: int, length: int = 5) -> list[Sequence[int]]:
    """Every window, in an order in which nobody reads."""
    every = [range(start, min(count, start + length)) for start in range(count)]
    return [every[place] for place in np.random.default_rng(0).permutation(count)]
