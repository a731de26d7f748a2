"""Causal language models of transformers as decoders: codes in their vocabulary, or in an embedding of their own.

The layers of transformers run unchanged, except for attention, which is this project's. It reads the keys of the
prefix beside those of the window, without gradient and without a copy. It replaces transformers' cache, which gradient
checkpointing would drop. It works without a mask, so the fused kernels can be used.

The final norm is taken out of the body, so that h is the output of the last block, as in every decoder here. Every
dropout is off, because a resumed run would draw other numbers than an uninterrupted one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from reco_tune.errors import SettingsError
from reco_tune.model.attention import KeysValues, attend, beside_padding, joined
from reco_tune.model.decoder import Decoder, Inputs
from reco_tune.pretrained import CONFIGURATION, MODEL, package_of_extra, pinned_source, source_of

ATTENTION = "reco_tune"
"""Name under which transformers knows this project's attention."""

PATH_KEY = "model.options.path"

_ADAPTER = ".lora_"
"""Part of the names of adapters' weights."""
_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
"""Names of the final norm in the supported families."""
_LAYERS = ("layers", "h", "blocks")
"""Names of the list of layers in the supported families."""


class Past:
    """Keys and values of each layer, in the pieces in which they arrived."""

    def __init__(self, layers: dict[int, list[KeysValues]] | None = None) -> None:
        self._layers = layers or {}

    def of(self, layer: int) -> KeysValues | None:
        """All keys and values of a layer. The pieces are joined once."""
        pieces = self._layers.get(layer)
        if pieces is None:
            return None
        if len(pieces) > 1:
            pieces[:] = [joined(pieces[1].keys, pieces[1].values, pieces[0])]
        return pieces[0]

    def add(self, layer: int, new: KeysValues) -> None:
        before = self.of(layer)
        self._layers[layer] = [new] if before is None else [before, new]

    def copy(self) -> Past:
        """A copy, to which others may add."""
        return Past({layer: list(pieces) for layer, pieces in self._layers.items()})

    @property
    def inputs(self) -> int:
        """Number of inputs read so far."""
        return sum(piece.keys.shape[2] for piece in next(iter(self._layers.values()), []))


class _Reading:
    """The argument through which each layer's attention reads the past and adds to it."""

    def __init__(self, past: Past | None, adds: bool) -> None:
        """
        Args:
            adds: whether new keys and values are added to the past. They must not be if a layer may run twice.
        """
        self.past, self._adds, self.heard = Past() if past is None else past, adds, False
        if adds:
            self.past = self.past.copy()
        self.seen: Tensor | None = None
        """The mask `seen` of `attention.attend`."""

    def before(self, layer: int, new: KeysValues) -> KeysValues | None:
        """Keys and values of earlier inputs. Those of the new inputs are added to the past, if `adds`."""
        self.heard, found = True, self.past.of(layer)
        if self._adds:
            self.past.add(layer, new)
        return found


class LoraOptions(BaseModel):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), as peft makes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(8, ge=1)
    """r of W + alpha / r · B A."""
    alpha: float = Field(16, gt=0)
    targets: str | list[str] = "all-linear"
    """Layers with an adapter: all linear layers but the head, or those whose names end like this (q_proj, ...)."""


class HuggingFaceOptions(BaseModel):
    """`model.options` of `model.kind: huggingface`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = None
    """Folder or hub name of a model. A study records the hash of the folder's content, or the hub's commit."""
    revision: str | None = None
    """Revision of the hub's repository."""
    config: dict[str, Any] = {}
    """`model_type` and the sizes of the model, or only what differs from the configuration at `path`."""
    fresh: bool = False
    """Whether training begins with fresh weights, even if there are weights at `path`."""
    code_offset: int | None = None
    """Index of code 0 in the model's vocabulary. If None, codes have an embedding and a head of their own."""
    text_offset: int | None = None
    """Index of word 0 of a text in the model's vocabulary: 0 if `model.text_tokenizer` is the model's own. If None,
    words have an embedding of their own.
    """

    lora: LoraOptions | None = None
    """Trains adapters. The model's own weights stay as they are. The embedding of the class is trained too, and the
    embedding and head of the codes if they have their own.
    """

    @property
    def parts(self) -> dict[str, Any]:
        """The options that say which parts of the model are used."""
        return {"code_offset": self.code_offset, "text_offset": self.text_offset, "lora": self.lora}

    @model_validator(mode="after")
    def _check(self) -> HuggingFaceOptions:
        if self.path is None and "model_type" not in self.config:
            raise ValueError("give path (a folder or a hub name), or config with model_type and sizes")
        return self


