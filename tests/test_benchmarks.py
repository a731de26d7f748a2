"""Benchmarks: they run, their rows are the asked ones, their parts add up, and nothing here depends on how fast this
machine is.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reco_tune.benchmarks import (
    BenchOptions,
    Shape,
    Table,
    as_json,
    as_markdown,
    bench_attention,
    bench_data,
    bench_frechet,
    bench_peers,
    bench_reading,
    bench_sampling,
    bench_spread,
    bench_steps,
    datarates,
)
from reco_tune.benchmarks import peers as peers_module
from reco_tune.benchmarks.attention import CPU_FORMS
from reco_tune.benchmarks.datarates import KINDS, VIDEOS, videos_or_rendered
from reco_tune.benchmarks.parts import StepParts
from reco_tune.benchmarks.peers import PeerScheme, available
from reco_tune.benchmarks.shapes import SHAPES, arms_named, random_tokens, shapes_named
from reco_tune.benchmarks.steps import lost_shares
from reco_tune.cli import main
from reco_tune.cost import scheme_limit
from reco_tune.data.layouts import list_videos
from reco_tune.data.video import count_frames, write_video
from reco_tune.errors import DataError, SettingsError
from reco_tune.model.attention import KeysValues
from reco_tune.settings import ARMS
from reco_tune.training.schemes import build_scheme

TINY = Shape("tiny-45", 3, width=16, depth=2, heads=2, num_codes=16, batch_size=2)
SHORT = BenchOptions(seconds=0.0)
with_transformers = pytest.mark.skipif("llama" not in available(), reason="the `bench` extra is not installed")


def say(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the extra were not installed."""
    found = peers_module.importlib.util.find_spec
    monkeypatch.setattr(
        peers_module.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "transformers" else found(name, *rest),
    )
    yield


@pytest.mark.parametrize("name", SHAPES)
def test_a_shapes_name_tells_its_tokens(name: str) -> None:
    shape = SHAPES[name]
    assert name.endswith(f"-{shape.num_tokens}")
    assert SHORT.experiment(shape, "full").grid.num_tokens == shape.num_tokens


def test_windows_are_two_blocks_of_five_from_whole_blocks() -> None:
    experiment = SHORT.experiment(SHAPES["debug-320"], "reco")
    assert (experiment.window.length_tokens, experiment.window.stride_tokens) == (128, 64)
    assert SHORT.experiment(SHAPES["debug-320"], "local").window.stride_tokens == 1


def test_rows_of_the_step_and_where_the_distance_to_the_limit_lies() -> None:
    steps, losses = bench_steps([TINY], ["full", "masked_full", "fewer_frames", "local", "reco"], SHORT)
    assert [row["arm"] for row in steps.rows] == ["full", "masked_full", "fewer_frames", "local", "reco"]
    assert [row["arm"] for row in losses.rows] == ["fewer_frames", "local", "reco"]
    with random_tokens(TINY) as cache:
        arms = {arm: build_scheme(SHORT.experiment(TINY, arm), cache) for arm in ARMS}
    limits = {name: scheme_limit(arm, arms["full"]) for name, arm in arms.items()}
    for row in steps.rows:
        assert row["speedup_limit"] == limits[str(row["arm"])]
        assert row["limit_fraction"] == pytest.approx(row["speedup"] / row["speedup_limit"])  # type: ignore[operator]
        assert row["seconds"] > 0 and row["peak_memory_ratio"] > 0 and 0 < row["data_share"] < 1  # type: ignore[operator]
    for row in losses.rows:
        assert row["lost"] == pytest.approx(
            sum(row[f"lost_{part}"] for part in ("attention", "rest", "optimiser", "rates"))
        )  # type: ignore[misc]
    by_arm = {row["arm"]: row for row in losses.rows}
    assert by_arm["fewer_frames"]["prefix_share"] == by_arm["fewer_frames"]["prefix_flop_share"] == 0
    assert 0 < by_arm["reco"]["prefix_flop_share"] < 0.5  # type: ignore[operator]


