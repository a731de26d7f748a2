"""Every shipped search space loads, each of its arms is possible, and whatever its ranges can propose makes a valid
run.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pytest

from reco_tune.bundled import bundled
from reco_tune.cost import ASSUMED_GPU, forecast, plan
from reco_tune.settings import ARMS, COMPUTE_SHARES, Range, arm_experiment, load_experiment, load_space

SPACES = sorted(bundled("search_spaces").glob("*.yaml"))
EXPERIMENTS = sorted((bundled("search_spaces") / "experiments").glob("*.yaml"))
optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_the_promised_spaces_are_shipped() -> None:
    promised = {
        "demo",
        "evidence",
        "evidence_300_passes",
        "real_clips",
        "real_clips_tuned",
        "ucf101_128px",
        "paper_ablation",
        "window_stride",
        "first_frame",
        "lambda",
        "joint",
        "beyond",
        "beyond_300_passes",
        "commavq",
        "text_digits",
        "msrvtt_7B",
    }
    assert {path.stem for path in SPACES} == promised


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_space_opens_with_its_question_how_to_launch_it_and_what_it_costs(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert header[0].startswith("# Question:")
    launch = "reco-tune demo" if path.stem == "demo" else f"reco-tune run {path.stem}"
    assert any(line.startswith("# Launch:") and launch in line for line in header)
    assert any(line.startswith("# Costs:") for line in header)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_arm_and_every_proposal_is_possible(path: Path) -> None:
    space = load_space(path)
    for arm in space.arms:
        assert arm_experiment(space, arm).window.length_tokens is not None
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    for _ in range(20 if space.search else 0):
        trial = study.ask()
        arm_experiment(space, None, {key: _suggest(trial, key, bounds) for key, bounds in space.search.items()})
    for corner in product(*(_ends(bounds) for bounds in space.search.values())):
        arm_experiment(space, None, dict(zip(space.search, corner, strict=True)))


@pytest.mark.parametrize(
    "path",
    [path for path in SPACES if "sampler: {kind: grid" in path.read_text(encoding="utf-8")],
    ids=lambda path: path.stem,
)
def test_a_grid_is_tried_whole(path: Path) -> None:
    space = load_space(path)
    sizes = [len(bounds.choice or ()) for bounds in space.search.values()]
    assert space.trials == len(list(product(*(range(size) for size in sizes))))


def test_the_evidence_is_one_study_in_two_regimes() -> None:
    """Every arm with three seeds at its own best; few passes over many clips, and 300 over few."""
    few, many = (load_space(bundled("search_spaces") / f"{name}.yaml") for name in ("evidence", "evidence_300_passes"))
    assert set(few.arms) == set(ARMS) - {"fewer_frames_tokens"}  # that one is a variant, not an arm of the comparison
    assert few.seeds == (0, 1, 2) and few.tune is not None and {"equal_steps", *COMPUTE_SHARES} == set(few.budgets)
    regime = {"data.train_clips", "training.steps", "training.epochs"}
    one, other = (arm_experiment(space, "full").flat() for space in (few, many))
    assert {key for key in one if one[key] != other[key]} == regime
    same = {"arms", "budgets", "seeds", "tune", "resources"}
    assert few.model_dump(include=same) == many.model_dump(include=same)
    assert one["training.steps"] * 32 / 4096 < 4 and other["training.epochs"] == 300


def test_real_clips_have_one_study_at_two_sizes() -> None:
    """What two cores show of a handful of videos, a GPU asks of UCF101."""
    small, large = (
        load_space(bundled("search_spaces") / f"{name}.yaml") for name in ("real_clips_tuned", "ucf101_128px")
    )
    same = {"arms", "budgets", "seeds"}
    assert small.model_dump(include=same) == large.model_dump(include=same)
    assert (
        small.tune
        and large.tune
        and small.tune.seeds == large.tune.seeds
        and set(small.tune.per_arm) == set(large.tune.per_arm)
    )
    reco = arm_experiment(large, "reco")
    assert reco.grid.num_tokens == 1280 and reco.evaluation.reference_split == "both"


def test_the_papers_setting_is_the_papers() -> None:
    space = load_space(bundled("search_spaces") / "paper_ablation.yaml")
    reco = arm_experiment(space, "reco")
    assert (reco.grid, reco.window.length_tokens, reco.window.stride_tokens) == ((5, 32, 32), 2048, 1024)
    assert (reco.objective.continuity_weight, reco.window.first_frame_probability, reco.training.learning_rate) == (
        0.1,
        0.5,
        1e-4,
    )
    assert (reco.model.width, reco.model.depth, reco.model.heads) == (768, 12, 12)


def _suggest(trial: optuna.Trial, key: str, bounds: Range) -> Any:
    if bounds.choice is not None:
        return trial.suggest_categorical(key, bounds.choice)
    if bounds.int is not None:
        return trial.suggest_int(key, *bounds.int, log=bounds.log, step=int(bounds.step or 1))
    assert bounds.float is not None
    return trial.suggest_float(key, *bounds.float, log=bounds.log, step=bounds.step)


def _ends(bounds: Range) -> tuple[Any, ...]:
    return bounds.choice or bounds.int or bounds.float or ()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_shipped_experiments_are_at_the_papers_setting_and_can_be_planned(path: Path) -> None:
    experiment = load_experiment(path)
    name, size = path.stem.split("_")
    assert (experiment.data.layout, experiment.grid, experiment.tokenizer.kind, experiment.tokenizer.num_codes) == (
        name,
        (5, 32, 32),
        "omnitokenizer",
        8192,
    )
    assert (experiment.window.length_tokens, experiment.window.first_frame_probability) == (2048, 0.5)
    assert (experiment.objective.continuity_weight, experiment.training.learning_rate) == (0.1, 1e-4)
    assert (experiment.training.batch_size, experiment.model.depth) == {"110M": (96, 12), "343M": (40, 24)}[size]
    assert (
        abs(experiment.training.steps - 300 * 9537 / experiment.training.batch_size) < 0.01 * experiment.training.steps
    ), "300 epochs of UCF101"
    assert experiment.data.class_conditional == (name == "ucf101") == (experiment.evaluation.protocol == "native")
    run = forecast(plan(load_space(path)), ASSUMED_GPU).runs[0]
    full = forecast(plan(load_space(path, ["window.scheme=full"])), ASSUMED_GPU).runs[0]
    hours = {"110M": 11.7, "343M": 38}[size]
    assert run.device_seconds / 3600 == pytest.approx(hours, rel=0.02), "what the file's header says"
    assert f"about {hours} A100-hours" in path.read_text(encoding="utf-8")
    assert 2.0 < full.training_flops / run.training_flops < 2.6, "the limit at W = 2 of 5 blocks and p = 0.5 is 2.4"


def test_the_promised_experiments_are_shipped() -> None:
    sets, sizes = ("ucf101", "faceforensics", "skytimelapse", "taichi"), ("110M", "343M")
    assert {path.stem for path in EXPERIMENTS} == {f"{name}_{size}" for name in sets for size in sizes}