class HuggingFaceDecoder(Decoder):
    """Any causal language model of transformers whose layers see all earlier inputs."""

    Options = HuggingFaceOptions

    def __init__(
        self,
        model: Any,
        num_codes: int,
        num_tokens: int,
        num_classes: int = 1,
        code_offset: int | None = None,
        lora: LoraOptions | None = None,
        text_offset: int | None = None,
        condition_tokens: int = 1,
    ) -> None:
        """
        Args:
            model: an `AutoModelForCausalLM`; its modules are taken over and changed. Weights whose `requires_grad` is
                off stay as they are.
            code_offset: index of code 0 in its vocabulary. If None, codes have an embedding and a head of their own.
            lora: adapters that are trained in place of its weights.
            text_offset: index of word 0 in its vocabulary. If None, words (or classes) have an embedding of their own.
            condition_tokens: C, the words of a text; 1 for a class.

        Raises:
            ValueError: for a model that cannot be trained in windows, or whose vocabulary, positions or layers do not
                suffice.
            SettingsError: for adapters where peft is missing.
        """
        config = model.config.get_text_config()
        super().__init__(num_codes, num_tokens, num_classes, config.hidden_size, condition_tokens)
        if text_offset is not None and condition_tokens == 1:
            raise ValueError(f"text_offset ({text_offset}) is for texts, but the condition is a class; leave it out")
        used = ("code_offset", code_offset, f"{num_codes} codes"), ("text_offset", text_offset, f"{num_classes} words")
        _check(model, config, self.shape.num_inputs, used)
        if lora is not None:
            _adapt(model, lora)
        model.set_attn_implementation(_attention_name())
        self._offset, self._text_offset = code_offset, text_offset
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        self.body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        _turn_dropout_off(self.body, config)
        name = next((name for name in _NORMS if isinstance(getattr(self.body, name, None), nn.Module)), None)
        if name is None:
            raise ValueError(f"{type(model).__name__} has no final norm under one of the names {', '.join(_NORMS)}")
        self.final_norm: nn.Module = getattr(self.body, name)
        setattr(self.body, name, nn.Identity())
        self.body.set_input_embeddings(None)
        own_words = num_classes if text_offset is None else 0
        self.classes = _embedding(own_words + 1, config.hidden_size, embedding.weight)
        if code_offset is None:
            if text_offset is not None:
                self.vocabulary = embedding
            self.codes = _embedding(num_codes, config.hidden_size, embedding.weight)
            self.head: nn.Module = nn.Linear(
                config.hidden_size, num_codes, bias=False, device=embedding.weight.device, dtype=embedding.weight.dtype
            )
            nn.init.normal_(self.head.weight, std=0.02)
        else:
            if head is None or head.bias is not None:
                raise ValueError(f"{type(model).__name__} has no head without bias for code_offset ({code_offset})")
            self.codes = embedding
            self.head = _PartOfHead(head.weight, code_offset, num_codes)

    @classmethod
    def build(cls, num_codes: int, num_tokens: int, num_classes: int, options: Any, **text: int) -> HuggingFaceDecoder:
        """
        Raises:
            SettingsError: where transformers is missing, or has no such model.
        """
        given = {"attn_implementation": _attention_name(), "dtype": torch.float32}
        model = _from(lambda auto: auto.from_config(_config(options), **given))
        made = cls(model, num_codes, num_tokens, num_classes, **{**options.parts, **text})
        made._options = options
        return made

    _options: HuggingFaceOptions | None = None

    @classmethod
    def pinned_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The same options, with `path` pinned to what is there now.

        Raises:
            SettingsError: if nothing is there, or not what `path` is already pinned to.
        """
        if not isinstance(path := options.get("path"), str):
            return dict(options)
        files = CONFIGURATION if options.get("fresh") else MODEL
        pinned = pinned_source(path, options.get("revision"), PATH_KEY, files)
        return {**options, "path": pinned}

    def start(self) -> None:
        """
        Raises:
            SettingsError: if the weights cannot be read, or some of the configuration's weights are missing.
        """
        options, shape = self._options, self.shape
        if options is None or options.path is None or options.fresh:
            return
        own = ("classes.",) if options.code_offset is not None else ("classes.", "codes.", "head.")
        fresh = {name: tensor for name, tensor in self.state_dict().items() if name.startswith(own) or _ADAPTER in name}
        self.to("meta")  # two sets of weights need not fit into memory at once
        model, info = _from(lambda auto: _pretrained(auto, options))
        theirs = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        sizes = shape.num_codes, shape.num_tokens, shape.num_classes
        loaded = type(self)(model, *sizes, **options.parts, condition_tokens=shape.condition_tokens)
        used = {id(tensor) for tensor in (*loaded.parameters(), *loaded.buffers())}
        lacking = sorted(name for name in info["missing_keys"] if name not in theirs or id(theirs[name]) in used)
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise SettingsError(
                f"{PATH_KEY}: {options.path} has no weights for {lacking[0]}{more}, so they would start at random;"
                " correct model.options.config, or set model.options.fresh"
            )
        for name, module in loaded.named_children():
            setattr(self, name, module)
        self.load_state_dict(fresh, strict=False)
        self.train(self.training)

    def given_again(self) -> frozenset[str]:
        options = self._options
        if options is None or options.path is None or options.fresh:
            return frozenset()
        return frozenset(name for name, own in self.named_parameters(remove_duplicate=False) if not own.requires_grad)

    @property
    def norm_and_head(self) -> tuple[nn.Module, nn.Module]:
        return self.final_norm, self.head

    def inputs(self, tokens_BT: Tensor, labels_B: Tensor, begin: int, end: int) -> Inputs:
        codes = tokens_BT[:, max(begin - 1, 0) : end - 1].long()
        embedded_BSD = F.embedding(codes + (self._offset or 0), self.codes.weight)
        if begin == 0:
            embedded_BSD = torch.cat([self._words(labels_B), embedded_BSD], dim=1)
        return Inputs(embedded_BSD, begin, self.words_and_padding(labels_B)[1])

    def _words(self, labels_B: Tensor) -> Tensor:
        words_BC, _ = self.words_and_padding(labels_B)
        if self._text_offset is None:
            own: Tensor = self.classes(words_BC)
            return own
        vocabulary = self.codes if self._offset is not None else self.vocabulary
        null_BC = words_BC == self.null_class
        given_BCD = F.embedding(words_BC.masked_fill(null_BC, 0) + self._text_offset, vocabulary.weight)
        return torch.where(null_BC[..., None], self.classes.weight[0].to(given_BCD.dtype), given_BCD)

    def advance(self, inputs: Inputs, past: Past | None = None) -> tuple[Tensor, Past]:
        """
        Raises:
            RuntimeError: if its layers do not call this project's attention as they should.
        """
        reading = _Reading(past, adds=True)
        return self._read_by(reading, inputs), reading.past

    def finish(self, inputs: Inputs, past: Past | None = None) -> Tensor:
        return self._read_by(_Reading(past, adds=False), inputs)

    def layers(self) -> list[nn.Module]:
        return next((list(getattr(self.body, name)) for name in _LAYERS if hasattr(self.body, name)), [])

    def _read_by(self, reading: _Reading, inputs: Inputs) -> Tensor:
        embedded_BSD, begin, padding_B = inputs
        if self.training and torch.is_grad_enabled() and _checkpoints(self.body):
            raise RuntimeError(
                "transformers' gradient checkpointing is on, which would train a window without its prefix; call"
                " gradient_checkpointing_disable() on the model, and set training.activation_checkpointing"
            )
        rows, first = embedded_BSD.shape[1], begin + (self.shape.condition_tokens - 1 if begin else 0)
        if padding_B is not None:
            reading.seen = beside_padding(padding_B, rows, reading.past.inputs + rows)
        positions = torch.arange(first, first + rows, device=embedded_BSD.device)[None]
        found = self.body(
            inputs_embeds=embedded_BSD,
            position_ids=positions,
            attention_mask=embedded_BSD.new_empty(1, 1, 0, 0),  # else transformers makes one, which costs time
            use_cache=False,
            reco_tune_reading=reading,
        )
        if not reading.heard:
            raise RuntimeError(f"{type(self.body).__name__} passes no keyword arguments to its attention")
        hidden_BSD: Tensor = found.last_hidden_state
        return hidden_BSD

    def logits(self, hidden_BSD: Tensor) -> Tensor:
        scores: Tensor = self.head(self.final_norm(hidden_BSD))
        return scores


def _adapt(model: Any, lora: LoraOptions) -> None:
    """
    Raises:
        ValueError: where the model has no such layers.
        SettingsError: where peft is missing.
    """
    peft = package_of_extra("peft", "lora", "model.options.lora")
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPT-2 stores transposed weights; peft warns, but handles them
        peft.inject_adapter_in_model(peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets), model)


class _PartOfHead(nn.Module):
    """The rows of a vocabulary's head that score codes."""

    def __init__(self, vocabulary_VD: nn.Parameter, offset: int, codes: int) -> None:
        super().__init__()
        self.vocabulary_VD, self._rows = vocabulary_VD, slice(offset, offset + codes)

    @property
    def weight(self) -> Tensor:
        return self.vocabulary_VD[self._rows]

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)


