"""The kernel distance at a rung: which clips it is made of, and that training goes on as if nobody had measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reco_tune.data.token_cache import TokenCache
from reco_tune.evaluation import KernelAtRungs, evaluate, prepare_evaluation, rungs
from reco_tune.evaluation.kernel import kernel_interval
from reco_tune.evaluation.sampling_plan import asked_for, seed_of
from reco_tune.generation import Request, generate_clips
from reco_tune.model import VideoTransformer
from reco_tune.settings import PROXIES, Experiment, make_experiment
from reco_tune.tokenizers import load_tokenizer
from reco_tune.training import RungMeasurement, build_scheme, fit

SPENT = ("generation_seconds", "evaluation_seconds")
TIMES = {*SPENT, "training_seconds", "tokens_per_second", "data_wait_share"}


class Crash(Exception):
    """Stands for the death of a process: raised out of `report`."""


def changed(experiment: Experiment, overrides: dict[str, object]) -> Experiment:
    return make_experiment(json.loads(experiment.model_dump_json()), overrides, where="test")


@pytest.mark.parametrize("scheme", ["window", "fewer_frames", "fewer_frames_tokens"])
def test_is_the_kernel_distance_of_the_first_clips(
    scheme: str, prepared: tuple[Experiment, TokenCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty of the fifty clips that its evaluation will ask for, in batches of twenty and ten."""
    monkeypatch.setattr(rungs, "RUNG_CLIPS", 30)
    experiment = changed(prepared[0], {"window.scheme": scheme, "window.length_blocks": 2, "window.stride_tokens": 9})
    cache, model = prepared[1], build_scheme(experiment, prepared[1]).build_model()
    asked, tokenizer, reference = (
        torch.from_numpy(asked_for(experiment, cache).given_N),
        load_tokenizer(cache.tokenizer_path),
        prepare_evaluation(experiment, cache),
    )
    requests = [Request(labels, seed_of(0, number)) for number, labels in enumerate([asked[:20], asked[20:30]])]
    made = generate_clips(model, experiment, tokenizer, cache.grid, requests)
    clips = torch.cat([generated.video_BFCHW for generated in made])
    assert np.bincount(asked[:30]).tolist() == [3] * 10, "all ten classes alike"
    expected = kernel_interval(reference.extractor.describe(clips).features_BD, reference.features_MD).value
    assert KernelAtRungs(experiment, cache, [8])(8, model).metrics == {
        "kernel_distance": pytest.approx(expected, rel=1e-12)
    }


def test_of_all_clips_it_is_the_evaluations(prepared: tuple[Experiment, TokenCache]) -> None:
    experiment = changed(prepared[0], {"evaluation.sampling_seeds": 1, "evaluation.analyses": False})
    model = build_scheme(experiment, prepared[1]).build_model().train()
    told: list[tuple[int, int]] = []
    found = KernelAtRungs(experiment, prepared[1], [8], progress=lambda done, total, what: told.append((done, total)))(
        8, model
    )
    assert model.training and told == [(1, 3), (2, 3), (3, 3)]
    assert found.metrics["kernel_distance"] == evaluate(model, experiment, prepared[1]).metrics["kernel_distance"]
    assert set(found.seconds) == set(SPENT) and min(found.seconds.values()) > 0


def test_elsewhere_nothing_is_even_loaded(toy_cache: TokenCache) -> None:
    assert KernelAtRungs(None, None, [8])(4, None) == RungMeasurement()  # type: ignore[arg-type]


def test_training_and_its_resumption_are_the_same_bits_with_it(
    prepared: tuple[Experiment, TokenCache], tmp_path: Path
) -> None:
    """Also where the process dies at a rung: what was measured there is told again, without being measured again."""
    experiment, cache = (
        changed(prepared[0], {"window.scheme": "window", "training.steps": 12, "training.rungs": 3}),
        prepared[1],
    )
    told: dict[str, list[dict[str, float]]] = {"plain": [], "measured": [], "crashed": []}
    measured_at: list[int] = []
    measure = KernelAtRungs(experiment, cache, [4, 8])

    def watched(step: int, model: VideoTransformer) -> RungMeasurement:
        found = measure(step, model)
        measured_at.extend([step] if found.metrics else [])
        return found

    def crash(step: int, metrics: dict[str, float]) -> bool:
        told["crashed"].append(metrics)
        if len(told["crashed"]) == 2:
            raise Crash
        return False

    fit(experiment, cache, tmp_path / "plain", lambda _, metrics: bool(told["plain"].append(metrics)))
    fit(
        experiment,
        cache,
        tmp_path / "measured",
        lambda _, metrics: bool(told["measured"].append(metrics)),
        measure=watched,
    )
    with pytest.raises(Crash):
        fit(experiment, cache, tmp_path / "crashed", crash, measure=watched)
    fit(experiment, cache, tmp_path / "crashed", crash, measure=watched)

    assert measured_at == [4, 8, 4, 8] and [metrics["steps"] for metrics in told["crashed"]] == [4, 8, 8, 12]
    again = [{name: metrics[name] for name in ("kernel_distance", *SPENT)} for metrics in told["crashed"][1:3]]
    assert again[0] == again[1], "seconds included"
    assert [set(PROXIES) <= set(metrics) for metrics in told["measured"]] == [True, True, False]
    plain, *others = (
        load_file(tmp_path / run / "checkpoint" / "step-00000012" / "tensors.safetensors") for run in told
    )
    assert all(torch.equal(tensor, other[name]) for other in others for name, tensor in plain.items())
    for run in ("measured", "crashed"):
        last_of_rungs = list({metrics["steps"]: metrics for metrics in told[run]}.values())
        assert [without(metrics, "kernel_distance") for metrics in last_of_rungs] == [
            without(metrics) for metrics in told["plain"]
        ]
        assert [metrics.get("kernel_distance") for metrics in last_of_rungs] == [
            metrics.get("kernel_distance") for metrics in told["measured"]
        ]
        for name in SPENT:
            first, second, last = (metrics[name] for metrics in last_of_rungs)
            assert 0 < first < second == last, "what it cost adds up, and is still known where nothing is measured"
    assert not set(SPENT) & set(told["plain"][-1])


def without(metrics: dict[str, float], *names: str) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in TIMES | set(names)}
