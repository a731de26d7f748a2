"""Samples whole clips from a model, one code after another: how a code is drawn from logits, and the loop over codes.

Two samplers give the same codes. `Sampler` reads only the positions filled so far, which is fastest on the CPU.
`StaticSampler` is for GPUs. It keeps weights and cache in the precision of training. It records one step for all
positions and replays it for every token, so neither Python nor kernel launches cost time. A code then takes as long as
reading the weights and the cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reco_tune.errors import RunFailedError
from reco_tune.model.kv_cache import BLOCK_TOKENS, WHOLE, Kept, LayerCache, StaticCache
from reco_tune.model.shape import DecoderSettings, ModelSettings

PREFILL_BYTES = 2**30
"""Bytes that reading the prompts of some clips may hold at once."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How codes are drawn from logits: first guidance, then temperature, then `top_k`, then `top_p`."""

    temperature: float = 1.0
    """Temperature of the softmax; 0 takes the likeliest code."""
    top_k: int | None = None
    """Keep the k likeliest codes."""
    top_p: float | None = None
    """Keep the smallest set of codes that holds this probability."""
    guidance: float = 1.0
    """g of logits = null + g (class - null); 1 is no guidance; other values also run the null class."""
    kept: Kept = WHOLE
    """Which part of the past is read. Only for the built-in transformer on the CPU."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: for a negative temperature, or a `top_k` or `top_p` that leaves nothing.
        """
        top_k, top_p = self.top_k, self.top_p
        if self.temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(
                f"temperature ({self.temperature}) must be 0 or more, top_k ({top_k}) 1 or more and top_p ({top_p}) in"
                " (0, 1]"
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest code is always taken."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def copies(self) -> int:
        """Number of rows that a clip takes in the model's batch."""
        return 1 if self.guidance == 1 else 2

    def codes(self, logits_RV: Tensor, noise_BV: Tensor | None) -> Tensor:
        """A code [B] for each clip.

        Args:
            logits_RV: float32 logits under the clips' classes. With guidance, those under the null class follow.
            noise_BV: q, draws of the exponential distribution; None if `greedy`. argmax p / q over the codes is a draw
                from p. `torch.multinomial` computes the same, but first waits for the device to check p.
        """
        logits_BV = logits_RV if self.copies == 1 else guide(logits_RV, self.guidance)
        if self.greedy:
            return logits_BV.argmax(dim=-1)
        # the largest becomes 0, so that a tiny temperature cannot overflow
        logits_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            kth = logits_BV.topk(self.top_k, dim=-1).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < kth, -torch.inf)
        probabilities_BV = logits_BV.softmax(dim=-1)
        if self.top_p is not None and self.top_p < 1:
            probabilities_BV = _nucleus(probabilities_BV, self.top_p)
        assert noise_BV is not None
        return (probabilities_BV / noise_BV).argmax(dim=-1)


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: rows of the class stacked on rows of the null class [2B, V] -> null + g (class - null)
    [B, V].
    """
    given, null = logits.chunk(2)
    return null + guidance * (given - null)


def _nucleus(probabilities_BV: Tensor, top_p: float) -> Tensor:
    """Sets probabilities outside the smallest set of codes that holds `top_p` to 0; not normalised."""
    ordered, order = probabilities_BV.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(probabilities_BV).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))


Read = Callable[[Tensor, Tensor, int, int], Tensor]
"""(tokens, labels, begin, end) -> logits [B, V] after inputs begin .. end-1. Each call continues the last one."""


class Readable(Protocol):
    """What a sampler needs of a model, a module that is already on its device."""

    @property
    def recordable(self) -> bool:
        """Whether the model is `Recordable`."""

    @property
    def settings(self) -> DecoderSettings: ...

    def without_condition(self, labels_B: Tensor) -> Tensor:
        """Labels of "no class" or "no text", one a clip."""

    def reader(self, kept: Kept = WHOLE) -> Read:
        """A function that reads clips from input 0 on."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...


