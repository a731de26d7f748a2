"""Two real gloo workers under torchrun do what one does; each rank has a folder of its own, so only rank 0's is ever of
use.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from own_decoders import ROTARY
from safetensors.torch import load_file

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import SettingsError
from reco_tune.settings import Experiment
from reco_tune.training import Group, build_scheme, fit, gradient_mean, prepare_device
from reco_tune.training.distributed import backend_for
from reco_tune.training.feed import Feed, MicroBatch
from reco_tune.training.step import OptimiserStep
from reco_tune.windows import WindowSpan

Make = Callable[..., Experiment]

SETTINGS = {
    "window.scheme": "window",
    "training.micro_batches": 2,
    "training.class_dropout": 0.2,
    "objective.continuity_weight": 0.1,
    "evaluation.validation_clips": 13,
}

LLAMA = {
    **{"model.width": 768, "model.depth": 12, "model.heads": 12, "model.kind": "huggingface"},
    **{f"model.options.config.{key}": value for key, value in {"model_type": "llama", **ROTARY}.items()},
}

WORKER = """
import json, sys, time
from pathlib import Path
from unittest.mock import patch
import torch
from safetensors.torch import save_file
from reco_tune.cost import calibrate
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import CheckpointError, RunFailedError
from reco_tune.settings import make_experiment
from reco_tune.training import Group, compiling, fit, joined
sys.path.insert(0, sys.argv[4])
from test_distributed import gathers_of_a_step, train_in_float64

root, cache = Path(sys.argv[1]), TokenCache.open(Path(sys.argv[2]))
nested = json.loads(sys.argv[3])
experiment = make_experiment(nested, {"resources.workers": 2}, where="test")
results = {}
with joined(experiment) as group:
    mine = root / f"rank{group.rank}"

    def run(name, experiment=experiment, report=lambda step, metrics: False):
        result = fit(experiment, cache, mine / name, report, group=group)
        weights = {key: tensor.clone() for key, tensor in result.model.state_dict().items()}
        save_file(weights, root / f"{name}-{group.rank}.safetensors")
        results[name] = {"steps": result.steps, "stopped": result.stopped, "metrics": result.metrics}

    run("whole")
    run("stopped", report=lambda step, metrics: step == 4)  # only rank 0 is asked
    results["rank 0 has a checkpoint"] = (mine / "stopped" / "checkpoint").exists()
    run("stopped")  # and goes on
    results["resumed"] = results.pop("stopped")
    run("stopped again", report=lambda step, metrics: step == 4)
    try:
        run("broken", make_experiment(nested, {"training.learning_rate": 1e30, "window.scheme": "full"}, where="test"))
    except RunFailedError as error:
        results["broken"] = str(error)
    shared, split = root / "shared", {"resources.workers": 2, "resources.shard_state": True}
    sharded = make_experiment(nested, split, where="test")
    for name, ends in (("split", None), ("split and stopped", 4), ("left to one", 4)):
        result = fit(sharded, cache, shared / name, lambda step, metrics: step == ends, group=group)
    result = fit(sharded, cache, shared / "split and stopped", group=group)
    results["split and resumed"] = {"steps": result.steps, "metrics": result.metrics}
    results["gathers"] = gathers_of_a_step(sharded, cache, group)
    half = {**split, "training.precision": "bfloat16", "training.activation_checkpointing": True}
    half |= {"training.loss_chunk_tokens": 10, "training.steps": 4}
    result = fit(make_experiment(nested, half, where="test"), cache, shared / "split, bfloat16", group=group)
    results["bfloat16"] = result.metrics
    with patch.object(compiling, "BACKEND", "eager"):  # graphs are captured, and not turned into C++
        compiled = make_experiment(nested, {**split, "training.compile": True}, where="test")
        results["compiled"] = fit(compiled, cache, shared / "split, compiled", group=group).metrics
    llama = make_experiment(json.loads(sys.argv[5]), split, where="test")
    for name, ends in (("llama", None), ("llama, stopped", 4)):
        fit(llama, cache, shared / name, lambda step, metrics: step == ends, group=group)
    fit(llama, cache, shared / "llama, stopped", group=group)
    results["gathers of a Llama"] = gathers_of_a_step(llama, cache, group)
    adapters = {**half, "model.options.lora.rank": 2, "training.loss_chunk_tokens": None, "training.steps": 12}
    result = fit(make_experiment(json.loads(sys.argv[5]), adapters, where="test"), cache, shared / "lora", group=group)
    results["lora"] = result.metrics
    for folder, how in ((shared / "plain", experiment), (mine / "unseen", sharded)):
        try:
            fit(how, cache, folder, lambda step, metrics: True, group=group)
            fit(sharded, cache, folder, group=group)
        except CheckpointError as error:
            results[folder.name] = str(error)

    begun, begin = [], Group.begin_sum_
    with patch.object(Group, "begin_sum_", lambda *sum: begun.append(len(sum[1])) or begin(*sum)):
        weights, during = train_in_float64(experiment, cache, group, lambda: len(begun))
    save_file(weights, root / f"float64-{group.rank}.safetensors")
    results["sums"], results["sums while backward ran"] = begun, during

    def slowly(*sum):
        finish = begin(*sum)
        return lambda: (finish(), time.sleep(0.05))

    with patch.object(Group, "begin_sum_", slowly):
        full = make_experiment(nested, {"window.scheme": "full"}, where="test")
        results["calibration"] = calibrate(experiment, full, cache, seconds=0.0, group=group)
    results["gather"] = [part.tolist() for part in group.gather(torch.arange(group.rank + 1))]
    results["json"] = group.broadcast_json({"from": group.rank, "text": "λ"})
    group.barrier()
