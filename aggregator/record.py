"""The record of a job: everything a report, a table or a JSON file shows, built from the coordinator's state."""

from __future__ import annotations

import msgspec

from aggregator.affinity import Matrix
from aggregator.coordinator.state import JobPhase, RoundRecord
from aggregator.schemes.base import Decision
from models.wire.job import JobSpec
from models.wire.messages import EnergyState


class AgentRecord(msgspec.Struct, frozen=True):
    """A device that was given work by the job, and what it said of itself."""

    agent: str
    train_samples: int
    test_samples: int
    energy_source: str
    energy_state: EnergyState


class SplitRecord(msgspec.Struct, frozen=True):
    """One split; rounds `first_round .. last_round` (included). `final` splits are those that are deployed."""

    split: str
    tasks: tuple[str, ...]
    parent: str | None
    first_round: int
    last_round: int
    final: bool
    model_sha256: str
    rounds: tuple[RoundRecord, ...]


class AffinityRecord(msgspec.Struct, frozen=True):
    """Mean affinity `[source, target]` over `batches` probed batches of `rounds` rounds."""

    tasks: tuple[str, ...]
    matrix: Matrix
    batches: int
    rounds: int


class EnergyRecord(msgspec.Struct, frozen=True):
    """Joules of one phase of one split, over all devices."""

    split: str
    phase: str
    energy_j: float | None
    state: EnergyState
    duration_s: float
    cpu_s: float
    source: str
    scope: str
    reason: str


class PhaseJoules(msgspec.Struct, frozen=True):
    """Joules of one phase over the whole job."""

    energy_j: float | None
    state: EnergyState


class BundleRecord(msgspec.Struct, frozen=True):
    """A bundle that is active on an agent."""

    agent: str
    split: str
    manifest_sha256: str
    onnx_max_abs_err: float
    inference_ms: float


class DeployFailure(msgspec.Struct, frozen=True):
    """A bundle that did not become active on an agent."""

    agent: str
    split: str
    reason: str


class Record(msgspec.Struct, frozen=True):
    """One job. Times are seconds since the epoch; `train_s` sums over devices; `losses` are final held-out means."""

    job: str
    spec: JobSpec
    state: JobPhase
    reason: str
    started_at: float
    finished_at: float | None
    wall_s: float
    agents: tuple[AgentRecord, ...]
    splits: tuple[SplitRecord, ...]
    affinity: AffinityRecord | None
    decision: Decision | None
    losses: dict[str, float]
    total_loss: float | None
    energy: tuple[EnergyRecord, ...]
    energy_j: float | None
    energy_state: EnergyState
    energy_reason: str
    energy_by_phase: dict[str, PhaseJoules]
    bytes_up: int
    bytes_down: int
    train_s: float
    bundles: tuple[BundleRecord, ...]
    deploy_failures: tuple[DeployFailure, ...]
    skipped: tuple[str, ...]
    skipped_total: int
