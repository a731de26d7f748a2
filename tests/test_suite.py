"""The whole evaluation on real, small things: digits, a fitted tokenizer and extractor, and models of every scheme."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from test_clip_score import tiny_clip

from reco_tune import quantities
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError, SettingsError
from reco_tune.evaluation import EvaluationResult, KernelAtRungs, evaluate, prepare_evaluation
from reco_tune.evaluation.protocols import sample_labels
from reco_tune.evaluation.sampling_plan import asked_for
from reco_tune.model import VideoTransformer
from reco_tune.preparation import prepare_tokens
from reco_tune.quantities import STEPS_OF_H
from reco_tune.settings import Experiment, make_experiment
from reco_tune.training import build_scheme

TIMES = {"generation_seconds", "evaluation_seconds"}


def changed(experiment: Experiment, overrides: dict[str, object]) -> Experiment:
    return make_experiment(json.loads(experiment.model_dump_json()), overrides, where="test")


def model_of(experiment: Experiment, cache: TokenCache) -> VideoTransformer:
    """At its initial weights: as bad a generator as can be, and a quick one."""
    return build_scheme(experiment, cache).build_model()


def without_times(result: EvaluationResult) -> dict:
    values = asdict(result)
    values["metrics"] = {name: value for name, value in values["metrics"].items() if name not in TIMES}
    return values


@pytest.fixture(scope="module")
def result(
    prepared: tuple[Experiment, TokenCache], tmp_path_factory: pytest.TempPathFactory
) -> tuple[EvaluationResult, Path]:
    folder = tmp_path_factory.mktemp("run")
    return evaluate(model_of(*prepared), *prepared, folder=folder), folder


def test_gives_every_metric_under_its_name(result: tuple[EvaluationResult, Path]) -> None:
    metrics = result[0].metrics
    distances = {f"{name}{end}" for name in ("fvd", "kernel_distance") for end in ("", "_low", "_high")}
    scalars = {"class_accuracy", "last_frame_accuracy", "motion_distance", "first_frame_gap"}
    growth = {f"error_growth_{end}" for end in ("rate", "slope", "aic")}
    assert set(metrics) == distances | scalars | growth | {quantity.name for quantity in STEPS_OF_H} | TIMES
    assert set(metrics) <= set(quantities.ALL) and all(np.isfinite(value) for value in metrics.values())
    curves, law = result[0].curves, result[0].provenance["error_growth"]
    assert metrics["first_frame_gap"] == curves["loss_by_frame_generated"][0] - curves["loss_by_frame_train"][0]
    assert metrics["last_frame_accuracy"] == curves["frame_accuracy"][-1]
    assert metrics["error_growth_aic"] == law["aic_linear"] - law["aic_exponential"]
    assert 0 <= metrics["fvd_low"] < metrics["fvd"] < metrics["fvd_high"]
    assert metrics["kernel_distance_low"] < metrics["kernel_distance"] < metrics["kernel_distance_high"]
    assert metrics["generation_seconds"] > 0 and metrics["evaluation_seconds"] > 0


def test_gives_every_curve_with_its_length(result: tuple[EvaluationResult, Path]) -> None:
    lengths = {name: len(curve) for name, curve in result[0].curves.items()}
    blocks = {"loss_by_frame_train": 5, "loss_by_frame_generated": 5, "error_growth": 5}
    assert lengths == {
        "frame_accuracy": 9,
        "fvd_by_samples": 1,
        **blocks,
    }  # half of 50 clips are fewer than the 48 features
    assert set(lengths) == set(quantities.CURVES)


def test_a_model_is_sure_of_its_own_samples(result: tuple[EvaluationResult, Path]) -> None:
    """Its own samples cost the entropy of its distribution, other clips more: at any weights, so also at the initial
    ones.
    """
    curves = result[0].curves
    assert np.mean(curves["loss_by_frame_generated"]) < np.mean(curves["loss_by_frame_train"])


def test_the_protocol_names_what_must_be_equal(result: tuple[EvaluationResult, Path]) -> None:
    provenance = result[0].provenance
    assert (
        provenance["protocol"] == f"native/9x12x12/stride1/reconstructed/train400/n50x2/{provenance['extractor'][:8]}"
    )
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["rank_deficient"] is False and provenance["reference_clips"] == 400


def test_samples_are_the_first_clips_of_the_fixed_labels(result: tuple[EvaluationResult, Path]) -> None:
    with np.load(result[1] / "samples.npz") as samples:
        assert samples["video"].shape == (8, 9, 3, 12, 12) and samples["video"].dtype == np.uint8
        assert len(set(samples["labels"])) == 8  # ten balanced classes: the first eight places differ


def test_the_floor_is_far_below_an_untrained_model(result: tuple[EvaluationResult, Path]) -> None:
    """Held-out real clips by the same measure, with as many clips."""
    provenance, metrics = result[0].provenance, result[0].metrics
    assert provenance["floor_clips"] == 50
    assert metrics["fvd"] > 5 * provenance["fvd_floor"] and metrics["motion_distance"] > 5 * provenance["motion_floor"]
    assert provenance["reference_class_accuracy"] > metrics["class_accuracy"] + 0.1


def test_the_same_model_gives_the_same_numbers_and_stays_as_it_was(
    prepared: tuple[Experiment, TokenCache], result: tuple[EvaluationResult, Path]
) -> None:
    model = model_of(*prepared).train()
    state = torch.get_rng_state()
    assert without_times(evaluate(model, *prepared)) == without_times(result[0])
    assert model.training and torch.equal(torch.get_rng_state(), state)


RANKS_SCRIPT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
import torch
import torch.distributed as dist
from reco_tune.data.token_cache import TokenCache
from reco_tune.evaluation import KernelAtRungs, evaluate
from reco_tune.settings import load_experiment
from reco_tune.training import Group, build_scheme

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size)
experiment = load_experiment(folder / "experiment.yaml", [])
cache = TokenCache.open(Path(sys.argv[4]))
model = build_scheme(experiment, cache).build_model()
found = evaluate(model, experiment, cache, Group.current(), folder)
(folder / f"{rank}.json").write_text(json.dumps(asdict(found)))
measured = KernelAtRungs(experiment, cache, [0], Group.current())(0, model)
(folder / f"{rank}.rung.json").write_text(json.dumps(measured.metrics))
dist.destroy_process_group()
"""


