"""Results of the paper (Zhou & Shen, ACL Findings 2026, arXiv 2604.07402), for studies that measure the same thing.

A published number is shown beside ours only under the same conditions. For speed-ups, these are 17 frames of 256x256 (5
x 32 x 32 tokens) and windows of 2 of the 5 blocks. For FVD, it is the named protocol. Any other published number can be
imported from a file (`imported`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

SOURCE = "arXiv 2604.07402"
CLIP = (17, 256)
"""The paper's clip: frames, and their height and width in pixels."""
WINDOW_TOKENS = 2 * 32 * 32
"""The paper's window: 2 of 5 blocks of 32 x 32 tokens."""
SPEEDUPS = {"full": 1.0, "fewer_frames": 2.5, "local": 1.7, "local_balanced": 2.0}
"""Speed-up per step on its data sets (FFS, SKY, UCF101, Taichi), by arm."""
DATA_SETS = ("ucf101", "faceforensics", "skytimelapse", "taichi")
"""Their layouts."""
LARP_UCF101 = {"full": 57.0, "reco": 56.1}
"""FVD on UCF101 with LARP's tokenizer and protocol: `LARP_CLIP`, 10,000 generated clips."""
LARP_CLIP = (16, 128)
"""As `CLIP`."""


class Reference(NamedTuple):
    """The paper's values for one arm; NaN where it has none under the same conditions."""

    fvd: float
    speedup: float


def paper_reference(kept: pd.DataFrame) -> dict[str, Reference]:
    """arm -> the paper's values, for arms of the paper under the same conditions; empty for any other study.

    The paper trains every arm for the same number of epochs, so its numbers belong to `equal_steps` only.

    Args:
        kept: the study's own runs that may be compared.
    """
    if kept.empty or "data.layout" not in kept:
        return {}
    layout, protocol = kept["data.layout"].iloc[0], str(kept["protocol"].iloc[0]).split("/")
    clips, samples = (
        set(zip(kept["data.clip_frames"], kept["data.size_px"], strict=True)),
        protocol[5] if len(protocol) == 7 else "",
    )
    windows = set(kept[kept["window.scheme"] == "window"]["window.length_tokens"])
    speedups = SPEEDUPS if layout in DATA_SETS and clips == {CLIP} and windows <= {WINDOW_TOKENS} else {}
    larp = layout == "ucf101" and protocol[0] == "larp" and clips == {LARP_CLIP} and samples == "n10000x1"
    fvds = LARP_UCF101 if larp else {}
    arms = [arm for arm in dict.fromkeys(kept["arm"]) if arm in fvds or arm in speedups]
    return {arm: Reference(fvds.get(arm, math.nan), speedups.get(arm, math.nan)) for arm in arms}
