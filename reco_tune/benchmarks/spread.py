"""How much repeated calibrations differ while other processes train on the same machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Event

import numpy as np

from reco_tune.benchmarks.shapes import BenchOptions, Shape, random_tokens
from reco_tune.benchmarks.tables import Column, Row, Table
from reco_tune.cost import calibrate
from reco_tune.cost.timing import TimedStep
from reco_tune.training.distributed import prepare_device
from reco_tune.training.schemes import build_scheme

_COLUMNS = (
    Column("shape", "shape"),
    Column("arm", "arm"),
    Column("repetitions", "repetitions", "d"),
    Column("neighbours", "neighbours", "d"),
    Column("lowest", "lowest", ".3f"),
    Column("median", "median", ".3f"),
    Column("highest", "highest", ".3f"),
    Column("spread", "(highest - lowest) / median", ".1%"),
)


def bench_spread(
    shapes: Sequence[Shape], arms: Sequence[str], repetitions: int, neighbours: int, bench: BenchOptions
) -> Table:
    """Speed-ups of repeated calibrations, while `neighbours` processes train the full step."""
    rows: list[Row] = []
    total = len(shapes) * len(arms) * repetitions
    for shape in shapes:
        with random_tokens(shape) as cache, _training(shape, neighbours, bench):
            for arm in arms:
                found = []
                for repetition in range(repetitions):
                    bench.progress(len(rows) * repetitions + repetition, total, "calibrations")
                    found.append(calibrate(*bench.pair(shape, arm), cache, bench.seconds)["speedup"])
                low, middle, high = float(np.min(found)), float(np.median(found)), float(np.max(found))
                head: Row = {"shape": shape.name, "arm": arm, "repetitions": repetitions, "neighbours": neighbours}
                rows.append(head | {"lowest": low, "median": middle, "highest": high, "spread": (high - low) / middle})
    bench.progress(total, total, "calibrations")
    return Table("calibration", f"Repetitions of one calibration of {bench.seconds:g} s", _COLUMNS, rows)


@contextmanager
def _training(shape: Shape, neighbours: int, bench: BenchOptions) -> Iterator[None]:
    """Processes that train until the block ends. All of them are ended, even after an error."""
    spawn = multiprocessing.get_context("spawn")
    ready = [spawn.Event() for _ in range(neighbours)]
    processes = [
        spawn.Process(target=_train, args=(shape, bench.threads, bench.gpu, one), daemon=True) for one in ready
    ]
    try:
        for process in processes:
            process.start()
        for process, one in zip(processes, ready, strict=True):
            while not one.wait(timeout=1) and process.is_alive():
                pass
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _train(shape: Shape, threads: int, gpu: bool, ready: Event) -> None:
    """Trains the full step forever."""
    experiment = BenchOptions(0, threads, gpu).experiment(shape, "full")
    device = prepare_device(experiment)
    with random_tokens(shape) as cache:
        step = TimedStep(build_scheme(experiment, cache), cache, device)
    while True:
        step.run(0)
        ready.set()