def test_two_ranks_are_one(
    prepared: tuple[Experiment, TokenCache], result: tuple[EvaluationResult, Path], tmp_path: Path
) -> None:
    """Six batches of 20, 20 and 10 clips for two sampling seeds, dealt to two processes over gloo."""
    (tmp_path / "experiment.yaml").write_text(prepared[0].model_dump_json())  # JSON is YAML
    arguments = [str(tmp_path), str(prepared[1].path)]
    ranks = [subprocess.Popen([sys.executable, "-c", RANKS_SCRIPT, str(rank), "2", *arguments]) for rank in range(2)]
    assert [process.wait(timeout=280) for process in ranks] == [0, 0]
    for rank in range(2):
        found = EvaluationResult(**json.loads((tmp_path / f"{rank}.json").read_text()))
        assert without_times(found) == without_times(result[0])
        measured = KernelAtRungs(*prepared, [0])(0, model_of(*prepared))
        assert json.loads((tmp_path / f"{rank}.rung.json").read_text()) == measured.metrics
    with np.load(tmp_path / "samples.npz") as ours, np.load(result[1] / "samples.npz") as theirs:
        np.testing.assert_array_equal(ours["video"], theirs["video"])


@pytest.mark.parametrize("scheme", ["fewer_frames", "fewer_frames_tokens"])
def test_models_of_pieces_have_curves_of_pieces(prepared: tuple[Experiment, TokenCache], scheme: str) -> None:
    experiment = changed(prepared[0], {"window.scheme": scheme, "window.length_blocks": 2, "window.stride_tokens": 9})
    found = evaluate(model_of(experiment, prepared[1]), experiment, prepared[1])
    assert found.metrics["fvd"] > 0
    assert {name: len(curve) for name, curve in found.curves.items() if name.startswith(("loss", "error"))} == {
        "loss_by_frame_train": 2,
        "loss_by_frame_generated": 2,
        "error_growth": 2,
    }


@pytest.mark.parametrize("protocol", ["native-random", "native-pca"])
def test_protocols_without_classes_claim_none(prepared: tuple[Experiment, TokenCache], protocol: str) -> None:
    experiment = changed(
        prepared[0], {"evaluation.protocol": protocol, "evaluation.analyses": False, "data.class_conditional": False}
    )
    found = evaluate(model_of(experiment, prepared[1]), experiment, prepared[1])
    assert "class_accuracy" not in found.metrics and set(found.curves) == {"fvd_by_samples"}
    assert found.curves["fvd_by_samples"] == [
        pytest.approx(found.metrics["fvd"], rel=0.5)
    ]  # of the first sampling seed
    assert found.provenance["protocol"].startswith(f"{protocol}/")


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="the `flow` extra is not installed")
def test_flow_is_measured_where_it_is_asked_for(prepared: tuple[Experiment, TokenCache]) -> None:
    changes = {
        "evaluation.flow": True,
        "evaluation.analyses": False,
        "evaluation.samples": 20,
        "evaluation.sampling_seeds": 1,
    }
    found = evaluate(model_of(*prepared), changed(prepared[0], changes), prepared[1])
    assert (
        0 < found.provenance["reference_flow_unexplained"] < found.metrics["flow_unexplained"] < 1.5
    )  # noise follows no motion


def test_raw_and_reconstructed_references_are_two_protocols(prepared: tuple[Experiment, TokenCache]) -> None:
    raw = prepare_evaluation(changed(prepared[0], {"evaluation.reference": "raw"}), prepared[1])
    reconstructed = prepare_evaluation(*prepared)
    assert raw.extractor.hash == reconstructed.extractor.hash
    assert raw.protocol == reconstructed.protocol.replace("reconstructed", "raw")
    assert not np.array_equal(raw.features_MD, reconstructed.features_MD)
    assert (
        raw.facts["reference_class_accuracy"] > reconstructed.facts["reference_class_accuracy"]
    )  # the tokenizer loses something


