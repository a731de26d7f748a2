"""ReCo-Tune: tune windowed training of autoregressive video transformers."""


def __getattr__(name: str) -> str:
    if name == "__version__":  # read when it is asked for, so that `import reco_tune` stays instant
        from importlib.metadata import version

        return version("reco-tune")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
