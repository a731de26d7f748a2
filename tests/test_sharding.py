"""Memory of a worker that has a part of a model's state; what such workers compute is in `test_distributed`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reco_tune.benchmarks import BenchOptions, Shape
from reco_tune.cost import memory_by_phase
from reco_tune.errors import SettingsError
from reco_tune.settings import make_experiment
from reco_tune.training.parameters import gathered_bytes, state_bytes
from reco_tune.training.schemes import Batch, Scheme, plan_scheme
from reco_tune.training.step import kept_bytes

LARGE = Shape("large-5120", 32, width=4096, depth=32, heads=32, num_codes=8192, batch_size=1)
SAVING = {
    "training.precision": "bfloat16",
    "training.activation_checkpointing": True,
    "training.loss_chunk_tokens": 1024,
}
PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "large-models.md"


def scheme_of(shape: Shape) -> Scheme:
    nested = BenchOptions(0).experiment(shape, "reco").model_dump(mode="json")
    return plan_scheme(make_experiment(nested, SAVING, where="test"))


def kept(depth: int) -> int:
    """Bytes of the latest window's forward pass, of tensors without storage."""
    scheme = scheme_of(LARGE._replace(depth=depth))
    span = max(scheme.distribution())
    with FakeTensorMode():
        model = scheme.build_model()
        batch = Batch(torch.zeros(1, LARGE.num_tokens, dtype=torch.int32), torch.zeros(1, dtype=torch.long))
        known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *batch.read)}

        def compute() -> object:
            with torch.autocast("cpu", torch.bfloat16):
                return scheme.loss(model, batch, span)

        return kept_bytes(compute, lambda: known)


def test_the_state_is_that_of_the_models_parameters() -> None:
    settings = scheme_of(LARGE._replace(depth=3)).model_settings
    with FakeTensorMode():
        model = scheme_of(LARGE._replace(depth=3)).build_model()
        whole = sum(parameter.numel() for parameter in model.parameters())
        block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    assert state_bytes(settings, 1, half=True) == 16 * whole
    assert gathered_bytes(settings, half=False) == 12 * (whole - 3 * block + 2 * block)
    assert state_bytes(settings, 4, half=True) == 4 * whole + gathered_bytes(settings, half=True)


def test_the_page_tells_what_a_worker_of_a_large_model_needs() -> None:
    one, two = kept(1), kept(2)
    in_all = one + (LARGE.depth - 1) * (two - one)  # blocks are alike
    settings = scheme_of(LARGE).model_settings
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ") and line[2].isdigit()
    ]
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "16"]
    for workers, *told in rows:
        own = state_bytes(settings, 1, half=True) / int(workers)
        gathered = gathered_bytes(settings, half=True) if workers != "1" else 0
        counted = (own, gathered, in_all, own + gathered + in_all)
        assert told == [f"{bytes_ / 2**30:.1f}" for bytes_ in counted], workers


def test_a_plan_counts_a_workers_part() -> None:
    nested = BenchOptions(0).experiment(LARGE._replace(batch_size=8), "reco").model_dump(mode="json")
    one, split, whole = (
        make_experiment(nested, {"resources.gpus_per_worker": 1, **SAVING, **changes}, where="test")
        for changes in (
            {"training.batch_size": 1},
            {"resources.workers": 8, "resources.shard_state": True},
            {"resources.workers": 8},
        )
    )
    settings = scheme_of(LARGE).model_settings
    parts, all_of_it = state_bytes(settings, 8, half=True), state_bytes(settings, 1, half=True)
    needed = memory_by_phase(split, split).training
    assert needed < memory_by_phase(whole, whole).training - (
        all_of_it - parts
    )  # no cast of the weights is kept either
    assert memory_by_phase(whole, whole).training == memory_by_phase(one, one).training
    assert needed - parts == pytest.approx(kept(1) + (LARGE.depth - 1) * (kept(2) - kept(1)), rel=0.5)


def test_a_split_state_needs_a_folder_that_all_see() -> None:
    changes = {"resources.shard_state": True, "resources.storage": "s3://some/where"}
    nested = BenchOptions(0).experiment(LARGE, "reco").model_dump(mode="json")
    with pytest.raises(SettingsError, match=r"resources.shard_state .* resources.storage \(s3://some/where\)"):
        make_experiment(nested, changes, where="test")
