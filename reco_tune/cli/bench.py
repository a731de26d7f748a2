"""`reco-tune bench`: measures this project, alternating with what it is compared with, in one process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reco_tune.errors import SettingsError

if TYPE_CHECKING:
    from reco_tune.benchmarks import BenchOptions, Shape, Table
    from reco_tune.progress import Progress

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Measures this project: training steps, sampling, attention, data, FVD, calibrations, reports,
    pruning, orchestration.

    \b
    Examples:
      reco-tune bench step
      reco-tune bench step --shapes debug-45 --arms reco --seconds 5
      reco-tune bench generate --markdown generate.md
      reco-tune bench report
    """,
)
Shapes = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Named shapes, separated by commas: debug-45, debug-320, debug-1280; 110M-1280, 110M-5120, 343M-5120.",
    ),
]
Seconds = Annotated[
    float, typer.Option(min=0, help="Seconds per comparison. Slow work takes longer: at least three rounds.")
]
Threads = Annotated[
    int,
    typer.Option(
        min=1, help="CPU threads. With 1, the clock is the thread's CPU time, which neighbours disturb least."
    ),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Writes all values and their provenance as JSON.")
]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="Writes the tables as Markdown.")]


@app.command()
def step(
    shapes: Shapes = None,
    arms: Annotated[str | None, typer.Option(metavar="NAMES", help="Arms, separated by commas.")] = None,
    seconds: Seconds = 20.0,
    threads: Threads = 1,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """Compares the training step of every arm with the full step: speed-up, FLOP limit, memory and parts. Also compares
    the full step with other implementations, and ReCo's windows with those of a decoder of transformers.

    \b
    Example:
      reco-tune bench step --shapes debug-320,debug-1280 --arms fewer_frames,reco --markdown step.md
    """
    from reco_tune.benchmarks import bench_peers, bench_steps, bench_windows
    from reco_tune.benchmarks.peers import MISSING, available
    from reco_tune.benchmarks.shapes import arms_named

    names = arms_named(_split(arms))
    windows = [bench_windows] if "llama" in available() else []
    _carry_out(
        lambda wanted, bench: [
            *bench_steps(wanted, names, bench),
            bench_peers(wanted, bench),
            *(tables(wanted, bench) for tables in windows),
        ],
        shapes,
        seconds,
        threads,
        json,
        markdown,
    )
    if "llama" not in available():
        print(MISSING, file=sys.stderr)


@app.command()
def generate(
    shapes: Shapes = None,
    batches: Annotated[str, typer.Option(metavar="NUMBERS", help="Clips at once, separated by commas.")] = "1,64",
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Takes the most likely code instead of sampling one.")
    ] = False,
    seconds: Seconds = 20.0,
    threads: Threads = 1,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """Compares cached sampling of whole clips with the generate of `transformers` (needs the `bench` extra).

    \b
    Example:
      reco-tune bench generate --shapes debug-45,debug-320 --batches 1,64
    """
    from reco_tune.benchmarks import bench_sampling

    numbers = _numbers(batches, "--batches", "1,64")
    _carry_out(
        lambda wanted, bench: [bench_sampling(wanted, numbers, greedy, bench)], shapes, seconds, threads, json, markdown
    )


@app.command()
def attention(
    shapes: Shapes = None, seconds: Seconds = 3.0, threads: Threads = 1, json: Json = None, markdown: Markdown = None
) -> None:
    """Compares implementations of the attention of a window to itself and its prefix, forward and backward.

    \b
    Example:
      reco-tune bench attention --shapes debug-1280 --seconds 5
    """
    from reco_tune.benchmarks import bench_attention

    _carry_out(lambda wanted, bench: [bench_attention(wanted, bench)], shapes, seconds, threads, json, markdown)


@app.command()
def gpu(
    shapes: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Named shapes, separated by commas. Default on a GPU: 110M-5120,343M-5120."),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Minutes after which no further part starts.")] = 30,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the two files that are written.")] = Path(),
) -> None:
    """Measures one GPU in half an hour: exactness and speed of attention, graphs, calibrations, a profile, memory,
    sampling.

    If a part fails, its error is recorded and the rest continues. Both files are rewritten after each part. Without a
    GPU, the same parts run at a tiny shape. That is a rehearsal: its numbers say nothing about a GPU.

    \b
    Example:
      reco-tune bench gpu --output docs/benchmark
    """
    from datetime import date

    import torch

    from reco_tune.benchmarks import BenchOptions, as_json, as_markdown
    from reco_tune.benchmarks.gpu import bench_gpu
    from reco_tune.benchmarks.shapes import shapes_named
    from reco_tune.cli.console import print_table, progress_bars

    there = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if there else "no-gpu"
    name = f"{date.today().isoformat()}-{'-'.join(device.lower().split())}"
    json, markdown = (output / f"{name}.{end}" for end in ("json", "md"))
    _check_folders(json)
    wanted = shapes_named(_split(shapes) or (["110M-5120", "343M-5120"] if there else ["debug-45"]))
    origin = {**_origin(1, with_peers=False), "gpu": device}

    def keep(tables: list[Table]) -> None:
        json.write_text(as_json(tables, origin), encoding="utf-8")
        markdown.write_text(as_markdown(tables, origin), encoding="utf-8")

    with progress_bars() as progress:
        tables = bench_gpu(wanted, minutes, BenchOptions(1.0, gpu=there, progress=progress), keep)
    for table in tables:
        print_table(table.title, table.headings, table.cells(), table.text_columns)
        print()
    print(f"{json}\n{markdown}")


