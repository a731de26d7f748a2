"""A study: fixed arms and sampled trials on a Ray cluster. The study folder holds the whole state.

Importing this package is light, because Tune's trial processes do it too. The driver's modules are loaded when one of
their names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reco_tune.study.growth import Growth
    from reco_tune.study.launch import check, check_room, extend, resume, run
    from reco_tune.study.observer import Observer
    from reco_tune.study.runner import Options, StudyResult

__all__ = [
    "Growth",
    "Observer",
    "Options",
    "StudyResult",
    "check",
    "check_room",
    "extend",
    "resume",
    "run",
]
"""Names that `launch` defines."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.launch"), name)