(root / f"{group.rank}.json").write_text(json.dumps(results))
"""


def train_in_float64(
    experiment: Experiment, cache: TokenCache, group: Group, begun: Callable[[], int]
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Weights after three steps; and how many sums had begun when each step's last backward ended."""
    scheme = build_scheme(experiment, cache)
    build, during = scheme.build_model, []
    with (
        patch.object(scheme, "build_model", lambda: build().double()),
        patch.object(gradient_mean, "BUCKET_BYTES", 4096),
    ):
        feed, step = Feed(scheme, cache, group), OptimiserStep(scheme, torch.device("cpu"), group)
    backward = step.backward

    def watched(micro_batch: MicroBatch, parts: int = 1) -> torch.Tensor:
        terms = backward(micro_batch, parts)
        during.append(begun())
        return terms

    with patch.object(step, "backward", watched):
        for _ in range(3):
            step.run([feed.next(), feed.next()], learning_rate=1e-3)
    return {name: tensor.clone() for name, tensor in step.model.state_dict().items()}, during


def gathers_of_a_step(experiment: Experiment, cache: TokenCache, group: Group) -> dict[str, int]:
    """How often weights were gathered in forward and backward of one micro-batch, whose window has a prefix or not."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group as fsdp

    step = OptimiserStep(build_scheme(experiment, cache), torch.device("cpu"), group)
    batch, counts, gather = Feed(step.scheme, cache, group).next().batch, {}, fsdp.foreach_all_gather
    for start in (0, 18):
        with patch.object(fsdp, "foreach_all_gather", side_effect=gather) as gathered:
            step.backward(MicroBatch(batch, WindowSpan(start, 18)))
        counts[f"from {start}"] = gathered.call_count
    return counts


class TwoWorkers:
    """What the two workers left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ranks: list[dict[str, Any]] = [json.loads((root / f"{rank}.json").read_text()) for rank in (0, 1)]

    def weights(self, run: str, rank: int) -> dict[str, torch.Tensor]:
        return load_file(self.root / f"{run}-{rank}.safetensors")


