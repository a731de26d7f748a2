"""Searches replayed over tables: costs and counts by hand, and a recording of real runs that goes on where it stood."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_study import small_space

from reco_tune.benchmarks.pruning import bench_pruning, in_order, replay
from reco_tune.benchmarks.recording import SCALE, SHIPPED, SPACE, RecordedRun, Rung, read_table, record
from reco_tune.bundled import bundled
from reco_tune.errors import DataError
from reco_tune.settings import Pruning, load_space

ASHA = Pruning(kind="pareto_asha", reduction_factor=2)


def run(speedup: float, fvd: float, loss: float | None = None) -> RecordedRun:
    """Four rungs of 1 CPU second and 10 FLOPs each, half a second of evaluation; the loss tells the FVD unless it is
    given.
    """
    rungs = tuple(Rung(10 * n, fvd if loss is None else loss, 10.0 * n, 1.0 * n) for n in range(1, 5))
    final = {
        "speedup_limit": speedup,
        "fvd": fvd,
        "fvd_low": fvd,
        "fvd_high": fvd,
        "kernel_distance": 0.0,
        "evaluation_cpu_seconds": 0.5,
    }
    return RecordedRun({}, final, rungs)


WORST, GOOD, BAD, FAST, LATE = run(1, 10), run(2, 4), run(1.5, 5), run(4, 6), run(1.2, 9)


@pytest.mark.parametrize(
    ("order", "pruning", "expected"),
    [
        ([0, 1, 2, 3, 4], Pruning(), (18.0, 160.0, 4, 4)),
        ([1, 3, 0, 2, 4], ASHA, (9.0, 80.0, 2, 2)),
        ([1, 2, 0, 3, 4], ASHA, (4.5 + 1 + 1 + 4.5, 100.0, 4, 2)),
        ([1, 0, 2, 4, 3], ASHA, (4.5 + 1 + 2 + 1 + 4.5, 120.0, 5, 2)),
    ],
    ids=["whole", "enough-at-once", "two-end-at-the-first-rung", "one-ends-at-the-second"],
)
def test_compute_until_enough_is_found(
    order: list[int], pruning: Pruning, expected: tuple[float, float, int, int]
) -> None:
    found = replay([WORST, GOOD, BAD, FAST, LATE], in_order(order), pruning)
    assert tuple(found) == expected


def test_a_search_that_prunes_the_frontier_never_gets_there() -> None:
    misleading = [run(2, 4), run(1, 10), run(4, 6, loss=20.0), run(4.5, 9.9, loss=1.0)]
    found = replay(misleading, in_order([0, 1, 3, 2]), ASHA)
    assert found.cpu_seconds == found.training_flops == float("inf") and (found.begun, found.whole) == (4, 2)


def test_a_recording_goes_on_where_it_stood(tmp_path: Path) -> None:
    small = (
        "training.steps=6",
        "evaluation.samples=4",
        "evaluation.reference_clips=8",
        "evaluation.protocol=native-random",
    )
    space, table = small_space(tmp_path, "training.rungs=3", *small), tmp_path / "table.csv"
    record(space, table, 1)
    first = table.read_text()
    record(space, table, 2)
    one, two = read_table(table)
    assert table.read_text().startswith(first) and one.params != two.params and set(one.params) == set(space.search)
    assert [rung.step for rung in one.rungs] == [2, 4, 6] and one.rungs[2].training_flops > one.rungs[
        1
    ].training_flops > 0
    with pytest.raises(DataError, match="other ranges or rungs"):
        record(small_space(tmp_path, "training.rungs=2", *small), table, 3)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b\n1,x\n")
    for file in ("table.csv", "missing.csv"):
        with pytest.raises(DataError, match="is not a table of recorded runs"):
            read_table(tmp_path / file)


def test_the_shipped_table_replays() -> None:
    table, space = read_table(SHIPPED), load_space(bundled("search_spaces") / f"{SPACE}.yaml", SCALE)
    assert all(len(run.rungs) == 12 and set(run.params) == set(space.search) for run in table)
    found = bench_pruning(table[:40], space, seeds=1)
    assert [row["factor"] for row in found.rows if (row["search"], row["pruning"]) == ("random", "none")] == [1.0, 1.0]
    for row in found.rows:
        assert row["whole"] <= row["begun"] <= 40  # type: ignore[operator]
