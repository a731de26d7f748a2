"""ReCo-Tune: tune windowed training of autoregressive video transformers."""

__version__ = "0.1.0"
