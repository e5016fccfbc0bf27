"""What an idle agent costs its board: the real command, connected to a real broker, waiting for orders.

Two agents idle side by side: one without a power meter, and one that samples a meter (a copy of a Jetson's files) ten
times a second, as on a real board. They are watched when they are fresh, and again after a job that they trained,
evaluated and installed: what a process took for that, it does not always give back.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from models.link.base import LinkError
from tools.bench.base import Benchmark, Bound, Row, row
from tools.bench.fleet import AgentPlan, agent, aggregator, do_job
from tools.bench.proc import cpu_s, memory_bytes
from tools.broker import BrokerError, EmbeddedBroker
from tools.client import FleetError

RESIDENT = Bound(60e6)
BUSY = Bound(0.01)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One agent over one window: resident and proportional bytes at its end, share of a core within it."""

    resident_bytes: float
    proportional_bytes: float
    core: float


def run(quick: bool) -> list[Row]:
    """15 s fresh, a job of some rounds, 15 s again."""
    settle_s, windows, window_s, rounds = (0.0, 1, 0.2, 1) if quick else (5.0, 5, 3.0, 4)
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mas-bench-")))
        plans = _plans(folder)
        pids = {plan.name: stack.enter_context(agent(broker.url, folder, plan)) for plan in plans}
        time.sleep(settle_s)
        fresh = [_watch(pids, window_s) for _ in range(windows)]
        with aggregator(broker.url, folder):
            asyncio.run(do_job(broker.url, rounds, len(plans)))
        time.sleep(settle_s)
        worked = [_watch(pids, window_s) for _ in range(windows)]
    rows = []
    for name in pids:
        rows += _rows(f"fresh, {name}", [seen[name] for seen in fresh])
        rows += _rows(f"after a job, {name}", [seen[name] for seen in worked])
    return rows


def _rows(which: str, seen: list[_Seen]) -> list[Row]:
    return [
        row(f"resident, {which}", [each.resident_bytes for each in seen], "B", RESIDENT),
        row(f"PSS, {which}", [each.proportional_bytes for each in seen], "B"),
        row(f"of a core, {which}", [each.core for each in seen], "share", BUSY),
    ]


def _plans(folder: Path) -> list[AgentPlan]:
    board = _write_board(folder / "board")
    return [
        AgentPlan("unmetered", "alder", "maple", {"source": "estimate"}),
        AgentPlan("meter-10-hz", "birch", "nutmeg", {"source": "jetson-sysfs", "root": str(board)}),
    ]


def _watch(pids: Mapping[str, int], window_s: float) -> dict[str, _Seen]:
    """All agents over the same window."""
    before, began_s = {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic()
    time.sleep(window_s)
    spent = {name: cpu_s(pid) - before[name] for name, pid in pids.items()}
    took_s = time.monotonic() - began_s
    return {
        name: _Seen(
            memory_bytes(pid, "VmRSS"), memory_bytes(pid, "Pss", "smaps_rollup"), max(0.0, spent[name] / took_s)
        )
        for name, pid in pids.items()
    }


def _write_board(root: Path) -> Path:
    """The files of a Jetson's power monitor: one rail of 5 V and 1.2 A."""
    monitor = root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon0"
    monitor.mkdir(parents=True)
    for name, text in {"in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "1200"}.items():
        (monitor / name).write_text(f"{text}\n")
    return root


BENCHMARK = Benchmark(
    "agent",
    "memory and CPU of the idle agent daemon",
    run,
    (BrokerError, FleetError, LinkError),
)