def _check(model: Any, config: Any, inputs: int, parts: Sequence[tuple[str, int | None, str]]) -> None:
    """
    Args:
        parts: the used parts of its vocabulary. Each is an option, the offset that it gives, and what the part holds.
    """
    name = type(model).__name__
    if _checkpoints(model):
        raise ValueError(
            f"{name} uses gradient checkpointing, which would train a window without its prefix; call"
            " gradient_checkpointing_disable() on it"
        )
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    if kinds or (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)):
        raise ValueError(
            f"{name} has layers that do not see all earlier inputs ({', '.join(kinds) or 'sliding_window'})"
        )
    for option, offset, held in parts:
        if offset is not None and not 0 <= offset <= config.vocab_size - int(held.split()[0]):
            raise ValueError(f"{option} ({offset}) leaves no room for {held} in a vocabulary of {config.vocab_size}")
    learned = hasattr(config, "n_positions")  # rotary positions have no end
    if learned and config.n_positions < inputs:
        raise ValueError(f"{name} has {config.n_positions} positions, fewer than the clip's {inputs} inputs")


def _checkpoints(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules())


def _turn_dropout_off(body: nn.Module, config: Any) -> None:
    for name, value in vars(config).items():
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
            setattr(config, name, 0.0)
    for module in body.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _embedding(rows: int, width: int, like: Tensor) -> nn.Embedding:
    made = nn.Embedding(rows, width, device=like.device, dtype=like.dtype)
    nn.init.normal_(made.weight, std=0.02)
    return made