def test_what_is_lost_where_everything_goes_as_it_should() -> None:
    """Attention at half the rate of the rest, an optimiser that does not shrink: only they stand between the step and
    its limit.
    """
    full = StepParts(whole=2 * 3 + 6 + 1, optimiser=1, attention=2 * 3, prefix=0, data=0)
    arm = StepParts(whole=2 * 1 + 3 + 1, optimiser=1, attention=2 * 1, prefix=0, data=0)
    lost = lost_shares(full, arm, limit=(3 + 6) / (1 + 3), attention_kept=1 / 3, rest_kept=1 / 2)
    ideal = 13 / 2.25
    assert lost == pytest.approx(
        {
            "lost": 6 / ideal - 1,
            "lost_attention": 0,
            "lost_rest": 0,
            "lost_optimiser": (1 - 1 / 2.25) / ideal,
            "lost_rates": (5 - 12 / 2.25) / ideal,
        }
    )


def test_leaving_parts_out_leaves_the_model_whole() -> None:
    """What was replaced is back afterwards, or everything measured later would be wrong."""
    from reco_tune.benchmarks.parts import measure_parts
    from reco_tune.cost.timing import TimedStep
    from reco_tune.model import transformer
    from reco_tune.model.attention import attend

    with random_tokens(TINY) as cache:
        full, arm = (
            TimedStep(build_scheme(SHORT.experiment(TINY, name), cache), cache, torch.device("cpu"))
            for name in ("full", "reco")
        )
        micro_batch = arm.micro_batches(18)[0]
        before = arm.step.backward(micro_batch)
        measure_parts(full, arm, 0.0)
        assert torch.equal(arm.step.backward(micro_batch), before)
    assert transformer.attend is attend
    assert "_prefix" not in vars(arm.step.model)


def test_every_form_of_attention_computes_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(2, 2, 70, 8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    prefix = KeysValues(*(torch.randn(2, 2, 30, 8, generator=generator, dtype=torch.float64) for _ in range(2)))
    for before in (None, prefix):
        found = {name: form(queries, keys, values, before) for name, form in CPU_FORMS.items()}
        gradients = {
            name: torch.autograd.grad(output.square().sum(), (queries, keys, values)) for name, output in found.items()
        }
        for name in CPU_FORMS:
            torch.testing.assert_close(
                found[name], found["masked"], rtol=0, atol=1e-12
            )  # float64; another order of sums
            torch.testing.assert_close(gradients[name], gradients["masked"], rtol=0, atol=1e-11)


def test_rows_of_attention() -> None:
    table = bench_attention([TINY], SHORT)
    assert [row["start"] for row in table.rows] == [0, 9, 18, 27]
    assert all(row[f"{name} ratio"] > 0 for row in table.rows for name in ("masked", "lower right", "split"))  # type: ignore[operator]


@pytest.mark.parametrize("peer", [pytest.param("plain"), pytest.param("llama", marks=with_transformers)])
def test_a_peer_learns_from_the_same_loss(peer: str) -> None:
    """It predicts token i from what comes before it alone, with the loss over all tokens, and every weight gets a
    gradient.
    """
    with random_tokens(TINY) as cache:
        arm = PeerScheme(build_scheme(SHORT.experiment(TINY, "full"), cache), peer)
        model = arm.build_model()
        tokens, labels = torch.from_numpy(cache.tokens("train")[:2].copy()), torch.zeros(2, dtype=torch.long)
    terms = arm.loss(model, peers_module.Batch(tokens, labels), 0)
    assert terms.total.item() == pytest.approx(torch.log(torch.tensor(16.0)).item(), abs=0.5)
    terms.total.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    inputs = torch.cat([labels[:, None], tokens[:, :-1].long()], dim=1)
    logits = model(inputs) if peer == "plain" else model(input_ids=inputs).logits
    assert arm.loss(model, peers_module.Batch(tokens, labels), 0).total.item() == pytest.approx(
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten().long()).item(), abs=1e-5
    )
    earlier = logits[:, :20].detach()
    inputs[:, 20] = (inputs[:, 20] + 1) % 16
    again = model(inputs) if peer == "plain" else model(input_ids=inputs).logits
    torch.testing.assert_close(again[:, :20], earlier, rtol=0, atol=1e-5)


