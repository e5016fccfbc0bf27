"""A run in simulation: all clients in this process, on one core or one GPU."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from edge_agent.power.base import Meter
from edge_agent.power.estimate import CpuTimeEstimate
from tools.demo.plan import AgentPlan
from tools.experiment.child import Outcome, Said, Say
from tools.experiment.plan import RunPlan
from tools.experiment.run_record import DataUsed, Flops
from tools.simulate.clients import Client, clients_of
from tools.simulate.driver import simulate
from tools.simulate.energy import meter_for
from tools.simulate.inprocess import in_process
from tools.simulate.memory import pictures_bytes
from tools.simulate.simulation import Progress
from tools.simulate.worker import Device, Precision, WorkerSettings


def train_in_simulation(plan: RunPlan, say: Say) -> Outcome:
    """The plan's job; its joules are estimated from the CPU seconds of the clients' work.

    Raises what `tools.simulate.driver.simulate` raises; a job that fails or diverges is an outcome.
    """
    executor = in_process(worker_settings(plan))
    try:
        found = simulate(
            plan.spec,
            clients_of_data(plan.data, Path(plan.root)),
            executor,
            progress=lambda progress: say(_said(progress)),
            meter=_meter(plan),
        )
    finally:
        executor.close()
    return Outcome(found.state, found.reason, found.record, Flops(**found.flops), found.profile)


def worker_settings(plan: RunPlan) -> WorkerSettings:
    """How the clients' work is done: with the pictures' memory shared with the runs beside this one."""
    return WorkerSettings(
        device=cast(Device, plan.device),
        precision=cast(Precision, plan.precision),
        threads=plan.threads,
        cache_bytes=pictures_bytes(plan.device, plan.slots),
    )


def clients_of_data(data: DataUsed, root: Path) -> list[Client]:
    """The simulated clients of a dataset at `root`, as it was dealt."""
    agents = [AgentPlan(held.agent, held.train_buildings, held.test_buildings) for held in data.clients]
    return clients_of(root, agents, data.data_format)


def _meter(plan: RunPlan) -> Meter:
    if plan.device == "cpu":
        return CpuTimeEstimate(plan.watts_per_core, lambda: 0.0)
    return meter_for(plan.device)


def _said(progress: Progress) -> Said:
    splits = progress.status.splits
    return Said(sum(split.round - split.first_round for split in splits), progress.status.state)
