"""What a simulation tells while it runs and when it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aggregator.record import Record
from models.state import State
from models.wire.messages import JobStatus

#: What a profile is made of: the workers' seconds, then the driver's.
WORK = ("train", "affinity", "evaluate", "load", "switch")
OWN = ("average", "coordinate", "wait")


class SimulationError(Exception):
    """A job that cannot go on, for a reason that is not the job's; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. `share` is of its present plan, 0..1; `left_s` is None until something can be said."""

    status: JobStatus
    share: float
    elapsed_s: float
    left_s: float | None


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of a job.

    `record` is like a fleet's, but nothing was deployed: the state of a job that is done is "exporting". `flops` were
    counted of the works really done, by train, affinity, evaluate. `profile` are seconds: of all workers together for
    train, affinity, evaluate, load, switch; of the driver for average, coordinate, wait. `models` are those to deploy,
    by split. `lost` counts orders that were done again because their worker was lost.
    """

    record: Record
    state: Literal["done", "diverged", "failed"]
    reason: str
    flops: dict[str, float]
    profile: dict[str, float]
    wall_s: float
    models: dict[str, State]
    executor: str
    workers: int
    lost: int

    @property
    def overhead_share(self) -> float:
        """Client switching, loading and averaging, of the seconds in which something was done."""
        overhead_s = sum(self.profile[name] for name in ("load", "switch", "average"))
        done_s = overhead_s + sum(self.profile[name] for name in ("train", "affinity", "evaluate"))
        return overhead_s / done_s if done_s else 0.0