def test_rows_of_the_peers() -> None:
    rows = bench_peers([TINY], SHORT).rows
    assert len(rows) == 1 + len(available())
    assert all(row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in rows[1:])  # type: ignore[operator]


@with_transformers
def test_rows_of_sampling() -> None:
    rows = bench_sampling([TINY], [1, 3], False, SHORT).rows
    assert [(row["batch"], row["tokens"]) for row in rows] == [(1, 45), (3, 45)]
    assert all(row["ratio"] > 0 and row["rounds"] >= 3 for row in rows)  # type: ignore[operator]


def test_the_spread_of_calibrations_with_a_neighbour() -> None:
    (row,) = bench_spread([TINY], ["reco"], 2, 1, SHORT).rows
    assert row["lowest"] <= row["median"] <= row["highest"]  # type: ignore[operator]
    assert 0 < row["spread"] < 10, "of single steps of a tiny model, beside a neighbour"  # type: ignore[operator]


def test_without_the_extra_the_rest_still_runs(no_transformers: None) -> None:
    assert [row["peer"] for row in bench_peers([TINY], SHORT).rows] == ["this project", "plain GPT"]
    with pytest.raises(SettingsError, match="install the `bench` extra"):
        bench_sampling([TINY], [1], False, SHORT)


def test_the_command_writes_json_and_markdown(tmp_path: Path, no_transformers: None) -> None:
    files = ["--json", str(tmp_path / "b.json"), "--markdown", str(tmp_path / "b.md")]
    code, out, err = say("bench", "step", "--shapes", "debug-45", "--arms", "fewer_frames", "--seconds", "0", *files)
    assert code == 0 and "Speed-up of a training step" in out
    assert [line for line in err.splitlines() if "transformers" in line] == [peers_module.MISSING]
    written = json.loads((tmp_path / "b.json").read_text())
    assert set(written["tables"]) == {"steps", "losses", "peers"} | ({"windows"} if "llama" in available() else set())
    assert written["tables"]["steps"][0]["arm"] == "fewer_frames"
    assert written["provenance"]["threads"] == 1 and written["provenance"]["hardware"]
    assert "| debug-45 | fewer_frames |" in (tmp_path / "b.md").read_text()


def test_markdown_and_json_of_a_table() -> None:
    from reco_tune.benchmarks import Column

    table = Table(
        "t", "Title", (Column("name", "name"), Column("x", "x", ".1f")), [{"name": "a", "x": 1.25}, {"name": "b"}]
    )
    assert (
        as_markdown([table], {"commit": "abc"})
        == "commit: `abc`  \n\n**Title**\n\n| name | x |\n| --- | ---: |\n| a | 1.2 |\n| b |  |\n"
    )
    assert json.loads(as_json([table], {"commit": "abc"}))["tables"] == {"t": [{"name": "a", "x": 1.25}, {"name": "b"}]}


