"""Everything the coordinator knows: one fleet and all its jobs.

Frozen; a step makes a new state and shares what is unchanged.

Small on purpose: of models only those that something outstanding still needs, of closed rounds only what the record
shows. Dicts are never changed in place.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from aggregator.affinity import AffinityTotal
from aggregator.attribution import PartWork
from aggregator.coordinator.events import SplitBundle
from aggregator.coordinator.round_state import Evaluation, Round, RoundRecord
from aggregator.schemes.base import Decision
from models.energy import EnergyTotal
from models.wire.job import JobSpec, TrainSettings
from models.wire.messages import BlobRef, Capabilities, JobState, OrderKey, TrainReport

SplitPhase = Literal["preparing", "training", "unmasking", "averaging", "trained"]
ENDED: frozenset[JobState] = frozenset({"deployed", "failed", "cancelled"})


class Order(msgspec.Struct, frozen=True, gc=False):
    """An order an agent owes us, or (`sent_at` None) one that waits until the agent is free.

    `serial` orders all sendings, so that a resumed aggregator sends again in the same order. `report_here`: its agent
    has answered, and what is lacking of the answer waits for us; no deadline passes for it.
    """

    key: OrderKey
    serial: int
    sent_at: float | None = None
    replacement: bool = False
    report_here: bool = False


class Rest(msgspec.Struct, frozen=True):
    """An agent is not asked for orders of `job` and `kind` with at least `tasks` tasks before `until`, and why.

    A rest of kind "" is from every order of every job (`job` is "" then). Else it is of one job alone: what an order
    takes depends on the job's network, size and epochs as much as on its tasks, so a dear one declined says nothing of
    a cheap one. `until` is in seconds since the epoch, on the aggregator's clock.
    """

    kind: Literal["", "train", "evaluate", "deploy"]
    tasks: int
    until: float
    reason: str
    job: str = ""


class Agent(msgspec.Struct, frozen=True, gc=False):
    """One device. At most one of its orders is sent, help with masks aside; `strikes` counts failures since the last
    success or boot.

    `rests` are what it cannot afford for the time being, as it said itself.
    """

    agent: str
    boot: str
    online: bool
    capabilities: Capabilities
    strikes: int = 0
    orders: tuple[Order, ...] = ()
    rests: tuple[Rest, ...] = ()

    @property
    def busy(self) -> OrderKey | None:
        """The order it works on, if any. Help with masks is no work: it is given beside it, and at once."""
        sent = (order.key for order in self.orders if order.sent_at is not None)
        return next((key for key in sent if key.kind != "unmask"), None)


class Kept(msgspec.Struct, frozen=True):
    """A device in quarantine, from when and until when (seconds since the epoch), and why."""

    since: float
    until: float
    reason: str


class Barred(msgspec.Struct, frozen=True):
    """An agent that said it cannot do this kind of order for this split, and why."""

    agent: str
    kind: Literal["train", "evaluate", "deploy"]
    reason: str


class SmallerBatch(msgspec.Struct, frozen=True):
    """An agent that had not the memory for larger batches gets orders of this kind with batches of this size."""

    agent: str
    kind: Literal["train", "evaluate"]
    batch_size: int


class Base(msgspec.Struct, frozen=True):
    """A model that agents train from, and what went with its orders."""

    model: BlobRef
    loss_weights: tuple[float, ...] = ()
    reference_losses: tuple[float, ...] = ()


class Asked(msgspec.Struct, frozen=True):
    """How many orders an agent had from the newest model that it was asked to train from."""

    round: int
    orders: int = 0


class Buffer(msgspec.Struct, frozen=True):
    """What a split with buffered rounds knows beside its open round (see `buffered`).

    `flights` are the orders under way or queued, by agent; `asked` says what numbers were used; `bases` are the models
    that flights began with, by round, and the newest. `ahead` are updates that came while a model was being made.
    `failures` are of the buffer that is open, by agent.
    """

    flights: dict[str, OrderKey] = {}
    asked: dict[str, Asked] = {}
    bases: dict[int, Base] = {}
    ahead: tuple[TrainReport, ...] = ()
    failures: dict[str, int] = {}


class Split(msgspec.Struct, frozen=True):
    """One split of a job. `model` is the base of round `round`, kept only while something needs it.

    `serves`, `agents`, `lr_from`, `train` and `validate` are those of its plan; `serves` is emptied when a further
    stage takes over. `loss_weights` and `reference_losses` go with the next order where GradNorm weights the losses.
    `smaller` are agents with less memory than the job's batches take; `buffer` is there where rounds are buffered.
    `effect_serial` orders the pending prepare or average among the sendings; `waiting` says what is lacking.
    """

    split: str
    tasks: tuple[str, ...]
    stage: int
    first_round: int
    last_round: int
    probe_rounds: int
    parent: str | None
    phase: SplitPhase
    round: int
    effect_serial: int = 0
    model: BlobRef | None = None
    model_sha256: str = ""
    current: Round | None = None
    evaluations: tuple[Evaluation, ...] = ()
    history: tuple[RoundRecord, ...] = ()
    barred: tuple[Barred, ...] = ()
    bundle: SplitBundle | None = None
    waiting: str = ""
    serves: tuple[str, ...] = ()
    agents: tuple[str, ...] | None = None
    lr_from: int = 0
    train: TrainSettings | None = None
    validate: bool = False
    loss_weights: tuple[float, ...] = ()
    reference_losses: tuple[float, ...] = ()
    smaller: tuple[SmallerBatch, ...] = ()
    buffer: Buffer | None = None


class Deployment(msgspec.Struct, frozen=True):
    """One split's bundle on one agent. `failures` counts what the agent said; that it was lost meanwhile counts not."""

    agent: str
    split: str
    attempt: int
    state: Literal["open", "active", "failed"]
    manifest_sha256: str
    onnx_max_abs_err: float | None = None
    inference_ms: float | None = None
    reason: str = ""
    failures: int = 0


