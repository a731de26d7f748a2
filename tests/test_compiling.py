"""Compiled means compiled: whole graphs, few of them, and the numbers of the step that is not compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reco_tune.benchmarks.parts import measure_parts
from reco_tune.cost.timing import TimedStep
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import RunFailedError
from reco_tune.evaluation.loss_distribution import loss_by_block
from reco_tune.model import transformer
from reco_tune.settings import Experiment
from reco_tune.training import build_scheme, compiling, fit
from reco_tune.training.feed import Feed, MicroBatch
from reco_tune.training.parameters import FlatParameters
from reco_tune.training.schemes import SCHEMES
from reco_tune.training.step import OptimiserStep

Make = Callable[..., Experiment]
CPU = torch.device("cpu")
COMPILED = {"training.compile": True}

MOST = 14
"""Graphs of everything below: blocks with no prefix, after one input and after more, each after keys that begin a
buffer or do not; blocks before a window of one input and of more; the loss of all states, of some and of the first,
with each term; and blocks without attention, which the benchmark measures."""


def run_all_spans(experiment: Experiment, cache: TokenCache) -> None:
    """A step from every start that a run can draw."""
    scheme = build_scheme(experiment, cache)
    feed, step = Feed(scheme, cache), OptimiserStep(scheme, CPU)
    for span in scheme.distribution():
        step.run([MicroBatch(scheme.redrawn(feed.next().batch, span), span)], 1e-3)


def test_a_study_in_one_process_has_a_few_graphs(
    toy_cache: TokenCache, toy_experiment: Make, graphs: list[str]
) -> None:
    """Every scheme, all starts of `local`, ten λ, and the benchmark that leaves parts out, as a warm worker sees them.

    Each start once had a graph of its own, and each λ: `local` was refused, and the fourth λ ran eager unseen.
    """
    eager = {"chunked_full", "stale_prefix"}
    arms = [toy_experiment({"window.scheme": scheme, **COMPILED}) for scheme in SCHEMES if scheme not in eager]
    arms.append(toy_experiment({"window.prefix_resampled": 0.5, **COMPILED}))
    arms.append(toy_experiment({"window.stride_tokens": 1, "window.first_frame_probability": "uniform", **COMPILED}))
    arms += [toy_experiment({"objective.continuity_weight": 0.01 * (i + 1), **COMPILED}) for i in range(10)]
    arms.append(toy_experiment({"objective.norm_weight": 0.1, **COMPILED}))

    def everything() -> None:
        for experiment in arms:
            run_all_spans(experiment, toy_cache)
        full, window = (TimedStep(build_scheme(arms[i], toy_cache), toy_cache, CPU) for i in (0, 1))
        measure_parts(full, window, 0.0)

    everything()
    assert 0 < len(graphs) <= MOST
    first = len(graphs)
    everything()
    assert len(graphs) == first, "nothing is compiled twice"


@pytest.mark.parametrize("scheme", ["window", "masked_full"])
@pytest.mark.parametrize("own", [{}, {"training.activation_checkpointing": True}, {"training.loss_chunk_tokens": 10}])
def test_compiled_is_not_compiled_up_to_rounding(
    scheme: str, own: dict[str, object], toy_cache: TokenCache, toy_experiment: Make, graphs: list[str]
) -> None:
    """float64: another form of attention, 1e-12; λ is a tensor here and a number there, exactly."""
    shared = {"window.scheme": scheme, "objective.continuity_weight": 0.1, "objective.norm_weight": 0.3, **own}
    gradients = []
    for compile_it in (False, True):
        scheme_ = build_scheme(toy_experiment({**shared, "training.compile": compile_it}), toy_cache)
        model, batch = scheme_.build_model().double(), Feed(scheme_, toy_cache).next().batch
        parameters = FlatParameters(model)
        how = scheme_.compiled_loss(parameters) if compile_it else scheme_.loss
        loss = how(model, batch, scheme_.span(9))
        loss.total.backward()
        gradients.append([loss.total.detach(), parameters.gradient])
    assert graphs
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_run_compiles_before_its_clock_and_trains_the_same(
    toy_cache: TokenCache, toy_experiment: Make, graphs: list[str], tmp_path: Path
) -> None:
    """float32 rounds to 1e-7; twelve steps at this learning rate make at most 1e-4 of it."""
    made_by_first_step: list[int] = []

    def look(done: int, total: int, what: str) -> None:
        made_by_first_step.append(len(graphs))

    shared = {"objective.continuity_weight": 0.1, "training.class_dropout": 0.3}
    plain = fit(toy_experiment(shared), toy_cache, tmp_path / "plain")
    compiled = fit(toy_experiment({**shared, **COMPILED}), toy_cache, tmp_path / "compiled", progress=look)
    assert made_by_first_step[0] == len(graphs) > 0, "training and validation compile nothing more"
    assert compiled.metrics["compile_seconds"] > 0 and "compile_seconds" not in plain.metrics
    assert compiled.metrics["training_seconds"] < compiled.metrics["compile_seconds"]
    before = len(graphs)
    loss_by_block(compiled.model, torch.zeros(2, 45, dtype=torch.long), torch.zeros(2, dtype=torch.long), 9)
    assert len(graphs) == before, "an analysis after training waits for no graphs of its own"
    for name in ("train_cross_entropy", "val_cross_entropy", "continuity", "peak_memory_bytes"):
        assert compiled.metrics[name] == pytest.approx(plain.metrics[name], rel=1e-4)


def test_warming_up_changes_nothing_but_the_compiler(
    toy_cache: TokenCache, toy_experiment: Make, graphs: list[str]
) -> None:
    scheme = build_scheme(toy_experiment({"window.stride_tokens": 1, **COMPILED}), toy_cache)
    feed, step = Feed(scheme, toy_cache), OptimiserStep(scheme, CPU)
    before = {name: tensor.clone() for name, tensor in step.tensors().items()}
    random, drawn = torch.get_rng_state(), feed.state_dict()
    assert step.warm_up() > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.tensors().items())
    assert (
        not any(own.any() for own in step.parameters.gradients)
        and torch.equal(torch.get_rng_state(), random)
        and feed.state_dict() == drawn
    )
    made = len(graphs)
    for span in scheme.distribution():
        step.run([MicroBatch(feed.next().batch, span)], 0.0)
    assert len(graphs) == made > 0, "every start of the run is warm"
    assert OptimiserStep(build_scheme(toy_experiment(), toy_cache), CPU).warm_up() == 0


def test_too_many_graphs_are_an_error_and_never_a_silent_return_to_eager(
    toy_cache: TokenCache, toy_experiment: Make, graphs: list[str]
) -> None:
    compiling.compiled(torch.relu)  # sets the limits, which are then lowered
    with (
        torch._dynamo.config.patch(recompile_limit=1),
        pytest.raises(RunFailedError, match=r"training\.compile.*graphs already.*set training\.compile to false"),
    ):
        run_all_spans(toy_experiment(COMPILED), toy_cache)


def test_a_graph_that_breaks_is_an_error(
    toy_cache: TokenCache, toy_experiment: Make, graphs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = transformer.attend

    def chatty(*arguments: object) -> torch.Tensor:
        torch._dynamo.graph_break()
        return attend(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(transformer, "attend", chatty)
    with pytest.raises(RunFailedError, match=r"cannot be compiled as a whole.*set training\.compile to false"):
        run_all_spans(toy_experiment(COMPILED), toy_cache)
