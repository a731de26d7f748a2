"""Records a table of real runs: random configurations trained to the end, with the metrics at every rung and the
final results.

Such a table allows search strategies to be compared at no cost (`benchmarks.pruning`). Recording runs outside Ray, in
one process, one configuration after another. It adds a line when a configuration is done, so a stopped recording can
be continued.
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
"""Values of every rung, in columns `val_cross_entropy@STEP` and so on. Cost counts from the start of the run."""
FINAL_VALUES = (
    q.SPEEDUP_LIMIT.name,
    q.FVD.name,
    q.FVD_LOW.name,
    q.FVD_HIGH.name,
    q.KERNEL_DISTANCE.name,
    "evaluation_cpu_seconds",
)
"""The speed-up is the FLOP limit, which does not depend on other load on the machine."""


SPACE = "joint"
"""The shipped search space over which the shipped table was recorded. Data and model are those of the demo; the
ranges are wider.
"""
SCALE = (
    "training.steps=360",
    "training.batch_size=16",
    "training.rungs=12",
    "evaluation.samples=384",
    "evaluation.validation_clips=192",
    "evaluation.analyses=false",
)
"""Overrides that reduce a configuration to about eight CPU seconds."""
SHIPPED = Path(__file__).with_name("pruning_table.csv")
"""Recorded by `reco-tune bench pruning --record FILE`."""


class Rung(NamedTuple):
    """Metrics and cost of a configuration at one step."""

    step: int
    val_cross_entropy: float
    training_flops: float
    training_cpu_seconds: float


class RecordedRun(NamedTuple):
    """One configuration of a table."""

    params: dict[str, float]
    """Sampled settings: dotted settings key -> value."""
    final: dict[str, float]
    """Values by the names in `FINAL_VALUES`."""
    rungs: tuple[Rung, ...]


def record(space: Space, path: Path, configurations: int, progress: Progress = quiet) -> None:
    """Trains and evaluates the first random configurations of a space's ranges, and adds those that the table lacks.

    Args:
        space: provides the experiment and the ranges; its own sampler is not used.
        path: a CSV file; created if it is missing.

    Raises:
        DataError: if the file is not a table, or has other ranges or rungs.
    """
    from reco_tune.study.searcher import Search  # imported here: reading a table needs no Optuna

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
        DataError: if there is no table, or a line is damaged.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [_parsed(row) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is not a table of recorded runs ({error}); record one with `reco-tune bench pruning --record`"
        ) from error


def _measured(experiment: Experiment, baseline: Experiment, cache: TokenCache) -> dict[str, float]:
    """Trains one configuration to the end and evaluates it."""
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
    """Appends one complete line and syncs it to disk."""
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