@pytest.fixture(scope="module")
def two_workers(toy_cache: TokenCache, toy_experiment: Make, tmp_path_factory: pytest.TempPathFactory) -> TwoWorkers:
    root = tmp_path_factory.mktemp("workers")
    script = root / "worker.py"
    script.write_text(WORKER)
    nested = toy_experiment(SETTINGS).model_dump(mode="json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    llama = toy_experiment({**SETTINGS, **LLAMA}).model_dump(mode="json")
    told = [str(root), str(toy_cache.path), json.dumps(nested), str(Path(__file__).parent), json.dumps(llama)]
    command = [*launcher, str(script), *told]
    ended = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=270
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return TwoWorkers(root)


def test_two_workers_are_one_worker(
    two_workers: TwoWorkers, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    """Same global batch, same start: only the order of additions differs (float32, 24 backward passes: 1e-5)."""
    alone = fit(toy_experiment(SETTINGS), toy_cache, tmp_path)
    weights = two_workers.weights("whole", 0)
    for name, tensor in alone.model.state_dict().items():
        assert torch.allclose(tensor, weights[name], atol=1e-5), name
    metrics = two_workers.ranks[0]["whole"]["metrics"]
    for name in ("train_cross_entropy", "val_cross_entropy", "continuity", "hidden_norm"):
        assert metrics[name] == pytest.approx(alone.metrics[name], rel=1e-4), name
    for name in ("tokens_seen", "loss_tokens", "training_flops", "steps", "learning_rate"):
        assert metrics[name] == alone.metrics[name], name


def test_in_float64_two_workers_are_one_worker(
    two_workers: TwoWorkers, toy_cache: TokenCache, toy_experiment: Make
) -> None:
    """Three steps of two micro-batches, some of whose windows leave the class embedding without a gradient."""
    alone, _ = train_in_float64(toy_experiment(SETTINGS), toy_cache, Group(), lambda: 0)
    weights = two_workers.weights("float64", 0)
    for name, tensor in alone.items():
        assert torch.allclose(tensor, weights[name], rtol=0, atol=1e-12), name
    assert max((alone[name] - fresh).abs().max() for name, fresh in _fresh(toy_experiment, toy_cache).items()) > 1e-4


def test_buckets_are_summed_while_backward_runs(two_workers: TwoWorkers) -> None:
    """Backward of the first micro-batch of two begins no sum; that of the last begins nearly all of them: only what
    waits for the class embedding may be left."""
    for rank in two_workers.ranks:
        buckets = len(rank["sums"]) // 3
        assert buckets > 4 and rank["sums"] == rank["sums"][:buckets] * 3
        begun = rank["sums while backward ran"]
        for number in range(3):
            assert begun[2 * number] == number * buckets
            assert begun[2 * number + 1] >= (number + 1) * buckets - 1


def test_a_calibration_measures_all_workers_with_their_communication(two_workers: TwoWorkers) -> None:
    """Over a network so slow that steps are nothing but waiting for it, no arm is faster than the baseline."""
    first, second = (rank["calibration"] for rank in two_workers.ranks)
    assert first == second
    assert first["speedup_limit"] > 1.5 and first["speedup"] < 1.3
    assert first["calibration_seconds"] > 2 * 0.05 * 12, "both workers' seconds, of twelve steps at the least"


def test_a_state_split_over_two_workers_trains_as_one_worker_does(
    two_workers: TwoWorkers, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    """float32: only the order of additions differs."""
    alone = fit(toy_experiment(SETTINGS), toy_cache, tmp_path)
    weights = load_file(two_workers.root / "shared" / "split" / "model" / "model.safetensors")
    for name, tensor in alone.model.state_dict().items():
        assert torch.allclose(tensor, weights[name], rtol=0, atol=1e-6), name
    metrics = two_workers.ranks[1]["split and resumed"]["metrics"]
    for name in ("train_cross_entropy", "val_cross_entropy", "continuity", "hidden_norm"):
        assert metrics[name] == pytest.approx(alone.metrics[name], rel=1e-5), name
    assert metrics["peak_memory_bytes"] > 0


def test_a_split_state_resumes_to_the_same_bits(two_workers: TwoWorkers) -> None:
    assert [rank["split and resumed"]["steps"] for rank in two_workers.ranks] == [12, 12]
    whole, resumed = (
        load_file(two_workers.root / "shared" / run / "model" / "model.safetensors")
        for run in ("split", "split and stopped")
    )
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("setting", [True, False], ids=["of the same settings", "without shard_state"])
def test_one_worker_goes_on_where_two_with_a_split_state_stopped(
    setting: bool, two_workers: TwoWorkers, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    folder = shutil.copytree(two_workers.root / "shared" / "left to one", tmp_path / "run")
    steps: list[int] = []
    experiment = toy_experiment({**SETTINGS, "resources.shard_state": setting})
    resumed = fit(experiment, toy_cache, folder, lambda step, metrics: steps.append(step) or False)  # type: ignore[func-returns-value]
    assert steps[0] == 4, "goes on, and does not begin anew"
    whole = load_file(two_workers.root / "shared" / "split" / "model" / "model.safetensors")
    for name, tensor in resumed.model.state_dict().items():
        assert torch.allclose(tensor, whole[name], rtol=0, atol=1e-6), name


def test_prefix_and_window_share_one_gathering(two_workers: TwoWorkers) -> None:
    """Once around the blocks, and every one of the two blocks once for forward and once for backward."""
    assert [rank["gathers"] for rank in two_workers.ranks] == [{"from 0": 5, "from 18": 5}] * 2


def test_a_split_state_trains_in_bfloat16_and_saving_memory(two_workers: TwoWorkers) -> None:
    first, second = (rank["bfloat16"] for rank in two_workers.ranks)
    assert first["steps"] == 4 and 0 < first["val_cross_entropy"] == second["val_cross_entropy"] < 10


def test_a_llama_whose_state_is_split_trains_as_one_worker_does(
    two_workers: TwoWorkers, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    """float32: only the order of additions differs. What was stopped goes on in the same bits."""
    alone = fit(toy_experiment({**SETTINGS, **LLAMA}), toy_cache, tmp_path)
    split, resumed = (
        load_file(two_workers.root / "shared" / run / "model" / "model.safetensors")
        for run in ("llama", "llama, stopped")
    )
    for name, tensor in alone.model.state_dict().items():
        assert torch.allclose(tensor, split[name], rtol=0, atol=1e-5), name
        assert torch.equal(resumed[name], split[name]), name


def test_a_llamas_layers_are_gathered_again_for_the_window(two_workers: TwoWorkers) -> None:
    """Once around the layers, and each of the two once for forward, once for backward and once for a prefix."""
    assert [rank["gathers of a Llama"] for rank in two_workers.ranks] == [{"from 0": 5, "from 18": 7}] * 2


def test_adapters_of_a_split_llama_train_beside_weights_that_stay(
    two_workers: TwoWorkers, toy_experiment: Make, toy_cache: TokenCache
) -> None:
    """In bfloat16, with activations computed again."""
    experiment = toy_experiment({**SETTINGS, **LLAMA, "model.options.lora.rank": 2})
    fresh = build_scheme(experiment, toy_cache).build_model().state_dict()
    trained = load_file(two_workers.root / "shared" / "lora" / "model" / "model.safetensors")
    assert trained.keys() == fresh.keys()
    for name, tensor in fresh.items():
        stays = ".lora_" not in name and name.startswith(("body.", "final_norm."))
        assert torch.equal(trained[name], tensor) == stays, name
    assert two_workers.ranks[0]["lora"]["val_cross_entropy"] == two_workers.ranks[1]["lora"]["val_cross_entropy"]


def test_a_split_state_trains_compiled_as_it_does_without(two_workers: TwoWorkers) -> None:
    """float32; whole graphs, or the run had failed."""
    compiled, plain = (
        load_file(two_workers.root / "shared" / run / "model" / "model.safetensors")
        for run in ("split, compiled", "split")
    )
    assert all(torch.allclose(compiled[name], plain[name], rtol=0, atol=1e-5) for name in plain)
    for rank in two_workers.ranks:
        assert rank["compiled"]["compile_seconds"] > 0 and rank["compiled"]["steps"] == 12
        assert rank["compiled"]["val_cross_entropy"] == pytest.approx(
            rank["split and resumed"]["metrics"]["val_cross_entropy"], rel=1e-4
        )


@pytest.mark.parametrize(
    ("folder", "message"),
    [("plain", "written without resources.shard_state"), ("unseen", "1 of 2 workers do not see .* all machines share")],
)
def test_a_folder_that_a_split_state_cannot_use(folder: str, message: str, two_workers: TwoWorkers) -> None:
    assert all(re.search(message, rank[folder]) for rank in two_workers.ranks)


@pytest.mark.parametrize("run", ["whole", "stopped", "stopped again"])
def test_ranks_hold_the_same_weights(run: str, two_workers: TwoWorkers) -> None:
    first, second = (two_workers.weights(run, rank) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _fresh(toy_experiment: Make, toy_cache: TokenCache) -> dict[str, torch.Tensor]:
    return build_scheme(toy_experiment(SETTINGS), toy_cache).build_model().double().state_dict()


def test_all_ranks_stop_together(two_workers: TwoWorkers) -> None:
    assert [(rank["stopped again"]["steps"], rank["stopped again"]["stopped"]) for rank in two_workers.ranks] == [
        (4, True)
    ] * 2


def test_ranks_resume_from_rank_0s_folder_alone(two_workers: TwoWorkers) -> None:
    assert [rank["rank 0 has a checkpoint"] for rank in two_workers.ranks] == [True, False]
    assert [rank["resumed"]["steps"] for rank in two_workers.ranks] == [12, 12]
    for rank in (0, 1):
        resumed, whole = two_workers.weights("stopped", rank), two_workers.weights("whole", rank)
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_all_ranks_hear_of_a_loss_that_blew_up(two_workers: TwoWorkers) -> None:
    told = [rank["broken"] for rank in two_workers.ranks]
    assert told[0] == told[1] and "lower training.learning_rate" in told[0]


def test_helpers_between_ranks(two_workers: TwoWorkers) -> None:
    assert [rank["gather"] for rank in two_workers.ranks] == [[[0], [0, 1]]] * 2
    assert [rank["json"] for rank in two_workers.ranks] == [{"from": 0, "text": "λ"}] * 2


def test_a_worker_alone_needs_no_process_group() -> None:
    group = Group.current()
    assert group == Group(0, 1) and not dist.is_initialized()
    tensor = torch.tensor([1.0, 2.0])
    assert (
        group.mean_(tensor) is tensor
        and group.gather(tensor) == [tensor]
        and group.broadcast_json({"a": 1}) == {"a": 1}
    )


@pytest.mark.parametrize(("items", "ranks"), [(8, 2), (7, 3), (1, 2), (0, 2)])
def test_shares_cover_everything_once(items: int, ranks: int) -> None:
    shares = [list(range(items))[Group(rank, ranks).share(items)] for rank in range(ranks)]
    assert [item for share in shares for item in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_backend_and_device(toy_experiment: Make) -> None:
    assert (backend_for("cuda"), backend_for("cpu")) == ("nccl", "gloo")
    assert prepare_device(toy_experiment()) == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match=r"resources.gpus_per_worker is 1, .* set it to 0"):
            prepare_device(toy_experiment({"resources.gpus_per_worker": 1}))
