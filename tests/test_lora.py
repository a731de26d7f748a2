"""Fine-tuning: adapters are trained, and the weights beside them stay as they were, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reco_tune.cost import step_flops
from reco_tune.cost.memory import memory_by_phase
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import CheckpointError, SettingsError
from reco_tune.model import HuggingFaceDecoder
from reco_tune.model.huggingface import LoraOptions
from reco_tune.settings import Experiment
from reco_tune.testing import check_decoder
from reco_tune.training import fit
from reco_tune.training.checkpoint import load_model
from reco_tune.training.parameters import state_bytes
from reco_tune.training.schemes import plan_scheme

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
test_huggingface = pytest.importorskip("test_huggingface")

RANK = 2
SIZES = {"model.width": 768, "model.depth": 12, "model.heads": 12, "model.kind": "huggingface"}


@pytest.fixture
def adapted(toy_experiment: Callable[..., Experiment], tmp_path: Path) -> Callable[..., Experiment]:
    """Adapters beside the weights of a folder."""
    test_huggingface.language_model("llama").save_pretrained(tmp_path / "theirs")

    def make(overrides: dict[str, object] | None = None) -> Experiment:
        own = {"model.options.path": str(tmp_path / "theirs"), "model.options.lora.rank": RANK}
        return toy_experiment({**SIZES, **own, **(overrides or {})})

    return make


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("code_offset", [None, 10], ids=["own embedding and head", "codes in the vocabulary"])
def test_adapters_leave_a_decoder_one(family: str, code_offset: int | None) -> None:
    """With adapters that change something: fresh ones add zeros."""
    torch.manual_seed(1)
    made = HuggingFaceDecoder(
        test_huggingface.language_model(family), 16, 18, 2, code_offset, LoraOptions(rank=RANK, targets="all-linear")
    )
    for name, weight in made.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(weight)
    check_decoder(made)
    trained = {name.partition(".")[0] for name, own in made.named_parameters() if own.requires_grad}
    assert trained == ({"body", "classes"} if code_offset else {"body", "classes", "codes", "head"})


def test_adapters_train_and_nothing_else(
    toy_cache: TokenCache, adapted: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = adapted()
    whole = fit(experiment, toy_cache, tmp_path / "whole")
    theirs = dict(test_huggingface.language_model("llama").named_parameters())
    own = dict(whole.model.named_parameters())
    base = own["body.layers.1.mlp.up_proj.base_layer.weight"]
    assert torch.equal(base, theirs["model.layers.1.mlp.up_proj.weight"])
    assert own["body.layers.1.mlp.up_proj.lora_B.default.weight"].any(), "it began at zero"
    trained = sum(weight.numel() for weight in own.values() if weight.requires_grad)
    assert whole.metrics["trained_parameters"] == trained < sum(weight.numel() for weight in own.values()) / 2
    stopped = fit(experiment, toy_cache, tmp_path / "parts", report=lambda step, metrics: step < 8)
    assert stopped.stopped
    kept = load_file(next((tmp_path / "parts" / "checkpoint").glob("*/tensors.safetensors")))
    assert set(kept) == {"weights", "adamw.first_moment", "adamw.second_moment", "adamw.steps"}
    assert trained <= kept["weights"].numel() < 1.2 * trained, "beside it lies what aligns weights"
    resumed = fit(experiment, toy_cache, tmp_path / "parts")
    for mine, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_a_saved_model_goes_without_the_weights_of_the_folder(
    toy_cache: TokenCache, adapted: Callable[..., Experiment], tmp_path: Path
) -> None:
    done = fit(adapted({"training.keep_best": True, "evaluation.checkpoint": "best"}), toy_cache, tmp_path / "run")
    names = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert any(".lora_A" in name for name in names) and not any("base_layer" in name for name in names)
    labels = torch.tensor([0, 2])
    drawn = load_model(tmp_path / "run").model.generate(labels, temperature=0.0)
    assert torch.equal(drawn, done.model.eval().generate(labels, temperature=0.0))
    torch.manual_seed(9)
    other = transformers.AutoModelForCausalLM.from_config(test_huggingface.language_model("llama").config)
    other.save_pretrained(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="restore those"):
        load_model(tmp_path / "run")


def test_a_saved_model_whose_folder_is_damaged_is_not_to_be_trained_again(
    toy_cache: TokenCache, adapted: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(adapted(), toy_cache, tmp_path / "run")

    def cannot(*_: object) -> None:
        raise OSError("the folder is on a disk that does not answer")

    monkeypatch.setattr("reco_tune.model.huggingface._pretrained", cannot)
    with pytest.raises(CheckpointError, match="does not answer") as told:
        load_model(tmp_path / "run")
    assert "train it again" not in str(told.value)


def test_fresh_weights_that_are_not_trained_are_kept(
    toy_cache: TokenCache, adapted: Callable[..., Experiment], tmp_path: Path
) -> None:
    """Nothing else would bring them back on another version of torch."""
    done = fit(adapted({"model.options.fresh": True}), toy_cache, tmp_path / "run")
    loaded = load_model(tmp_path / "run").model
    for mine, other in zip(done.model.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    kept = load_file(next((tmp_path / "run" / "checkpoint").glob("*/tensors.safetensors")))
    assert "frozen.body.layers.0.mlp.up_proj.base_layer.weight" in kept


def test_costs_are_those_of_what_is_trained(adapted: Callable[..., Experiment]) -> None:
    """No weight gradients for weights that are not trained: 2 x forward for their products in place of 3."""
    shape, plain = (plan_scheme(adapted(more)).model_settings for more in ({}, {"model.options.lora": None}))
    layer = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 48
    down = 32 * 6 + 48  # inputs of the seven products of a layer
    up = 32 + 16 + 16 + 32 + 48 + 48 + 32
    adapters = 2 * RANK * (down + up)
    tokens = shape.num_tokens
    assert shape.costs.frozen == 2 * 2 * layer and shape.costs.frozen_head == 0
    assert shape.costs.token == 2 * (2 * layer + adapters)
    more = step_flops(shape, 0, tokens) - step_flops(plain, 0, tokens)
    assert more == tokens * (3 * 2 * adapters - 2 * 2 * layer)
    whole, frozen = sum(shape.parameter_counts[:1]) + 2 * shape.parameter_counts[1], shape.frozen_parameters
    assert frozen == 2 * (layer + 2 * 32) + 32, "norms with them"
    assert state_bytes(shape, 1, half=False) == 16 * (whole - frozen) + 4 * frozen
    small, large = (memory_by_phase(adapted(more), adapted(more)) for more in ({}, {"model.options.lora": None}))
    assert small.training < large.training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model.options.lora.rnk": 3}, r"model\.options\.lora\.rnk"),
        ({"model.options.lora.targets": ["q_prj"]}, "Target modules .*q_prj.* not found"),
    ],
    ids=["key", "layers"],
)
def test_wrong_adapters_are_one_sentence(
    adapted: Callable[..., Experiment], options: dict[str, object], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        plan_scheme(adapted(options))
