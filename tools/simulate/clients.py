"""Simulated devices: which pictures each holds, and what it would tell an aggregator of itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.config import DataConfig
from edge_agent.inventory import take_inventory
from edge_agent.power.base import Meter
from edge_agent.trainer.protocol import Setup
from models.wire.messages import Capabilities
from tools.demo.plan import AgentPlan
from tools.simulate.memory import host_bytes

#: Decoded pictures that an agent keeps by its default settings.
CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Client:
    """One device of the simulated fleet and the data it alone may use."""

    agent: str
    setup: Setup


def clients_of(root: Path, plans: Sequence[AgentPlan], data_format: str = "taskonomy") -> list[Client]:
    """A client for each plan, all on the dataset at `root`."""
    return [Client(plan.agent, Setup(str(root), plan.train, plan.test, 1, CACHE_BYTES, data_format)) for plan in plans]


def capabilities(client: Client, meter: Meter) -> Capabilities:
    """What the client's presence would say. Raises InventoryError when its settings and data do not fit together."""
    setup = client.setup
    found = take_inventory(DataConfig(setup.data_root, setup.train_buildings, setup.test_buildings, setup.data_format))
    return Capabilities(
        labels=found.labels,
        train_samples=found.train_samples,
        test_samples=found.test_samples,
        energy_source=meter.source,
        energy_state=meter.state,
        cores=os.cpu_count() or 1,
        memory_bytes=host_bytes(),
        val_samples=found.val_samples,
    )
