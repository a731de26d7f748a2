"""Every scheme trains on a device that is not the CPU: nothing is left behind, nothing is read back in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from compiled_graphs import counted_graphs
from fake_device import fake_device
from torch._subclasses.fake_tensor import DataDependentOutputException

from reco_tune.bundled import bundled
from reco_tune.data.token_cache import TokenCache
from reco_tune.settings import Experiment, arm_experiment, load_space
from reco_tune.training import build_scheme, plan_scheme
from reco_tune.training.feed import Feed, MicroBatch
from reco_tune.training.schemes import Batch
from reco_tune.training.step import OptimiserStep

Make = Callable[..., Experiment]
SCHEMES = ("full", "window", "masked_full", "fewer_frames", "fewer_frames_tokens")

VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "bfloat16": {"training.precision": "bfloat16", "objective.continuity_weight": 0.1},
    "normed state": {"objective.continuity_state": "final_norm", "objective.norm_weight": 0.1},
    "saving memory": {
        "training.precision": "bfloat16",
        "training.activation_checkpointing": True,
        "training.loss_chunk_tokens": 10,
        "training.micro_batches": 2,
    },
}


def train(experiment: Experiment, cache: TokenCache, steps: int = 3) -> None:
    """Forward, backward, clipping and update of a few steps on the fake device."""
    scheme = build_scheme(experiment, cache)
    feed = Feed(scheme, cache)
    with fake_device() as device:
        step = OptimiserStep(scheme, device)
        for _ in range(steps):
            terms = step.run([feed.next() for _ in range(experiment.training.micro_batches)], learning_rate=1e-3)
            assert terms.device == device
        assert {tensor.device for tensor in (*step.tensors().values(), *step.model.parameters())} == {device}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_trains(scheme: str, variant: str, toy_cache: TokenCache, toy_experiment: Make) -> None:
    own = VARIANTS[variant]
    train(toy_experiment({"window.scheme": scheme, "window.first_frame_probability": 0.3, **own}), toy_cache)


def test_a_cut_prefix_trains(toy_cache: TokenCache, toy_experiment: Make) -> None:
    train(toy_experiment({"window.prefix_tokens": 5, "window.first_frame_probability": 0.0}), toy_cache)


@pytest.mark.parametrize("planted", ["position_embedding", "token_embedding", "head.weight", "blocks.1.qkv.weight"])
def test_a_weight_left_on_the_cpu_is_found(
    planted: str, toy_cache: TokenCache, toy_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without it, a fake device that notices nothing would pass all of the above."""
    build = OptimiserStep.__init__

    def forgetful(step: OptimiserStep, *arguments: object) -> None:
        build(step, *arguments)  # type: ignore[arg-type]
        *path, name = planted.split(".")
        owner = step.model.get_submodule(".".join(path))
        setattr(owner, name, torch.nn.Parameter(getattr(owner, name).detach().cpu()))

    monkeypatch.setattr(OptimiserStep, "__init__", forgetful)
    with pytest.raises(RuntimeError, match="device"):
        train(toy_experiment({"window.scheme": "full"}), toy_cache)


def test_a_value_read_back_in_a_step_is_found(
    toy_cache: TokenCache, toy_experiment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = OptimiserStep.update

    def curious(step: OptimiserStep, learning_rate: float) -> None:
        update(step, learning_rate)
        float(step.parameters.gradient_norm())

    monkeypatch.setattr(OptimiserStep, "update", curious)
    with pytest.raises(DataDependentOutputException):
        train(toy_experiment(), toy_cache)


def test_autocast_casts_as_on_cuda() -> None:
    with fake_device() as device, torch.autocast(device.type, torch.bfloat16):
        hidden = torch.ones(2, 3, 8, device=device)
        assert torch.nn.functional.linear(hidden, hidden[0]).dtype == torch.bfloat16
        assert torch.nn.functional.layer_norm(hidden.bfloat16(), (8,)).dtype == torch.float32
        assert hidden.bfloat16().add(hidden.bfloat16()).dtype == torch.bfloat16


BUNDLED = bundled("search_spaces")
SHIPPED = sorted(BUNDLED.rglob("*.yaml"))
MOST_GRAPHS = 14
"""That all arms of a file need, however many starts and steps they have."""
NARROW = {"model.width": 16, "model.depth": 2, "model.heads": 2}


@pytest.fixture(scope="module")
def shared_graphs() -> Iterator[list[str]]:
    """One compiler for all files, as in a worker that stays warm: quicker, and nothing of one file may hurt another."""
    with counted_graphs() as made:
        yield made


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_arm_that_is_shipped_trains_at_its_own_settings(path: Path, shared_graphs: list[str]) -> None:
    """Only the model is shrunk: tokens, codes, batch, precision, windows and what saves memory or time are the file's.

    `local` of `paper_ablation` was refused for its 3,073 starts, and nobody knew.
    """
    space, before = load_space(path), len(shared_graphs)
    for arm in [*space.arms, *([None] if space.trials else [])]:
        experiment = arm_experiment(space, arm, NARROW)
        scheme, training = plan_scheme(experiment), experiment.training
        clips = training.batch_size // (training.micro_batches * experiment.resources.workers)
        with fake_device() as device:
            tokens_BT = torch.zeros(clips, scheme.model_settings.num_tokens, dtype=torch.int32)
            words = scheme.model_settings.condition_tokens
            batch = Batch(tokens_BT, torch.zeros((clips, words) if words > 1 else clips, dtype=torch.int64))
            step = OptimiserStep(scheme, device)
            for span in scheme.kinds_of_spans():
                step.run(
                    [MicroBatch(scheme.redrawn(batch, span), span)] * min(2, training.micro_batches),
                    training.learning_rate,
                )
            assert {tensor.device for tensor in step.tensors().values()} == {device}
    assert len(shared_graphs) - before <= MOST_GRAPHS