def _config(options: HuggingFaceOptions) -> Any:
    from transformers import AutoConfig

    own = dict(options.config)
    if options.path is None:
        return AutoConfig.for_model(own.pop("model_type"), **own)
    path, revision = source_of(options.path, options.revision, PATH_KEY, CONFIGURATION if options.fresh else MODEL)
    return AutoConfig.from_pretrained(path, revision=revision, **own)


def _pretrained(auto: Any, options: HuggingFaceOptions) -> tuple[Any, Any]:
    """The model, and what its folder lacked.

    Raises:
        ValueError: for weights of other sizes than the configuration's.
    """
    path, revision = source_of(str(options.path), options.revision, PATH_KEY)
    model, info = auto.from_pretrained(
        path,
        attn_implementation=_attention_name(),
        revision=revision,
        config=_config(options),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused here, by name
    )
    for name, saved, built in sorted(info["mismatched_keys"]):
        raise ValueError(f"{name} is {tuple(saved)} in {path}, but {tuple(built)} by the configuration")
    return model, info


def _from(make: Any) -> Any:
    """
    Raises:
        SettingsError: if transformers cannot make the model.
    """
    _attention_name()
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        return make(AutoModelForCausalLM)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise SettingsError(f"model.options: transformers cannot make this model ({said}); correct them") from error


@cache
def _attention_name() -> str:
    """Registers this project's attention and returns its name.

    Raises:
        SettingsError: where transformers is missing.
    """
    names = "AttentionInterface", "AttentionMaskInterface"
    transformers = package_of_extra("transformers", "hf", "model.kind huggingface", names)
    transformers.AttentionInterface.register(ATTENTION, _attend)
    transformers.AttentionMaskInterface.register(ATTENTION, _no_mask)
    return ATTENTION


def _no_mask(*_: Any, **__: Any) -> None:
    """Makes no mask, because this project's attention is causal by itself."""


def _attend(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    reco_tune_reading: _Reading | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention [B, W, H, K] of a layer's inputs to the past and to themselves. May add their keys and values to it."""
    if (
        reco_tune_reading is None
        or mask is None
        or mask.numel()
        or others.get("sliding_window")
        or others.get("softcap")
    ):
        raise RuntimeError(
            f"{type(module).__name__} asks its attention for something that reco_tune's does not support (a mask, a"
            " sliding window, a cap), or was not called by a HuggingFaceDecoder"
        )
    before = reco_tune_reading.before(module.layer_idx, KeysValues(keys, values))
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = (part.repeat_interleave(groups, dim=1) for part in (keys, values))
        before = before and KeysValues(*(part.repeat_interleave(groups, dim=1) for part in before))
    if scaling is not None and scaling != queries.shape[-1] ** -0.5:
        queries = queries * (scaling * queries.shape[-1] ** 0.5)
    return attend(queries, keys, values, before, seen=reco_tune_reading.seen).transpose(1, 2).contiguous(), None