@app.command()
def calibration(
    shapes: Shapes = None,
    arms: Annotated[str, typer.Option(metavar="NAMES", help="Arms, separated by commas.")] = "reco",
    repeat: Annotated[int, typer.Option(min=1, help="Calibrations of each arm.")] = 10,
    neighbours: Annotated[
        int, typer.Option(min=0, help="Processes that train on the same machine at the same time.")
    ] = 1,
    seconds: Seconds = 10.0,
    threads: Threads = 1,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """Repeats one calibration while another process trains on the same machine. Prints the lowest, median and highest
    speed-up.

    \b
    Example:
      reco-tune bench calibration --shapes debug-45 --repeat 10 --neighbours 1
    """
    from reco_tune.benchmarks import bench_spread
    from reco_tune.benchmarks.shapes import arms_named

    names = arms_named(_split(arms))
    _carry_out(
        lambda wanted, bench: [bench_spread(wanted, names, repeat, neighbours, bench)],
        shapes,
        seconds,
        threads,
        json,
        markdown,
    )


@app.command()
def report(
    runs: Annotated[int, typer.Option(min=1, help="Number of runs in the made-up study of the report.")] = 10_000,
    mlflow_runs: Annotated[
        int, typer.Option(min=0, help="Number of runs that are sent to MLflow and read back. 0 leaves this out.")
    ] = 20,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """Measures time and memory of a report of many runs. Also compares two ways to read a study from MLflow: this
    project's, and one query per history.

    A run in MLflow consists of thousands of values to send and one query per history, so the time of the second part
    grows with --mlflow-runs.

    \b
    Example:
      reco-tune bench report
      reco-tune bench report --mlflow-runs 1000
    """
    from reco_tune.benchmarks.reports import bench_reports

    _show(lambda progress: bench_reports(runs, mlflow_runs, progress), 1, json, markdown)


@app.command()
def data(
    videos: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of videos, or of one folder of videos per class. By default, videos are rendered.",
        ),
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Height and width of a clip in pixels, a multiple of 8.")] = 64,
    shapes: Shapes = "debug-45",
    seconds: Seconds = 20.0,
    threads: Threads = 1,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """Compares decoding with plain loops over decord and PyAV, and measures encoding and writing, in clips per second.
    Also measures how long training waits for data.

    \b
    Example:
      reco-tune bench data --videos UCF-101/Basketball --size 128
    """
    from reco_tune.benchmarks import bench_data, bench_reading

    if videos is not None and not videos.is_dir():
        raise SettingsError(f"--videos {videos} is not a folder; give a folder of videos, or of one folder per class")
    if size % 8:
        raise SettingsError(
            f"--size ({size}) must be a multiple of 8, the stride of the tokenizer that is timed; take"
            f" {8 * round(size / 8)}"
        )
    _carry_out(
        lambda wanted, bench: [bench_data(videos, size, bench), bench_reading(wanted, bench)],
        shapes,
        seconds,
        threads,
        json,
        markdown,
    )


@app.command()
def fvd(
    samples: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Clips on each side, separated by commas.")
    ] = "256,512,2048",
    seconds: Seconds = 5.0,
    threads: Threads = 1,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """Compares time and values of the Fréchet distance of I3D's 400 features with SciPy's matrix square root.

    \b
    Example:
      reco-tune bench fvd --samples 2048,10000
    """
    from reco_tune.benchmarks import bench_frechet

    numbers = _numbers(samples, "--samples", "256,2048")
    _carry_out(lambda _, bench: [bench_frechet(numbers, bench)], None, seconds, threads, json, markdown)


@app.command()
def pruning(
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Recorded configurations; by default the shipped table.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Records configurations into FILE instead, or continues an earlier recording."
        ),
    ] = None,
    configurations: Annotated[int, typer.Option(min=1, help="Number of configurations to record.")] = 224,
    seeds: Annotated[int, typer.Option(min=1, help="Searches of each kind.")] = 20,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """Measures the compute until a search finds the frontier, with and without Pareto-ASHA, by replaying recorded runs.
    With --record, records such runs (half a CPU hour).

    \b
    Examples:
      reco-tune bench pruning --markdown pruning.md
      reco-tune bench pruning --record my_table.csv && reco-tune bench pruning --table my_table.csv
    """
    from reco_tune.benchmarks.pruning import bench_pruning
    from reco_tune.benchmarks.recording import SCALE, SHIPPED, SPACE, read_table
    from reco_tune.benchmarks.recording import record as record_into
    from reco_tune.cli.console import progress_bars
    from reco_tune.cli.options import settings_path
    from reco_tune.settings import load_space

    space = load_space(settings_path(SPACE), SCALE)
    if record is not None:
        with progress_bars() as progress:
            record_into(space, record, configurations, progress)
        return
    _show(lambda progress: [bench_pruning(read_table(table or SHIPPED), space, seeds, progress)], 1, json, markdown)


@app.command()
def orchestration(
    seconds: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Work of one trial in seconds (roughly), separated by commas.")
    ] = "5,15",
    trials: Annotated[int, typer.Option(min=1, help="Trials of each search.")] = 6,
    json: Json = None,
    markdown: Markdown = None,
) -> None:
    """Compares the overhead of a trial, in seconds, and its parts: in a study, with bare Ray Tune and Ray Train, and
    with bare Optuna (about 8 minutes).

    \b
    Example:
      reco-tune bench orchestration --seconds 5,15 --trials 6 --markdown orchestration.md
    """
    from reco_tune.benchmarks.orchestration import bench_orchestration

    lengths = _numbers(seconds, "--seconds", "5,15")
    _show(lambda progress: [bench_orchestration(lengths, trials, progress)], 1, json, markdown)


