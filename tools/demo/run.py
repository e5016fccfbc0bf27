"""Runs the demo: broker, aggregator and agents as processes, one job per scheme, then the report."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from tools.broker import EmbeddedBroker
from tools.client import FleetClient
from tools.demo.live import Display
from tools.demo.plan import SCHEMES, AgentPlan, DemoSettings, job_spec
from tools.demo.predictions import predict
from tools.demo.processes import Processes
from tools.demo.summary import summarise, table, why
from tools.report.page import write_report

#: The name of every fleet that is started here.
FLEET = "demo"
_START_S = 120.0
_JOB_S = 6 * 3600.0
_LOOK_S = 0.5
#: Of models that an agent keeps; each round has a new one.
_STORE_BYTES = 16 * 2**20
_PACKAGES = ("mas-edge", "torch", "onnxruntime", "numpy", "paho-mqtt")


class DemoError(Exception):
    """The demo could not be finished; the message says why."""


@dataclass(frozen=True, slots=True)
class Demo:
    """What to run and where everything goes."""

    settings: DemoSettings
    agents: Sequence[AgentPlan]
    data_root: Path
    out: Path
    broker: str
    watts_per_core: float
    command: str


def run_demo(demo: Demo, console: Console) -> dict[str, Any]:
    """Everything from the first process to the report; returns the demo's JSON. Processes are gone when it returns."""
    shared = demo.settings
    console.print(
        f"starting {demo.broker or 'an embedded broker'}, an aggregator and {len(demo.agents)} agents; tasks "
        f"{', '.join(shared.tasks)}; {shared.rounds} rounds of {', '.join(SCHEMES)} on {demo.data_root}",
        highlight=False,
    )
    if demo.broker:
        return _with_broker(demo, console, demo.broker)
    with EmbeddedBroker(directory=demo.out / "broker") as broker:
        return _with_broker(demo, console, broker.url)


def _with_broker(demo: Demo, console: Console, url: str) -> dict[str, Any]:
    with Processes(demo.out / "logs") as processes:
        start_services(processes, demo.out, demo.agents, demo.data_root, demo.watts_per_core, url)
        records = asyncio.run(_jobs(demo, console, processes, url))
    return _conclude(demo, console, records)


def start_services(
    processes: Processes, out: Path, agents: Sequence[AgentPlan], data_root: Path, watts_per_core: float, url: str
) -> None:
    """Start an aggregator and the agents at the broker `url`; their settings and state go to `out`."""
    for name, settings, command in _services(out, agents, data_root, watts_per_core, url):
        path = out / "config" / f"{name}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(settings)
        processes.start(name, ["tools.cli.main", *command, "--config", str(path)])


def _services(
    out: Path, agents: Sequence[AgentPlan], data_root: Path, watts_per_core: float, url: str
) -> list[tuple[str, str, list[str]]]:
    """Name, settings (TOML) and sub-command of every process."""
    state = out / "state"
    if state.exists():
        shutil.rmtree(state)  # of an earlier demo; a demo always begins with new devices
    rows = [("aggregator", _toml(broker=url, fleet=FLEET, state_dir=str(state / "aggregator")), ["aggregator", "run"])]
    for plan in agents:
        head = _toml(
            id=plan.agent, fleet=FLEET, broker=url, state_dir=str(state / plan.agent), max_store_bytes=_STORE_BYTES
        )
        data = _toml(root=str(data_root), train=list(plan.train), test=list(plan.test))
        trainer = _toml(threads=1, keep_warm=True)
        power = _toml(source="auto", watts_per_core=watts_per_core)
        rows.append((plan.agent, f"{head}\n[data]\n{data}\n[trainer]\n{trainer}\n[power]\n{power}", ["agent", "run"]))
    return rows


def _toml(**values: Any) -> str:
    # JSON's strings, numbers, booleans and lists of strings are TOML as they stand.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


async def _jobs(demo: Demo, console: Console, processes: Processes, url: str) -> dict[str, dict[str, Any]]:
    records = {}
    async with FleetClient(url, FLEET) as client:
        topics = client.topics
        await client.watch(*topics.observer_filters())
        with Display(console, SCHEMES, len(demo.agents)) as display:

            async def until(arrived: Callable[[], bool], timeout_s: float, what: str) -> None:
                """Show what comes in until `arrived`; a process that ends meanwhile ends the demo."""
                deadline = time.monotonic() + timeout_s
                while not arrived():
                    said = await client.news(_LOOK_S)
                    if said is not None:
                        display.take(*said)
                    processes.check()
                    if time.monotonic() > deadline:
                        raise DemoError(f"{what} did not happen within {timeout_s:.0f} s; see {demo.out / 'logs'}")

            await until(lambda: display.aggregator_online, _START_S, "the start of the aggregator")
            await until(lambda: display.online == len(demo.agents), _START_S, "the start of all agents")
            display.say(f"{len(demo.agents)} agents are online; their logs are in {demo.out / 'logs'}")
            for scheme in SCHEMES:
                job = await client.submit(job_spec(scheme, demo.settings))
                await until(lambda job=job: display.ended(job), _JOB_S, f"the end of {job}")  # type: ignore[misc]
                records[scheme] = record = await client.record(job)
                if record["state"] != "deployed":
                    raise DemoError(f"{scheme} {record['state']}: {record['reason']}; see {demo.out / 'logs'}")
    return records


def _conclude(demo: Demo, console: Console, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Report, records and table."""
    summary = summarise(records, demo.settings.tasks, [plan.agent for plan in demo.agents])
    test = [building for plan in demo.agents for building in plan.test]
    predictions = predict(demo.out / "state" / demo.agents[0].agent, demo.data_root, test, demo.settings.tasks)
    (demo.out / "records.json").write_text(json.dumps(records))
    report = demo.out / "report.html"
    write_report(report, records, summary, predictions, _host(demo))
    console.print(table(summary))
    console.print(why(summary, records["mas"]), highlight=False)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    return summary


def _host(demo: Demo) -> dict[str, Any]:
    return {
        "command": demo.command,
        "versions": {name: version(name) for name in _PACKAGES},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "dataset": str(demo.data_root.name),
    }
