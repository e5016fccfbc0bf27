"""The speed of averaging is that of both sides."""

from __future__ import annotations

from tools.bench.aggregation import bench_averaging


def test_the_benchmark_measures_both_sides() -> None:
    speed = bench_averaging(2**20, 3, workers=2, repeats=1)
    assert speed.average_bytes_per_s > 0
    assert speed.read_bytes_per_s > 0
    assert speed.share == speed.average_bytes_per_s / speed.read_bytes_per_s
