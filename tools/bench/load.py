"""Ten, a hundred and a thousand light agents, each an MQTT session of its own, with updates of 1 MB.

Each agent fetches the model over its own session and sends an update that no other has; every one of them must count.
A real Mosquitto and a real aggregator serve them, each a process. The aggregator's peak memory is the most that it ever
had resident; it is to grow by less than one model for ten times the agents.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from models.link.base import LinkError
from models.link.transfer import BlobUnavailable
from tools.bench.base import BenchError, Benchmark, Bound, Row, row
from tools.bench.model import TASKS
from tools.bench.proc import cpu_s
from tools.broker import BrokerError
from tools.client import FleetError
from tools.demo.processes import ProcessDied
from tools.load.agent import SAMPLES
from tools.load.fleet import Fleet, Plan, lost_share, running, train

#: Agents, and rounds: 3000 updates of each fleet. What is in memory meets by chance, and a peak is the higher the more
#: often it may; a fleet that sends ten times the updates would have a higher one though it had no more agents.
_FLEETS = ((10, 300), (100, 30), (1000, 3))
_LIMIT_S = 900.0
FAULTS = (BrokerError, FleetError, LinkError, BlobUnavailable, ProcessDied)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One fleet's run."""

    agents: int
    update_bytes: float
    round_s: list[float]
    idle_bytes: float
    peak_bytes: float
    state_bytes: float
    aggregator_s: float
    broker_s: float
    lost: float
    copies: float


def run(quick: bool) -> list[Row]:
    """One fleet after the other, each with a fresh broker and a fresh aggregator."""
    fleets = ((2, 1), (4, 1)) if quick else _FLEETS
    seen = [_measure(Plan(agents, rounds, TASKS)) for agents, rounds in fleets]
    rows = [row(f"an update, of {each.agents}", [each.update_bytes], "B") for each in seen[:1]]
    rows += [line for each in seen for line in _rows(each)]
    return rows + [
        row(
            f"peak from {less.agents} to {more.agents} agents, in models",
            [(more.peak_bytes - less.peak_bytes) / more.state_bytes],
            "share",
            Bound(1.0),
        )
        for less, more in pairwise(seen)
    ]


def _rows(seen: _Seen) -> list[Row]:
    who = f"{seen.agents} agents"
    return [
        row(f"a round, {who}", seen.round_s, "s"),
        row(f"updates counted, {who}", [seen.agents / median(seen.round_s)], "1/s"),
        row(f"models that came for one, {who}", [seen.copies], "ratio"),
        row(f"updates lost or made again, {who}", [seen.lost], "share", Bound(0.0)),
        row(f"aggregator before the job, {who}", [seen.idle_bytes], "B"),
        row(f"aggregator at its peak, {who}", [seen.peak_bytes], "B"),
        row(f"aggregator's CPU an update, {who}", [seen.aggregator_s], "s"),
        row(f"broker's CPU an update, {who}", [seen.broker_s], "s"),
    ]


def _measure(plan: Plan) -> _Seen:
    with running(plan) as fleet:
        resident: list[float] = []
        before = cpu_s(fleet.aggregator_pid), cpu_s(fleet.broker_pid)
        record = asyncio.run(train(fleet, _LIMIT_S, lambda _: resident.append(fleet.aggregator_rss_bytes)))
        spent = [cpu_s(pid) - was for pid, was in zip((fleet.aggregator_pid, fleet.broker_pid), before, strict=True)]
        updates = plan.agents * plan.rounds
        return _Seen(
            agents=plan.agents,
            update_bytes=record["bytes_up"] / updates,
            round_s=[done["wall_s"] for done in record["splits"][0]["rounds"]],
            idle_bytes=resident[0],
            peak_bytes=fleet.aggregator_peak_bytes,
            state_bytes=fleet.state_bytes,
            aggregator_s=spent[0] / updates,
            broker_s=spent[1] / updates,
            lost=_lost(fleet, record),
            copies=_copies(fleet),
        )


def _lost(fleet: Fleet, record: dict[str, Any]) -> float:
    """Share of the updates that do not count as they should: by the record, and by the agents' own notes."""
    rounds = record["splits"][0]["rounds"]
    counted = sum(len(set(done["agents"])) for done in rounds)
    if sum(done["samples"] for done in rounds) != counted * SAMPLES:
        raise BenchError("the rounds' samples are not those of the agents that the record says were counted")
    return lost_share(fleet.plan, rounds, fleet.done())


def _copies(fleet: Fleet) -> float:
    """Bytes of the model that the agents' sessions brought, by those that were needed: 1 when none came twice."""
    done = fleet.done()
    return sum(each.received_bytes for each in done) / sum(each.model_bytes for each in done)


BENCHMARK = Benchmark("load", "rounds of 10, 100 and 1000 light agents, updates of 1 MB", run, FAULTS)
