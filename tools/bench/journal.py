"""The aggregator's journal: events written one by one, each safe on disk before the next, and read back in order."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from aggregator.coordinator.events import TrainReported
from aggregator.journal import Journal, JournalError
from models.wire.chunks import make_ref
from models.wire.messages import AffinitySums, OrderKey, Phase, PhaseEnergy, TaskLoss, TrainReport
from tools.bench.base import BenchError, Benchmark, Row, row
from tools.bench.model import TASKS

_PHASES: tuple[Phase, ...] = ("train", "affinity", "communicate", "wait")


def run(quick: bool) -> list[Row]:
    """Reports of a round, as the coordinator journals them; beside them as many bytes appended to a file and synced."""
    runs, count = (2, 5) if quick else (5, 300)
    event = TrainReported(example_report())
    size = len(msgspec.msgpack.encode(event))
    appended, synced, replayed = [], [], []
    with tempfile.TemporaryDirectory(prefix="mas-bench-") as folder:
        for number in range(runs):
            synced.append(_synced_per_s(Path(folder) / f"{number}.bytes", size, count))
            with Journal(f"sqlite:///{folder}/{number}.db") as journal:
                appended.append(_per_s(partial(_append, journal, event, count), count))
                replayed.append(_per_s(partial(_replay, journal, count), count))
    return [
        row(f"append, events of {size} bytes", appended, "1/s"),
        row("append and sync of a plain file, same run", synced, "1/s"),
        row("append of plain", [ours / bare for ours, bare in zip(appended, synced, strict=True)], "share"),
        row("replay", replayed, "1/s"),
    ]


def example_report() -> TrainReport:
    """A report of five tasks with affinities and joules, of the size that a demo's agents send."""
    affinity = AffinitySums(2, tuple(tuple(0.01 * i - 0.02 * j for i in range(5)) for j in range(5)))
    energy = tuple(PhaseEnergy(phase, 2.5, 2.0, 11.25, "estimated", "cpu-time", "cpu") for phase in _PHASES)
    return TrainReport(
        key=OrderKey("job", "merged", 3, "agent-1", 0, "train"),
        update=make_ref(bytes(1_500_000)),
        samples=60,
        losses=tuple(TaskLoss(task, 12.5, 60) for task in TASKS),
        affinity=affinity,
        skipped=(),
        skipped_total=0,
        energy=energy,
        bytes_up=1_500_000,
        bytes_down=1_500_000,
        train_s=2.5,
    )


def _per_s(work: Callable[[], object], count: int) -> float:
    began_s = time.perf_counter()
    work()
    return count / (time.perf_counter() - began_s)


def _append(journal: Journal, event: TrainReported, count: int) -> None:
    for at in range(count):
        journal.append(event, float(at))


def _replay(journal: Journal, count: int) -> None:
    found = sum(1 for _ in journal.replay())
    if found != count:
        raise BenchError(f"{count} events were written and {found} were read back")


def _synced_per_s(path: Path, size: int, count: int) -> float:
    with path.open("wb", buffering=0) as file:

        def write() -> None:
            for _ in range(count):
                file.write(bytes(size))
                os.fsync(file.fileno())

        return _per_s(write, count)


BENCHMARK = Benchmark("journal", "events appended and replayed, SQLite with a sync an event", run, (JournalError,))