def test_fewer_samples_than_features_are_said(prepared: tuple[Experiment, TokenCache]) -> None:
    experiment = changed(
        prepared[0], {"evaluation.samples": 30, "evaluation.analyses": False, "evaluation.sampling_seeds": 1}
    )
    assert evaluate(model_of(experiment, prepared[1]), experiment, prepared[1]).provenance["rank_deficient"] is True


def test_a_second_preparation_reads_what_the_first_left(prepared: tuple[Experiment, TokenCache]) -> None:
    calls: list[str] = []
    prepare_evaluation(*prepared, progress=lambda done, total, what: calls.append(what))
    assert calls == []


def test_damaged_reference_features_are_one_sentence(prepared: tuple[Experiment, TokenCache], tmp_path: Path) -> None:
    shutil.copytree(prepared[0].cache_dir / "extractors", tmp_path / "extractors")
    experiment = changed(prepared[0], {"data.cache_dir": str(tmp_path)})
    prepare_evaluation(experiment, prepared[1])
    (folder,) = (tmp_path / "references").iterdir()
    (folder / "reference.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="delete that folder"):
        prepare_evaluation(experiment, prepared[1])


SHARES = {
    "balanced": ([0, 1, 2] * 10, 3, 9, [3, 3, 3]),
    "two to one": ([0, 0, 1] * 10, 2, 9, [6, 3]),
    "a class without real clips is never asked for": ([0, 2] * 5, 3, 8, [4, 0, 4]),
    "fewer clips than classes": ([0, 1, 2, 3], 4, 2, [1, 1, 0, 0]),
    "one class": ([0] * 5, 1, 4, [4]),
}


@pytest.mark.parametrize(("reference", "classes", "count", "expected"), SHARES.values(), ids=SHARES.keys())
def test_labels_follow_the_reference(reference: list[int], classes: int, count: int, expected: list[int]) -> None:
    labels = sample_labels(np.array(reference), classes, count)
    assert np.bincount(labels, minlength=classes).tolist() == expected


def test_every_beginning_of_the_labels_is_balanced() -> None:
    shares = np.array([0.5, 0.3, 0.2])
    labels = sample_labels(np.repeat([0, 1, 2], [50, 30, 20]), 3, 100)
    for length in range(1, 101):
        assert np.abs(np.bincount(labels[:length], minlength=3) - shares * length).max() < 1


def test_the_protocol_says_it(prepared: tuple[Experiment, TokenCache]) -> None:
    experiment, cache = prepared
    last = prepare_evaluation(experiment, cache).protocol
    nested = experiment.model_dump()
    nested["training"]["keep_best"], nested["evaluation"]["checkpoint"] = True, "best"
    assert prepare_evaluation(make_experiment(nested, {}, where="best"), cache).protocol == f"{last}/best"


def test_prompts_are_judged(prepared: tuple[Experiment, TokenCache], tmp_path: Path) -> None:
    """How often digit and direction are those asked for, and the prompts that a measure of words is given."""
    text = {"model.condition": "text", "model.text_tokens": 6, "evaluation.analyses": False}
    clip = {"evaluation.clip": str(tiny_clip(tmp_path / "clip"))}
    experiment = changed(prepared[0], {**text, **clip, "evaluation.measure": "test_suite:CountsWords"})
    cache = prepare_tokens(experiment)
    result = evaluate(model_of(experiment, cache), experiment, cache, folder=tmp_path)
    assert 0 <= result.metrics["prompt_digit_accuracy"] == result.metrics["class_accuracy"] < 0.5
    assert 0 <= result.metrics["prompt_direction_accuracy"] < 1
    prompts = asked_for(experiment, cache).prompts_N
    assert prompts is not None and len(prompts) == experiment.evaluation.samples
    assert result.metrics["own_measure"] == np.mean([len(prompt.split()) for prompt in prompts])
    assert "first caption of train" in result.provenance["protocol"]
    low, score, high = (result.metrics[f"clip_score{end}"] for end in ("_low", "", "_high"))
    assert 0 < low < score < high <= 100
    assert "/CLIP clip " in result.provenance["protocol"]
    with np.load(tmp_path / "samples.npz") as samples:
        assert samples["prompts"].tolist() == list(prompts[:8])
    with pytest.raises(SettingsError, match="reads prompts"):
        evaluate(
            model_of(*prepared), changed(prepared[0], {"evaluation.measure": "test_suite:CountsWords"}), prepared[1]
        )


class CountsWords:
    """A measure of clips and their prompts."""

    reads_prompts = True

    def __call__(self, video_BFCHW: torch.Tensor, labels_B: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        assert len(prompts) == len(labels_B) == len(video_BFCHW)
        return torch.tensor([float(len(prompt.split())) for prompt in prompts])
