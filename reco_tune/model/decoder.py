"""A decoder is three functions: inputs of a stretch of tokens, `advance` and `logits`. All else is written once, here
and in whatever takes a `Decoder`: full sequences, windows after a prefix without gradient, sampling, cost, analyses.

Knows codes, positions and classes; refuses to know what lies between inputs and hidden states. Letters as in
`transformer`. Input i is token i-1, and the class at i = 0, so the output at i predicts token i.

A text is a class of several words. Labels are then int64 [B, C], padded on the left with `PADDING`, so that the last
word stands where a class would, at input 0, and the others before it: they are inputs whenever input 0 is. The word
`num_classes` alone is "no text", as the class of that number is "no class".
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
    """A stretch of inputs, as `advance` reads it."""

    embedded_BSD: Tensor
    begin: int
    """Position of the first one; the others follow. Of a text, all stand before it but the last word, which is 0."""
    padding_B: Tensor | None = None
    """How many of each clip's first inputs are padding, which nobody may see (`attention.beside_padding`); None under
    classes."""


class WindowOutput(NamedTuple):
    """What the model says about a window."""

    logits_BWV: Tensor
    """Scores of the window's tokens."""
    hidden_BWD: Tensor
    """Output of the last block, before the final norm: the h of the continuity term."""


class Decoder(nn.Module):
    """p(token | class, earlier tokens). A class of one's own gives `inputs`, `advance` and `logits`."""

    def __init__(
        self, num_codes: int, num_tokens: int, num_classes: int, width: int, condition_tokens: int = 1
    ) -> None:
        """
        Args:
            num_codes: V.
            num_tokens: T.
            num_classes: without the null class, whose label is this number.
            width: D, of the hidden states.
            condition_tokens: C, the words of a text; 1 for a class.

        Raises:
            ValueError: for a shape that cannot be.
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
        """One with fresh weights, drawn from torch's global generator.

        Args:
            options: a pydantic model: the class's own `Options`, or one of its signature.
            text: `condition_tokens`, where the condition is one.
        """
        return cls(num_codes, num_tokens, num_classes, **dict(options), **text)

    def start(self) -> None:
        """Takes the weights that training begins with, where those are not fresh ones."""

    def given_again(self) -> frozenset[str]:
        """Names of weights that are not trained and that `start` brings back: what is saved goes without them."""
        return frozenset()

    # The three functions

    def inputs(self, tokens_BT: Tensor, labels_B: Tensor, begin: int, end: int) -> Inputs:
        """Inputs begin .. end-1; where begin is 0, also the words of a text that stand before input 0."""
        raise NotImplementedError

    def advance(self, inputs: Inputs, past: Any = None) -> tuple[Tensor, Any]:
        """Hidden states [B, S, D] of inputs that come after those of `past`, and the past of what follows.

        Causal and differentiable; `past` is opaque, None at the beginning, and is never changed by who reads it twice:
        it is used once.
        """
        raise NotImplementedError

    def logits(self, hidden_BSD: Tensor) -> Tensor:
        """Scores [B, S, V] (or [N, V] of [N, D]) of the tokens that hidden states predict."""
        raise NotImplementedError

    def finish(self, inputs: Inputs, past: Any = None) -> Tensor:
        """The hidden states of `advance` alone, of inputs that nothing follows: their own past need not be kept."""
        return self.advance(inputs, past)[0]

    def layers(self) -> Sequence[nn.Module]:
        """The modules that `advance` runs one after another, each once and called as a module. Where they are named,
        their activations can be computed again for backward, and their weights split over workers.

        A layer leaves what it is given in `finish` as it is: it may run twice.
        """
        return ()

    # What is written once on top of them

    @cached_property
    def settings(self) -> DecoderSettings:
        """Its shape and what it costs, counted on tensors without storage."""
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
        """Label of "no class": what guidance is measured against and class dropout trains."""
        return self.shape.num_classes

    @property
    def recordable(self) -> bool:
        """Whether a GPU samples with `read` and `read_next` into static caches (the built-in transformer)."""
        return False

    def without_condition(self, labels_B: Tensor) -> Tensor:
        """Labels of "no class" or "no text" for as many clips."""
        null = torch.full_like(labels_B, self.null_class)
        if labels_B.ndim > 1:
            null[:, :-1] = PADDING
        return null

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def norm_and_head(self) -> tuple[nn.Module, nn.Module] | None:
        """The final norm and the head, where `logits` is the head of the norm; None where it is anything else."""
        return None

    def forward(self, tokens_BT: Tensor, labels_B: Tensor) -> Tensor:
        """Logits [B, T, V] of every token; `tokens_BT` are int32 or int64 codes (the last one is not read).

        Raises:
            ValueError: for anything but codes and classes of this model.
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
            prefix_tokens: C, where the prefix is cut to the class and its C nearest token inputs. Positions stay
                absolute; what is left is computed from what is left alone, so nothing of the rest leaks in. The class
                stays because sampling always shows it: a window without it would learn to do without its condition.
            activation_checkpointing: blocks keep their inputs alone and are computed again in backward.

        Raises:
            ValueError: where the window does not lie in the clip, or for anything but codes and classes of this model.
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
        """States from input 0 on, of those that begin with a whole condition."""
        words = self.shape.condition_tokens - 1
        return hidden_BSD[:, words:] if words else hidden_BSD

    def words_and_padding(self, labels_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Words [B, C] of the condition, padding replaced by the null word, and how many of each clip are padding."""
        if labels_B.ndim == 1:
            return labels_B[:, None], None
        padding = labels_B == PADDING
        return labels_B.masked_fill(padding, self.null_class), padding.sum(dim=1)

    def disturbed(self, tokens_BT: Tensor, labels_B: Tensor, noise_SD: Tensor) -> Tensor:
        """The h of whole clips whose inputs 1 .. S have noise on them."""
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
            labels_B: classes or texts; the null class samples without one.
            generator: of the draws, on the model's device; torch's global one where None.
            temperature: of the softmax; 0 takes the likeliest code.
            top_k: keep the k likeliest codes.
            top_p: keep the smallest set of codes that holds this probability.
            guidance: g of logits = null + g (class - null); 1 is none, others run the null class alongside.
            prompt_BP: first P tokens, kept as they are.

        Returns:
            int64 codes [B, T].

        Raises:
            ValueError: for a prompt longer than the clip, options that leave no code to draw, or anything but codes and
                classes of this model.
            RunFailedError: where the model gives no numbers.
        """
        self.check_clips(prompt_BP, labels_B)
        drawing = Drawing(temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance)
        sampler = sampler_for(self, drawing, len(labels_B), torch.is_autocast_enabled(labels_B.device.type))
        return sampler(labels_B, Noise.of(generator, len(labels_B)), prompt_BP)

    def reader(self, kept: Kept = WHOLE) -> Read:
        """A reading from the first input on. A past of which nothing is known is kept whole."""
        past: Any = None

        def read(tokens_BT: Tensor, labels_B: Tensor, begin: int, end: int) -> Tensor:
            nonlocal past
            hidden_BSD, past = self.advance(self.inputs(tokens_BT, labels_B, begin, end), past)
            return self.logits(hidden_BSD[:, -1:])[:, 0]

        return read

    def check_clips(self, tokens_BT: Tensor | None, labels_B: Tensor, tokens: int = 0) -> None:
        """Says in one sentence what embeddings say in words of their own, or on a GPU by ending the process.

        Args:
            tokens: so many of each clip are read.

        Raises:
            ValueError: for another type or shape, a code that is none of V, or a class that is none.
        """
        shape = self.shape
        if shape.condition_tokens == 1:
            _check_numbers("labels_B", labels_B, 1, shape.num_classes + 1, "classes (the last is the null class)")
        else:
            _check_numbers("labels_B", labels_B, 2, shape.num_classes + 1, "words (the last is none)", PADDING)
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
        """Puts compiled functions where blocks are run."""
        raise NotImplementedError(f"{type(self).__name__} has no blocks that are known to compile")

    def run_eagerly(self) -> None:
        """Takes compiled functions out again: who reads a trained model once in a while would wait for more graphs."""

    def _check_window(self, start: int, length: int) -> None:
        if not (start >= 0 and length >= 1 and start + length <= self.shape.num_tokens):
            raise ValueError(
                f"window {start}..{start + length - 1} must lie in tokens 0..{self.shape.num_tokens - 1} of the clip"
            )

    def _past(self, tokens_BT: Tensor, labels_B: Tensor, start: int, read: int) -> Any:
        """Of inputs 0 .. start-1, or of `read` of them: 0 and the last ones. Without gradient."""
        with torch.no_grad():
            past = self.advance(self.inputs(tokens_BT, labels_B, 0, 1 if read < start else start))[1]
            if 1 < read < start:
                past = self.advance(self.inputs(tokens_BT, labels_B, start - read + 1, start), past)[1]
        # older torch would hand the weights cast here, which carry no gradient, to the window
        torch.clear_autocast_cache()
        return past

    def _states_without_storage(self, tokens: int) -> tuple[Tensor, Any]:
        shapes = (1, tokens), self.shape.condition_shape(1)
        codes_BT, labels_B = (torch.zeros(shape, dtype=torch.long, device="meta") for shape in shapes)
        return self.advance(self.inputs(codes_BT, labels_B, 0, tokens))


@contextmanager
def computed_again(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, what these layers compute on the way to their outputs is computed again for backward, not kept."""
    if not layers:
        yield
        return
    # its first call imports the compiler, so only who asks for it pays the seconds
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
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}, where it must have {dimensions} axes, as its letters"
        )
    if values.is_meta or type(values) is not Tensor or torch.compiler.is_compiling() or not values.numel():
        return  # no values to look at
    low, high = values.min().item(), values.max().item()
    if low < least or high >= count:
        raise ValueError(f"{name} holds {low if low < least else high}, but the model has {what} 0..{count - 1}")
