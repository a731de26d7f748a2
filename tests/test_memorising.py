"""Copies of training clips are told from new clips, and both references stand side by side."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from test_suite import changed, model_of
from toy_study import PROTOCOL, record_study

from reco_tune.data.token_cache import TokenCache
from reco_tune.evaluation import evaluate, prepare_evaluation
from reco_tune.evaluation.frechet import FeatureStatistics, frechet_distance
from reco_tune.evaluation.memorising import Memory, nearest_distances, share
from reco_tune.reporting import Evidence
from reco_tune.reporting.protocols import reference_of
from reco_tune.reporting.sections import claims, measures, memorising
from reco_tune.settings import Experiment


def memory(seed: int, training: int = 400, heldout: int = 400, dimensions: int = 8) -> tuple[Memory, np.ndarray]:
    """Of Gaussian clips, with the training clips."""
    generator = np.random.default_rng(seed)
    train, new = (generator.standard_normal((count, dimensions)) for count in (training, heldout))
    return Memory.of(train, new, FeatureStatistics.of(new)), train


def test_nearest_by_hand() -> None:
    found = nearest_distances(np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 1.0], [3.0, 0.0], [9.0, 9.0]]))
    assert found.tolist() == [1.0, 4.0]


def test_copies_are_all_found_and_new_clips_are_not() -> None:
    """Of a generator that has the very distribution of the clips, one in twenty counts: no more is claimed."""
    rates = []
    for seed in range(20):
        told, train = memory(seed)
        new = np.random.default_rng(1000 + seed).standard_normal((400, 8))
        assert told.copies(train[:50]).value == 1.0
        assert told.copies(train[:50] + 1e-3).value == 1.0
        rates.append(told.copies(new).value)
    assert np.mean(rates) == pytest.approx(0.05, abs=0.015)


def test_clips_far_from_everything_are_no_copies() -> None:
    told, train = memory(0)
    assert told.copies(train + 100).value == 0.0


def test_a_rate_has_wilsons_interval() -> None:
    """Brown, Cai and DasGupta (2001): 0 of 10 gives [0, 0.2775], 5 of 10 gives [0.2366, 0.7634]."""
    assert (share(0, 10).low, share(0, 10).high) == pytest.approx((0, 0.2775), abs=1e-4)
    half = share(5, 10)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    assert share(10, 10).high == pytest.approx(1.0) and share(10, 10).high <= 1.0


@pytest.fixture(scope="module")
def both(prepared: tuple[Experiment, TokenCache]) -> tuple[Experiment, TokenCache]:
    experiment, cache = prepared
    return changed(experiment, {"evaluation.reference_split": "both", "evaluation.analyses": False}), cache


def test_real_clips_of_either_split_are_told_apart(both: tuple[Experiment, TokenCache]) -> None:
    reference = prepare_evaluation(*both)
    assert reference.memory is not None and reference.protocol.split("/")[4] == "both160"
    assert reference.statistics.count == reference.memory.heldout.count == 160, "as many on both sides"
    assert len(reference.memory.training_MD) == 400, "whatever was trained on can have been copied"
    assert reference.memory.copies(reference.memory.training_MD).value == 1.0
    assert reference.facts["copied_from_clips"] == 400 and len(reference.folders) == 3


def test_an_evaluation_gives_both_distances(
    both: tuple[Experiment, TokenCache], prepared: tuple[Experiment, TokenCache]
) -> None:
    """Each is the distance that a reference of that split alone gives, at as many clips; classes are left out, of which
    other reference clips ask for others.
    """
    blind = {"data.class_conditional": False}
    experiment = changed(both[0], blind)
    model = model_of(experiment, both[1])
    told = evaluate(model, experiment, both[1])
    names = {"fvd_heldout", "fvd_heldout_low", "fvd_heldout_high", "copy_rate", "copy_rate_low", "copy_rate_high"}
    assert names <= set(told.metrics) and told.provenance["protocol"].split("/")[4] == "both160"
    few = {**blind, "evaluation.reference_clips": 160, "evaluation.analyses": False}
    for split, name in (("train", "fvd"), ("test", "fvd_heldout")):
        alone = evaluate(model, changed(prepared[0], {**few, "evaluation.reference_split": split}), prepared[1])
        assert told.metrics[name] == pytest.approx(alone.metrics["fvd"], rel=1e-9)
        assert not names & set(alone.metrics)
    assert 0 <= told.metrics["copy_rate_low"] <= told.metrics["copy_rate"] <= told.metrics["copy_rate_high"] <= 1


def test_a_reference_of_one_split_is_what_it_was(prepared: tuple[Experiment, TokenCache]) -> None:
    reference = prepare_evaluation(*prepared)
    assert reference.memory is None and reference.protocol.split("/")[4] == "train400"
    assert frechet_distance(reference.features_MD, reference.features_MD) == pytest.approx(0, abs=1e-6)


def test_a_report_says_who_copies_and_what_verdicts_rest_on(tmp_path: Path) -> None:
    study = record_study(
        tmp_path / "toy",
        arms=("full", "reco"),
        seeds=(0, 1),
        searched=0,
        files=False,
        protocol=PROTOCOL.replace("train2048", "both512"),
    )
    record = copy.deepcopy(Evidence.read(study).study)
    for run in record.runs.values():
        rate = 0.9 if run.arm == "full" else 0.04
        run.metrics |= {"fvd_heldout": 7.0, "fvd_heldout_low": 6.5, "fvd_heldout_high": 7.5}
        run.metrics |= {"copy_rate": rate, "copy_rate_low": rate - 0.02, "copy_rate_high": rate + 0.02}
    evidence = Evidence.read(record)
    section = memorising.build(evidence)
    assert len(section.words) == 2 and all("`full`" in words and "90%" in words for words in section.words)
    assert "7.00 against held-out clips" in section.words[0]
    row = memorising.memorising_table(evidence).set_index(["budget", "arm"]).loc["equal_steps", "reco"]
    assert (row["copy_rate"], row["fvd_heldout"], row["seeds"]) == (pytest.approx(0.04), 7.0, 2)
    assert "They rest on FVD against 512 training clips." in claims.build(evidence).about
    assert {"copy_rate", "fvd_heldout"} <= set(measures.measures_table(evidence.results)["measure"])
    assert not memorising.build(Evidence.read(study)).tables, "where only one split was measured"


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        (PROTOCOL, "2,048 training clips"),
        (PROTOCOL.replace("train", "test"), "2,048 held-out clips"),
        (PROTOCOL.replace("train", "both"), "2,048 training clips"),
        ("theirs", ""),
    ],
)
def test_a_protocol_names_its_real_clips(protocol: str, told: str) -> None:
    assert reference_of(protocol) == told
