"""The project measures itself, so that nobody has to believe it: steps, sampling, attention, the way of the data and
the spread of a calibration.

Every comparison runs in turn in one process. Computes tables and draws nothing; knows models, arms, videos and clocks,
refuses to know Ray and studies.
"""

from reco_tune.benchmarks.attention import bench_attention
from reco_tune.benchmarks.datarates import bench_data, bench_reading
from reco_tune.benchmarks.frechet import bench_frechet
from reco_tune.benchmarks.sampling import bench_sampling
from reco_tune.benchmarks.shapes import ARM_NAMES, SHAPES, BenchOptions, Shape
from reco_tune.benchmarks.spread import bench_spread
from reco_tune.benchmarks.steps import bench_peers, bench_steps, bench_windows
from reco_tune.benchmarks.tables import Column, Table, as_json, as_markdown

__all__ = [
    "ARM_NAMES",
    "SHAPES",
    "BenchOptions",
    "Column",
    "Shape",
    "Table",
    "as_json",
    "as_markdown",
    "bench_attention",
    "bench_data",
    "bench_frechet",
    "bench_peers",
    "bench_reading",
    "bench_sampling",
    "bench_spread",
    "bench_steps",
    "bench_windows",
]
