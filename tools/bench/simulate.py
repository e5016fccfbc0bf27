"""Simulated rounds: how many a minute, what of them is not training, and what the lookahead adds to training.

Rounds are measured at a scaled setting that any machine can do, after its pictures have been decoded. The settings of
MAS's released code (32 clients, K = 4, B = 64, E = 1, nine tasks, xception-small at 256 pixels) are for GPUs. What is
published of them is 7.28 GPU hours for 100 rounds of all-in-one, 0.23 rounds a minute, on hardware that is not ours and
pictures that are not here. Our row at their shape is one training step on one CPU thread, or on the GPU where there is
one, multiplied: nobody has run such a round here, and the two figures say nothing about each other.

The lookahead's overhead is a quotient of CPU seconds of the same orders with and without it, taken in turns in one
process.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from edge_agent.trainer.execution import Execution
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
_SIZE, _BATCH = 64, 8


def run(quick: bool) -> list[Row]:
    """One torch thread for each worker, as everywhere in a simulation on a CPU."""
    torch.set_num_threads(1)
    runs = 1 if quick else 3
    counts = (1, 2) if quick else (1, 2, 3, 5, 9)
    rows = _rounds("one worker", in_process(WorkerSettings()), runs)
    cores = os.cpu_count() or 1
    if not quick and cores > 1:
        rows += _rounds(f"{cores} workers", processes(WorkerSettings(), cores), runs)
    rows.append(_converted(_SMALL, runs, torch.device("cpu")))
    if not quick:
        rows.append(_released(runs))
    return [*rows, *(_lookahead(count, runs) for count in counts)]


def _rounds(who: str, executor: Executor, runs: int) -> list[Row]:
    """A job again and again on one executor; the first time it decodes the pictures, which is told apart."""
    clients = clients_of(PACK, arrange_clients(PACK, None))
    try:
        first = simulate(_SPEC, clients, executor)
        done = [simulate(_SPEC, clients, executor) for _ in range(runs)]
    finally:
        executor.close()
    if any(each.state != "done" for each in done):
        raise BenchError(f"the job of the benchmark {done[-1].state}: {done[-1].reason}")
    setting = "pi, 64 px, n = 5, K = 4, B = 16"
    return [
        row(f"rounds a minute, {who}: {setting}", [60 * _SPEC.rounds / each.wall_s for each in done], "1/min"),
        row(
            f"switch + load + average, pictures decoded before, {who}",
            [each.overhead_share for each in done],
            "share",
            OVERHEAD,
        ),
        row(f"  load of the first job, which decodes, {who}", [first.profile["load"]], "s"),
        *(row(f"  {words}, {who}", [_share(each, name) for each in done], "share") for name, words in _PARTS.items()),
    ]


#: Kinds of a profile's seconds, in the words of a row.
_PARTS: Mapping[str, str] = MappingProxyType(
    {
        "switch": "switch",
        "load": "load without decoding: batches out of memory",
        "average": "average",
        "coordinate": "coordinate",
    }
)


def _share(done: Simulation, name: str) -> float:
    return done.profile[name] / sum(seconds for kind, seconds in done.profile.items() if kind != "wait")


@dataclass(frozen=True, slots=True)
class _Shape:
    """Settings of which one step is measured; a round is K clients with so many pictures each, once through."""

    letters: str
    size: int
    batch_size: int
    clients: int = 4
    pictures: int = 256


#: A step that takes moments.
_SMALL = _Shape("sdnkt", _SIZE, _BATCH)
#: The released code's: as many pictures in a batch as a CPU does in seconds. What a picture takes hardly depends on it.
_RELEASED = _Shape(_TASKS, 256, 2)
#: And as many as the released code's, where there is a GPU for them.
_RELEASED_BATCH = 64


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


def _released(runs: int) -> Row:
    """At the shape of the released settings, on the GPU with the whole batch where there is one."""
    if torch.cuda.is_available():
        whole = dataclasses.replace(_RELEASED, batch_size=_RELEASED_BATCH)
        return _converted(whole, runs, torch.device("cuda"))
    return _converted(_RELEASED, runs, torch.device("cpu"))


def _converted(shape: _Shape, runs: int, device: torch.device) -> Row:
    """Seconds of a step of xception-small, as rounds a minute of so many pictures."""
    tasks, size, batch = parse_tasks([shape.letters]), shape.size, shape.batch_size
    order = _order("xception-small", tasks, size, batch, 0)
    bench, base = Workbench(Execution(device)), export_state(build_network("xception-small", tasks, size, seed=0))
    took_s = []
    for index in range(runs + 1):
        began_s = time.perf_counter()
        bench.train(order, base, _Noise(tasks, size, batch), SpanRecorder(), lambda *_: None)
        if index:  # the first plans its convolutions
            took_s.append(time.perf_counter() - began_s)
    pictures = shape.clients * shape.pictures
    where = "one CPU thread" if device.type == "cpu" else torch.cuda.get_device_name(device)
    setting = f"xception-small, {size} px, n = {len(tasks)}, B = {batch}, {pictures} pictures, {where}"
    figure = f"rounds a minute, converted from one step: {setting}"
    return row(figure, [60 / (seconds * pictures / batch) for seconds in took_s], "1/min")


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
