"""Published FVD protocols: what each fixes, taken from its authors' code. FVDs of two protocols are never comparable.
`reco_tune.evaluation.i3d` computes them. docs/reference/fvd-protocols.md describes each and links to its code.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
"""SHA-256 of i3d_torchscript.pt (51,235,320 bytes), the Kinetics-400 network behind FVD."""


CODES_ALONE = "codes"
"""Prefix of the protocol of runs on codes without a decoder. They have no FVD, only the validation cross-entropy."""


class PublishedProtocol(NamedTuple):
    """One way to compute FVD with I3D's 400 logits."""

    frames: int
    """Frames per clip. Of a longer clip, real or generated, the first ones are used."""
    frame_strides: tuple[int, ...]
    """Distance in source frames between frames of a real clip. A second value is for Taichi, if it differs there."""
    crop: Literal["crop", "stretch"]
    """How videos become square (`data.resize`)."""
    rescale: bool
    """True: the network gets 0..255 and rescales. False: it gets [-1, 1]."""
    resize: bool
    """True: the network resizes to 224 x 224. False: clips are resized before (bilinear, no antialiasing)."""
    divisor: Literal["n", "n-1"]
    """Divisor of the covariances."""
    samples: int
    """Number of generated clips."""
    reference_clips: int
    """Largest number of real clips."""
    source: str
    """The code that the protocol follows."""

    def frame_stride(self, layout: str) -> int:
        """The frame stride of a data set, by its `data.layout`."""
        return self.frame_strides[-1 if layout == "taichi" else 0]


PUBLISHED: dict[str, PublishedProtocol] = {
    "stylegan-v": PublishedProtocol(
        16, (1,), "crop", True, True, "n", 2048, 2048, "github.com/universome/stylegan-v src/metrics"
    ),
    "latte": PublishedProtocol(
        16, (3, 6), "crop", True, True, "n", 2048, 2048, "github.com/Vchitect/Latte tools/metrics"
    ),
    "larp": PublishedProtocol(16, (1,), "crop", False, True, "n", 10000, 10000, "github.com/hywang66/LARP sample.py"),
    "omnitokenizer": PublishedProtocol(
        17,
        (1,),
        "stretch",
        False,
        False,
        "n-1",
        2048,
        2048,
        "github.com/FoundationVision/OmniTokenizer evaluation/fvd_external.py",
    ),
}
"""Protocols by the value of `evaluation.protocol`. All compare with raw real clips of the training split."""


def protocol_defaults(name: object) -> dict[str, object]:
    """The settings of `evaluation` that a published protocol sets if they are left out; none for other protocols."""
    if name not in PUBLISHED:
        return {}
    protocol = PUBLISHED[str(name)]
    return {
        "samples": protocol.samples,
        "reference_clips": protocol.reference_clips,
        "reference_split": "train",
        "reference": "raw",
    }
