"""A decoder is three functions: inputs of a stretch of tokens, `advance` and `logits`. Everything else is written
once, for any decoder: full sequences, windows after a prefix without gradient, sampling, cost, analyses.

Knows codes, positions and classes, but not what lies between inputs and hidden states. The letters in names are those
of `transformer`. Input 0 is the class, and input i is token i-1. So the output at i predicts token i.

A text takes the place of the class and has several words. Labels are then int64 [B, C], padded on the left with
`PADDING`. The last word is input 0, and the other words stand before it. Every call that reads input 0 reads these
words, too. The word `num_classes` alone means "no text", as the class `num_classes` means "no class".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from reco_tune.model.counting import count
from reco_tune.model.kv_cache import WHOLE, Kept
from reco_tune.model.sampling import Drawing, Noise, Read, sampler_for
from reco_tune.model.shape import CountedSettings, DecoderSettings
from reco_tune.windows import PADDING, prefix_inputs


class Inputs(NamedTuple):
    """A stretch of inputs for `advance`."""

    embedded_BSD: Tensor
    begin: int
    """Position of the first input. If it is 0, `embedded_BSD` begins with the words of a text before input 0."""
    padding_B: Tensor | None = None
    """Number of each clip's first inputs that are padding. No input may see them (`attention.beside_padding`). None
    under classes.
    """


class WindowOutput(NamedTuple):
    """The model's output for a window."""

    logits_BWV: Tensor
    """Logits of the window's tokens."""
    hidden_BWD: Tensor
    """Output of the last block, before the final norm: the h of the continuity term."""


