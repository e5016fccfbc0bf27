"""The trainer as the daemon starts it, on the demo's pictures: its memory, its speed by number of tasks, its probe.

The cost of a picture is fitted as a + b * n for n tasks: a is the shared encoder, b is a head, and so a / b is what
merging saves. Costs and overheads are in the trainer's own CPU seconds, which a busy machine stretches less than the
clock's; an overhead is what the probe took over what training took in the same order.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from edge_agent.datasets import DatasetError, read_manifest
from edge_agent.trainer import protocol
from edge_agent.trainer.protocol import Setup, Step, TrainDone, TrainerProtocolError, Work, WorkFailed, WorkPhase
from models.state import split_state
from models.wire.chunks import make_ref
from models.wire.job import TrainSettings
from models.wire.messages import OrderKey, TrainOrder
from models.wire.tensors import decode_tensors, encode_tensors
from tools.bench.base import BenchError, Benchmark, Bound, Row, row
from tools.bench.model import NETWORK, SIZE, TASKS, write_state
from tools.bench.proc import memory_bytes
from tools.demo.plan import PACK, deal

RESIDENT = Bound(600e6)
_COUNTS = (1, 2, 3, 5)
_PROBES = (10, 2)
_AGENTS = 8
_BATCH = 16
_CACHE_BYTES = 256 * 2**20


def run(quick: bool) -> list[Row]:
    """One compute thread, as in the demo. Orders of all kinds take turns, so that a busy minute meets all of them."""
    runs, epochs = (1, 1) if quick else (3, 5)
    plain: list[dict[int, TrainDone]] = []
    probed: list[dict[int, TrainDone]] = []
    with tempfile.TemporaryDirectory(prefix="mas-bench-") as folder, _trainer(_setup()) as trainer:
        bases = _write_bases(Path(folder))

        def order(tasks: int, epochs: int, probe_every: int = 0) -> TrainDone:
            return trainer.do(_work(bases[tasks], tasks, Path(folder) / "update", epochs, probe_every))

        for count in _COUNTS:  # the first of each kind decodes pictures and plans its convolutions
            order(count, 1)
        for _ in range(runs):
            plain.append({count: order(count, epochs) for count in _COUNTS})
            probed.append({rho: order(len(TASKS), epochs, rho) for rho in _PROBES})
        highest = memory_bytes(trainer.process.pid, "VmHWM")
    return [
        row("most resident, five tasks, probed", [highest], "B", RESIDENT),
        *_speeds(plain, epochs),
        *_probes(probed),
    ]


def _speeds(orders: Sequence[Mapping[int, TrainDone]], epochs: int) -> list[Row]:
    """`orders` by number of tasks, a mapping for each run."""
    rates = [{n: done.samples * epochs / done.train_s for n, done in each.items()} for each in orders]
    costs = [{n: _cpu_s(done, "train") / (done.samples * epochs) for n, done in each.items()} for each in orders]
    return [row(f"pictures trained, n = {n}", [rate[n] for rate in rates], "1/s") for n in _COUNTS] + _costs(costs)


def _probes(orders: Sequence[Mapping[int, TrainDone]]) -> list[Row]:
    """`orders` by rho, a mapping for each run."""
    return [
        row(f"probe at rho = {rho}, of training", [_overhead(each[rho]) for each in orders], "share") for rho in _PROBES
    ]


def _costs(picture_s: Sequence[Mapping[int, float]]) -> list[Row]:
    """The fit, run by run, and what it says; `picture_s` are CPU seconds by number of tasks."""
    fits = [np.polyfit(list(times), list(times.values()), 1) for times in picture_s]
    off = [
        max(abs(float(np.polyval(fit, n)) / seen - 1) for n, seen in times.items())
        for fit, times in zip(fits, picture_s, strict=True)
    ]
    first, last = _COUNTS[0], _COUNTS[-1]
    merged = [times[last] / (last * times[first]) for times in picture_s]
    return [
        row("a: encoder, CPU time of a picture", [float(fit[1]) for fit in fits], "s"),
        row("b: head, CPU time of a picture", [float(fit[0]) for fit in fits], "s"),
        row("a + b*n, largest deviation", off, "share"),
        row(f"{last} tasks at once, of one by one", merged, "share"),
    ]


def _cpu_s(done: TrainDone, phase: WorkPhase) -> float:
    return sum(span.cpu_s for span in done.spans if span.phase == phase)


def _overhead(done: TrainDone) -> float:
    return _cpu_s(done, "affinity") / _cpu_s(done, "train")


def _setup() -> Setup:
    """The demo's first agent, which holds as many pictures as any."""
    try:
        manifest = read_manifest(PACK)
    except DatasetError as error:
        raise BenchError(f"the demo's pictures cannot be read: {error}") from error
    if manifest is None:
        raise BenchError(f"{PACK} holds no pictures; install the package with its data")
    plan = deal(manifest.buildings.train, manifest.buildings.test, _AGENTS)[0]
    return Setup(str(PACK), plan.train, plan.test, threads=1, cache_bytes=_CACHE_BYTES)


def _write_bases(folder: Path) -> dict[int, Path]:
    """The same encoder under the heads of the first n tasks, by n."""
    whole = decode_tensors(write_state(folder).read_bytes())
    bases = {count: folder / f"base-{count}" for count in _COUNTS}
    for count, path in bases.items():
        path.write_bytes(encode_tensors(split_state(whole, TASKS[:count])))
    return bases


def _work(base: Path, tasks: int, output: Path, epochs: int, probe_every: int) -> Work:
    order = TrainOrder(
        key=OrderKey("bench", "merged", 0, "bench", 0, "train"),
        tasks=TASKS[:tasks],
        network=NETWORK,
        size=SIZE,
        base=make_ref(base),
        seed=1,
        settings=TrainSettings(epochs=epochs, batch_size=_BATCH, lr=0.05),
        probe_every=probe_every,
        update_dtype="fp32",
        max_skipped_share=0.0,
        ttl_s=600.0,
    )
    return Work(order, str(base), str(output))


@dataclass(frozen=True, slots=True)
class _Trainer:
    """A trainer process and how it is spoken to."""

    process: subprocess.Popen[bytes]

    def say(self, message: Setup | Work) -> None:
        stream = cast(BinaryIO, self.process.stdin)
        stream.write(protocol.frame(message))
        stream.flush()

    def do(self, work: Work) -> TrainDone:
        """Have a work done. Raises BenchError with the reason when it is not."""
        self.say(work)
        while (body := protocol.read_body(cast(BinaryIO, self.process.stdout))) is not None:
            message = protocol.from_child(body)
            if isinstance(message, TrainDone):
                return message
            if not isinstance(message, Step):
                raise BenchError(message.reason if isinstance(message, WorkFailed) else "the trainer did other work")
        raise BenchError(f"the trainer ended with exit code {self.process.wait()}; is torch installed?")


@contextmanager
def _trainer(setup: Setup) -> Iterator[_Trainer]:
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_agent.trainer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(setup.threads)},
    )
    with process:
        try:
            trainer = _Trainer(process)
            trainer.say(setup)
            yield trainer
        finally:
            process.kill()


BENCHMARK = Benchmark(
    "trainer",
    "the trainer child: memory, speed by number of tasks, cost of the probe",
    run,
    (TrainerProtocolError,),
)
