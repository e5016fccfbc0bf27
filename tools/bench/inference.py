"""Inference on a device: an exported bundle of five tasks under onnxruntime, on one core and on all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from edge_agent.inference import InferenceError, Predictor
from tools.bench.base import Benchmark, Row, row, timed
from tools.bench.model import SIZE, write_bundle

_BATCH = 8
_WARM_UP = 3


def run(quick: bool) -> list[Row]:
    """One picture at the model's size, a batch of them, and a camera's picture that is made smaller first."""
    runs = 3 if quick else 50
    cores = os.cpu_count() or 1
    random = np.random.default_rng(0)
    pictures = random.random((_BATCH, 3, SIZE, SIZE), np.float32)
    camera = random.integers(0, 256, (480, 640, 3), np.uint8)
    with tempfile.TemporaryDirectory(prefix="mas-bench-") as folder:
        bundle = write_bundle(Path(folder))
        loads = [timed(partial(Predictor, bundle, 1)) for _ in range(2 if quick else 5)]
        one, all_cores = Predictor(bundle, 1), Predictor(bundle, cores)
    single, batch = _times_s(partial(one.run, pictures[:1]), runs), _times_s(partial(one.run, pictures), runs)
    many = _times_s(partial(all_cores.run, pictures[:1]), runs)
    whole = _times_s(partial(one.predict, camera), runs)
    return [
        row("load the bundle", loads, "s"),
        row(f"picture of {SIZE}x{SIZE}, five tasks, 1 core", single, "s"),
        row(f"the same, {cores} cores", many, "s"),
        row(f"picture in a batch of {_BATCH}, 1 core", [time_s / _BATCH for time_s in batch], "s"),
        row("640x480 to labels, 1 core", whole, "s"),
    ]


def _times_s(work: Callable[[], object], runs: int) -> list[float]:
    for _ in range(_WARM_UP):
        work()
    return [timed(work) for _ in range(runs)]


BENCHMARK = Benchmark("inference", "an exported bundle under onnxruntime", run, (InferenceError,))