class Decoder(nn.Module):
    """p(token | class, earlier tokens). A subclass implements `inputs`, `advance` and `logits`."""

    def __init__(
        self, num_codes: int, num_tokens: int, num_classes: int, width: int, condition_tokens: int = 1
    ) -> None:
        """
        Args:
            num_codes: V.
            num_tokens: T.
            num_classes: number of classes without the null class. The label of the null class is this number.
            width: D, the width of the hidden states.
            condition_tokens: C, the words of a text; 1 for a class.

        Raises:
            ValueError: for an impossible shape.
        """
        super().__init__()
        if min(num_codes, num_tokens, num_classes, width, condition_tokens) < 1:
            raise ValueError(
                "num_codes, num_tokens, num_classes, width and condition_tokens must be 1 or more, got"
                f" {(num_codes, num_tokens, num_classes, width, condition_tokens)}"
            )
        self.shape = DecoderSettings(
            num_codes=num_codes,
            num_tokens=num_tokens,
            num_classes=num_classes,
            width=width,
            condition_tokens=condition_tokens,
        )

    @classmethod
    def build(cls, num_codes: int, num_tokens: int, num_classes: int, options: Any, **text: int) -> Self:
        """A decoder with fresh weights, drawn from torch's global generator.

        Args:
            options: a pydantic model: the class's own `Options`, or one made from its signature.
            text: `condition_tokens`, if the condition is a text.
        """
        return cls(num_codes, num_tokens, num_classes, **dict(options), **text)

    def start(self) -> None:
        """Loads the weights that training begins with, if they are not fresh ones."""

    def given_again(self) -> frozenset[str]:
        """Names of weights that are not trained and that `start` can load again. Saved models leave them out."""
        return frozenset()

    # The three functions

    def inputs(self, tokens_BT: Tensor, labels_B: Tensor, begin: int, end: int) -> Inputs:
        """Inputs begin .. end-1. If begin is 0, also the words of a text that stand before input 0."""
        raise NotImplementedError

    def advance(self, inputs: Inputs, past: Any = None) -> tuple[Tensor, Any]:
        """Hidden states [B, S, D] of inputs that follow those of `past`, and the past for the inputs after them.

        Must be causal and differentiable. `past` is opaque, and None at the beginning. A past is read at most once.
        """
        raise NotImplementedError

    def logits(self, hidden_BSD: Tensor) -> Tensor:
        """Logits [B, S, V] of the tokens that the hidden states predict (or [N, V] for [N, D])."""
        raise NotImplementedError

    def finish(self, inputs: Inputs, past: Any = None) -> Tensor:
        """Only the hidden states of `advance`, for inputs that no other inputs follow."""
        return self.advance(inputs, past)[0]

    def layers(self) -> Sequence[nn.Module]:
        """The modules that `advance` calls one after another, each once. If they are named here, their activations can
        be computed again in backward, and their weights can be split over workers.

        In `finish`, a layer must not change its arguments, because it may run twice.
        """
        return ()

    # What is written once on top of them

    @cached_property
    def settings(self) -> DecoderSettings:
        """The shape and the costs, counted on tensors without storage."""
        found = count(self, self._states_without_storage, self.logits, self.shape)
        blocks = [sum(weight.numel() for weight in layer.parameters()) for layer in self.layers()]
        return CountedSettings(
            **asdict(self.shape),
            counted=found.costs,
            parameters=found.parameters,
            cached=found.cached,
            frozen=found.frozen,
            block=max(blocks, default=0),
            blocks=len(blocks),
        )

    @property
    def null_class(self) -> int:
        """Label of "no class". Guidance compares with it, and class dropout trains it."""
        return self.shape.num_classes

    @property
    def recordable(self) -> bool:
        """Whether a GPU samples with `read` and `read_next` into static caches (the built-in transformer)."""
        return False

    def without_condition(self, labels_B: Tensor) -> Tensor:
        """Labels of "no class" or "no text", one a clip."""
        null = torch.full_like(labels_B, self.null_class)
        if labels_B.ndim > 1:
            null[:, :-1] = PADDING
        return null

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def norm_and_head(self) -> tuple[nn.Module, nn.Module] | None:
        """The final norm and the head if `logits` is head(norm(h)), else None."""
        return None

    def forward(self, tokens_BT: Tensor, labels_B: Tensor) -> Tensor:
        """Logits [B, T, V] of every token; `tokens_BT` are int32 or int64 codes (the last one is not read).

        Raises:
            ValueError: for tokens or labels that `check_clips` refuses.
        """
        return self.window(tokens_BT, labels_B, 0, self.shape.num_tokens).logits_BWV

    def window(
        self,
        tokens_BT: Tensor,
        labels_B: Tensor,
        start: int,
        length: int,
        prefix_tokens: int | None = None,
        activation_checkpointing: bool = False,
    ) -> WindowOutput:
        """Predictions of tokens `start` .. `start + length - 1` only, with no gradient before `start` and no work after
        the window.

        Args:
            prefix_tokens: C. The prefix is cut to the class and the C token inputs nearest to the window. Positions
                stay absolute. The remaining inputs see only each other, so nothing that was cut leaks in. The class
                stays, because sampling always shows it. A window without it would learn to ignore it.
            activation_checkpointing: blocks keep only their inputs, and their activations are computed again in
                backward.

        Raises:
            ValueError: if the window does not lie in the clip, or for tokens or labels that `check_clips` refuses.
        """
        self.check_clips(tokens_BT, labels_B, start + length - 1)
        hidden_BWD = self.hidden(tokens_BT, labels_B, start, length, prefix_tokens, activation_checkpointing)
        return WindowOutput(self.logits(hidden_BWD), hidden_BWD)

    def hidden(
        self,
        tokens_BT: Tensor,
        labels_B: Tensor,
        start: int,
        length: int,
        prefix_tokens: int | None = None,
        activation_checkpointing: bool = False,
    ) -> Tensor:
        """The h of `window` alone, without logits.

        Raises:
            ValueError: where the window does not lie in the clip, or blocks cannot be computed again.
        """
        self._check_window(start, length)
        if activation_checkpointing and not self.layers():
            raise ValueError(f"activation_checkpointing: {type(self).__name__} names no layers to compute again")
        past = self._past(tokens_BT, labels_B, start, prefix_inputs(start, prefix_tokens)) if start else None
        inputs = self.inputs(tokens_BT, labels_B, start, start + length)
        with computed_again(self.layers() if activation_checkpointing and torch.is_grad_enabled() else ()):
            hidden_BSD = self.finish(inputs, past)
        return hidden_BSD if start else self.after_words(hidden_BSD)

    def after_words(self, hidden_BSD: Tensor) -> Tensor:
        """Hidden states from input 0 on, without those of the condition's earlier words."""
        words = self.shape.condition_tokens - 1
        return hidden_BSD[:, words:] if words else hidden_BSD

    def words_and_padding(self, labels_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Words [B, C] of the condition, padding replaced by the null word, and how many of each clip are padding."""
        if labels_B.ndim == 1:
            return labels_B[:, None], None
        padding = labels_B == PADDING
        return labels_B.masked_fill(padding, self.null_class), padding.sum(dim=1)

    def disturbed(self, tokens_BT: Tensor, labels_B: Tensor, noise_SD: Tensor) -> Tensor:
        """Hidden states of whole clips, with noise on inputs 1 .. S."""
        inputs = self.inputs(tokens_BT, labels_B, 0, self.shape.num_tokens)
        moved_BTD = inputs.embedded_BSD.clone()
        first = self.shape.condition_tokens
        moved_BTD[:, first : first + len(noise_SD)] += noise_SD[: moved_BTD.shape[1] - first]
        return self.after_words(self.advance(inputs._replace(embedded_BSD=moved_BTD))[0])

    @torch.no_grad()
    def generate(
        self,
        labels_B: Tensor,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        prompt_BP: Tensor | None = None,
    ) -> Tensor:
        """Samples whole clips, token after token, with cached keys and values.

        Args:
            labels_B: classes or texts; the null class samples without a condition.
            generator: of the draws, on the model's device; torch's global one if None.
            temperature: of the softmax; 0 takes the likeliest code.
            top_k: keep the k likeliest codes.
            top_p: keep the smallest set of codes that holds this probability.
            guidance: g of logits = null + g (class - null). 1 is no guidance; other values also run the null class.
            prompt_BP: first P tokens, kept as they are.

        Returns:
            int64 codes [B, T].

        Raises:
            ValueError: for a prompt longer than the clip, options that leave no code to draw, or tokens or labels that
                `check_clips` refuses.
            RunFailedError: if the model's logits are not finite.
        """
        self.check_clips(prompt_BP, labels_B)
        drawing = Drawing(temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance)
        sampler = sampler_for(self, drawing, len(labels_B), torch.is_autocast_enabled(labels_B.device.type))
        return sampler(labels_B, Noise.of(generator, len(labels_B)), prompt_BP)

    def reader(self, kept: Kept = WHOLE) -> Read:
        """A function with which a sampler reads clips from input 0 on. `kept` is ignored, because a past is opaque."""
        past: Any = None

        def read(tokens_BT: Tensor, labels_B: Tensor, begin: int, end: int) -> Tensor:
            nonlocal past
            hidden_BSD, past = self.advance(self.inputs(tokens_BT, labels_B, begin, end), past)
            return self.logits(hidden_BSD[:, -1:])[:, 0]

        return read

    def check_clips(self, tokens_BT: Tensor | None, labels_B: Tensor, tokens: int = 0) -> None:
        """Refuses wrong inputs with a clear message. An embedding would fail with a cryptic one, or crash on a GPU.

        Args:
            tokens: number of tokens that are read of each clip.

        Raises:
            ValueError: for a wrong type or shape, or for a code, class or word out of range.
        """
        shape = self.shape
        if shape.condition_tokens == 1:
            _check_numbers("labels_B", labels_B, 1, shape.num_classes + 1, "classes (the last is the null class)")
        else:
            _check_numbers("labels_B", labels_B, 2, shape.num_classes + 1, "words (the last is the null word)", PADDING)
            if labels_B.shape[1] != shape.condition_tokens:
                raise ValueError(
                    f"labels_B has {labels_B.shape[1]} words a clip, but the model reads {shape.condition_tokens}; pad"
                    f" them on the left with {PADDING}"
                )
        if tokens_BT is None:
            return
        _check_numbers("tokens_BT", tokens_BT, 2, self.shape.num_codes, "codes")
        if len(tokens_BT) != len(labels_B):
            raise ValueError(
                f"tokens_BT has {len(tokens_BT)} clips, but labels_B {len(labels_B)}; give one class per clip"
            )
        if tokens_BT.shape[1] < tokens:
            raise ValueError(
                f"tokens_BT has {tokens_BT.shape[1]} tokens a clip, but {tokens} are read; give whole clips"
            )

    def compile_blocks(self, compiled: Callable[[Any], Any]) -> None:
        """Replaces the blocks by compiled functions."""
        raise NotImplementedError(f"{type(self).__name__} has no blocks that can be compiled")

    def run_eagerly(self) -> None:
        """Removes compiled functions. Otherwise, occasional calls of a trained model would wait for recompilation."""

    def _check_window(self, start: int, length: int) -> None:
        if not (start >= 0 and length >= 1 and start + length <= self.shape.num_tokens):
            raise ValueError(
                f"window {start}..{start + length - 1} must lie in tokens 0..{self.shape.num_tokens - 1} of the clip"
            )

    def _past(self, tokens_BT: Tensor, labels_B: Tensor, start: int, read: int) -> Any:
        """Past of inputs 0 .. start-1, or of `read` of them (input 0 and the last ones). Without gradient."""
        with torch.no_grad():
            past = self.advance(self.inputs(tokens_BT, labels_B, 0, 1 if read < start else start))[1]
            if 1 < read < start:
                past = self.advance(self.inputs(tokens_BT, labels_B, start - read + 1, start), past)[1]
        # older torch would reuse the weights cast here, which carry no gradient, for the window
        torch.clear_autocast_cache()
        return past

    def _states_without_storage(self, tokens: int) -> tuple[Tensor, Any]:
        shapes = (1, tokens), self.shape.condition_shape(1)
        codes_BT, labels_B = (torch.zeros(shape, dtype=torch.long, device="meta") for shape in shapes)
        return self.advance(self.inputs(codes_BT, labels_B, 0, tokens))


@contextmanager
def computed_again(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within this context, activations of these layers are not kept. Backward computes them again."""
    if not layers:
        yield
        return
    # imported only here, because its first call imports the compiler, which takes seconds
    from torch.utils.checkpoint import checkpoint

    own = [layer.forward for layer in layers]
    for layer, forward in zip(layers, own, strict=True):
        layer.forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            layer.forward = forward


def _check_numbers(name: str, values: Tensor, dimensions: int, count: int, what: str, least: int = 0) -> None:
    if values.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{name} is {str(values.dtype).removeprefix('torch.')}, not int64 or int32; give {name}.long()"
        )
    if values.ndim != dimensions:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, where it must have {dimensions} axes")
    if values.is_meta or type(values) is not Tensor or torch.compiler.is_compiling() or not values.numel():
        return  # no values to look at
    low, high = values.min().item(), values.max().item()
    if low < least or high >= count:
        raise ValueError(f"{name} holds {low if low < least else high}, but the model has {what} 0..{count - 1}")