class Spared(msgspec.Struct, frozen=True):
    """Orders that an agent declined for want of joules or for its board's sake, and what they would have cost.

    `energy_j` is foreseen by the agent from orders of its past; None while it could foresee none of them.
    """

    orders: int = 0
    energy_j: float | None = None
    reason: str = ""


class Late(msgspec.Struct, frozen=True):
    """An agent's updates that came too late to count, and what they cost; `stale` of them were too far behind."""

    updates: int = 0
    stale: int = 0
    samples: int = 0
    train_s: float = 0.0
    bytes_up: int = 0
    energy: EnergyTotal = EnergyTotal()


class Spent(msgspec.Struct, frozen=True):
    """What the job has cost so far. `energy[split][phase]`; `unanswered` are orders sent that nobody accounted for.

    `skipped_by` is the largest count of skipped files an agent reported for one kind of order, by "agent/kind".
    `spared` is what was not spent, by agent, `late` what was spent on updates that came too late, and `flags` what
    makes an agent's figures doubtful.
    """

    energy: dict[str, dict[str, EnergyTotal]] = {}
    unanswered: tuple[OrderKey, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    train_s: float = 0.0
    skipped: tuple[str, ...] = ()
    skipped_by: dict[str, int] = {}
    spared: dict[str, Spared] = {}
    late: dict[str, Late] = {}
    flags: dict[str, tuple[str, ...]] = {}


class Job(msgspec.Struct, frozen=True):
    """One job. `served` is the serial of the last order sent for it, so that the longest unserved goes first;
    `served_by` is the same for each agent.

    `diverged`: it failed because training came to what is not finite.
    `parts` is what its network's encoder and heads take, by name, as far as it was counted; `modes` the power mode in
    which each agent worked first. While it is paused `paused_at` says since when; `paused_s` sums pauses that ended.
    """

    job: str
    spec: JobSpec
    state: JobState
    started_at: float
    reason: str = ""
    finished_at: float | None = None
    served: int = 0
    stage: int = 0
    effect_serial: int = 0
    splits: dict[str, Split] = {}
    agents: dict[str, Capabilities] = {}
    affinity: AffinityTotal | None = None
    decision: Decision | None = None
    deployments: dict[str, Deployment] = {}
    spent: Spent = Spent()
    diverged: bool = False
    parts: dict[str, PartWork] = {}
    modes: dict[str, str] = {}
    served_by: dict[str, int] = {}
    paused_at: float | None = None
    paused_s: float = 0.0

    @property
    def paused(self) -> bool:
        """Whether none of its orders is given out at present."""
        return self.paused_at is not None

    @property
    def ended(self) -> bool:
        """Whether nothing more will be trained."""
        return self.state in ENDED

    @property
    def stage_splits(self) -> tuple[Split, ...]:
        """The splits of the present stage."""
        return tuple(split for split in self.splits.values() if split.stage == self.stage)

    @property
    def served_splits(self) -> tuple[Split, ...]:
        """The splits that serve a task as things stand; once the job is trained, those that are deployed."""
        return tuple(split for split in self.splits.values() if split.serves)

    def awaits(self, split: Split) -> bool:
        """Whether the job cannot end well before this split's last model is evaluated."""
        return split.stage == self.stage or bool(split.serves)


class State(msgspec.Struct, frozen=True):
    """The fleet and all jobs, by identifier. `newest_deployed` is the job late agents are given.

    `quarantine`: agents that get no orders, and of which nothing counts.
    """

    agents: dict[str, Agent] = {}
    jobs: dict[str, Job] = {}
    serial: int = 0
    newest_deployed: str = ""
    quarantine: dict[str, Kept] = {}
