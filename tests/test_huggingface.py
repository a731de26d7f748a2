"""Causal language models of transformers under windows: the same numbers as their own cache and attention give."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from own_decoders import ROTARY
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.autograd import grad

from reco_tune.cost import step_flops
from reco_tune.cost.memory import memory_by_phase
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import CheckpointError, SettingsError
from reco_tune.evaluation.error_growth import error_growth
from reco_tune.model import HuggingFaceDecoder
from reco_tune.model import huggingface as module
from reco_tune.model.build import build_decoder, shape_of
from reco_tune.pretrained import pinned_source, source_of
from reco_tune.settings import Experiment, Space, pinned, pinned_experiment
from reco_tune.testing import check_decoder
from reco_tune.training import fit, window_loss
from reco_tune.training.checkpoint import load_model
from reco_tune.training.schemes import plan_scheme
from reco_tune.training.step import kept_bytes

transformers = pytest.importorskip("transformers")

V, T = 16, 18
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": ROTARY,
    "qwen2": ROTARY,
    "qwen3": {**ROTARY, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32, "eos_token_id": None},
}
TOKENS = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 2])


def language_model(family: str, **changes: Any) -> Any:
    config = transformers.AutoConfig.for_model(family, bos_token_id=None, **{**FAMILIES[family], **changes})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


def decoder(family: str, code_offset: int | None = 10, **changes: Any) -> HuggingFaceDecoder:
    torch.manual_seed(1)
    return HuggingFaceDecoder(language_model(family, **changes), V, T, 2, code_offset)


@pytest.mark.parametrize("code_offset", [None, 10], ids=["own embedding and head", "codes in the vocabulary"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_a_decoder(family: str, code_offset: int | None) -> None:
    check_decoder(decoder(family, code_offset))


def theirs(model: Any, ours: HuggingFaceDecoder, start: int, length: int) -> Tensor:
    """Logits of a window as transformers computes them: its own cache, filled without gradient, and its own SDPA."""
    inputs = torch.cat([ours.classes(LABELS)[:, None], model.get_input_embeddings()(TOKENS[:, :-1] + 10)], dim=1)
    past = transformers.DynamicCache(config=model.config)
    if start:
        with torch.no_grad():
            model(inputs_embeds=inputs[:, :start], past_key_values=past, use_cache=True)
    positions = torch.arange(start, start + length)[None]
    window = inputs[:, start : start + length]
    found: Tensor = model(inputs_embeds=window, past_key_values=past, use_cache=True, position_ids=positions).logits
    return found[..., 10 : 10 + V]


@pytest.mark.parametrize("start", [0, 1, 7])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_window_has_the_numbers_and_the_gradient_of_their_own_cache(family: str, start: int) -> None:
    """In float64, where their attention and ours round apart from each other by 1e-16."""
    model = language_model(family).double().eval()
    ours = HuggingFaceDecoder(copy.deepcopy(model), V, T, 2, 10).double()
    expected, found = theirs(model, ours, start, 8), ours.window(TOKENS, LABELS, start, 8).logits_BWV
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    own = dict(ours.named_parameters())
    names = {"llama": ("model.layers.1.self_attn.k_proj.weight", "body.layers.1.self_attn.k_proj.weight")}
    names["gpt2"] = ("transformer.h.1.attn.c_attn.weight", "body.h.1.attn.c_attn.weight")
    (right,) = grad(expected.square().sum(), [dict(model.named_parameters())[names[family][0]]])
    (mine,) = grad(found.square().sum(), [own[names[family][1]]])
    assert (mine - right).norm() <= 1e-10 * right.norm()


def test_the_prefix_is_seen_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers checkpoints gradients it drops its cache with one warning, and the window trains without its
    context; the loss stays finite.
    """
    model = decoder("llama").train()
    changed = TOKENS.clone()
    changed[:, :5] = (changed[:, :5] + 1) % V
    before, after = (model.window(tokens, LABELS, 8, 4).logits_BWV for tokens in (TOKENS, changed))
    assert not torch.allclose(before, after)
    model.body.gradient_checkpointing_enable()
    with pytest.raises(RuntimeError, match="without its prefix; call gradient_checkpointing_disable"):
        model.window(TOKENS, LABELS, 8, 4)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model.window(TOKENS, LABELS, 8, 4).logits_BWV, before), "it is read as before"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_computed_again_see_the_prefix_too(family: str) -> None:
    """The loss and the gradient of a window change with its prefix, and are those of layers that keep everything."""
    model = decoder(family).double().train()
    changed = TOKENS.clone()
    changed[:, :5] = (changed[:, :5] + 1) % V
    found: dict[tuple[bool, bool], tuple[Tensor, list[Tensor]]] = {}
    for again in (False, True):
        for tokens in (TOKENS, changed):
            loss = window_loss(model, tokens, LABELS, 8, 6, 0.1, activation_checkpointing=again).total
            weights = [own for name, own in model.named_parameters() if name.startswith("body.") and own.dim() > 1]
            used = [own for own in grad(loss, weights, allow_unused=True) if own is not None]
            found[again, tokens is changed] = loss.detach(), used
    for other in (False, True):
        (kept, kept_gradients), (loss, gradients) = found[False, other], found[True, other]
        assert torch.equal(loss, kept)
        assert all(torch.equal(*pair) for pair in zip(gradients, kept_gradients, strict=True))
    assert abs(found[True, True][0] - found[True, False][0]) > 1e-6
    assert not torch.allclose(found[True, True][1][-1], found[True, False][1][-1])
    fewer, more = (
        kept_bytes(
            lambda again=again: window_loss(model, TOKENS, LABELS, 8, 6, activation_checkpointing=again).total,
            lambda: {own.untyped_storage()._cdata for own in model.parameters()},
        )
        for again in (True, False)
    )
    assert fewer < 0.5 * more


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: decoder("llama", 50), "leaves no room for 16 codes in a vocabulary of 64"),
        (lambda: decoder("gpt2", n_positions=8), "has 8 positions, fewer than the clip's 18"),
        (lambda: decoder("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0), "do not see all"),
    ],
    ids=["offset", "positions", "sliding window"],
)
def test_what_cannot_be_trained_in_windows_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_dropout_is_off() -> None:
    """Emu3 has attention dropout of 0.1, GPT-2 three kinds: what a resumed run draws would be other numbers."""
    model = decoder("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    one, other = (model(TOKENS, LABELS) for _ in range(2))
    assert torch.equal(one, other)


def test_emu3s_vocabulary_of_text_and_vision() -> None:
    """Its real vocabulary and code places, with narrow layers: 32,768 visual codes at the end of 184,622 words."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    real = transformers.Emu3TextConfig()
    assert (real.vocab_size, real.attention_dropout) == (184_622, 0.1)
    config = transformers.Emu3Config(
        text_config={**small, "intermediate_size": 24},
        vq_config={"base_channels": 32, "num_res_blocks": 1, "channel_multiplier": [1]},
        vocabulary_map={"<image>": 151_646},
    )
    torch.manual_seed(0)
    model = transformers.Emu3ForConditionalGeneration(config)
    offset = real.vocab_size - 32_768
    found = HuggingFaceDecoder(model, 32_768, 12, 1, offset)
    codes = torch.randint(32_768, (2, 12))
    logits = found.train().window(codes, torch.zeros(2, dtype=torch.long), 6, 4).logits_BWV
    assert logits.shape == (2, 4, 32_768)
    F.cross_entropy(logits.flatten(0, 1), codes[:, 6:10].flatten()).backward()
    rows = model.get_output_embeddings().weight.grad.abs().sum(dim=1)
    assert not rows[:offset].any() and rows[offset:].any(), "words are not scored"
    assert not any("vq" in name for name, _ in found.named_parameters()), "its tokenizer is not trained along"


LLAMA = {"model_type": "llama", **ROTARY}
OPTIONS = {f"model.options.config.{key}": value for key, value in LLAMA.items()}


@pytest.fixture
def hf_experiment(toy_experiment: Callable[..., Experiment]) -> Callable[..., Experiment]:
    def make(overrides: dict[str, object] | None = None) -> Experiment:
        sizes = {"model.width": 768, "model.depth": 12, "model.heads": 12, "model.kind": "huggingface"}
        return toy_experiment({**sizes, **OPTIONS, **(overrides or {})})

    return make


def test_a_run_trains_resumes_and_is_loaded(
    toy_cache: TokenCache, hf_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = hf_experiment()
    whole = fit(experiment, toy_cache, tmp_path / "whole")
    stopped = fit(experiment, toy_cache, tmp_path / "parts", report=lambda step, metrics: step < 8)
    assert stopped.stopped
    resumed = fit(experiment, toy_cache, tmp_path / "parts")
    for ours, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(ours, other)
    loaded = load_model(tmp_path / "whole").model
    codes = loaded.generate(LABELS, temperature=0.0)
    assert torch.equal(codes, whole.model.eval().generate(LABELS, temperature=0.0))
    assert torch.equal(loaded(codes, LABELS).argmax(dim=-1), codes), "cached is uncached"
    assert len(error_growth(loaded, codes, LABELS, 9)) == 5
    longer = hf_experiment({"training.steps": 13})
    with pytest.raises(CheckpointError, match=r"training\.steps"):
        fit(longer, toy_cache, tmp_path / "parts")


def test_costs_and_memory_are_known_before_weights_are(hf_experiment: Callable[..., Experiment]) -> None:
    experiment = hf_experiment()
    shape = plan_scheme(experiment).model_settings
    layer = 2 * 32 * (32 + 16 + 16 + 32) + 3 * 2 * 32 * 48
    tokens = shape.num_tokens
    by_hand = tokens * (2 * layer + 2 * 32 * V) + 2 * 4 * 32 * tokens * (tokens + 1) // 2
    assert step_flops(shape, 0, tokens) == 3 * by_hand
    memory = memory_by_phase(experiment, hf_experiment({"window.scheme": "full"}))
    assert all(value > 0 for value in memory)
    on_gpu = {"resources.gpus_per_worker": 1, "training.precision": "bfloat16"}
    assert all(value > 0 for value in memory_by_phase(hf_experiment(on_gpu), hf_experiment(on_gpu)))


def test_training_begins_with_the_weights_of_a_folder(
    hf_experiment: Callable[..., Experiment], toy_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    language_model("llama").save_pretrained(tmp_path / "theirs")
    options = {"model.kind": "huggingface", "model.options.path": str(tmp_path / "theirs")}
    sizes = {"model.width": 768, "model.depth": 12, "model.heads": 12}
    experiment = toy_experiment({**sizes, **options, "model.options.code_offset": 10})
    shape = shape_of(experiment.model, V, 45, 3)
    started, fresh = (build_decoder(experiment.model, shape, seed=5, start=start) for start in (True, False))
    theirs_ = dict(language_model("llama").named_parameters())["model.layers.0.mlp.up_proj.weight"]
    own = [dict(one.named_parameters())["body.layers.0.mlp.up_proj.weight"] for one in (started, fresh)]
    assert torch.equal(own[0], theirs_) and not torch.equal(own[1], theirs_)
    anew = toy_experiment({**sizes, **options, "model.options.code_offset": 10, "model.options.fresh": True})
    assert not torch.equal(
        dict(build_decoder(anew.model, shape, seed=5).named_parameters())["body.layers.0.mlp.up_proj.weight"], theirs_
    )


@pytest.mark.parametrize("own", [{"code_offset": 10}, {"lora.rank": 2}], ids=["codes in the vocabulary", "adapters"])
def test_one_set_of_weights_is_in_memory_while_they_are_read(
    toy_experiment: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: dict[str, int]
) -> None:
    """A decoder begins as one with fresh weights, which go before those of the folder come: 28 GB of a 7B model."""
    if "lora.rank" in own:
        pytest.importorskip("peft")
    language_model("llama").save_pretrained(tmp_path / "theirs")
    sizes = {"model.width": 768, "model.depth": 12, "model.heads": 12, "model.kind": "huggingface"}
    options = {f"model.options.{key}": value for key, value in {"path": str(tmp_path / "theirs"), **own}.items()}
    experiment = toy_experiment({**sizes, **options})
    shape = shape_of(experiment.model, V, 45, 3)
    gc.collect()
    before = _weights_in_memory()
    there: list[int] = []

    def read(*given: Any) -> Any:
        there.append(_weights_in_memory() - before)
        return pretrained(*given)

    pretrained = module._pretrained
    monkeypatch.setattr(module, "_pretrained", read)
    made = build_decoder(experiment.model, shape)
    whole = sum(weight.numel() for weight in made.parameters())
    assert len(there) == 1 and there[0] < whole / 3
    assert all(held.device.type == "cpu" for held in (*made.parameters(), *made.buffers())) and made.training


def _weights_in_memory() -> int:
    return sum(held.numel() for held in gc.get_objects() if type(held) is torch.nn.Parameter and not held.is_meta)


def _without(name: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        save_file({key: value for key, value in load_file(file).items() if name not in key}, file, {"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("config", "change", "words"),
    [
        (
            {"num_hidden_layers": 3},
            None,
            r"no weights for model\.layers\.2\.\S+ and 8 more, so they would start at random",
        ),
        (
            {},
            _without("layers.0.self_attn.q_proj"),
            r"no weights for model\.layers\.0\.self_attn\.q_proj\.weight, so they",
        ),
        ({"intermediate_size": 96}, None, r"down_proj\.weight is \(32, 48\) in .*, but \(32, 96\)"),
        ({}, lambda file: file.write_bytes(file.read_bytes()[:5000]), "cannot make this model"),
    ],
    ids=["a layer more than the folder has", "a weight is missing", "another width", "a file cut short"],
)
def test_weights_that_the_folder_lacks_are_refused(
    toy_experiment: Callable[..., Experiment],
    tmp_path: Path,
    config: dict[str, int],
    change: Callable[[Path], object] | None,
    words: str,
) -> None:
    """transformers fills them at random, with a line in its log; beside adapters they would stay so."""
    folder = tmp_path / "theirs"
    language_model("llama").save_pretrained(folder)
    if change is not None:
        change(folder / "model.safetensors")
    sizes = {"model.width": 768, "model.depth": 12, "model.heads": 12, "model.kind": "huggingface"}
    options = {"model.options.path": str(folder), "model.options.config": config, "model.options.code_offset": 10}
    experiment = toy_experiment({**sizes, **options})
    shape = shape_of(experiment.model, V, 45, 3)
    with pytest.raises(SettingsError, match=words):
        build_decoder(experiment.model, shape)


def test_a_head_that_is_not_used_may_be_missing(toy_experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    """A folder of the body alone: codes have a head of their own."""
    folder = tmp_path / "theirs"
    language_model("llama").save_pretrained(folder)
    _without("lm_head")(folder / "model.safetensors")
    sizes = {"model.width": 768, "model.depth": 12, "model.heads": 12, "model.kind": "huggingface"}
    own = toy_experiment({**sizes, "model.options.path": str(folder)})
    shape = shape_of(own.model, V, 45, 3)
    build_decoder(own.model, shape)
    with pytest.raises(SettingsError, match=r"no weights for lm_head\.weight"):
        build_decoder(
            toy_experiment({**sizes, "model.options.path": str(folder), "model.options.code_offset": 10}).model, shape
        )


def test_other_weights_in_the_same_folder_are_another_setting(
    toy_cache: TokenCache, toy_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    """A study began from Monday's weights, and its last arms from Tuesday's."""
    folder = tmp_path / "theirs"
    language_model("llama").save_pretrained(folder)
    sizes = {"model.width": 768, "model.depth": 12, "model.heads": 12, "model.kind": "huggingface"}
    given = toy_experiment({**sizes, "model.options.path": str(folder)})
    first = pinned_experiment(given)
    assert first.model.options["path"].startswith(f"{folder}@") and pinned_experiment(first) == first
    (folder / "README.md").write_text("what is no weight has no part in it")
    assert pinned_experiment(given) == first
    stopped = fit(given, toy_cache, tmp_path / "run", report=lambda step, metrics: True)
    assert stopped.stopped
    torch.manual_seed(5)
    transformers.AutoModelForCausalLM.from_config(language_model("llama").config).save_pretrained(folder)
    second = pinned_experiment(given)
    assert second.result_hash() != first.result_hash()
    with pytest.raises(CheckpointError, match=r"trained with model\.options\.path"):
        fit(given, toy_cache, tmp_path / "run")
    with pytest.raises(SettingsError, match="restore those, or begin a new study"):
        build_decoder(first.model, shape_of(second.model, V, 45, 3))


def test_a_study_pins_weights_wherever_they_are_named(tmp_path: Path) -> None:
    for name in ("one", "other"):
        language_model("gpt2", n_embd=16 if name == "one" else 32).save_pretrained(tmp_path / name)
    nested = {
        "question": "which weights?",
        "experiment": {"model": {"kind": "huggingface", "options": {"path": str(tmp_path / "one")}}},
        "arms": {
            "full": {},
            "other": {"model.options.path": str(tmp_path / "other")},
            "built_in": {"model.kind": "transformer", "model.width": 64, "model.heads": 4},
        },
        "search": {"model.options.path": {"choice": [str(tmp_path / "one"), str(tmp_path / "other")]}},
        "trials": 1,
        "objectives": {"val_cross_entropy": "minimize"},
    }
    space = pinned(Space.model_validate(nested))
    one = space.experiment["model"]["options"]["path"]
    other = space.arms["other"]["model.options.path"]
    assert one.startswith(f"{tmp_path / 'one'}@") and other.startswith(f"{tmp_path / 'other'}@")
    assert space.search["model.options.path"].choice == (one, other)
    assert "model.options.path" not in space.arms["built_in"]
    assert pinned(space) == space


def test_a_hub_name_is_pinned_to_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, from the copy that the hub's own client keeps."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--small"
    language_model("llama").save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pinned_source("org/small", None, "model.options.path") == f"org/small@{commit}"
    assert source_of(f"org/small@{commit}", None, "model.options.path") == ("org/small", commit)
    with pytest.raises(SettingsError, match=r"model\.options\.path \(org/large\) is not a folder, and the hub"):
        pinned_source("org/large", None, "model.options.path")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model.options.pth": "x"}, r"model\.options\.pth is not an option of HuggingFaceDecoder; did you mean path"),
        ({}, "give path .* or config with model_type"),
        ({"model.options.path": "/nowhere"}, "cannot make this model"),
        ({"model.options.config.model_type": "lama"}, "cannot make this model"),
    ],
    ids=["key", "nothing", "folder", "family"],
)
def test_wrong_options_are_one_sentence(
    toy_experiment: Callable[..., Experiment], options: dict[str, object], words: str
) -> None:
    sizes = {"model.width": 768, "model.depth": 12, "model.heads": 12, "model.kind": "huggingface"}
    with pytest.raises(SettingsError, match=words):
        plan_scheme(toy_experiment({**sizes, **options}))


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module._attention_name.cache_clear()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingsError, match=r"pip install 'reco-tune\[hf\]'"):
        module._attention_name()
    module._attention_name.cache_clear()
