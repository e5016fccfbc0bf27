"""Simulated rounds: how many a minute, what of them is not training, and what the lookahead adds to training.

The settings of MAS's released code (32 clients, K = 4, B = 64, E = 1, nine tasks, xception-small at 256 pixels) are for
GPUs. Rounds are measured at a scaled setting that any machine can do, and a single step of xception-small is measured
and converted, as its row says. The lookahead's overhead is a quotient of CPU seconds of the same orders with and
without it, taken in turns in one process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edge_agent.trainer.perform import Workbench
from edge_agent.trainer.spans import SpanRecorder
from models.losses import Batch
from models.networks import build_network, export_state
from models.tasks import TASKS, parse_tasks
from models.wire.chunks import make_ref
from models.wire.job import JobSpec, TrainSettings
from models.wire.messages import OrderKey, TrainOrder
from tools.bench.base import BenchError, Benchmark, Bound, Row, row
from tools.demo.plan import PACK
from tools.simulate.clients import clients_of
from tools.simulate.driver import simulate
from tools.simulate.inprocess import in_process
from tools.simulate.pool import Executor, ExecutorError
from tools.simulate.processes import processes
from tools.simulate.settings import arrange_clients
from tools.simulate.simulation import Simulation, SimulationError
from tools.simulate.worker import WorkerSettings

OVERHEAD = Bound(0.10)
_TASKS = "sdnkterca"
_RHO = 10
#: The scaled setting: the demo's clients, the smallest network, five tasks.
_SPEC = JobSpec(
    name="bench",
    tasks=parse_tasks(["sdnkt"]),
    scheme="all-in-one",
    size=64,
    rounds=3,
    clients_per_round=4,
    probe_every=_RHO,
    eval_every=100,
    train=TrainSettings(batch_size=16, lr=0.05),
)
#: The converted one: K clients with so many pictures each, once through.
_CLIENTS, _PICTURES, _SIZE, _BATCH = 4, 256, 64, 8


def run(quick: bool) -> list[Row]:
    """One torch thread for each worker, as everywhere in a simulation on a CPU."""
    torch.set_num_threads(1)
    runs = 1 if quick else 3
    counts = (1, 2) if quick else (1, 2, 3, 5, 9)
    rows = _rounds("one worker", in_process(WorkerSettings()), runs)
    cores = os.cpu_count() or 1
    if not quick and cores > 1:
        rows += _rounds(f"{cores} workers", processes(WorkerSettings(), cores), runs)
    return [*rows, _converted(runs, "sdnkt"), *(_lookahead(count, runs) for count in counts)]


def _rounds(who: str, executor: Executor, runs: int) -> list[Row]:
    """A job again and again on one executor; the first time it decodes the pictures, which does not count."""
    clients = clients_of(PACK, arrange_clients(PACK, None))
    try:
        simulate(_SPEC, clients, executor)
        done = [simulate(_SPEC, clients, executor) for _ in range(runs)]
    finally:
        executor.close()
    if any(each.state != "done" for each in done):
        raise BenchError(f"the job of the benchmark {done[-1].state}: {done[-1].reason}")
    setting = "pi, 64 px, n = 5, K = 4, B = 16"
    return [
        row(f"rounds a minute, {who}: {setting}", [60 * _SPEC.rounds / each.wall_s for each in done], "1/min"),
        row(f"switch + load + average, {who}", [each.overhead_share for each in done], "share", OVERHEAD),
        *(row(f"  {name}, {who}", [_share(each, name) for each in done], "share") for name in _PARTS),
    ]


_PARTS = ("switch", "load", "average", "coordinate")


def _share(done: Simulation, name: str) -> float:
    return done.profile[name] / sum(seconds for kind, seconds in done.profile.items() if kind != "wait")


@dataclass(frozen=True, slots=True)
class _Noise:
    """Samples of random values: what they show does not change what they cost."""

    tasks: tuple[str, ...]
    size: int
    samples: int
    usable: int = 0
    skipped_total: int = 0
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.samples

    def load(self, indices: Sequence[int]) -> Batch:
        """As many random samples."""
        shape = (len(indices), self.size, self.size)
        targets = {}
        for task in self.tasks:
            spec = TASKS[task]
            if spec.is_classes:
                targets[task] = torch.randint(1, spec.channels, shape)[:, None]
            else:
                targets[task] = torch.randn(len(indices), spec.channels, self.size, self.size)
        return Batch(torch.rand(len(indices), 3, self.size, self.size), targets, torch.ones(shape)[:, None])

    def check_faults(self) -> None:
        """There are none."""


def _order(network: str, tasks: tuple[str, ...], size: int, batch_size: int, probe_every: int) -> TrainOrder:
    return TrainOrder(
        key=OrderKey("bench", "merged", 0, "bench", 0, "train"),
        tasks=tasks,
        network=network,
        size=size,
        base=make_ref(b""),
        seed=1,
        settings=TrainSettings(batch_size=batch_size, lr=1e-3),
        probe_every=probe_every,
        update_dtype="fp32",
        max_skipped_share=0.0,
        ttl_s=600.0,
    )


def _converted(runs: int, letters: str) -> Row:
    """Seconds of a step of xception-small, as rounds a minute of so many pictures."""
    tasks = parse_tasks([letters])
    order = _order("xception-small", tasks, _SIZE, _BATCH, 0)
    bench, base = Workbench(), export_state(build_network("xception-small", tasks, _SIZE, seed=0))
    took_s = []
    for index in range(runs + 1):
        began_s = time.perf_counter()
        bench.train(order, base, _Noise(tasks, _SIZE, _BATCH), SpanRecorder(), lambda *_: None)
        if index:  # the first plans its convolutions
            took_s.append(time.perf_counter() - began_s)
    pictures = _CLIENTS * _PICTURES
    setting = f"xception-small, {_SIZE} px, n = {len(tasks)}, {pictures} pictures"
    figure = f"rounds a minute, from one step: {setting}"
    return row(figure, [60 / (seconds * pictures / _BATCH) for seconds in took_s], "1/min")


def _lookahead(count: int, runs: int) -> Row:
    """What a probe every rho batches adds to the CPU seconds of training, for the first `count` of the nine tasks."""
    tasks = parse_tasks([_TASKS])[:count]
    bench, base = Workbench(), export_state(build_network("pi", tasks, 64, seed=0))
    samples = _Noise(tasks, 64, _RHO * _BATCH)

    def cpu_s(probe_every: int) -> float:
        spans = SpanRecorder()
        order = _order("pi", tasks, 64, _BATCH, probe_every)
        done, _ = bench.train(order, base, samples, spans, lambda *_: None)
        if probe_every and (done.affinity is None or done.affinity.batches != 1):
            raise BenchError("the benchmark's one probe did not count")
        return sum(span.cpu_s for span in done.spans)

    cpu_s(_RHO)
    shares = [cpu_s(_RHO) / cpu_s(0) - 1 for _ in range(max(runs, 1))]
    return row(f"lookahead at rho = {_RHO}, on top of training, n = {count}", shares, "share")


BENCHMARK = Benchmark(
    "simulate",
    "rounds a minute, what of them is not training, and the lookahead's overhead",
    run,
    (SimulationError, ExecutorError),
)
