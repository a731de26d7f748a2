"""Published FVD protocols: what each fixes, taken from its authors' code. FVDs of two protocols are never comparable.
`reco_tune.evaluation.i3d` computes them. docs/reference/fvd-protocols.md describes each and links to its code.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
"""Of i3d_torchscript.pt (51,235,320 bytes), the Kinetics-400 network that FVD is computed with."""


CODES_ALONE = "codes"
"""Begins the protocol of runs on codes that nothing here can turn into pixels: no FVD, only the validation
cross-entropy.
"""


class PublishedProtocol(NamedTuple):
    """One way to compute FVD with I3D's 400 logits."""

    frames: int
    """Of a clip; of longer ones the first are taken, on both sides."""
    frame_strides: tuple[int, ...]
    """Distance in source frames that the real clips are cut with; a second one is Taichi's, where that has its own."""
    crop: Literal["crop", "stretch"]
    """How videos become square (`data.resize`)."""
    rescale: bool
    """Whether the network is given 0..255 and rescales; else it is given [-1, 1]."""
    resize: bool
    """Whether the network resizes to 224 x 224; else it is done before (bilinear, no antialiasing)."""
    divisor: Literal["n", "n-1"]
    """Of the covariances."""
    samples: int
    """Generated clips."""
    reference_clips: int
    """Real clips, at most."""
    source: str
    """The code that it follows."""

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
"""By the name that `evaluation.protocol` gives; all compare with raw real clips of the training split."""


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
