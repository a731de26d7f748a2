"""A table of real runs: sampled configurations trained whole, what each showed at every rung and what came of it.

Searches are compared over such a table at no cost (`benchmarks.pruning`). Outside Ray, one process, one configuration
after another; a line is added when a configuration is done, so a recording that was stopped goes on where it stood.
"""

from __future__ import annotations

import csv
import io
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from reco_tune import quantities as q
from reco_tune.cost import scheme_limit
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError
from reco_tune.evaluation import evaluate, prepare_evaluation
from reco_tune.files import LineWriter
from reco_tune.preparation import prepare_tokens
from reco_tune.progress import Progress, quiet
from reco_tune.settings import BASELINE, Experiment, Sampler, Space, arm_experiment
from reco_tune.training import build_scheme, fit

RUNG_VALUES = (q.VAL_CROSS_ENTROPY.name, q.TRAINING_FLOPS.name, "training_cpu_seconds")
"""Of every rung, in columns `val_cross_entropy@STEP` and so on; cost is counted from the start of the run."""
FINAL_VALUES = (
    q.SPEEDUP_LIMIT.name,
    q.FVD.name,
    q.FVD_LOW.name,
    q.FVD_HIGH.name,
    q.KERNEL_DISTANCE.name,
    "evaluation_cpu_seconds",
)
"""The speed-up is the FLOP limit, which neighbours on the machine do not change."""


SPACE = "joint"
"""The shipped search space that the shipped table was recorded over: its data, model and ranges are those of the demo
and wider.
"""
SCALE = (
    "training.steps=360",
    "training.batch_size=16",
    "training.rungs=12",
    "evaluation.samples=384",
    "evaluation.validation_clips=192",
    "evaluation.analyses=false",
)
"""Overrides that make a configuration cost about eight CPU seconds."""
SHIPPED = Path(__file__).with_name("pruning_table.csv")
"""Recorded by `reco-tune bench pruning --record FILE`."""


class Rung(NamedTuple):
    """What a configuration had shown, and had cost, at one step."""

    step: int
    val_cross_entropy: float
    training_flops: float
    training_cpu_seconds: float


class RecordedRun(NamedTuple):
    """One configuration of a table."""

    params: dict[str, float]
    """What was sampled: dotted settings key -> value."""
    final: dict[str, float]
    """`FINAL_VALUES`."""
    rungs: tuple[Rung, ...]


def record(space: Space, path: Path, configurations: int, progress: Progress = quiet) -> None:
    """Trains and evaluates the first so many random configurations of a space's ranges and adds those that the table
    lacks.

    Args:
        space: its experiment and ranges are taken, its own sampler is not.
        path: a CSV file; made where it is missing.

    Raises:
        DataError: where the file is no table, or one of other ranges or rungs.
    """
    from reco_tune.study.searcher import Search  # here: a table is read without Optuna

    space = space.model_copy(
        update={"sampler": Sampler(kind="random", seed=space.sampler.seed), "trials": configurations}
    )
    done = len(read_table(path)) if path.exists() else 0
    search, cache, baseline = Search(space), None, arm_experiment(space, BASELINE)
    while (proposal := search.ask()) is not None:
        search.apply({"event": "asked", **proposal.event})
        if search.asked <= done:
            continue
        if cache is None:
            cache = prepare_tokens(proposal.experiment, progress)
            prepare_evaluation(proposal.experiment, cache, progress)
        progress(search.asked - 1, configurations, "configurations")
        _append(path, proposal.event["params"] | _measured(proposal.experiment, baseline, cache))
    progress(configurations, configurations, "configurations")


def read_table(path: Path) -> list[RecordedRun]:
    """The configurations of a table, in the order in which they were drawn.

    Raises:
        DataError: where there is none, or a line is damaged.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [_parsed(row) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is no table of recorded runs ({error}); record one with `reco-tune bench pruning --record`"
        ) from error


def _measured(experiment: Experiment, baseline: Experiment, cache: TokenCache) -> dict[str, float]:
    """One configuration, trained whole and evaluated."""
    limit = scheme_limit(build_scheme(experiment, cache), build_scheme(baseline, cache))
    values: dict[str, float] = {q.SPEEDUP_LIMIT.name: limit}
    began = time.process_time()

    def keep(step: int, metrics: dict[str, float]) -> bool:
        spent = metrics | {"training_cpu_seconds": time.process_time() - began}
        values.update({f"{name}@{step}": spent[name] for name in RUNG_VALUES})
        return False

    with tempfile.TemporaryDirectory() as folder:
        trained = fit(experiment, cache, Path(folder), keep)
    began = time.process_time()
    values |= evaluate(trained.model, experiment, cache).metrics | {
        "evaluation_cpu_seconds": time.process_time() - began
    }
    return {name: value for name, value in values.items() if "@" in name or name in FINAL_VALUES}


def _append(path: Path, row: dict[str, Any]) -> None:
    """Adds one whole line, on disk when this returns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    elif path.read_text().splitlines()[0].split(",") != list(row):
        raise DataError(f"{path} was recorded over other ranges or rungs; give another file")
    writer.writerow({name: f"{value:.6g}" for name, value in row.items()})
    with closing(LineWriter(path)) as lines:
        lines.append(text.getvalue().rstrip("\n"))


def _parsed(row: dict[str, str]) -> RecordedRun:
    values = {name: float(value) for name, value in row.items()}
    steps = [int(name.split("@")[1]) for name in row if name.startswith(f"{q.VAL_CROSS_ENTROPY.name}@")]
    rungs = tuple(Rung(step, *(values[f"{name}@{step}"] for name in RUNG_VALUES)) for step in steps)
    params = {name: value for name, value in values.items() if "@" not in name and name not in FINAL_VALUES}
    return RecordedRun(params, {name: values[name] for name in FINAL_VALUES}, rungs)