class Recordable(Readable, Protocol):
    """What a sampler with one step for all positions needs of a model."""

    settings: ModelSettings

    def read(
        self, tokens_BT: Tensor, labels_B: Tensor, begin: int, end: int, caches: Sequence[LayerCache | StaticCache]
    ) -> Tensor:
        """Logits [B, V] after inputs begin .. end-1, which continue those in the caches."""

    def read_next(self, codes_B: Tensor, position: Tensor, caches: Sequence[LayerCache | StaticCache]) -> Tensor:
        """Logits after one more input: the code before `position`, which is an int64 tensor [1] on the device."""


Model = TypeVar("Model", bound=Recordable)


class Stream(NamedTuple):
    """Noise of clips whose draws come from one generator."""

    generator: torch.Generator | None
    """On the model's device; torch's global one where None."""
    drawn: int
    """Number of clips that the generator draws for."""
    first: int = 0
    """Index of the first of these clips that is sampled here. The draws of the clips that are not are dropped."""


class Noise:
    """Exponential draws [B, V], one position after another. A clip's draws do not depend on the clips beside it."""

    def __init__(self, streams: Sequence[tuple[Stream, int]]) -> None:
        """
        Args:
            streams: in the order of the clips, each with the number of its clips that are sampled here.
        """
        self._streams = streams

    @classmethod
    def of(cls, generator: torch.Generator | None, clips: int) -> Noise:
        """The noise of clips that one generator draws for."""
        return cls([(Stream(generator, clips), clips)])

    def fill_(self, noise_BV: Tensor) -> Tensor:
        """Fills in the draws of the next position."""
        begin = 0
        for stream, clips in self._streams:
            part = noise_BV[begin : begin + clips]
            if clips == stream.drawn:
                part.exponential_(generator=stream.generator)
            else:
                drawn = part.new_empty(stream.drawn, part.shape[1]).exponential_(generator=stream.generator)
                part.copy_(drawn[stream.first : stream.first + clips])
            begin += clips
        return noise_BV


class Sampler:
    """Samples from a model as it is. A step costs more at later positions."""

    def __init__(self, model: Readable, drawing: Drawing) -> None:
        self._model, self._drawing = model, drawing

    @torch.no_grad()
    def __call__(self, labels_B: Tensor, noise: Noise, prompt_BP: Tensor | None = None) -> Tensor:
        """int64 codes [B, T].

        Args:
            labels_B: classes or texts; the null class samples without a condition.
            prompt_BP: first P tokens, kept as they are.

        Raises:
            ValueError: for a prompt longer than the clip.
            RunFailedError: if the logits are not finite.
        """
        model, drawing = self._model, self._drawing
        rows = _Rows.of(model, drawing, labels_B, prompt_BP)
        noise_BV = _noise(model.settings, drawing, labels_B)
        reader, read, logits_RV = model.reader(drawing.kept), 0, None
        for position in range(rows.given, model.settings.num_tokens):
            logits_RV = reader(rows.tokens_RT, rows.labels_R, read, position + 1).float()
            codes_B = drawing.codes(logits_RV, None if noise_BV is None else noise.fill_(noise_BV))
            rows.tokens_RT[:, position] = codes_B.repeat(drawing.copies)
            read = position + 1
        if logits_RV is not None:
            check_finite(logits_RV)
        return rows.tokens_RT[: len(labels_B)]


