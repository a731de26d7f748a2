"""ReCo-Tune: tune windowed training of autoregressive video transformers.

`import reco_tune as rt` is instant; `rt.load`, `rt.run` and `rt.open` load what they need when they are called.
"""

from typing import Any

_API = ("load", "open", "run")


def __getattr__(name: str) -> Any:
    if name == "__version__":  # read when it is asked for, so that `import reco_tune` stays instant
        from importlib.metadata import version

        return version("reco-tune")
    if name in _API:
        from importlib import import_module

        return getattr(import_module("reco_tune.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "__version__", *_API])
