"""A small fleet to measure: an aggregator and agents as processes of their own, and a short job for them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_agent.status import read_status
from models.wire.job import JobSpec, TrainSettings
from models.wire.messages import JobStatus
from tools.bench.base import BenchError
from tools.bench.model import SIZE, TASKS
from tools.client import FleetClient
from tools.demo.plan import PACK

FLEET = "bench"
_CONNECT_S = 60.0
_JOB_S = 240.0
_STOP_S = 15.0
_POLL_S = 0.05
_ENDS = ("deployed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """One agent: a building to train on, one to test on, and its `[power]` settings."""

    name: str
    train: str
    test: str
    power: Mapping[str, str]


@contextmanager
def aggregator(broker: str, folder: Path) -> Iterator[int]:
    """The process id of an aggregator; whether it is up shows in its answers."""
    settings = _toml({"broker": broker, "fleet": FLEET, "state_dir": str(folder / "aggregator")})
    with _command("aggregator", "aggregator", folder, settings) as (process, _):
        yield process.pid


@contextmanager
def agent(broker: str, folder: Path, plan: AgentPlan) -> Iterator[int]:
    """The process id of an agent once it is connected. Raises BenchError when it does not connect."""
    state_dir = folder / plan.name
    settings = "\n".join(
        (
            _toml({"id": plan.name, "fleet": FLEET, "broker": broker, "state_dir": str(state_dir)}),
            "[data]",
            _toml({"root": str(PACK), "train": [plan.train], "test": [plan.test]}),
            "[trainer]",
            _toml({"threads": 1, "idle_exit_s": 0.5}),
            "[power]",
            _toml(plan.power),
        )
    )
    with _command("agent", plan.name, folder, settings) as (process, log):
        deadline_s = time.monotonic() + _CONNECT_S
        while (status := read_status(state_dir)) is None or not status.connected:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise BenchError(f"{plan.name} did not connect; its log ends: {log.read_text(errors='replace')[-800:]}")
            time.sleep(_POLL_S)
        yield process.pid


async def do_job(broker: str, rounds: int, agents: int) -> None:
    """Train the five tasks on all agents, and deploy the result to them. Raises BenchError unless that works."""
    spec = JobSpec(
        name="bench",
        tasks=TASKS,
        scheme="all-in-one",
        size=SIZE,
        rounds=rounds,
        merge_rounds=rounds,
        affinity_rounds=rounds,
        clients_per_round=agents,
        eval_every=rounds,
        deadline_s=_JOB_S,
        train=TrainSettings(batch_size=16, lr=0.05),
    )
    async with FleetClient(broker, FLEET) as client:
        await client.watch(client.topics.job_status_filter())
        job = await client.submit(spec)
        deadline_s = time.monotonic() + _JOB_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            said = await client.news(left_s)
            if said is None or not isinstance(status := said[1], JobStatus) or status.job != job:
                continue
            if status.state == "deployed":
                return
            if status.state in _ENDS:
                raise BenchError(f"the job {status.state}: {status.reason}")
    raise BenchError(f"the job did not end within {_JOB_S:.0f} s")


@contextmanager
def _command(what: str, name: str, folder: Path, settings: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`mas <what> run` with these settings, and its log; ended when the context is left."""
    config, log = folder / f"{name}.toml", folder / f"{name}.log"
    config.write_text(settings)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.cli.main", what, "run", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield process, log
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _toml(values: Mapping[str, str | float | Sequence[str]]) -> str:
    # JSON's strings, numbers and lists of strings are TOML as they stand.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