class StaticSampler:
    """Samples up to a fixed number of clips at once. Every token takes the same recorded step."""

    def __init__(self, model: Recordable, drawing: Drawing, clips: int, bfloat16: bool = False) -> None:
        """
        Args:
            model: a model on its device. With bfloat16, later changes of its weights have no effect here.
            clips: the largest number of clips in a call.
            bfloat16: whether matrix products are computed as in bfloat16 training. The weights of the products and the
                cache are then kept in bfloat16.
        """
        self._drawing, self._clips, self._bfloat16 = drawing, clips, bfloat16
        self._model = with_rounded_products(model) if bfloat16 else model
        weight = next(model.parameters())
        self._device = weight.device
        settings, rows = model.settings, clips * drawing.copies
        kept = torch.bfloat16 if bfloat16 else weight.dtype
        shape = (rows, settings.heads, StaticCache.tokens_held(settings.num_tokens), settings.width // settings.heads)
        self._position = torch.zeros(1, dtype=torch.long, device=self._device)
        room = partial(torch.zeros, shape, dtype=kept, device=self._device)
        self._caches = [StaticCache(room(), room(), self._position) for _ in range(settings.depth)]
        self._codes_BT = torch.zeros(clips, settings.num_tokens, dtype=torch.long, device=self._device)
        self._logits_RV = torch.zeros(rows, settings.num_codes, device=self._device)
        self._noise_BV = _noise(settings, drawing, self._codes_BT)
        self._step = recorded(self._draw_and_read, self._position) if settings.num_tokens > 1 else self._draw

    @torch.no_grad()
    def __call__(self, labels_B: Tensor, noise: Noise, prompt_BP: Tensor | None = None) -> Tensor:
        """int64 codes [B, T], as `Sampler` gives them."""
        model, num_tokens, missing = self._model, self._model.settings.num_tokens, self._clips - len(labels_B)
        if prompt_BP is not None:
            prompt_BP = F.pad(prompt_BP, (0, 0, 0, missing))
        rows = _Rows.of(model, self._drawing, F.pad(labels_B, (0, missing)), prompt_BP)
        self._codes_BT[:] = rows.tokens_RT[: self._clips]
        if rows.given < num_tokens:
            self._read_first(rows)
            for _ in range(rows.given, num_tokens - 1):
                self._fill(noise)
                self._step()
            self._fill(noise)
            self._draw()
            check_finite(self._logits_RV)
        return self._codes_BT[: len(labels_B)].clone()

    def _read_first(self, rows: _Rows) -> None:
        """Reads the class and the prompt, some rows at a time, because each row has many inputs here."""
        settings = self._model.settings
        at_once = max(1, PREFILL_BYTES // (64 * (rows.given + 1) * settings.width))
        self._position.zero_()
        for begin in range(0, len(rows.labels_R), at_once):
            part = slice(begin, begin + at_once)
            caches = [cache.of(part) for cache in self._caches]
            with self._precision():
                logits = self._model.read(rows.tokens_RT[part], rows.labels_R[part], 0, rows.given + 1, caches)
            self._logits_RV[part] = logits
        self._position.fill_(rows.given)

    def _draw_and_read(self) -> None:
        """One step: draws the code at the position, then computes the logits of the next one."""
        codes_B = self._draw()
        self._position += 1
        with self._precision():
            logits = self._model.read_next(codes_B.repeat(self._drawing.copies), self._position, self._caches)
        self._logits_RV.copy_(logits)

    def _draw(self) -> Tensor:
        codes_B = self._drawing.codes(self._logits_RV, self._noise_BV)
        self._codes_BT.index_copy_(1, self._position, codes_B[:, None])
        return codes_B

    def _fill(self, noise: Noise) -> None:
        if self._noise_BV is not None:
            noise.fill_(self._noise_BV)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16, cache_enabled=False)


def sampler_for(model: Readable, drawing: Drawing, clips: int, bfloat16: bool) -> Sampler | StaticSampler:
    """The sampler for the model's device.

    Args:
        clips: the largest number of clips in a call.
        bfloat16: whether a GPU computes products in bfloat16. The CPU uses the model as it is.
    """
    if next(model.parameters()).device.type == "cpu" or not model.recordable:
        return Sampler(model, drawing)
    return StaticSampler(cast(Recordable, model), drawing, clips, bfloat16)


def static_bytes_per_clip(settings: DecoderSettings, drawing: Drawing, bfloat16: bool) -> int:
    """Bytes of one clip of a `StaticSampler`: keys and values in every layer, and what drawing its next code takes."""
    held = settings.cached_per_token * StaticCache.tokens_held(settings.num_inputs) * (2 if bfloat16 else 4)
    row = held + 10 * settings.num_codes + 64 * settings.width
    return drawing.copies * row + 64 * settings.num_codes + 8 * settings.num_tokens


def bytes_read_per_clip(
    settings: DecoderSettings, drawing: Drawing, bfloat16: bool, at_once: int, prompt_tokens: int = 0
) -> float:
    """Bytes that a `StaticSampler` reads for a clip. For every code that it draws, these are the blocks of keys and
    values so far, the logits, and the clip's share of the weights.
    """
    size, drawn = 2 if bfloat16 else 4, settings.num_tokens - prompt_tokens
    blocks = _blocks_before(settings.num_tokens) - _blocks_before(prompt_tokens)
    cache = settings.cached_per_token * size * BLOCK_TOKENS * blocks
    weights = size * (settings.costs.token + settings.costs.head) // 2  # a multiply-add for each
    return drawing.copies * (cache + drawn * 10 * settings.num_codes) + drawn * weights / at_once


def _blocks_before(tokens: int) -> int:
    """Number of blocks of keys and values read for that many first codes. The n-th code reads n // block + 1."""
    whole, rest = divmod(tokens, BLOCK_TOKENS)
    return BLOCK_TOKENS * whole * (whole + 1) // 2 + rest * (whole + 1)


def with_rounded_products(model: Model) -> Model:
    """The model with the weights of its matrix products in bfloat16; everything else is shared.

    Under autocast it computes the same as the original model, whose weights autocast rounds at every use.
    """
    known: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            known[id(module.weight)] = nn.Parameter(module.weight.detach().to(torch.bfloat16), requires_grad=False)
    return copy.deepcopy(model, known)


def check_finite(logits: Tensor) -> None:
    """Checks once, after the last code. A logit that is not finite makes those of all later steps so.

    Raises:
        RunFailedError: where a logit is not finite.
    """
    if not bool(logits.isfinite().all()):
        raise RunFailedError(
            "the model gives logits that are not finite, so no clip can be sampled from it; train it again with a lower"
            " training.learning_rate"
        )


class _Rows(NamedTuple):
    """The clips as rows of the model. With guidance each clip has two rows, with and without its class."""

    labels_R: Tensor
    tokens_RT: Tensor
    """int64; the prompt, then zeros."""
    given: int
    """P, tokens of the prompt."""

    @classmethod
    def of(cls, model: Readable, drawing: Drawing, labels_B: Tensor, prompt_BP: Tensor | None) -> _Rows:
        """
        Raises:
            ValueError: for a prompt longer than the clip.
        """
        num_tokens = model.settings.num_tokens
        given = 0 if prompt_BP is None else prompt_BP.shape[1]
        if given > num_tokens:
            raise ValueError(f"prompt ({given} tokens) must not exceed the clip's {num_tokens} tokens")
        if drawing.copies == 2:
            labels_B = torch.cat([labels_B, model.without_condition(labels_B)])
        tokens_RT = labels_B.new_zeros(len(labels_B), num_tokens, dtype=torch.long)
        if prompt_BP is not None:
            tokens_RT[:, :given] = prompt_BP.repeat(drawing.copies, 1)
        return cls(labels_B, tokens_RT, given)


def _noise(settings: DecoderSettings, drawing: Drawing, like_B: Tensor) -> Tensor | None:
    """A buffer for the draws [B, V] of one position; None if nothing is drawn."""
    return None if drawing.greedy else like_B.new_ones(len(like_B), settings.num_codes, dtype=torch.float32)


def recorded(step: Callable[[], object], position: Tensor) -> Callable[[], object]:
    """The step, recorded as a CUDA graph. On other devices, the step as it is.

    Args:
        position: reset to 0 before each warm-up step. Otherwise the warm-up could go beyond the end of the clip.
    """
    device = position.device
    if device.type != "cuda":
        return step
    beside = torch.cuda.Stream(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside), torch.no_grad():
        for _ in range(3):  # warm-up: compiles kernels and allocates workspaces, which is not allowed while recording
            position.zero_()
            step()
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        step()
    return graph.replay
