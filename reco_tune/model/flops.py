"""Number of weights of a model, and floating-point operations of a training step, by arithmetic on shapes.

The same rules hold everywhere:

- A multiply-add counts 2. Only causal pairs count.
- Backward is 2 x forward. A product with an untrained weight has no weight gradient, so its backward is 1 x forward.
- The prefix is one forward. In the built-in transformer's last layer it is keys and values only.
- The head counts. Embeddings, norms, the loss and the optimiser do not.
- Words of a text count as inputs, with their padding. They belong to the prefix, or to the window that begins with the
  clip.
- Masked pairs that a kernel computes all the same do not count, nor does what activation checkpointing computes twice.
  The limit is what the method needs, not what a kernel does.
"""

from __future__ import annotations

from reco_tune.model.shape import DecoderSettings
from reco_tune.windows import WindowSampler, prefix_inputs


def step_flops(settings: DecoderSettings, start: int, length: int, prefix_tokens: int | None = None) -> int:
    """Forward and backward of one clip whose window is `start` .. `start + length - 1`; the full step is (0, T).

    Args:
        prefix_tokens: C, the tokens to which the prefix is cut (`VideoTransformer.window`).

    Raises:
        ValueError: where the window does not lie in the clip.
    """
    if not (start >= 0 and length >= 1 and start + length <= settings.num_tokens):
        raise ValueError(
            f"window {start}..{start + length - 1} must lie in tokens 0..{settings.num_tokens - 1} of the clip"
        )
    read = prefix_inputs(start, prefix_tokens)
    forward = forward_flops(settings, read, length)
    return forward + backward_flops(settings, start, length, prefix_tokens) + prefix_flops(settings, read)


def backward_flops(settings: DecoderSettings, start: int, length: int, prefix_tokens: int | None = None) -> int:
    """The backward part of `step_flops`; only the window has one."""
    forward, costs = forward_flops(settings, prefix_inputs(start, prefix_tokens), length), settings.costs
    _, inputs = _inputs(settings, start, length)
    return 2 * forward - costs.frozen * inputs - costs.frozen_head * length


def forward_flops(settings: DecoderSettings, start: int, length: int) -> int:
    """One forward of `length` tokens with the head. They attend to `start` earlier tokens, whose keys and values are
    given.
    """
    costs, (before, inputs) = settings.costs, _inputs(settings, start, length)
    return costs.token * inputs + costs.head * length + costs.pair * (inputs * before + _triangle(inputs))


def prefix_flops(settings: DecoderSettings, start: int) -> int:
    """Cost of what later tokens read of `start` earlier ones. In the built-in transformer: all of the lower layers,
    and two projections of the last.
    """
    before, _ = _inputs(settings, start, 0)
    return settings.costs.prefix_token * before + settings.costs.prefix_pair * _triangle(before)


def attention_flops(settings: DecoderSettings, start: int, length: int) -> int:
    """The part of `step_flops`, with the whole prefix, that is Q K^T and the weighted sums of V."""
    costs, (before, inputs) = settings.costs, _inputs(settings, start, length)
    return 3 * costs.pair * (inputs * before + _triangle(inputs)) + costs.prefix_pair * _triangle(before)


def speedup_limit(settings: DecoderSettings, sampler: WindowSampler) -> float:
    """Full step / expected window step over the sampler's starts.

    Raises:
        ValueError: where sampler and model disagree about the tokens of a clip.
    """
    if sampler.num_tokens != settings.num_tokens:
        raise ValueError(
            f"the sampler is for clips of {sampler.num_tokens} tokens, the model for {settings.num_tokens}"
        )
    expected = sum(
        p * step_flops(settings, start, sampler.length_tokens) for start, p in sampler.distribution().items()
    )
    return step_flops(settings, 0, settings.num_tokens) / expected


def parameter_count(settings: DecoderSettings) -> int:
    """Weights of a model of this shape."""
    around, block, blocks = settings.parameter_counts
    return around + blocks * block


def _inputs(settings: DecoderSettings, start: int, length: int) -> tuple[int, int]:
    """Number of inputs before a window and in it. The other words of a text count where the clip's first input does."""
    words = settings.condition_tokens - 1
    return (start + words, length) if start else (0, length + words)


def _triangle(length: int) -> int:
    """Number of pairs of `length` tokens, where each sees itself and the earlier ones."""
    return length * (length + 1) // 2
