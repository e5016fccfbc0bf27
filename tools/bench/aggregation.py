"""Averaging of updates: its speed beside that of merely reading them, and the memory it takes.

Memory is that of the sum and of the few updates that wait to be added together; beyond those few it must not depend
on how many agents report. Updates are made one by one and dropped, as they come from the network.
"""

from __future__ import annotations

import os
import tracemalloc

import numpy as np

from aggregator.averaging import RunningAverage, bench_averaging
from tools.bench.base import Benchmark, Bound, Row, row

_MODEL_BYTES = 16 * 2**20
_OF_READING = Bound(0.5, "at_least")
#: The peak is counted allocation by allocation, so it repeats to within a few thousand bytes.
_SAME = Bound(1.01)
_FEW, _SOME, _MANY = 4, 16, 64
#: Averaging and reading take turns within a run, and the best of each counts: a turn that was interrupted says nothing.
_TURNS = 3


def run(quick: bool) -> list[Row]:
    """Speeds on one thread, as the aggregator sums, and on all cores; then peaks for few and many agents."""
    runs, model_bytes = (2, 2**18) if quick else (7, _MODEL_BYTES)
    cores = os.cpu_count() or 1
    rows = [each for workers in dict.fromkeys((1, cores)) for each in _speeds(workers, runs, model_bytes)]
    peaks = {count: float(_peak_bytes(count, model_bytes)) for count in (_FEW, _SOME, _MANY)}
    size = f"{model_bytes / 1e6:.1f} MB"
    return [
        *rows,
        *(row(f"peak memory, {count} updates of {size}", [peak], "B") for count, peak in peaks.items()),
        row(f"peak of {_MANY} to peak of {_SOME}", [peaks[_MANY] / peaks[_SOME]], "ratio", _SAME),
        row(f"peak of {_MANY} to peak of {_FEW}", [peaks[_MANY] / peaks[_FEW]], "ratio"),
    ]


def _speeds(workers: int, runs: int, model_bytes: int) -> list[Row]:
    speeds = [bench_averaging(model_bytes=model_bytes, workers=workers, repeats=_TURNS) for _ in range(runs)]
    threads = "1 thread" if workers == 1 else f"{workers} threads"
    return [
        row(f"averaging, {threads}", [speed.average_bytes_per_s for speed in speeds], "B/s"),
        row(f"reading in the same run, {threads}", [speed.read_bytes_per_s for speed in speeds], "B/s"),
        row(f"averaging of reading, {threads}", [speed.share for speed in speeds], "share", _OF_READING),
    ]


def _peak_bytes(updates: int, model_bytes: int) -> int:
    """The most memory held at once while `updates` updates are averaged, the base model included."""
    tracemalloc.start()
    try:
        average = RunningAverage({"weights": np.zeros(model_bytes // 4, np.float32)})
        for number in range(updates):
            average.add({"weights": np.full(model_bytes // 4, number, np.float32)}, 1.0 + number)
        average.result()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BENCHMARK = Benchmark("aggregation", "FedAvg of updates: speed beside reading, memory by number of agents", run)