@pytest.mark.parametrize("verb", ["step", "generate", "attention", "calibration", "data", "orchestration"])
def test_every_help_has_an_example(verb: str) -> None:
    code, out, _ = say("bench", verb, "--help")
    assert code == 0 and f"\n    reco-tune bench {verb}" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(
            ["step", "--shapes", "debug-46"], "--shapes debug-46 is not known; choose from debug-45", id="shape"
        ),
        pytest.param(["step", "--arms", "ful"], "--arms ful is not known; choose from full", id="arm"),
        pytest.param(["generate", "--batches", "1;64"], "--batches '1;64' must be whole numbers above 0", id="batches"),
        pytest.param(["data", "--videos", "nowhere"], "--videos nowhere is not a folder", id="videos"),
        pytest.param(["data", "--size", "60"], "--size (60) must be a multiple of 8", id="size"),
        pytest.param(
            ["orchestration", "--trials", "2"], "--trials (2) must be more than the 2 that run at once", id="trials"
        ),
        pytest.param(["attention", "--json", "nowhere/x.json"], "the folder nowhere does not exist", id="folder"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = say("bench", *arguments)
    assert code == 2 and sentence in err and err.count("\n") == 1


def test_without_names_the_baseline_stands_first_and_shapes_fit_the_machine() -> None:
    assert arms_named(None)[0] == "full" and {"reco", "masked_full", "fewer_frames"} <= set(arms_named(None)) < set(
        ARMS
    )
    assert (max(shape.depth for shape in shapes_named(None)) >= 12) is torch.cuda.is_available()


def test_the_distance_beside_scipy() -> None:
    table = bench_frechet([20, 80], SHORT, dimensions=40)
    assert [row["samples"] for row in table.rows] == [20, 80]
    assert table.rows[1]["difference"] < 1e-9 and table.rows[1]["value"] == pytest.approx(table.rows[1]["scipy_value"])
    assert all(row["ours"] > 0 and row["scipy"] > 0 for row in table.rows)
    assert say("bench", "fvd", "--samples", "0")[0] == 2


def test_rates_of_the_data_beside_plain_loops(tmp_path: Path) -> None:
    """One of the videos is none and one is for PyAV alone: they are left out on every side, and all stages do their
    work.
    """
    generator = np.random.default_rng(0)
    (tmp_path / "Jump").mkdir()
    for number in range(2):
        write_video(tmp_path / "Jump" / f"{number}.mp4", generator.integers(256, size=(35, 32, 64, 3), dtype=np.uint8))
    write_video(tmp_path / "Jump" / "odd.mp4", np.zeros((35, 32, 48, 3), np.uint8))  # decord cannot read that width
    (tmp_path / "Jump" / "notes.mp4").write_text("this is no video")
    table = bench_data(tmp_path, 16, SHORT)
    assert [(row["work"], row["processes"] == 1) for row in table.rows][1:5] == [
        ("decode", True),
        ("count frames", True),
        ("plain decord loop", True),
        ("plain PyAV loop", True),
    ]
    assert table.title == "4 clips of 17 frames at 16 px, cut from 2 videos"
    assert all(0 < row["low"] <= row["rate"] <= row["high"] for row in table.rows)  # type: ignore[operator]
    assert all(row["cpu_ms"] > 0 for row in table.rows[1:])  # type: ignore[operator]


def test_rows_of_the_wait_for_data() -> None:
    full, reco = bench_reading([TINY], SHORT).rows
    for row in (full, reco):
        assert 0 < row["share"] < 1 and row["trained"] < row["read"]  # type: ignore[operator]


def test_the_data_benchmark_says_who_reads_the_right_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendered as UCF101's files are, decord's seeks miss, and the table must not pass that for speed."""
    monkeypatch.setattr(datarates, "VIDEOS", 1)
    monkeypatch.setattr(datarates, "FRAMES", 70)
    right = {(row["videos"], row["work"]): row["right"] for row in bench_data(None, 32, SHORT).rows}
    for kind in KINDS:
        assert right[kind, "decode"] == right[kind, "plain PyAV loop"] == 1
    assert right["H.264, MP4", "plain decord loop"] == 1 and right["MPEG-4, AVI", "plain decord loop"] < 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_data_benchmark_renders_videos_where_none_are_given(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datarates, "FRAMES", 17)
    with videos_or_rendered(None, 64, kind) as data:
        assert [count_frames(video.path) for video in list_videos(data)] == [17] * VIDEOS
    assert data.root is not None and not data.root.exists()


def test_the_data_benchmark_needs_clips(tmp_path: Path) -> None:
    write_video(tmp_path / "short.mp4", np.zeros((16, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match=r"none of 1 videos in .* gives a clip of 17 frames"):
        bench_data(tmp_path, 16, SHORT)
