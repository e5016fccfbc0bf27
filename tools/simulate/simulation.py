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
    """How far a job is. `share` is of its present stage, 0..1, and so is `left_s`, which is None until something can be
    said; what a later stage will train is not known before it is decided."""

    status: JobStatus
    share: float
    elapsed_s: float
    left_s: float | None


@dataclass(slots=True)
class Pace:
    """What the present stage has left, by how fast it has gone so far."""

    _stage: int | None = None
    _began_s: float = 0.0
    _began_share: float = 0.0

    def left_s(self, stage: int, share: float, now_s: float) -> float | None:
        """Seconds to a share of 1; None where a stage has only begun."""
        if stage != self._stage:
            self._stage, self._began_s, self._began_share = stage, now_s, share
        gone = share - self._began_share
        return (now_s - self._began_s) * (1 - share) / gone if gone > 0 else None


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of a job.

    `record` is like a fleet's, but nothing was deployed: the state of a job that is done is "exporting". `flops` were
    counted of the works really done, by train, affinity, evaluate. `profile` are seconds: of all workers together for
    train, affinity, evaluate, load, switch; of the driver for average, coordinate, wait. `models` are those to deploy,
    by split. `threads` are those of each worker, on which the last bits depend. `lost` counts orders that were done
    again because their worker was lost.
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
    threads: int
    lost: int

    @property
    def overhead_share(self) -> float:
        """Client switching, loading and averaging, of the seconds in which something was done."""
        overhead_s = sum(self.profile[name] for name in ("load", "switch", "average"))
        done_s = overhead_s + sum(self.profile[name] for name in ("train", "affinity", "evaluate"))
        return overhead_s / done_s if done_s else 0.0
