"""The half hour on a GPU, rehearsed on a CPU at a tiny shape: all of its parts, and what becomes of those that fail."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from reco_tune.benchmarks import BenchOptions, Shape, Table, as_json, as_markdown, gpu
from reco_tune.benchmarks.gpu import PARTS, Part, bench_gpu
from reco_tune.training import compiling

TINY = Shape("tiny-45", 3, width=16, depth=1, heads=2, num_codes=16, batch_size=2)
BAD = TINY._replace(heads=3)
SHORT = BenchOptions(seconds=0.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two arms, and graphs that are captured but not turned into C++."""
    monkeypatch.setattr(gpu, "ARMS", ("full", "reco"))
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()  # what other tests have compiled


def test_every_part_runs(quick: None) -> None:
    kept: list[int] = []
    tables = {table.name: table for table in bench_gpu([TINY], 60, SHORT, lambda tables: kept.append(len(tables)))}
    fates = tables.pop("parts").rows
    assert [row["part"] for row in fates] == [part.name for part in PARTS] == [name.split()[0] for name in tables]
    assert {row["outcome"] for row in fates} == {"measured"}
    assert kept == list(range(2, len(PARTS) + 2)), "written after each part"

    def rows(name: str) -> list[dict[str, float]]:
        return tables[f"{name} tiny-45"].rows  # type: ignore[return-value]

    assert {(row["start"], row["verdict"]) for row in rows("exactness")} == {(0, "right"), (1, "right"), (27, "right")}
    assert all(0 < row["output"] < gpu.RIGHT for row in rows("exactness"))
    assert sorted({row["start"] for row in rows("attention")}) == [0, 9, 18, 27]
    assert all(row["milliseconds"] > 0 and row["teraflops"] > 0 for row in rows("attention"))
    arms = ["full", "reco", "reco, λ = 0.3"]
    for name in ("graphs", "calibration", "memory"):
        assert [row["arm"] for row in rows(name)] == arms, name
    assert all(row["breaks"] == row["graphs later"] == row["breaks later"] == 0 for row in rows("graphs"))
    assert rows("graphs")[0]["graphs"] > 0
    for row in rows("calibration"):
        assert str(row["verdict"]).startswith("reached" if row["limit_fraction"] >= gpu.BAR else "below 0.95")
    assert str(rows("calibration")[-1]["verdict"]).lower().endswith("as reco")  # which of both, a busy machine decides
    shares = {str(row["what"]): row["share"] for row in rows("profile")}
    assert 0 < shares["gaps between kernels"] < 1 and 0 < shares["attention, of the kernels"] < 0.9
    assert all(row["counted"] > 0 for row in rows("memory"))
    assert rows("generation")[0]["ratio"] == pytest.approx(
        rows("generation")[0]["seconds"] / rows("generation")[0]["ideal"]
    )
    everything = list(tables.values())
    assert set(json.loads(as_json(everything, {}))["tables"]) == set(tables)
    assert as_markdown(everything, {"gpu": "none"}).count("\n**") == len(PARTS)


def test_a_part_that_fails_leaves_its_error_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(shape: Shape, bench: BenchOptions) -> Table:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB")

    monkeypatch.setattr(gpu, "PARTS", (Part("bad", 60, 0, fails), PARTS[1]))
    made = bench_gpu([TINY], 60, SHORT)
    assert [table.name for table in made] == ["attention tiny-45", "parts"]
    assert [row["outcome"] for row in made[-1].rows] == [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB",
        "measured",
    ]


def test_an_arm_that_fails_leaves_its_error_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = gpu.TimedStep

    def fails(scheme: object, *rest: object) -> object:
        if scheme.name == "window":  # type: ignore[attr-defined]
            raise RuntimeError("no such kernel")
        return measure(scheme, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gpu, "TimedStep", fails)
    rows = gpu.memory(TINY, SHORT).rows
    assert [row.get("verdict") for row in rows if row["arm"] != "full"] == [None, *["no such kernel"] * 4]


def test_what_there_is_no_time_for_is_left_out() -> None:
    (fates,) = bench_gpu([TINY], 0, SHORT)
    assert {row["outcome"] for row in fates.rows} == {"skipped: no time is left"} and len(fates.rows) == len(PARTS)


def test_a_part_in_a_process_of_its_own_can_fail_and_be_ended() -> None:
    with pytest.raises(RuntimeError, match=r"SettingsError: .*model.heads \(3\) must divide"):
        gpu._in_a_child(PARTS[0], BAD, SHORT, 120)
    with pytest.raises(TimeoutError, match="stopped after 0 s"):
        gpu._in_a_child(PARTS[0], TINY, SHORT, 0.01)


def test_gaps_are_what_no_kernel_covers() -> None:
    kernel = partial(gpu._Kernel, "some")
    assert gpu._covered([kernel(5, 7), kernel(0, 3), kernel(1, 2), kernel(6, 9)]) == 3 + 4


def test_the_verb_writes_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from reco_tune.cli import main

    monkeypatch.setattr(gpu, "PARTS", PARTS[1:2])
    with pytest.raises(SystemExit) as left:
        main(["bench", "gpu", "--shapes", "debug-45", "--output", str(tmp_path)])
    assert not left.value.code
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md"]
    said = capsys.readouterr().out
    assert all(path.name in said.replace("\n", "") for path in tmp_path.iterdir())
    written = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert written["provenance"]["gpu"] and set(written["tables"]) == {"attention debug-45", "parts"}
