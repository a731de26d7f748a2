"""Benchmarks of the project itself: training steps, sampling, attention, data loading and the spread of a
calibration.

All sides of a comparison run in turn in one process. This package computes tables and draws nothing. It knows models,
arms, videos and clocks. Ray and studies appear only in the benchmarks of orchestration, pruning and reports.
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