def _carry_out(
    measure: Callable[[list[Shape], BenchOptions], list[Table]],
    shapes: str | None,
    seconds: float,
    threads: int,
    json: Path | None,
    markdown: Path | None,
) -> None:
    """Measures, prints and writes."""
    import torch

    from reco_tune.benchmarks import BenchOptions
    from reco_tune.benchmarks.shapes import shapes_named

    wanted = shapes_named(_split(shapes))
    _show(
        lambda progress: measure(wanted, BenchOptions(seconds, threads, torch.cuda.is_available(), progress)),
        threads,
        json,
        markdown,
    )


def _show(measure: Callable[[Progress], list[Table]], threads: int, json: Path | None, markdown: Path | None) -> None:
    """Measures under progress bars; prints the tables and writes the files that were asked for."""
    from importlib.util import find_spec

    from reco_tune.benchmarks import as_json, as_markdown
    from reco_tune.cli.console import print_table, progress_bars

    _check_folders(json, markdown)
    with progress_bars() as progress:
        tables = measure(progress)
    for table in tables:
        print_table(table.title, table.headings, table.cells(), table.text_columns)
        print()
    if json is None and markdown is None:
        return
    origin = _origin(threads, with_peers=find_spec("transformers") is not None)
    if json is not None:
        json.write_text(as_json(tables, origin), encoding="utf-8")
    if markdown is not None:
        markdown.write_text(as_markdown(tables, origin), encoding="utf-8")


def _check_folders(*files: Path | None) -> None:
    for path in files:
        if path is not None and not path.parent.is_dir():
            raise SettingsError(
                f"{path} cannot be written, because the folder {path.parent} does not exist; make it first"
            )


def _origin(threads: int, with_peers: bool) -> dict[str, object]:
    """Where the numbers come from."""
    import importlib.metadata
    from datetime import date

    from reco_tune.study.provenance import study_provenance

    known = study_provenance()
    peers = {"transformers": importlib.metadata.version("transformers")} if with_peers else {}
    return {**known, "date": date.today().isoformat(), "threads": threads, "torch": known["versions"]["torch"], **peers}


def _split(given: str | None) -> list[str] | None:
    return [name.strip() for name in given.split(",")] if given else None


def _numbers(given: str, option: str, example: str) -> list[int]:
    try:
        numbers = [int(part) for part in given.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise SettingsError(
            f"{option} {given!r} must be whole numbers above 0 separated by commas, for example {example}"
        )
    return numbers
