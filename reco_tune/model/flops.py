"""Number of weights of a model, and floating-point operations of a training step, by arithmetic on shapes.

The same rules hold everywhere:

- A multiply-add counts 2. Only causal pairs count.
- Backward is 2 x forward. A product with an untrained weight has no weight gradient, so its backward is 1 x forward.
- A prefix costs one forward pass. In the last layer of the built-in transformer, only its keys and values count.
- The head counts. Embeddings, norms, the loss and the optimiser do not.
- The words of a text count as inputs, padding included. They belong to the prefix, or to the window if it begins at
  token 0.
- Masked pairs that a kernel computes all the same do not count, nor does what activation checkpointing computes twice.
  The counts are what the method needs, not what a kernel does.
"""

from __future__ import annotations

from reco_tune.model.shape import DecoderSettings
from reco_tune.windows import WindowSampler, prefix_inputs


def step_flops(settings: DecoderSettings, start: int, length: int, prefix_tokens: int | None = None) -> int:
    """FLOPs of one clip in a step: prefix, forward and backward. The window is `start` .. `start + length - 1`.

    The full step is (0, T).

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
    """FLOPs of one forward pass over `length` tokens, with the head. The keys and values of the `start` tokens before
    them are given.
    """
    costs, (before, inputs) = settings.costs, _inputs(settings, start, length)
    return costs.token * inputs + costs.head * length + costs.pair * (inputs * before + _triangle(inputs))


def prefix_flops(settings: DecoderSettings, start: int) -> int:
    """FLOPs of a prefix of `start` tokens. In the built-in transformer, these are all layers but the last, and the
    projections to keys and values in the last.
    """
    before, _ = _inputs(settings, start, 0)
    return settings.costs.prefix_token * before + settings.costs.prefix_pair * _triangle(before)


def attention_flops(settings: DecoderSettings, start: int, length: int) -> int:
    """The part of `step_flops` that is Q K^T and the weighted sums of V, for a prefix that is not cut."""
    costs, (before, inputs) = settings.costs, _inputs(settings, start, length)
    return 3 * costs.pair * (inputs * before + _triangle(inputs)) + costs.prefix_pair * _triangle(before)


def speedup_limit(settings: DecoderSettings, sampler: WindowSampler) -> float:
    """FLOPs of the full step, divided by the expected FLOPs of a window step over the sampler's starts.

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
    """Number of inputs before a window, and in it. A text's words before input 0 count together with input 0."""
    words = settings.condition_tokens - 1
    return (start + words, length) if start else (0, length + words)


def _triangle(length: int) -> int:
    """Number of pairs of `length` tokens, where each sees itself and the earlier ones."""
    return length * (length + 1) // 2
