"""The weights of the lowest validation loss are kept beside the last, the same bits however often a run was
interrupted; which of them were judged stands in the protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from toy_study import PROTOCOL, record_study

from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import CheckpointError, ComparisonError, SettingsError
from reco_tune.reporting import Evidence, load_study
from reco_tune.settings import Experiment
from reco_tune.training import fit, load_model

Make = Callable[..., Experiment]
TURNS = {
    "training.learning_rate": 3.0,
    "training.schedule": "constant",
    "training.warmup_steps": 12,
    "training.rungs": 4,
    "training.keep_best": True,
}
"""The rate grows until the loss rises, far beyond what machines differ by."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def best_rung(folder: Path) -> int:
    """Step of the lowest validation loss that the history tells."""
    history = pq.read_table(folder / "history.parquet").to_pydict()
    losses = {s: v for s, v in zip(history["step"], history["val_cross_entropy"], strict=True) if v is not None}
    return int(min(losses, key=lambda step: losses[step]))


@pytest.fixture(scope="module")
def run(toy_cache: TokenCache, toy_experiment: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("best") / "run"
    fit(toy_experiment({**TURNS, "window.scheme": "full"}), toy_cache, folder)
    return folder


def test_the_best_is_kept_beside_the_last(
    run: Path, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    step = best_rung(run)
    best, last = load_model(run, "best"), load_model(run)
    assert (best.step, last.step) == (step, 12) and step < 12
    assert not same(weights(run / "best"), weights(run / "model"))
    stopped = fit(
        toy_experiment({**TURNS, "window.scheme": "full"}), toy_cache, tmp_path, report=lambda at, _: at >= step
    )
    assert same(weights(run / "best"), dict(stopped.model.state_dict())), "as if training had ended there"


def test_it_is_off_by_default(toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path) -> None:
    fit(toy_experiment({"training.steps": 4}), toy_cache, tmp_path)
    assert not (tmp_path / "best").exists()
    with pytest.raises(CheckpointError, match=r"has no best weights; train the run with training\.keep_best"):
        load_model(tmp_path, "best")


@pytest.mark.parametrize("stop", [3, 6, 9])
def test_an_interrupted_run_keeps_the_same_bits(
    run: Path, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path, stop: int
) -> None:
    experiment = toy_experiment({**TURNS, "window.scheme": "full"})
    fit(experiment, toy_cache, tmp_path, report=lambda step, _: step >= stop)
    fit(experiment, toy_cache, tmp_path)
    assert same(weights(run / "best"), weights(tmp_path / "best"))
    assert load_model(tmp_path, "best").step == load_model(run, "best").step


def test_what_is_judged_is_what_the_setting_names(
    run: Path, toy_cache: TokenCache, toy_experiment: Make, tmp_path: Path
) -> None:
    experiment = toy_experiment({**TURNS, "window.scheme": "full", "evaluation.checkpoint": "best"})
    judged = fit(experiment, toy_cache, tmp_path)
    assert judged.steps == 12 and same(dict(judged.model.state_dict()), weights(run / "best"))
    assert same(weights(tmp_path / "model"), weights(run / "model")), "the last is kept too"
    for given, loaded in ((tmp_path, "best"), (tmp_path / "model", "last"), (tmp_path / "best", "best")):
        found = load_model(given)
        assert found.experiment.evaluation.checkpoint == loaded
        assert same(dict(found.model.state_dict()), weights(tmp_path / {"last": "model"}.get(loaded, loaded)))
    with pytest.raises(CheckpointError, match=r"has the last weights of its run, not the best"):
        load_model(tmp_path / "model", "best")


def test_best_and_last_are_not_compared(tmp_path: Path) -> None:
    record = load_study(record_study(tmp_path / "toy", arms=("full", "reco"), searched=0, files=False))
    record.runs["full-s0"].provenance["protocol"] = f"{PROTOCOL}/best"
    with pytest.raises(ComparisonError, match=r"differ in evaluation\.checkpoint \(best against last\)"):
        _ = Evidence.read(record).ablation


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"evaluation.checkpoint": "best"}, r"training\.keep_best \(false\) does not keep"),
        (
            {"evaluation.checkpoint": "best", "training.keep_best": True, "window.scheme": "fewer_frames"},
            r"window\.scheme \(fewer_frames\) does not measure; use last",
        ),
    ],
    ids=["nothing-kept", "no-validation-loss"],
)
def test_what_cannot_be_judged_is_refused(toy_experiment: Make, overrides: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        toy_experiment(overrides)


def test_a_study_written_before_hashes_as_it_did(toy_experiment: Make) -> None:
    assert toy_experiment({}).result_hash() != toy_experiment({"training.keep_best": True}).result_hash()
    kept = toy_experiment({}).result_settings()
    assert kept["training.keep_best"] is False and kept["evaluation.checkpoint"] == "last"
